"""How much an outline follows something that can be seen in the picture.

A model that is asked about a click in front of nothing (a plain wall, the sky, a product shot's
white) answers with a shape all the same. Along the outline of such a shape nothing changes.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

#: pixels on either side whose colours are compared (standard deviations of Gaussians): right beside
#: the outline, further off, and on the outline itself
BESIDE, BEYOND, ON = 1.5, 2.0, 0.8
#: how many pixels from the outline what is further off begins
GAP = 2
#: the part of an outline that may do worse than what is reported: hair, shadows, white on white
WEAKEST = 0.25


def outline_contrast(rgb: NDArray[Any], mask: NDArray[np.bool_]) -> float:
    """Return the difference in colour along the weaker parts of a mask's outline.

    Either the two sides differ, or the outline is a line that differs from both, as the rim of a
    glass or a drawing. Colours are means under Gaussians, which noise hardly changes. What lies on
    the picture's border is no outline.

    Args:
        rgb: h x w x 3 uint8, brought to the mask's size.
        mask: H x W bool, best with 100 to 200 pixels a side.

    Returns:
        The difference (CIE76, about 2 is just noticeable) that three quarters of the outline
        exceed; 0 for a mask without outline.
    """
    shape, square = mask.astype(np.uint8), np.ones((3, 3), np.uint8)
    # repeated at the border, so that there is no outline there
    ends: dict[str, Any] = {"borderType": cv2.BORDER_REPLICATE}
    rim = cv2.dilate(shape, square, **ends) != cv2.erode(shape, square, **ends)
    if not rim.any():
        return 0.0
    if rgb.shape[:2] != mask.shape:
        rgb = cv2.resize(rgb, mask.shape[::-1], interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    inside = shape.astype(np.float32)
    core = cv2.erode(inside, square, iterations=GAP, **ends)
    rest = 1 - cv2.dilate(inside, square, iterations=GAP, **ends)
    step = _distance(_mean(lab, inside, BESIDE), _mean(lab, 1 - inside, BESIDE))
    line = np.inf
    for side in (core, rest):
        off = _distance(_blurred(lab, ON), _mean(lab, side, BEYOND))
        line = np.minimum(line, np.where(_blurred(side, BEYOND) > 1e-3, off, 0))
    return float(np.quantile(np.maximum(step, line)[rim], WEAKEST))


def _distance(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    return np.linalg.norm(one - other, axis=2)


def _mean(lab: NDArray[Any], weight: NDArray[Any], sigma: float) -> NDArray[Any]:
    """Average colours H x W x 3 near every pixel, weighted with H x W."""
    total = _blurred(lab * weight[..., None], sigma)
    return total / np.maximum(_blurred(weight, sigma), 1e-6)[..., None]


def _blurred(values: NDArray[Any], sigma: float) -> NDArray[Any]:
    return cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
