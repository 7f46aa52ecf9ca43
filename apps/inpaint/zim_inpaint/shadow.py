"""The shadow an object casts on what it lies on: left behind, it gives the object away.

A shadow is darker than what is usual around it, in all colours alike, starts at the object and
ends near it. It is looked for twice: sharp, and with the grain of the ground smoothed away.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.prompts import Prompt
from zim_inpaint.cover import grown
from zim_inpaint.near import Near, joined, near, repainted, usual

#: side of the neighbourhood, in longer sides of the object
_AROUND = 2.0
#: smoothing and radius of the window of a narrow and of a broad shadow, likewise
_SCALES = ((0.01, 0.25), (0.03, 0.4))
_CELLS = 384
#: a sure stretch has a cell this many deviations too dark; all cells are at least so many
_STRONG, _WEAK = 2.5, 1.0
#: natural logarithms: least darkening, and by how much the colours may differ in it
_LEAST, _TINT, _TINT_SHARE = 0.02, 0.04, 0.6
_CLIP, _NOISE = 2.0, 0.01
#: it starts at most so far from the object and ends at most so far, in its longer sides
_START, _REACH = 0.1, 0.25
#: it lies along the object: cells that touch it, as a share of the root of its area
_ALONG = 0.7
#: its fainter stretches fall to the same side: cosine of the angle between them
_SAME_SIDE = 0.5
#: a shadow fades: by how much more it is covered, in longer sides of the object
_FADE = 0.03


def with_shadow(
    rgb: NDArray[np.uint8], alpha: NDArray[np.float32], prompt: Prompt | None = None
) -> NDArray[np.float32]:
    """Add to a matte the shadow that touches its object.

    Args:
        rgb: H x W x 3 uint8.
        alpha: H x W in [0, 1].
        prompt: what was asked for; a shadow with a negative click on it stays.

    Returns:
        float32 H x W, nowhere below ``alpha``; ``alpha`` itself where there is no shadow.
    """
    place = near(rgb, alpha, _AROUND, _CELLS)
    if place is None:
        return alpha
    hole = place.hole(repainted(alpha))
    found = np.zeros_like(hole)
    for smoothing, window in _SCALES:
        found |= _shadow(place, hole, smoothing, window, prompt)
    if not found.any():
        return alpha
    return place.added(alpha, grown(found, max(1, round(_FADE * place.side))))


def _shadow(
    place: Near,
    hole: NDArray[np.bool_],
    smoothing: float,
    window: float,
    prompt: Prompt | None,
) -> NDArray[np.bool_]:
    open_ = ~hole
    sigma = max(1.5, smoothing * place.side)
    radius = max(8, round(window * place.side))
    # 8 grey levels are added so that noise in the dark does not count for much
    light = np.log((place.rgb.astype(np.float32) + 8) / 263)
    known = open_.astype(np.float32)
    share = np.maximum(cv2.GaussianBlur(known, (0, 0), sigma), 1e-3)[..., None]
    blurred = cv2.GaussianBlur(light * known[..., None], (0, 0), sigma)
    smooth = np.asarray(blurred / share, np.float32)
    grey = smooth.mean(axis=-1, keepdims=True).astype(np.float32)
    mean, deviation = usual(grey, open_, radius, clip=_CLIP, floor=_NOISE)
    by_colour = np.dstack(
        [
            usual(smooth[..., c : c + 1], open_, radius, clip=_CLIP, floor=_NOISE)[0]
            for c in range(3)
        ]
    )
    drop = (mean - grey)[..., 0]
    tint = np.ptp(smooth - by_colour, axis=-1)
    dark = np.where(
        open_ & (drop > _LEAST) & (tint < _TINT_SHARE * drop + _TINT), drop / deviation[..., 0], 0
    )
    reach = cv2.distanceTransform(open_.astype(np.uint8), cv2.DIST_L2, 3) <= _REACH * place.side
    away = cv2.distanceTransform((~place.core).astype(np.uint8), cv2.DIST_L2, 3)
    start = grown(hole, 2) & (away <= _START * place.side)
    weak = dark > _WEAK
    bad = (weak & ~reach) | place.refused(prompt)
    outward = np.dstack(np.gradient(away))
    labels, kept = joined(weak & reach, start)
    stretches: list[tuple[NDArray[np.bool_], bool, NDArray[np.floating[Any]]]] = []
    for label in kept:
        part = labels == label
        along = (part & start).sum() / 2 >= _ALONG * np.sqrt(part.sum())
        if along and not (grown(part, 2) & bad).any():
            stretches.append((part, bool((dark[part] > _STRONG).any()), outward[part].sum(axis=0)))
    side = sum((direction for _, sure, direction in stretches if sure), np.zeros(2))
    found = np.zeros_like(hole)
    for part, sure, direction in stretches:
        cosine = (
            direction @ side / max(float(np.linalg.norm(direction) * np.linalg.norm(side)), 1e-6)
        )
        if sure or cosine > _SAME_SIDE:
            found |= part
    return found
