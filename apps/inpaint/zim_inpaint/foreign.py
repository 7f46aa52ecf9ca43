"""Parts of the object in other colours: a beak, legs, a mast, a wing the matte did not take.

What touches the object, is unlike everything that is usual around it, and ends inside the picture
hangs on the object and on nothing else, so it goes with it. "Usual" is the mean and the spread of
the colours in a window, with outliers left out, at three window sizes: a thin part stands out in a
small window, a broad one only in a window that holds enough besides it.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.prompts import Prompt
from zim_inpaint.cover import grown
from zim_inpaint.near import Near, joined, near, repainted, usual

#: radius of the window, side of the neighbourhood, both in longer sides of the object
_SCALES = ((0.15, 2.0), (0.4, 4.0), (0.8, 6.0))
_CELLS = 512
#: a part has a cell that is this many deviations off, and all its cells are at least so many
_STRONG, _WEAK, _SMOOTHING = 3.0, 1.8, 0.7
#: leaving out outliers when the usual is measured, in deviations; noise that is always there
_CLIP, _NOISE = 2.5, 1.5
#: a part that meets the picture's rim more broadly, in longer sides of the object, goes on there
_CONTACT = 0.05
#: a part that is larger than this share of the object is another object
_MOST = 4.0


def with_foreign(
    rgb: NDArray[np.uint8], alpha: NDArray[np.float32], prompt: Prompt | None = None
) -> NDArray[np.float32]:
    """Add to a matte what hangs on the object and is foreign to its surroundings.

    Args:
        rgb: H x W x 3 uint8.
        alpha: H x W in [0, 1].
        prompt: what was asked for; parts keep off its negative clicks and inside its box.

    Returns:
        float32 H x W, nowhere below ``alpha``; ``alpha`` itself where there is nothing to add.
    """
    result, hole = alpha, repainted(alpha)
    for window, around in _SCALES:
        place = near(rgb, alpha, around, _CELLS)
        if place is None:
            return alpha
        found = _parts(place, place.hole(hole), window, prompt)
        if found.any():
            result = place.added(result, grown(found, 1))
    return result


def _parts(
    place: Near, hole: NDArray[np.bool_], window: float, prompt: Prompt | None
) -> NDArray[np.bool_]:
    lab = cv2.cvtColor(place.rgb, cv2.COLOR_RGB2LAB).astype(np.float32)
    lab = np.asarray(cv2.GaussianBlur(lab, (0, 0), _SMOOTHING), np.float32)
    radius = max(8, round(window * place.side))
    mean, deviation = usual(lab, ~hole, radius, clip=_CLIP, floor=_NOISE)
    off = np.sqrt((((lab - mean) / deviation) ** 2).mean(axis=-1))
    core = place.core
    weak = ~core & (off > _WEAK) & ~place.out_of_box(prompt)
    strong = (off > _STRONG) & ~hole
    labels, kept = joined(weak, grown(core, 2))
    bad = place.edge(of_picture=False) | place.refused(prompt)
    leaves = place.edge(of_picture=True)
    most, contact = _MOST * core.sum(), _CONTACT * place.side
    found = np.zeros_like(hole)
    for label in kept:
        part = labels == label
        large = (part & ~hole).sum() > most or (part & leaves).sum() > contact
        if (part & strong).any() and not large and not (part & bad).any():
            found |= part & ~hole
    return found
