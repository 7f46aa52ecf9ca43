"""COCO val2017 as a benchmark: which objects count, their masks, and the clicks on them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zim.errors import ImageError, reason
from zim.rle import decode_rle

#: COCO draws polygons on a grid this many times finer than the pixels
_FINER = 5
#: a corner that is so many times the picture's longer side away is damaged
_FAR = 4
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Filter:
    """Which annotations are worth scoring; crowds never are.

    Attributes:
        min_side: shortest side of the box in pixels.
        min_area: pixels of the mask.
        max_box: largest share of the picture that the box may fill.
    """

    min_side: float = 32
    min_area: float = 1024
    max_box: float = 0.9

    def refuse(self, annotation: dict[str, Any], height: int, width: int) -> str | None:
        """Return why an annotation is left out, or None."""
        if annotation.get("iscrowd"):
            return "crowd"
        _, _, wide, high = annotation["bbox"]
        if not np.isfinite(annotation["bbox"]).all():  # json takes NaN for a number
            return "box without numbers"
        if min(wide, high) < max(1, self.min_side):
            return "box too small"
        if annotation.get("area", 0) < self.min_area:
            return "mask too small"
        if wide * high > self.max_box * height * width:
            return "box too large"
        return None


@dataclass(frozen=True)
class Target:
    """One object to remove.

    Attributes:
        key: id of its annotation.
        image: file of its picture.
        category: name of its class.
        box: x0, y0, x1, y1 in pixels, as annotated.
        size: height and width of the picture.
        segmentation: polygons or run lengths.
    """

    key: int
    image: Path
    category: str
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    segmentation: Any

    def mask(self) -> Mask:
        """Return the ground truth, H x W bool.

        Raises:
            ImageError: the annotation is damaged, or of another size than the picture.
        """
        try:
            mask = self._drawn()
        except (ValueError, TypeError, OverflowError, MemoryError) as error:
            raise ImageError(f"annotation {self.key} is damaged ({reason(error)})") from error
        if mask.shape != self.size:
            raise ImageError(
                f"annotation {self.key} has a mask of {mask.shape}; expected {self.size}"
            )
        return mask

    def _drawn(self) -> Mask:
        if isinstance(self.segmentation, dict):
            return decode_rle(self.segmentation)
        mask = np.zeros(self.size, np.bool_)
        for polygon in self.segmentation:
            corners = np.asarray(polygon, float)
            if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2:
                raise ValueError("a polygon is x, y of at least three corners")
            if not (np.abs(corners) < _FAR * max(self.size)).all():
                raise ValueError("a corner is far outside of the picture")
            mask |= polygon_mask(polygon, *self.size)
        return mask


def read_coco(
    root: Path, which: Filter, *, limit: int | None = None, seed: int = 0
) -> tuple[list[Target], list[str], Counter[str]]:
    """Read ``annotations/instances_val2017.json``.

    Args:
        root: folder that also holds ``val2017``.
        which: annotations to keep.
        limit: keep only so many, drawn with ``seed``.
        seed: of that draw.

    Returns:
        The objects in the order of their pictures, the names of all classes, and how many
        annotations were left out for which reason.

    Raises:
        ImageError: the folder is not laid out like that.
    """
    path = root / "annotations" / "instances_val2017.json"
    if not path.is_file() or not (root / "val2017").is_dir():
        raise ImageError(
            f"{root} is no COCO folder; expected annotations/instances_val2017.json and val2017/ "
            "in it (cocodataset.org: 2017 Val images and annotations)"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        names = {entry["id"]: str(entry["name"]) for entry in data["categories"]}
        pictures = {entry["id"]: entry for entry in data["images"]}
        skipped: Counter[str] = Counter()
        found: list[tuple[int, Target]] = []
        for annotation in sorted(data["annotations"], key=lambda entry: entry["id"]):
            picture = pictures[annotation["image_id"]]
            height, width = int(picture["height"]), int(picture["width"])
            if why := which.refuse(annotation, height, width):
                skipped[why] += 1
                continue
            left, top, wide, high = (float(value) for value in annotation["bbox"])
            target = Target(
                int(annotation["id"]),
                root / "val2017" / picture["file_name"],
                names[annotation["category_id"]],
                (left, top, left + wide, top + high),
                (height, width),
                annotation["segmentation"],
            )
            found.append((int(annotation["image_id"]), target))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageError(f"{path} is no COCO annotation file ({reason(error)})") from error
    if limit is not None and limit < len(found):
        chosen = np.random.default_rng(seed).permutation(len(found))[:limit]
        found = [found[index] for index in chosen]
    found.sort(key=lambda pair: (pair[0], pair[1].key))
    return [target for _, target in found], list(names.values()), skipped


def draw_points(mask: Mask, key: int, count: int, seed: int) -> NDArray[np.float32]:
    """Draw distinct pixels of a mask; the same for every model, and for every run of a seed.

    Args:
        mask: H x W bool.
        key: the annotation's id, which gives every object its own draw.
        count: how many; all pixels of a mask that has fewer.
        seed: of the benchmark.

    Returns:
        N x 2 (x, y) float32, the pixels' centres: whole numbers (:mod:`zim.prompts`).
    """
    ys, xs = np.nonzero(mask)
    count = min(count, len(ys))
    chosen = np.random.default_rng((seed, key)).choice(len(ys), count, replace=False)
    return np.stack([xs[chosen], ys[chosen]], axis=1).astype(np.float32)


def polygon_mask(polygon: list[float], height: int, width: int) -> Mask:
    """Rasterise a polygon as COCO's own tools do, so that areas agree to the pixel.

    The outline is drawn on a grid five times finer; where it crosses the middle of a column of
    pixels, inside turns to outside. Filling by another rule shifts the rim by half a pixel.

    Args:
        polygon: x0, y0, x1, y1, ... in pixels.
        height: of the picture.
        width: of the picture.
    """
    corners = (np.asarray(polygon, float).reshape(-1, 2) * _FINER + 0.5).astype(int)
    outline = [_line(a, b) for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)]
    u, v = np.concatenate(outline).T
    step = np.flatnonzero(u[1:] != u[:-1])
    fine = u[step + 1] - (u[step + 1] > u[step])
    columns = (fine + 0.5) / _FINER - 0.5
    rows = (np.minimum(v[step + 1], v[step]) + 0.5) / _FINER - 0.5
    crosses = (columns == np.floor(columns)) & (columns >= 0) & (columns <= width - 1)
    starts = np.ceil(np.clip(rows[crosses], 0, height)).astype(int)
    flips = np.zeros(height * width + 1, int)
    np.add.at(flips, columns[crosses].astype(int) * height + starts, 1)
    inside = np.cumsum(flips[:-1]) % 2 == 1
    return np.ascontiguousarray(inside.reshape(width, height).T)


def _line(start: NDArray[Any], end: NDArray[Any]) -> NDArray[Any]:
    """Return the fine pixels from one corner to the next, rounded from the smaller end."""
    size = np.abs(end - start)
    axis = int(size[1] > size[0])
    low, high = (end, start) if start[axis] > end[axis] else (start, end)
    along = np.arange(size[axis] + 1)
    slope = (high[1 - axis] - low[1 - axis]) / max(1, size[axis])
    points = np.empty((len(along), 2), int)
    points[:, axis] = low[axis] + along
    points[:, 1 - axis] = (low[1 - axis] + slope * along + 0.5).astype(int)
    return points if low is start else points[::-1]
