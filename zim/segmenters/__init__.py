"""Every promptable model by name, behind one protocol: what the applications' ``--model`` takes.

ZIM models answer with mattes. SAM, SAM 2 and HQ-SAM answer with binary masks (logit > 0), which
is how the paper scores them; ``return_logits=True`` gives their logits at the picture's size.
"""

from __future__ import annotations

from pathlib import Path

from zim import plugins
from zim.api import load
from zim.predictor import ZimPredictor
from zim.protocols import Segmenter
from zim.weights.names import check_name
from zim.weights.rivals import RIVALS


def load_segmenter(name: str | Path, *, device: str = "auto", dtype: str = "auto") -> Segmenter:
    """Load anything that predicts mattes or masks.

    Args:
        name: what :func:`zim.load` takes, a rival's name (``sam_vit_b``, ``sam2_hiera_b+``,
            ``hq_sam_vit_l``, ``matte_anything``, ``matting_anything``, ``smat``, ``grabcut``,
            ``closed_form``), or a name of the entry point group ``zim.segmenters``.
        device: as for :func:`zim.load`.
        dtype: as for :func:`zim.load`; of the rivals only image encoders use it, and ``auto``
            is float32 there.

    Returns:
        An object with ``set_image`` and ``predict``; a :class:`zim.ZimPredictor` for ZIM models.

    Raises:
        ZimError: no such model, or its weights or packages are missing.
    """
    text = str(name)
    if text in plugins.names("zim.segmenters"):
        return plugins.find("zim.segmenters", text)(device=device, dtype=dtype)
    check_name(text, rivals=True)
    rival = RIVALS.get(text)
    if rival is None:
        return ZimPredictor(load(name, device=device, dtype=dtype))
    if rival.family == "classical":
        from zim.segmenters.classical import ClosedForm, GrabCut

        return GrabCut() if text == "grabcut" else ClosedForm()
    if rival.family == "supplied":
        from zim.segmenters.supplied import load_supplied

        return load_supplied(rival, device=device)
    from zim.segmenters.hub import load_hub_sam

    if rival.family == "matte_anything":
        from zim.segmenters.matte_anything import load_matte_anything

        return load_matte_anything(rival, device=device, dtype=dtype)
    return load_hub_sam(rival, device=device, dtype=dtype)
