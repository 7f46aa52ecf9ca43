"""The five prompt modes: from a truth mask to points and boxes (paper, section 7.4).

The protocol is that of Mazurowski et al. 2023: regions, largest first, each with a centre (the
pixel deepest inside) and a tight box whose bounds are the first and last object pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zim_medical.options import MODES, Protocol

Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Query:
    """One call of a model: several positive points, or one box.

    Attributes:
        points: (x, y) each, pixels.
        box: x0, y0, x1, y1, first and last object pixel.
    """

    points: tuple[tuple[int, int], ...] = ()
    box: Box | None = None

    def usable_box(self) -> Box | None:
        """Return the box with an area: one of a single row or column of pixels is widened by 1."""
        if self.box is None:
            return None
        x0, y0, x1, y1 = self.box
        return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


@dataclass(frozen=True)
class ModePrompt:
    """What one mode asks: the masks of several queries are joined by a logical or."""

    queries: tuple[Query, ...]
    n_regions: int

    def to_json(self) -> dict[str, list[list[int]]]:
        """Return the points or boxes for a table."""
        points = [list(p) for q in self.queries for p in q.points]
        boxes = [list(q.box) for q in self.queries if q.box is not None]
        return {"points": points} if points else {"boxes": boxes}


def regions(mask: Mask, protocol: Protocol) -> list[Mask]:
    """Return the largest connected regions of a mask; those below ``min_area`` are dropped.

    Args:
        mask: H x W.
        protocol: connectivity, minimum area, the order of equal areas, and how many at most.

    Returns:
        Masks H x W, one for every region, largest first.
    """
    structure = np.ones((3, 3), int) if protocol.connectivity == 8 else None
    labels = np.zeros(mask.shape, np.int32)
    count: Any = ndimage.label(mask, structure, output=labels)  # numbered in raster order
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    turn = 1 if protocol.equal_areas == "first" else -1
    order = sorted(range(count), key=lambda i: (-areas[i], turn * i))
    large = [i for i in order if areas[i] >= protocol.min_area]
    return [labels == i + 1 for i in large[: protocol.max_regions]]


def gives_prompts(mask: Mask, protocol: Protocol) -> bool:
    """Tell whether a mask has a region that is large enough for a prompt."""
    return bool(mask.any()) and (protocol.min_area <= 1 or bool(regions(mask, protocol)))


def centre(region: Mask, rng: np.random.Generator | None = None) -> tuple[int, int]:
    """Return the pixel (x, y) deepest inside a region, which ends at the picture's border.

    Args:
        region: H x W, not empty.
        rng: chooses among equally deep pixels; without it the one nearest their mean is taken,
            then the smallest (y, x).
    """
    y0, x0, y1, x1 = _bounds(region)
    cut = np.pad(region[y0 : y1 + 1, x0 : x1 + 1], 1)
    depth = ndimage.distance_transform_edt(cut)
    assert isinstance(depth, np.ndarray)
    tied = np.argwhere(depth >= depth.max() - 1e-9) - 1 + (y0, x0)
    if rng is not None:
        y, x = tied[rng.integers(len(tied))]
    else:
        # sums of whole numbers, so that rounding cannot decide between equally near pixels
        away = ((tied * len(tied) - tied.sum(0)) ** 2).sum(1)
        y, x = tied[int(np.argmin(away))]  # argwhere is in (y, x) order: the first is smallest
    return int(x), int(y)


def tight_box(mask: Mask, margin: int = 0) -> Box:
    """Return x0, y0, x1, y1 of the first and last object pixel, widened by a margin."""
    height, width = mask.shape
    y0, x0, y1, x1 = _bounds(mask)
    return (
        max(0, x0 - margin),
        max(0, y0 - margin),
        min(width - 1, x1 + margin),
        min(height - 1, y1 + margin),
    )


def mode_prompts(
    mask: Mask,
    protocol: Protocol,
    modes: Sequence[int] = MODES,
    rng: np.random.Generator | None = None,
) -> dict[int, ModePrompt]:
    """Return what each mode asks about one truth mask.

    Args:
        mask: H x W, not empty.
        protocol: the rules.
        modes: 1 one point, 2 up to three points in one call, 3 the box of the largest region,
            4 up to three boxes in a call each, 5 the box of everything.
        rng: for random ties.

    Returns:
        A prompt for every mode; empty if every region is below the minimum area.
    """
    parts = regions(mask, protocol)
    if not parts:
        return {}
    chance = rng if protocol.ties == "random" else None
    centres = tuple(centre(part, chance) for part in parts)
    boxes = [tight_box(part, protocol.box_margin) for part in parts]
    everything = {
        1: ModePrompt((Query(points=centres[:1]),), 1),
        2: ModePrompt((Query(points=centres),), len(parts)),
        3: ModePrompt((Query(box=boxes[0]),), 1),
        4: ModePrompt(tuple(Query(box=box) for box in boxes), len(parts)),
        5: ModePrompt((Query(box=tight_box(mask, protocol.box_margin)),), 1),
    }
    return {mode: everything[mode] for mode in modes}


def _bounds(mask: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1])
