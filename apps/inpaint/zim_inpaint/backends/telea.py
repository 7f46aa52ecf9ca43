"""Telea's fast marching inpainting: always there, instant, and only good for scratches.

A. Telea: "An Image Inpainting Technique Based on the Fast Marching Method" (2004), from OpenCV.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_RADIUS = 5


class Telea:
    """Smooth continuation of the surroundings (see :class:`zim_inpaint.backends.Filler`)."""

    name = "telea"
    takes_text = False
    side = 512
    multiple = 1
    enlarges = False

    def fill(
        self,
        image: NDArray[np.uint8],
        mask: NDArray[np.uint8],
        *,
        seed: int = 0,
        text: str | None = None,
        negative: str | None = None,
    ) -> NDArray[np.uint8]:
        """Fill the hole; there is nothing random, and words are not used."""
        del seed, text, negative
        return np.asarray(cv2.inpaint(image, mask, _RADIUS, cv2.INPAINT_TELEA), dtype=np.uint8)
