"""PatchMatch: copies patches of the surroundings into the hole. No weights, sharp, deterministic.

C. Barnes, E. Shechtman, A. Finkelstein, D. Goldman: "PatchMatch" (SIGGRAPH 2009), in the build of
the package PyPatchMatch.
"""

from __future__ import annotations

import importlib.util
import threading

import numpy as np
from numpy.typing import NDArray

from zim._extras import require
from zim.errors import MissingExtraError

#: half the side of a patch; 3 keeps lines best (the package's own default of 15 is slow)
RADIUS = 3

#: its random numbers are global to the process
_LOCK = threading.Lock()


def available() -> bool:
    """Tell whether the package is installed."""
    return importlib.util.find_spec("patchmatch") is not None


class PatchMatch:
    """The default filler (see :class:`zim_inpaint.backends.Filler`)."""

    name = "patchmatch"
    takes_text = False
    side = 512
    multiple = 1
    enlarges = False

    def __init__(self, radius: int = RADIUS) -> None:
        """Find the package.

        Raises:
            MissingExtraError: it is not installed, or has no library for this system.
        """
        self._module = require("patchmatch", "inpaint")
        if not getattr(self._module, "patchmatch_available", True):
            raise MissingExtraError("the native library of PyPatchMatch", "inpaint")
        self._radius = radius

    def fill(
        self,
        image: NDArray[np.uint8],
        mask: NDArray[np.uint8],
        *,
        seed: int = 0,
        text: str | None = None,
        negative: str | None = None,
    ) -> NDArray[np.uint8]:
        """Fill the hole with patches of the rest; ``text`` and ``negative`` are not used."""
        del text, negative
        with _LOCK:
            self._module.set_random_seed(seed)
            filled = self._module.inpaint(
                np.ascontiguousarray(image), np.ascontiguousarray(mask), patch_size=self._radius
            )
        return np.asarray(filled, dtype=np.uint8)
