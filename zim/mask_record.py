"""One automatic matte: a dictionary as SAM's generator returns it, whose pictures stay small.

Three hundred objects of a 12-megapixel photograph as float mattes and boolean masks are 18 GB. A
record therefore keeps what its matte is made from, the stride-2 logits (1 MB for a 1024 frame),
and makes ``alpha`` and ``segmentation`` when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zim.geometry import Frame
from zim.masks import Box, clean_alpha
from zim.predictor import enlarge_low_res


@dataclass(frozen=True, eq=False)
class Recipe:
    """How to make a full-size matte.

    Attributes:
        logits: 1 x 1 x m x m low-res logits of the crop's padded frame.
        rgb: the picture, H x W x 3 uint8, shared by all records.
        crop: what the frame shows, x0, y0, x1, y1 in the picture; the matte is 0 elsewhere.
        frame_size: side of the model frame.
        edges: how logits are enlarged, ``ZimConfig.edges``.
        threshold: alpha at which masks are cut.
        min_area: smaller holes and islands are removed; 0 leaves everything.
    """

    logits: Tensor
    rgb: NDArray[np.uint8]
    crop: Box
    frame_size: int
    edges: str
    threshold: float
    min_area: float = 0

    @torch.inference_mode()
    def in_crop(self) -> tuple[NDArray[np.float32], bool]:
        """Return the matte of the crop alone, and whether clean-up changed it."""
        x0, y0, x1, y1 = self.crop
        frame = Frame((y1 - y0, x1 - x0), self.frame_size)
        view = self.rgb[y0:y1, x0:x1]
        logits = enlarge_low_res(self.logits, frame, np.ascontiguousarray(view), self.edges)
        alpha = logits[0, 0].sigmoid_().cpu().numpy()
        if self.min_area > 0:
            return clean_alpha(alpha, self.threshold, self.min_area)
        return alpha, False

    def full(self, part: NDArray[Any]) -> NDArray[Any]:
        """Put something of the crop's size into a picture of zeros."""
        x0, y0, x1, y1 = self.crop
        size = self.rgb.shape[:2]
        if (y1 - y0, x1 - x0) == size:
            return part
        canvas = np.zeros(size, part.dtype)
        canvas[y0:y1, x0:x1] = part
        return canvas

    def alpha(self) -> NDArray[np.float32]:
        """Return the matte, float32 H x W in [0, 1]."""
        return self.full(self.in_crop()[0])

    def alpha_u8(self) -> NDArray[np.uint8]:
        """Return the matte rounded to 0..255."""
        return (self.alpha() * np.float32(255) + np.float32(0.5)).astype(np.uint8)

    def mask(self) -> NDArray[np.bool_]:
        """Return ``alpha > threshold``, bool H x W."""
        return self.full(self.in_crop()[0] > self.threshold)


class Deferred:
    """A value of a :class:`MaskRecord` that is computed when it is read."""

    def __init__(self, make: Callable[[], Any], *, keep: bool) -> None:
        """Remember how to make the value, and whether to keep it once it is made."""
        self.make = make
        self.keep = keep


class MaskRecord(dict[str, Any]):
    """A dictionary whose deferred values are computed on reading; otherwise like any other.

    Keys: ``segmentation`` (bool H x W, or an RLE dictionary), ``alpha`` (H x W), ``bbox`` XYWH,
    ``area``, ``predicted_iou``, ``point_coords`` [[x, y]], ``stability_score``, ``crop_box`` XYWH.
    """

    def __getitem__(self, key: str) -> Any:
        """Return a value; a deferred one is made now."""
        value = super().__getitem__(key)
        if not isinstance(value, Deferred):
            return value
        made = value.make()
        if value.keep:
            self[key] = made
        return made

    # dict's own versions of these would hand out the deferred objects themselves; because
    # __iter__ is overridden, dict(record) and {**record} go through keys and __getitem__ as well.

    def __iter__(self) -> Iterator[str]:
        """Go through the keys."""
        return super().__iter__()

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or ``default`` when there is none."""
        return self[key] if key in self else default  # noqa: SIM401 - this is that method

    def pop(self, key: str, *default: Any) -> Any:
        """Remove a key and return its value."""
        value = super().pop(key, *default)
        return value.make() if isinstance(value, Deferred) else value

    def popitem(self) -> tuple[str, Any]:
        """Remove the last key and return it with its value."""
        key, value = super().popitem()
        return key, value.make() if isinstance(value, Deferred) else value

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return a value; when there is none, ``default`` becomes it."""
        if key not in self:
            self[key] = default
        return self[key]

    def values(self) -> Any:
        """Return all values, deferred ones made."""
        return [self[key] for key in self]

    def items(self) -> Any:
        """Return all pairs, deferred values made."""
        return [(key, self[key]) for key in self]

    def copy(self) -> MaskRecord:
        """Return a shallow copy that makes its deferred values as late as this one."""
        return MaskRecord({key: super(MaskRecord, self).__getitem__(key) for key in self})

    def __reduce__(self) -> Any:
        """Pickle as a plain dictionary with everything made."""
        return dict, (list(self.items()),)

    def __repr__(self) -> str:
        """Show the numbers; the pictures would be long."""
        shown = {k: v for k, v in super().items() if not isinstance(v, Deferred | np.ndarray)}
        return f"MaskRecord({shown})"
