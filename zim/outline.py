"""How much an outline follows something that can be seen in the picture.

A model that is asked about a click in front of nothing (a plain wall, the sky, a product shot's
white) answers with a shape all the same. Such a shape has the same colour on both sides.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

#: pixels on either side whose colours are compared (standard deviation of a Gaussian)
SIGMA = 1.5
#: the part of an outline that may do worse than what is reported: hair, shadows, white on white
WEAKEST = 0.25


def outline_contrast(rgb: NDArray[Any], mask: NDArray[np.bool_]) -> float:
    """Return the difference in colour across the weaker parts of a mask's outline.

    Colours just inside and just outside are means under a Gaussian, which noise hardly changes.
    What lies on the picture's border is no outline.

    Args:
        rgb: h x w x 3 uint8, brought to the mask's size.
        mask: H x W bool, best with 100 to 200 pixels a side.

    Returns:
        The difference (CIE76, about 2 is just noticeable) that three quarters of the outline
        exceed; 0 for a mask without outline.
    """
    inside = mask.astype(np.float32)
    square, shape = np.ones((3, 3), np.uint8), mask.astype(np.uint8)
    # repeated at the border, so that there is no outline there
    ends: dict[str, Any] = {"borderType": cv2.BORDER_REPLICATE}
    rim = cv2.dilate(shape, square, **ends) != cv2.erode(shape, square, **ends)
    if not rim.any():
        return 0.0
    if rgb.shape[:2] != mask.shape:
        rgb = cv2.resize(rgb, mask.shape[::-1], interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    difference = _mean_colour(lab, inside) - _mean_colour(lab, 1 - inside)
    return float(np.quantile(np.linalg.norm(difference, axis=2)[rim], WEAKEST))


def _mean_colour(lab: NDArray[Any], weight: NDArray[np.float32]) -> NDArray[Any]:
    """Average colours H x W x 3 near every pixel, weighted with H x W."""
    total = _blurred(lab * weight[..., None])
    return total / np.maximum(_blurred(weight), 1e-6)[..., None]


def _blurred(values: NDArray[Any]) -> NDArray[Any]:
    return cv2.GaussianBlur(values, (0, 0), SIGMA, borderType=cv2.BORDER_REPLICATE)
