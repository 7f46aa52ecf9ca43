"""Every promptable model by name, behind one protocol: what the applications' ``--model`` takes."""

from __future__ import annotations

from pathlib import Path

from zim import plugins
from zim.api import load
from zim.predictor import ZimPredictor
from zim.protocols import Segmenter


def load_segmenter(name: str | Path, *, device: str = "auto", dtype: str = "auto") -> Segmenter:
    """Load anything that predicts mattes.

    Args:
        name: what :func:`zim.load` takes, or a name of the entry point group ``zim.segmenters``.
        device: as for :func:`zim.load`.
        dtype: as for :func:`zim.load`.

    Returns:
        An object with ``set_image`` and ``predict``; a :class:`zim.ZimPredictor` for ZIM models.

    Raises:
        ZimError: no such model, or its weights or packages are missing.
    """
    if str(name) in plugins.names("zim.segmenters"):
        return plugins.find("zim.segmenters", str(name))(device=device, dtype=dtype)
    return ZimPredictor(load(name, device=device, dtype=dtype))
