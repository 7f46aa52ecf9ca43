"""The neighbourhood of an object on a coarse grid, where what belongs to it is looked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.prompts import NEGATIVE, Prompt
from zim_inpaint.cover import COVER, covered, grown, growth

#: alpha from which a pixel is the object
LIKELY = 0.5
#: a box is drawn around everything; this share of its side beyond it an end may still show
_BOX_SLACK = 0.05
_KEEP_OFF = 0.02
#: rounds of leaving out outliers, and the least share of a window that must be known
_ROUNDS, _FEWEST = 4, 0.1

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Near:
    """An object and what is around it, on at most a given number of cells a side.

    Attributes:
        rows: of the picture, what is looked at.
        columns: likewise.
        rgb: h x w x 3 uint8, that part, scaled down.
        alpha: h x w in [0, 1], its matte.
        scale: cells per pixel, at most 1.
        side: longer side of the object in cells.
        size: (height, width) of the picture.
    """

    rows: slice
    columns: slice
    rgb: NDArray[np.uint8]
    alpha: NDArray[np.float32]
    scale: float
    side: float
    size: tuple[int, ...]

    @property
    def core(self) -> Mask:
        """Where the object is likelier than not, h x w."""
        return np.asarray(self.alpha > LIKELY)

    def hole(self, repainted: Mask) -> Mask:
        """What of a mask of the whole picture (:func:`repainted`) is here, h x w."""
        part = repainted[self.rows, self.columns].astype(np.float32)
        return np.asarray(self._shrunk(part) > COVER)

    def _shrunk(self, part: NDArray[Any]) -> NDArray[Any]:
        size = (self.rgb.shape[1], self.rgb.shape[0])
        return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA))

    def edge(self, *, of_picture: bool) -> Mask:
        """Cells along the sides that are the picture's own, or along the others."""
        rim = np.zeros(self.alpha.shape, bool)
        ends = (
            (np.s_[:1], self.rows.start == 0),
            (np.s_[-1:], self.rows.stop == self.size[0]),
            (np.s_[:, :1], self.columns.start == 0),
            (np.s_[:, -1:], self.columns.stop == self.size[1]),
        )
        for place, outermost in ends:
            if outermost == of_picture:
                rim[place] = True
        return rim

    def refused(self, prompt: Prompt | None) -> Mask:
        """Cells at negative clicks, h x w."""
        spots = np.zeros(self.alpha.shape, np.uint8)
        if prompt is not None and len(prompt.points):
            radius = max(1, round(_KEEP_OFF * max(spots.shape)))
            for px, py in prompt.points[prompt.labels == NEGATIVE]:
                x = round((float(px) - self.columns.start) * self.scale)
                y = round((float(py) - self.rows.start) * self.scale)
                cv2.circle(spots, (x, y), radius, 1, -1)
        return spots > 0

    def out_of_box(self, prompt: Prompt | None) -> Mask:
        """Cells that the prompt's box leaves out, h x w."""
        height, width = self.alpha.shape
        if prompt is None or prompt.box is None:
            return np.zeros((height, width), bool)
        x0, y0, x1, y1 = (float(v) for v in prompt.box)
        slack = _BOX_SLACK * max(x1 - x0, y1 - y0)
        ys = np.arange(height)[:, None] / self.scale + self.rows.start
        xs = np.arange(width)[None] / self.scale + self.columns.start
        return (xs < x0 - slack) | (xs > x1 + slack) | (ys < y0 - slack) | (ys > y1 + slack)

    def added(self, alpha: NDArray[np.float32], cells: Mask) -> NDArray[np.float32]:
        """Return the picture's matte with these cells set, H x W float32, nowhere lower."""
        part = alpha[self.rows, self.columns]
        size = (part.shape[1], part.shape[0])
        full = cv2.resize(cells.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        result = alpha.astype(np.float32, copy=True)
        result[self.rows, self.columns] = np.maximum(part, full)
        return result


def repainted(alpha: NDArray[np.floating[Any]]) -> Mask:
    """Return what a removal by this matte would repaint, bool H x W."""
    return np.asarray(grown(covered(alpha), growth(alpha)))


def near(
    rgb: NDArray[np.uint8], alpha: NDArray[np.float32], around: float, cells: int
) -> Near | None:
    """Cut out the square around an object and scale it down, or return None without an object.

    Args:
        rgb: H x W x 3 uint8.
        alpha: H x W in [0, 1].
        around: side of the square as a multiple of the object's longer side; it is cut at the
            picture's rim.
        cells: longest side of the grid.
    """
    ys, xs = np.nonzero(alpha > LIKELY)
    if not len(ys):
        return None
    side = max(int(np.ptp(ys)), int(np.ptp(xs)), 32)
    slices: list[slice] = []
    for places, length in ((ys, alpha.shape[0]), (xs, alpha.shape[1])):
        middle = (places.min() + places.max()) / 2
        first, last = middle - around * side / 2, middle + around * side / 2
        slices.append(slice(int(max(0, first)), int(min(length, last + 1))))
    rows, columns = slices
    part, matte = rgb[rows, columns], alpha[rows, columns]
    scale = min(1.0, cells / max(matte.shape))
    size = (max(2, round(matte.shape[1] * scale)), max(2, round(matte.shape[0] * scale)))
    return Near(
        rows,
        columns,
        np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8),
        np.asarray(cv2.resize(matte, size, interpolation=cv2.INTER_AREA), np.float32),
        scale,
        side * scale,
        alpha.shape,
    )


def usual(
    values: NDArray[np.float32], known: Mask, radius: int, *, clip: float, floor: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of what is usual around each cell, outliers left out.

    Args:
        values: h x w x c float32, c at least 1.
        known: h x w, which cells count.
        radius: of the square window, in cells.
        clip: farther from the mean than this many deviations (root mean square over the channels)
            a cell no longer counts in the next round.
        floor: added to the deviation, as independent noise would be.

    Returns:
        Two of the shape of ``values``; the deviation is infinite where the window knows too little.
    """
    window = (2 * radius + 1, 2 * radius + 1)

    def total(array: NDArray[np.float32]) -> NDArray[np.float32]:
        summed = cv2.boxFilter(array, -1, window, normalize=False, borderType=cv2.BORDER_CONSTANT)
        return np.asarray(summed, np.float32).reshape(array.shape)

    keep = known.astype(np.float32)
    unknown = total(keep)[..., None] < _FEWEST * window[0] * window[1]
    mean = deviation = values
    for _ in range(_ROUNDS):
        count = np.maximum(total(keep), 1)[..., None]
        mean = np.asarray(total(values * keep[..., None]) / count, np.float32)
        spread = total(values**2 * keep[..., None]) / count - mean**2
        deviation = np.sqrt(np.maximum(spread, 0) + floor**2).astype(np.float32)
        off = np.sqrt((((values - mean) / deviation) ** 2).mean(axis=-1))
        keep = (known & (off < clip)).astype(np.float32)
    return mean, np.where(unknown, np.inf, deviation).astype(np.float32)


def joined(weak: Mask, start: Mask) -> tuple[NDArray[np.intp], list[int]]:
    """Label the 8-connected parts of ``weak`` and list those that hold a cell of ``start``."""
    labels = np.asarray(cv2.connectedComponents(weak.astype(np.uint8))[1], np.intp)
    return labels, [int(label) for label in np.unique(labels[start & weak])]
