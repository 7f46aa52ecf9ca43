"""One picture of many mattes, each in a colour of its own, so that a person sees what was found."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.errors import ImageError

#: a map is a picture to look at: larger photographs are shown smaller
LONGEST_SIDE = 2048
_STRENGTH = 0.6  # of a colour where alpha is 1
_GOLDEN = 0.618034  # steps of the golden ratio keep neighbouring hues apart


class ObjectMap:
    """A darkened grey copy of a picture that mattes are painted on, largest first."""

    def __init__(self, rgb: NDArray[np.uint8], longest: int = LONGEST_SIDE) -> None:
        """Start from a picture, H x W x 3 uint8."""
        self._full = rgb.shape[:2]
        scale = min(1.0, longest / max(self._full))
        self._size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
        small = self._shrink(rgb).astype(np.float32)
        grey = small.mean(-1, keepdims=True)
        self._photo = small
        self._canvas = 0.55 * (0.5 * grey + 0.5 * small)
        self._count = 0

    def add(self, alpha: NDArray[Any]) -> tuple[int, int, int]:
        """Paint a matte, H x W float in [0, 1] or uint8; return its colour.

        Raises:
            ImageError: picture and matte differ in size.
        """
        if alpha.shape != self._full:
            raise ImageError(f"the matte is {alpha.shape} but the picture is {self._full}")
        share = self._shrink(alpha).astype(np.float32)
        if alpha.dtype == np.uint8:
            share /= 255
        hue = (0.58 + self._count * _GOLDEN) % 1
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.75 if self._count % 2 else 0.95, 1)
        colour = np.array([red, green, blue], np.float32) * 255
        tinted = (1 - _STRENGTH) * self._photo + _STRENGTH * colour
        self._canvas += share[..., None] * (tinted - self._canvas)
        solid = np.ascontiguousarray(share > 0.5).astype(np.uint8)
        outline, _ = cv2.findContours(solid, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        bright = tuple(float(v) for v in 0.5 * colour + 127)
        cv2.drawContours(self._canvas, outline, -1, bright, 1, cv2.LINE_8)
        self._count += 1
        return int(colour[0]), int(colour[1]), int(colour[2])

    def picture(self) -> NDArray[np.uint8]:
        """Return what has been painted so far, h x w x 3 uint8."""
        return np.clip(self._canvas + 0.5, 0, 255).astype(np.uint8)

    def _shrink(self, x: NDArray[Any]) -> NDArray[Any]:
        if (x.shape[1], x.shape[0]) == self._size:
            return x
        return cv2.resize(x, self._size, interpolation=cv2.INTER_AREA)


def object_map(rgb: NDArray[np.uint8], records: Iterable[Any]) -> NDArray[np.uint8]:
    """Show the records of :class:`zim.ZimAutomaticMaskGenerator` on their picture.

    Args:
        rgb: H x W x 3 uint8.
        records: dictionaries with ``alpha`` and ``area``; larger ones are painted first, so that
            small objects stay visible.

    Returns:
        h x w x 3 uint8, longest side at most ``LONGEST_SIDE``.
    """
    painted = ObjectMap(rgb)
    for record in sorted(records, key=lambda r: -r["area"]):
        painted.add(record["alpha"])
    return painted.picture()
