"""OpenCV's GrabCut (Rother et al. 2004) on RGB pictures, the same answer every time."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def grabcut(rgb: NDArray[Any], labels: NDArray[np.uint8], iterations: int) -> NDArray[np.bool_]:
    """Divide a picture into object and background.

    Args:
        rgb: H x W x 3 RGB uint8.
        labels: H x W uint8 of ``cv2.GC_BGD``, ``GC_FGD``, ``GC_PR_BGD`` and ``GC_PR_FGD`` with some
            of either side; refined in place.
        iterations: of fitting colours and cutting.

    Returns:
        H x W bool, true on certain and probable foreground.

    Raises:
        cv2.error: one side has too few pixels to fit colours to.
    """
    cv2.setRNGSeed(0)  # its colour clusters start at random
    models = np.zeros((1, 65)), np.zeros((1, 65))
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    cv2.grabCut(bgr, labels, (0, 0, 1, 1), *models, iterations, cv2.GC_INIT_WITH_MASK)
    return (labels & 1) == 1  # the two foregrounds are the odd ones
