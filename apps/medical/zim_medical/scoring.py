"""Overlap of a predicted and a true mask, and distances between their outlines."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zim._extras import require

Mask = NDArray[np.bool_]


def overlap(predicted: Mask, truth: Mask) -> tuple[float, float]:
    """Return IoU and Dice of two masks H x W; the truth must not be empty.

    An empty prediction scores 0, never NaN: nothing found is a result.
    """
    both = int(np.logical_and(predicted, truth).sum())
    sizes = int(predicted.sum()) + int(truth.sum())
    if not truth.any():
        raise ValueError("an empty truth has no score; leave it out before")
    return both / (sizes - both), 2 * both / sizes


def surface(
    predicted: Mask, truth: Mask, spacing: tuple[float, float], tolerance: float
) -> tuple[float | None, float]:
    """Return the 95 % Hausdorff distance (mm) and the normalised surface Dice, MONAI's.

    Args:
        predicted: H x W.
        truth: H x W, not empty.
        spacing: mm per row and column.
        tolerance: mm within which outlines count as the same.

    Returns:
        None and 0 for an empty prediction, whose distance is not defined.
    """
    if not predicted.any():
        return None, 0.0
    torch = require("torch", "medical")
    metrics: Any = require("monai.metrics", "medical")
    a, b = (torch.from_numpy(m[None, None].astype(np.float32)) for m in (predicted, truth))
    with warnings.catch_warnings():
        # MONAI 1.6 warns of an argument of its own that we do not give
        warnings.simplefilter("ignore", FutureWarning)
        distance = metrics.compute_hausdorff_distance(
            a, b, include_background=True, percentile=95, spacing=list(spacing)
        )
        share = metrics.compute_surface_dice(
            a, b, [tolerance], include_background=True, spacing=list(spacing)
        )
    return float(distance), float(share)
