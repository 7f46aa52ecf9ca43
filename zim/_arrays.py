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
