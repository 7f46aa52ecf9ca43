"""Between the command line and the library: open a picture once, cut many objects out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zim
from zim.images import LoadedImage

if TYPE_CHECKING:
    pass


class Session:
    """One model, one picture at a time."""

    def __init__(self, model: str, device: str, dtype: str) -> None:
        """Load the model.

        Raises:
            ZimError: the model, device or type is unknown, or its weights are missing.
        """
        self.predictor = zim.ZimPredictor(zim.load(model, device=device, dtype=dtype))
        self.image: LoadedImage | None = None
