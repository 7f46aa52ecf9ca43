"""Arrays out of whatever callers have; torch is not imported for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_numpy(values: Any) -> np.ndarray:
    """Return a tensor's values, or anything else that numpy takes, as an array.

    Tensors may have gradients, be on another device, or in bfloat16, which numpy has not.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
    return np.asarray(values)


def to_unit(values: np.ndarray) -> NDArray[np.float32] | None:
    """Return a mask or matte as float32 in which 1 is all of it; floats keep their values.

    Of integers 0 and 1 is a binary mask in any type; beyond that the range tells the depth, 8 or 16
    bits. None of values that are neither, or no numbers.
    """
    if values.dtype.kind not in "biuf":
        return None
    if values.dtype.kind in "bf" or not values.size:
        return values.astype(np.float32, copy=False)
    low, high = int(values.min()), int(values.max())
    full = next((full for full in (1, 255, 65535) if low >= 0 and high <= full), None)
    return None if full is None else (values / full).astype(np.float32)
