"""What finding every object needs of masks: grids, crops, stability, duplicates, clean-up.

Definitions are those of SAM's automatic generator (segment-anything), so that numbers compare;
how masks are written down is in :mod:`zim.rle`. numpy, torch and OpenCV only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zim.errors import ConfigError

Space = Literal["prob", "logit"]
Box = tuple[int, int, int, int]
Mask = NDArray[np.bool_]

#: a box this many pixels from a crop's edge is taken to be cut off by it (SAM)
EDGE = 20.0


def point_grid(side: int) -> NDArray[np.float64]:
    """Return the centres of side x side cells of the unit square, N x 2 (x, y), row by row."""
    if side < 1:
        raise ConfigError(f"{side} points per side; expected at least 1")
    centres = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(centres, centres)
    return np.stack([x, y], -1).reshape(-1, 2)


def layer_grids(side: int, layers: int, downscale: int) -> list[NDArray[np.float64]]:
    """Return the grids of crop layers 0 to ``layers``: ``side / downscale**i`` points a side."""
    if downscale < 1:
        raise ConfigError(f"crop_n_points_downscale_factor is {downscale}; expected at least 1")
    # the first grid is as asked for, which refuses 0; a small one is never thinned to nothing
    thinned = [max(1, side // downscale**i) for i in range(1, layers + 1)]
    return [point_grid(n) for n in (side, *thinned)]


def crop_boxes(size: tuple[int, int], layers: int, overlap: float) -> list[tuple[Box, int]]:
    """Cut a picture into overlapping crops, layer i into 2**i x 2**i of them.

    Args:
        size: ``(height, width)`` of the picture.
        layers: how many layers below the whole picture, which is layer 0.
        overlap: of neighbours in layer 1, as a share of the picture's short side; halved with
            every further layer.

    Returns:
        ``((x0, y0, x1, y1), layer)`` in pixels, right and bottom exclusive; column by column.
    """
    height, width = size
    boxes: list[tuple[Box, int]] = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        count = 2**layer
        shared = int(overlap * min(size) * 2 / count)
        wide = math.ceil((width + shared * (count - 1)) / count)
        high = math.ceil((height + shared * (count - 1)) / count)
        for column in range(count):
            for row in range(count):
                x0, y0 = column * (wide - shared), row * (high - shared)
                x1, y1 = min(x0 + wide, width), min(y0 + high, height)
                if x1 > x0 and y1 > y0:  # tiny pictures have fewer pixels than crops
                    boxes.append(((x0, y0, x1, y1), layer))
    return boxes


def logit(probability: float) -> float:
    """Return ``log(p / (1 - p))``, infinite at and beyond 0 and 1."""
    if probability <= 0:
        return -math.inf
    if probability >= 1:
        return math.inf
    return math.log(probability / (1 - probability))


def stability_score(
    logits: Tensor, threshold: float = 0.5, offset: float = 0.1, space: Space = "prob"
) -> Tensor:
    """Tell how little a mask changes with its threshold: |m > t + d| / |m > t - d|.

    Args:
        logits: ``... h w``.
        threshold: alpha in [0, 1] at which the mask is cut.
        offset: d, an alpha in space ``prob``, a logit in space ``logit`` (SAM: 1.0).
        space: what ``offset`` is measured in.

    Returns:
        ``...`` float32 in [0, 1]; NaN where nothing is above the lower threshold.
    """
    if space == "prob":
        upper, lower = logit(threshold + offset), logit(threshold - offset)
    elif space == "logit":
        upper, lower = logit(threshold) + offset, logit(threshold) - offset
    else:
        raise ConfigError(f"space {space!r} is unknown; expected 'prob' or 'logit'")
    inside = (logits > upper).flatten(-2).sum(-1, dtype=torch.float32)
    return inside / (logits > lower).flatten(-2).sum(-1, dtype=torch.float32)


def mask_cells(masks: Tensor) -> Tensor:
    """Return tight boxes of masks ``n h w``: n x 4 long x0, y0, x1, y1, right and bottom exclusive.

    An empty mask gives zeros.
    """

    def span(hit: Tensor) -> tuple[Tensor, Tensor]:
        length = hit.shape[-1]
        first = hit.to(torch.uint8).argmax(-1)
        last = length - hit.flip(-1).to(torch.uint8).argmax(-1)
        some = hit.any(-1)
        return first * some, last * some

    (x0, x1), (y0, y1) = span(masks.any(-2)), span(masks.any(-1))
    return torch.stack([x0, y0, x1, y1], -1)


def mask_xywh(mask: Mask) -> list[int]:
    """Return x, y, width, height of a mask as SAM's records have it, zeros when it is empty.

    Coordinates are pixel centres, so a width is the last column minus the first.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [0, 0, 0, 0]
    x0, y0, x1, y1 = columns[0], rows[0], columns[-1], rows[-1]
    return [int(x0), int(y0), int(x1 - x0), int(y1 - y0)]


