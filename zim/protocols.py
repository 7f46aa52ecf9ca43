"""The small interfaces that parts of this project meet at."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Segmenter(Protocol):
    """Anything that turns prompts into mattes or masks: ZIM, SAM, a classical method.

    Arguments and results are those of ``SamPredictor``: ``predict`` returns mattes C x H x W
    float32 in [0, 1] at the picture's size, scores C, and low-res logits C x h x w.
    """

    def set_image(self, image: Any) -> None:
        """Take the picture all following prompts are about."""
        ...

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Answer one prompt."""
        ...
