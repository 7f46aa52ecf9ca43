"""Systems nobody packages (Matting-Anything, SMat/SEMat): the user brings a checkout or ONNX.

``ZIM_HOME/models/<name>/`` holds either of

- ``model.onnx``: inputs ``image`` 1 x 3 x H x W float32 RGB in [0, 1], ``point_coords`` 1 x N x 2
  pixels and ``point_labels`` 1 x N float32 (1, 0; a box is two points labelled 2 and 3); first
  output alpha with H x W as its last axes.
- ``zim_adapter.py`` beside a checkout of the original: a function ``load(device)`` returning an
  object with ``set_image`` and ``predict`` (:class:`zim.protocols.Segmenter`).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

from zim._extras import require
from zim.errors import CheckpointError
from zim.prompts import Prompt
from zim.protocols import Segmenter
from zim.segmenters.base import RivalSegmenter, from_alpha
from zim.weights.rivals import Rival


class OnnxMatter(RivalSegmenter):
    """A promptable matting network as one ONNX file."""

    def __init__(self, path: Path) -> None:
        """Open the file on the CPU.

        Raises:
            CheckpointError: it cannot be read or its inputs have other names.
        """
        runtime = require("onnxruntime", "onnx")
        try:
            self.session: Any = runtime.InferenceSession(
                str(path), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no base of their own
            raise CheckpointError(
                f"{path}: not an ONNX model ({' '.join(str(error).split())[:150]})"
            ) from error
        names = {value.name for value in self.session.get_inputs()}
        if names != {"image", "point_coords", "point_labels"}:
            raise CheckpointError(
                f"{path}: its inputs are {', '.join(sorted(names))}; expected image, point_coords, "
                "point_labels"
            )

    def _answer(
        self, rgb: np.ndarray, prompt: Prompt, multimask: bool, logits: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        points, labels = prompt.sequence()
        (alpha, *_) = self.session.run(
            None,
            {
                "image": (rgb.transpose(2, 0, 1)[None] / np.float32(255)).astype(np.float32),
                "point_coords": points[None].astype(np.float32),
                "point_labels": labels[None].astype(np.float32),
            },
        )
        alpha = np.asarray(alpha, np.float32)
        if alpha.shape[-2:] != rgb.shape[:2]:
            raise CheckpointError(
                f"the ONNX model answered {alpha.shape}; expected the picture's {rgb.shape[:2]}"
            )
        return from_alpha(np.clip(alpha.reshape(-1, *rgb.shape[:2])[0], 0, 1), 1.0, logits)


def load_supplied(rival: Rival, *, device: str = "auto") -> Segmenter:
    """Load what the user brought for a system.

    Raises:
        CheckpointError: nothing is there, or it is not what is expected.
    """
    folder = rival.folder()
    if (folder / "model.onnx").is_file():
        return OnnxMatter(folder / "model.onnx")
    adapter = folder / "zim_adapter.py"
    if not adapter.is_file():
        raise CheckpointError(
            f"{rival.name} is not packaged anywhere: put model.onnx (inputs image, point_coords, "
            f"point_labels) or a checkout with zim_adapter.py (load(device)) into {folder}; see "
            "docs/evaluation.md"
        )
    spec = importlib.util.spec_from_file_location(f"_zim_adapter_{rival.name}", adapter)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))  # so that the checkout's own packages are found
    try:
        spec.loader.exec_module(module)
        made = module.load(device)
    except Exception as error:  # code of others: anything may happen
        raise CheckpointError(f"{adapter}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(folder))
    if not isinstance(made, Segmenter):
        raise CheckpointError(f"{adapter}: load() gave a {type(made).__name__} without predict")
    return made
