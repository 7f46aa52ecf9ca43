"""From a soft matte to what is repainted: cover, growth, and the weight for pasting back.

What is faint and far from everything solid is a model's doubt and stays. Three more rules, each
measured in ``benchmarks/inpaint_truth.py``: a matte is cut at 0.02 rather than 0.5, because every
half-transparent pixel shows the object; it grows by little, because what it covers besides the
object has to be invented; and the result is never pasted with the matte itself, because
``alpha * fill + (1 - alpha) * image`` leaves ``alpha (1 - alpha)`` of the object as a rim.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim_inpaint.window import bounds

#: alpha above which a pixel shows the object (5 of 255)
COVER = 0.02
#: alpha from which a matte is no doubt, and how far from there faint pixels are the object's soft
#: edge, as a share of the picture's long side
_SOLID, _SOFT_REACH = 0.5, 0.05
#: islands of fewer pixels that stay below this alpha are noise
_NOISE_AREA, _NOISE_ALPHA = 16, 0.1
#: pixels a mask without soft edges grows by in a picture whose long side is 1024
_HARD_GROWTH = 7
#: largest growth there, and the share of the soft band's width that is added to one pixel
_MOST_GROWTH, _BAND_SHARE = 8, 0.15

#: a ramp is never cut below this; a larger disc is drawn by distance, as its kernel would be huge
_LEAST_CAP, _LARGE_DISC = 8, 64

Mask = NDArray[np.bool_]


def covered(alpha: NDArray[np.floating[Any]], threshold: float = COVER) -> Mask:
    """Tell which pixels show the object, H x W bool.

    Args:
        alpha: H x W in [0, 1].
        threshold: alpha above which a pixel counts; islands of noise, and what is faint far from
            what is solid (where anything is), are dropped, holes kept.
    """
    cover = np.asarray(alpha > threshold)
    box = bounds(cover)
    if box is None:
        return cover
    part = cover[box.rows, box.columns]
    solid = alpha[box.rows, box.columns] >= _SOLID
    if solid.any():
        away = cv2.distanceTransform((~solid).view(np.uint8), cv2.DIST_L2, 3)
        part &= away <= _SOFT_REACH * max(alpha.shape)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(part.view(np.uint8), connectivity=8)
    labels = np.asarray(labels, dtype=np.intp)
    noise = np.asarray(stats[:, cv2.CC_STAT_AREA] < _NOISE_AREA)
    strong = np.unique(labels[(alpha[box.rows, box.columns] >= _NOISE_ALPHA) & part])
    noise[strong] = False
    noise[0] = False
    if count > 1 and noise.any():
        part &= ~noise[labels]
    return cover


def growth(alpha: NDArray[np.floating[Any]], threshold: float = COVER) -> int:
    """Return by how many pixels the cover of a matte should grow.

    A soft band that is wide says that the matte is unsure where the object ends (or that the model
    saw a smaller picture), so a wider margin is safer. A mask without any soft pixel comes from a
    tool that draws hard edges, usually too tight, and gets the margin such tools use.

    Args:
        alpha: H x W in [0, 1].
        threshold: as in :func:`covered`.
    """
    scale = max(1.0, max(alpha.shape) / 1024)
    solid = alpha > 1 - threshold
    cover = alpha > threshold
    area = int(np.count_nonzero(cover)) - int(np.count_nonzero(solid))
    if area == 0:
        return max(1, round(_HARD_GROWTH * max(alpha.shape) / 1024))
    width = 2 * area / max(1.0, _perimeter(cover) + _perimeter(solid))
    return int(np.clip(round(scale + _BAND_SHARE * width), 1, round(_MOST_GROWTH * scale)))


def grown(mask: Mask, radius: int) -> Mask:
    """Grow a mask by a disc of ``radius`` pixels, H x W bool."""
    box = bounds(mask)
    if radius < 1 or box is None:
        return mask
    out = np.zeros_like(mask)
    near = box.widened(radius, mask.shape)
    part = np.ascontiguousarray(mask[near.rows, near.columns]).view(np.uint8)
    out[near.rows, near.columns] = _dilate(part, radius) > 0
    return out


def paste_weight(mask: Mask, feather: float) -> NDArray[np.float32]:
    """Return how much of each pixel comes from the fill, H x W float32 in [0, 1].

    It is 1 on the whole mask and falls to exactly 0 outside of it within about three times
    ``feather``, never inside: a ramp that reaches inside would let the old object shine through.

    Args:
        mask: what was repainted.
        feather: standard deviation of the ramp in pixels; 0 for a hard edge.
    """
    weight = mask.astype(np.float32)
    feather = min(feather, max(_LEAST_CAP, max(mask.shape) / 4))  # a wider one is all ramp
    if feather <= 0 or not mask.any():
        return weight
    wide = _dilate(np.ascontiguousarray(mask).view(np.uint8), max(1, round(feather)))
    side = 2 * max(1, round(2 * feather)) + 1
    ramp = cv2.GaussianBlur(wide.astype(np.float32), (side, side), feather)
    return np.maximum(weight, ramp, dtype=np.float32)


def _dilate(mask: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    if radius > _LARGE_DISC:
        away = cv2.distanceTransform((mask == 0).view(np.uint8), cv2.DIST_L2, 5)
        return np.asarray(away <= radius, dtype=np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.dilate(mask, disc), dtype=np.uint8)


def _perimeter(mask: Mask) -> float:
    contours, _ = cv2.findContours(
        np.ascontiguousarray(mask).view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )
    return sum(cv2.arcLength(contour, True) for contour in contours)
