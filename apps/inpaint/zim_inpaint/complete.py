"""Everything that has to go with an object: its ends, its parts of other colours, its shadow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zim.prompts import Prompt
from zim_inpaint.ends import with_ends
from zim_inpaint.foreign import with_foreign
from zim_inpaint.shadow import with_shadow


def completed(
    rgb: NDArray[np.uint8],
    alpha: NDArray[np.float32],
    prompt: Prompt | None = None,
    *,
    ends: bool = True,
    shadow: bool = True,
) -> NDArray[np.float32]:
    """Return a matte for removal: with what the one for compositing leaves out.

    Args:
        rgb: H x W x 3 uint8.
        alpha: H x W in [0, 1].
        prompt: what was asked for; its negative clicks and its box are respected.
        ends: add ends of the object's colours and parts of others that hang on it alone.
        shadow: add the shadow that touches it.

    Returns:
        float32 H x W, nowhere below ``alpha``.
    """
    if ends:
        alpha = with_ends(rgb, alpha, prompt)
    whole = with_foreign(rgb, alpha, prompt) if ends else alpha
    if not shadow:
        return whole
    # A dark piece of shadow may have passed for a part: look from before it was taken, too.
    result = np.maximum(whole, with_shadow(rgb, alpha, prompt))
    return result if whole is alpha else np.maximum(result, with_shadow(rgb, whole, prompt))
