"""From boxes to mattes: one image embedding, all boxes decoded from it, each object once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zim.predictor import ZimPredictor
from zim.prompts import Prompt
from zim.protocols import Segmenter
from zim.segmenters.answer import answer
from zim_grounded.candidates import Found

#: boxes decoded together; bounds memory
TOGETHER = 16
#: two mattes of one phrase that overlap by more than this soft IoU show one object
SAME = 0.9

Alpha = NDArray[np.float32]


def mattes_of(
    segmenter: Segmenter, image: NDArray[np.uint8], prompts: Sequence[Prompt]
) -> tuple[list[Alpha], list[float]]:
    """Answer prompts on the picture that is set.

    Args:
        segmenter: with its picture set.
        image: that picture, H x W x 3 uint8 RGB.
        prompts: boxes or points, one per object.

    Returns:
        Mattes H x W float32 in [0, 1] and their predicted quality.
    """
    if not isinstance(segmenter, ZimPredictor):
        answers = [answer(segmenter, image, prompt) for prompt in prompts]
        return [matte.alpha for matte in answers], [matte.score for matte in answers]
    alphas: list[Alpha] = []
    scores: list[float] = []
    for start in range(0, len(prompts), TOGETHER):
        mattes, quality, _ = segmenter.predict_batch(list(prompts[start : start + TOGETHER]))
        alphas += list(mattes[:, 0])
        scores += quality[:, 0].tolist()
    return alphas, scores


def distinct(found: Sequence[Found], alphas: Sequence[Alpha], same: float = SAME) -> list[int]:
    """Return which mattes to keep: of two that show one object for one phrase, the first.

    Boxes that overlap little can still lead to the same object; their mattes tell.
    """
    kept: list[int] = []
    for i, alpha in enumerate(alphas):
        mine = [k for k in kept if found[k].phrase == found[i].phrase]
        if all(soft_iou(alphas[k], alpha) <= same for k in mine):
            kept.append(i)
    return kept


def soft_iou(a: Alpha, b: Alpha) -> float:
    """Return the sum of minima over the sum of maxima; two empty mattes have 0."""
    union = float(np.maximum(a, b).sum())
    return float(np.minimum(a, b).sum()) / union if union > 0 else 0.0


def take_away(alpha: Alpha, others: Sequence[Alpha]) -> Alpha:
    """Return a matte without what others cover: alpha * (1 - their maximum)."""
    return alpha * (1 - np.maximum.reduce(others)) if others else alpha


def label_map(alphas: Sequence[Alpha]) -> NDArray[Any]:
    """Number every pixel by the matte that covers it most, if that is more than half.

    Returns:
        H x W, 0 where no object is, else its number from 1 on; uint8, or uint16 above 255 objects.
    """
    kind: Any = np.uint8 if len(alphas) < 256 else np.uint16
    labels = np.zeros(alphas[0].shape, kind)
    best = np.full(alphas[0].shape, 0.5, np.float32)
    for number, alpha in enumerate(alphas, 1):
        more = alpha > best
        labels[more] = number
        best[more] = alpha[more]
    return labels
