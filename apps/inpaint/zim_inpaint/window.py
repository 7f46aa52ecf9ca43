"""The part of a picture a filler works on: the hole with its surroundings, at a size that suits it.

+--------------------------------+
|   The window is the hole's box and a margin on every side. Near an edge of the picture it is moved
inward rather than cut, so that there is as much context as the picture has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

#: pixels of context besides the share of the hole's longer side
_LEAST_MARGIN = 16


@dataclass(frozen=True)
class Window:
    """A box of whole pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """In pixels."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """In pixels."""
        return self.bottom - self.top

    @property
    def rows(self) -> slice:
        """For indexing arrays."""
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        """For indexing arrays."""
        return slice(self.left, self.right)

    def widened(self, by: int, size: tuple[int, ...]) -> Window:
        """Add a margin on every side, cut at the picture's edges; ``size`` is (height, width)."""
        return Window(
            max(0, self.left - by),
            max(0, self.top - by),
            min(size[1], self.right + by),
            min(size[0], self.bottom + by),
        )


def bounds(mask: NDArray[np.bool_]) -> Window | None:
    """Return the tight box of a mask, or None if it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    return Window(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def around(mask: NDArray[np.bool_], context: float, least: float = 0) -> Window:
    """Return the window of a hole.

    Args:
        mask: H x W bool, not empty.
        context: margin on every side, as a share of the hole's longer side.
        least: pixels that the margin has at least.
    """
    box = bounds(mask)
    assert box is not None
    wanted = min(context * max(box.width, box.height), max(mask.shape))
    margin = max(round(wanted) + _LEAST_MARGIN, round(min(least, max(mask.shape))))
    left, right = _shifted(box.left, box.right, margin, mask.shape[1])
    top, bottom = _shifted(box.top, box.bottom, margin, mask.shape[0])
    return Window(left, top, right, bottom)


def _shifted(first: int, last: int, margin: int, limit: int) -> tuple[int, int]:
    """Widen a span by ``margin`` on both sides inside [0, limit]; what is cut off is added over."""
    length = min(limit, last - first + 2 * margin)
    start = min(max(0, first - margin), limit - length)
    return start, start + length


def work_shape(window: Window, side: int, *, multiple: int = 1, enlarge: bool = False) -> Any:
    """Return (height, width) a filler works in.

    Args:
        window: of the picture.
        side: the filler's own size: the longer side becomes at most this.
        multiple: both sides are multiples of it.
        enlarge: small windows are enlarged to ``side`` (a network trained at one size needs it).
    """
    scale = side / max(window.width, window.height)
    if not enlarge:
        scale = min(1.0, scale)

    def fit(length: int) -> int:
        return max(multiple, round(length * scale / multiple) * multiple)

    return fit(window.height), fit(window.width)


def shrink(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], shape: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Scale picture and hole to ``shape``; a pixel that holds any of the hole becomes hole.

    Returns:
        H x W x 3 uint8 and H x W uint8 of 0 and 255.
    """
    if image.shape[:2] == shape:
        return np.ascontiguousarray(image), mask.astype(np.uint8) * np.uint8(255)
    height, width = shape
    smaller = height < image.shape[0] or width < image.shape[1]
    method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    small = cv2.resize(image, (width, height), interpolation=method)
    share = cv2.resize(
        mask.astype(np.float32),
        (width, height),
        interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR,
    )
    return np.asarray(small, np.uint8), np.where(share > 0.01, 255, 0).astype(np.uint8)


def enlarge(fill: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    """Scale a fill back to its window, H x W x 3 uint8."""
    if fill.shape[:2] == (window.height, window.width):
        return fill
    smaller = window.height < fill.shape[0]
    method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    size = (window.width, window.height)
    return np.asarray(cv2.resize(fill, size, interpolation=method), np.uint8)
