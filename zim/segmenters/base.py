"""What all rivals share: reading the picture, checking prompts, batches, the low-res answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from zim.errors import ImageError
from zim.geometry import Frame
from zim.images import load_image
from zim.prompt_batch import split_batch
from zim.prompts import Prompt, whole_frame

#: side of the low-res logits, as SAM's
LOW_RES = 256
#: alpha 0 and 1 as logits
_LIMIT = 1e-4


class RivalSegmenter:
    """A :class:`zim.protocols.Segmenter` whose subclasses answer one checked prompt."""

    image: np.ndarray | None = None

    def set_image(self, image: Any) -> None:
        """Take the picture all following prompts are about (see :func:`zim.images.load_image`)."""
        self.image = None
        rgb = load_image(image).rgb
        self._encode(rgb)
        self.image = rgb

    def predict(
        self,
        point_coords: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Answer one prompt or a batch, with the arguments and results of ``ZimPredictor``.

        Returns:
            mattes float32 C x H x W in [0, 1] (logits if asked for), scores float32 C, low-res
            logits float32 C x h x w over the padded square frame; a leading B for batches.

        Raises:
            ImageError: no picture is set.
            PromptError: the prompt is malformed, outside the picture, or not of a kind it takes.
        """
        if self.image is None:
            raise ImageError("no image is set; call set_image(image) before predict")
        size = (self.image.shape[0], self.image.shape[1])
        prompts, batched = split_batch(point_coords, point_labels, box, mask_input, size)
        answers = []
        for prompt in prompts:
            if prompt.empty and prompt.low_res is None:
                prompt = Prompt(prompt.points, prompt.labels, whole_frame(size))
            answers.append(self._answer(self.image, prompt, multimask_output, return_logits))
        mattes, scores, low = (
            np.stack([answer[k] for answer in answers]).astype(np.float32, copy=False)
            for k in range(3)
        )
        return (mattes, scores, low) if batched else (mattes[0], scores[0], low[0])

    def _encode(self, rgb: np.ndarray) -> None:
        """Do the work that is done once per picture."""

    def _answer(
        self, rgb: np.ndarray, prompt: Prompt, multimask: bool, logits: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        raise NotImplementedError


def from_alpha(
    alpha: np.ndarray, score: float, logits: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn one alpha H x W into the triple that ``predict`` returns."""
    alpha = np.asarray(alpha, np.float32)
    frame = Frame((alpha.shape[0], alpha.shape[1]), LOW_RES)
    low = _logit(frame.shrink_mask(alpha, LOW_RES))
    full = _logit(alpha) if logits else alpha
    return full[None], np.array([score], np.float32), low[None]


def _logit(alpha: np.ndarray) -> np.ndarray:
    clipped = torch.from_numpy(np.ascontiguousarray(alpha, np.float32))
    return torch.logit(clipped, _LIMIT).numpy()
