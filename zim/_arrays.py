"""Arrays out of whatever callers have; torch is not imported for it."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_numpy(values: Any) -> np.ndarray:
    """Return a tensor's values, or anything else that numpy takes, as an array.

    Tensors may have gradients, be on another device, or in bfloat16, which numpy has not.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
    return np.asarray(values)


def full_scale(values: np.ndarray) -> int | None:
    """Return what stands for 1 in a mask or matte of integers.

    0 and 1 is a binary mask in any type; beyond that the range tells the depth.

    Returns:
        1, 255 or 65535; None for values that are neither.
    """
    if values.dtype == np.bool_ or not values.size:
        return 1
    low, high = int(values.min()), int(values.max())
    return next((full for full in (1, 255, 65535) if low >= 0 and high <= full), None)
