"""Thin ends a matte missed: beaks, wing tips, antennas. What is left of them shows afterwards.

A matte for compositing may stop short of a tip; a removal may not. GrabCut (Rother et al. 2004)
with the matte as its first guess says which pixels next to it have the object's colours; those
connected to it are added. Where that would add much, it ran away and nothing is added.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.prompts import NEGATIVE, Prompt

#: the neighbourhood looked at, as a multiple of the object's longer side
_AROUND = 1.8
#: GrabCut runs on at most this many cells a side
_CELLS = 256
_ITERATIONS = 3
#: alpha from which a pixel is object for certain, and for the time being
_CERTAIN, _LIKELY = 0.95, 0.5
#: farther from the object than this share of the neighbourhood nothing is added
_REACH = 0.25
#: more than this share of the object is no end of it
_MOST = 0.3
#: GrabCut needs some pixels of each side for its colour clusters
_FEWEST = 8
#: a box is drawn around everything; this share of its side beyond it an end may still show
_BOX_SLACK = 0.05


def with_ends(
    rgb: NDArray[np.uint8], alpha: NDArray[np.float32], prompt: Prompt | None = None
) -> NDArray[np.float32]:
    """Add to a matte the thin ends next to it that have its colours.

    Args:
        rgb: H x W x 3 uint8.
        alpha: H x W in [0, 1].
        prompt: what was asked for; ends keep off its negative clicks and away from its box.

    Returns:
        float32 H x W, nowhere below ``alpha``; ``alpha`` itself where there is nothing to add.
    """
    rows, columns = np.nonzero(alpha > _LIKELY)
    if not len(rows):
        return alpha
    y, x = _square(rows, columns, alpha.shape)
    crop, inner = rgb[y, x], alpha[y, x]
    scale = min(1.0, _CELLS / max(inner.shape))
    size = (max(2, round(inner.shape[1] * scale)), max(2, round(inner.shape[0] * scale)))
    small = np.ascontiguousarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA))
    known = np.asarray(cv2.resize(inner, size, interpolation=cv2.INTER_AREA))
    labels = _labels(known)
    if prompt is not None:
        _keep_off(labels, prompt, (x.start, y.start), scale)
    core = known > _LIKELY
    ground = (labels == cv2.GC_BGD) | (labels == cv2.GC_PR_BGD)
    if min(int(core.sum()), int(ground.sum())) < _FEWEST:
        return alpha
    cv2.setRNGSeed(0)  # its colour clusters start at random
    models = np.zeros((1, 65)), np.zeros((1, 65))
    bgr = np.ascontiguousarray(small[..., ::-1])
    cv2.grabCut(bgr, labels, (0, 0, 1, 1), *models, _ITERATIONS, cv2.GC_INIT_WITH_MASK)
    both = core | (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    parts = cv2.connectedComponents(both.astype(np.uint8))[1]
    both &= np.isin(parts, np.unique(parts[core]))
    if both.sum() > (1 + _MOST) * core.sum():
        return alpha
    added = (both & ~core).astype(np.float32)
    full = cv2.resize(added, (inner.shape[1], inner.shape[0]), interpolation=cv2.INTER_LINEAR)
    result = alpha.astype(np.float32, copy=True)
    result[y, x] = np.maximum(inner, full)
    return result


def _square(rows: Any, columns: Any, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of a square around the object, cut at the picture's rim."""
    half = _AROUND * max(np.ptp(rows), np.ptp(columns), 32) / 2
    slices = []
    for places, length in ((rows, shape[0]), (columns, shape[1])):
        middle = (places.min() + places.max()) / 2
        slices.append(slice(int(max(0, middle - half)), int(min(length, middle + half + 1))))
    return slices[0], slices[1]


def _labels(known: NDArray[Any]) -> NDArray[np.uint8]:
    """GrabCut's labels from the matte: certain inside, open near it, background far away."""
    labels = np.where(known > _LIKELY, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[known > _CERTAIN] = cv2.GC_FGD
    distance = cv2.distanceTransform((known <= _LIKELY).astype(np.uint8), cv2.DIST_L2, 3)
    labels[distance > _REACH * max(known.shape)] = cv2.GC_BGD
    return labels


def _keep_off(
    labels: NDArray[np.uint8], prompt: Prompt, origin: tuple[int, int], scale: float
) -> None:
    height, width = labels.shape
    if prompt.box is not None:
        x0, y0, x1, y1 = (float(v) for v in prompt.box)
        slack = _BOX_SLACK * max(x1 - x0, y1 - y0)
        ys = np.arange(height)[:, None] / scale + origin[1]
        xs = np.arange(width)[None] / scale + origin[0]
        outside = (xs < x0 - slack) | (xs > x1 + slack) | (ys < y0 - slack) | (ys > y1 + slack)
        labels[outside & (labels == cv2.GC_PR_BGD)] = cv2.GC_BGD
    for px, py in prompt.points[prompt.labels == NEGATIVE]:
        centre = (round((float(px) - origin[0]) * scale), round((float(py) - origin[1]) * scale))
        cv2.circle(labels, centre, max(1, round(0.02 * max(height, width))), int(cv2.GC_BGD), -1)
