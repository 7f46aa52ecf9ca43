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

from zim.grabcut import grabcut
from zim.prompts import Prompt
from zim_inpaint.near import LIKELY, near

#: the neighbourhood looked at, as a multiple of the object's longer side
_AROUND = 1.8
#: GrabCut runs on at most this many cells a side
_CELLS = 256
_ITERATIONS = 3
#: alpha from which a pixel is object for certain
_CERTAIN = 0.95
#: farther from the object than this share of the neighbourhood nothing is added
_REACH = 0.25
#: more than this share of the object is no end of it
_MOST = 0.3
#: GrabCut needs some pixels of each side for its colour clusters
_FEWEST = 8


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
    place = near(rgb, alpha, _AROUND, _CELLS)
    if place is None:
        return alpha
    labels = _labels(place.alpha)
    labels[place.out_of_box(prompt) & (labels == cv2.GC_PR_BGD)] = cv2.GC_BGD
    labels[place.refused(prompt)] = cv2.GC_BGD
    core = place.core
    ground = (labels == cv2.GC_BGD) | (labels == cv2.GC_PR_BGD)
    if min(int(core.sum()), int(ground.sum())) < _FEWEST:
        return alpha
    both = core | grabcut(place.rgb, labels, _ITERATIONS)
    parts = cv2.connectedComponents(both.astype(np.uint8))[1]
    both &= np.isin(parts, np.unique(parts[core]))
    if both.sum() > (1 + _MOST) * core.sum():
        return alpha
    return place.added(alpha, both & ~core)


def _labels(known: NDArray[Any]) -> NDArray[np.uint8]:
    """GrabCut's labels from the matte: certain inside, open near it, background far away."""
    labels = np.where(known > LIKELY, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[known > _CERTAIN] = cv2.GC_FGD
    distance = cv2.distanceTransform((known <= LIKELY).astype(np.uint8), cv2.DIST_L2, 3)
    labels[distance > _REACH * max(known.shape)] = cv2.GC_BGD
    return labels