def cut_by_crop(
    boxes: NDArray[Any], crop: Box, size: tuple[int, int], tolerance: float = EDGE
) -> Mask:
    """Tell which boxes end at an edge of the crop that is no edge of the picture.

    Args:
        boxes: N x 4 in the crop's pixels.
        crop: x0, y0, x1, y1 in the picture.
        size: ``(height, width)`` of the picture.
        tolerance: in pixels.
    """
    height, width = size
    x0, y0, _, _ = crop
    moved = np.asarray(boxes, np.float64).reshape(-1, 4) + np.array([x0, y0, x0, y0])
    at_crop = np.abs(moved - np.array(crop)) <= tolerance
    at_picture = np.abs(moved - np.array([0, 0, width, height])) <= tolerance
    return np.any(at_crop & ~at_picture, axis=1)


def box_iou(a: Sequence[float] | NDArray[Any], b: Sequence[float] | NDArray[Any]) -> float:
    """Return intersection over union of two boxes x0, y0, x1, y1; 0 where neither has an area."""
    width = max(0.0, float(min(a[2], b[2]) - max(a[0], b[0])))
    height = max(0.0, float(min(a[3], b[3]) - max(a[1], b[1])))
    both = width * height
    union = float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])) - both
    return both / union if union > 0 else 0.0


def nms(boxes: NDArray[Any], scores: NDArray[Any], threshold: float) -> NDArray[np.int64]:
    """Keep the best of every group of boxes that overlap (greedy non-maximum suppression).

    Args:
        boxes: N x 4 x0, y0, x1, y1.
        scores: N; of equal ones the earlier box wins.
        threshold: a box is dropped when its IoU with a kept one is larger.

    Returns:
        Indices of the kept boxes, best score first.
    """
    x0, y0, x1, y1 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    area = (x1 - x0) * (y1 - y0)
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    keep = []
    while len(order):
        best, rest = order[0], order[1:]
        keep.append(best)
        wide = np.minimum(x1[best], x1[rest]) - np.maximum(x0[best], x0[rest])
        high = np.minimum(y1[best], y1[rest]) - np.maximum(y0[best], y0[rest])
        shared = wide.clip(0) * high.clip(0)
        union = area[best] + area[rest] - shared
        order = rest[shared <= threshold * union]
    return np.array(keep, np.int64)


def clean_regions(mask: Mask, area: float, kind: Literal["holes", "islands"]) -> tuple[Mask, bool]:
    """Fill small holes of a mask, or drop its small islands.

    Args:
        mask: H x W.
        area: regions of fewer pixels go; neighbours over corners belong together.
        kind: what to remove. Of islands the largest stays when all are small.

    Returns:
        The new mask, and whether it differs.
    """
    if kind not in ("holes", "islands"):
        raise ConfigError(f"kind {kind!r} is unknown; expected 'holes' or 'islands'")
    working = (~mask if kind == "holes" else mask).astype(np.uint8)
    labels: Any
    count, labels, stats, _ = cv2.connectedComponentsWithStats(working, connectivity=8)
    sizes = stats[1:, cv2.CC_STAT_AREA]
    small = sizes < area
    if not small.any():
        return mask, False
    stays = ~small
    if kind == "islands" and not stays.any():
        stays[int(np.argmax(sizes))] = True
    kept = np.zeros(count, bool)
    kept[1:] = stays
    result = kept[labels]
    if kind == "holes":
        result = ~result
    return result, not np.array_equal(result, mask)


def clean_alpha(
    alpha: NDArray[np.float32], threshold: float, area: float
) -> tuple[NDArray[np.float32], bool]:
    """Fill small holes and drop small islands of a matte together with their soft rims.

    ``alpha > threshold`` afterwards is what :func:`clean_regions` makes of ``alpha > threshold``,
    holes first. Soft pixels follow the region they are nearest to.

    Args:
        alpha: H x W in [0, 1].
        threshold: where the mask is cut.
        area: regions of fewer pixels go.

    Returns:
        The new matte (the same array when nothing changed), and whether it differs.
    """
    mask = alpha > threshold
    filled, holes = clean_regions(mask, area, "holes")
    if holes:
        alpha = np.float32(1) - _without(np.float32(1) - alpha, filled & ~mask, ~filled, area)
    kept, islands = clean_regions(filled, area, "islands")
    if islands:
        alpha = _without(alpha, filled & ~kept, kept, area)
    return alpha, holes or islands


def _without(alpha: NDArray[np.float32], gone: Mask, kept: Mask, area: float) -> Any:
    """Clear ``gone`` and what surrounds it, as far as it is not nearer to what is kept."""
    reach = max(4, math.ceil(2 * math.sqrt(area)))
    rows, columns = np.flatnonzero(gone.any(1)), np.flatnonzero(gone.any(0))
    part = (
        slice(max(0, rows[0] - 2 * reach), rows[-1] + 2 * reach + 1),
        slice(max(0, columns[0] - 2 * reach), columns[-1] + 2 * reach + 1),
    )
    to_gone = cv2.distanceTransform((~gone[part]).astype(np.uint8), cv2.DIST_L2, 5)
    clear = to_gone <= reach
    if kept[part].any():
        clear &= to_gone < cv2.distanceTransform((~kept[part]).astype(np.uint8), cv2.DIST_L2, 5)
    alpha = alpha.copy()
    alpha[part][clear] = 0
    return alpha
