"""Photographs whose regions people have outlined: coarse edges, but real objects in real places."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float32 unless said otherwise

#: a region smaller than this share of the picture is no target
MIN_SHARE = 0.006


def read_rgb(path: Path) -> Array:
    """Read a picture as RGB uint8 h x w x 3."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise OSError(f"{path} is not a readable image")
    return np.ascontiguousarray(picture[..., ::-1])


class SegmentReader:
    """Reads ``segments/``: a photograph and its binary regions."""

    def __init__(self, root: Path) -> None:
        """Load the tables that say what the label values mean."""
        self.root = root
        self.rows: dict[str, dict[int, dict[str, str]]] = {}
        with (root / "segments" / "coco_segments.csv").open(newline="") as handle:
            for row in csv.DictReader(handle):
                self.rows.setdefault(row["name"], {})[int(row["value"])] = row

    def read(self, file: str) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
        """Return the photograph and its regions, largest first; file is ``segments/images/X``."""
        stem = Path(file).stem
        picture = read_rgb(self.root / file)
        path = self.root / "segments" / "masks" / f"{stem}.png"
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if labels is None:
            raise OSError(f"{path} is not a readable label map")
        regions = []
        if stem.startswith("ccp"):
            regions.append(labels > 0)
        values, counts = np.unique(labels[labels > 0], return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            if count >= MIN_SHARE * labels.size and self._usable(stem, value, count / labels.size):
                regions.append(labels == value)
        regions = [r for r in regions if MIN_SHARE <= r.mean() <= 0.9]
        return picture, sorted(regions, key=lambda r: -int(r.sum()))

    def _usable(self, stem: str, value: int, share: float) -> bool:
        """Crowds are no objects; scenery counts only where it is large."""
        row = self.rows.get(stem, {}).get(value)
        if row is None:
            return not stem.startswith("coco")
        if row["iscrowd"] == "1":
            return False
        return row["isthing"] == "1" or share > 0.04


def soften(region: Array, rng: np.random.Generator) -> Array:
    """Turn a hand-drawn outline into something like a photograph's edge: smooth, 1 to 2 pixels."""
    smooth = cv2.GaussianBlur(region, (0, 0), rng.uniform(0.8, 1.6))
    return np.clip((smooth - 0.5) * rng.uniform(1.2, 2.0) + 0.5, 0, 1)
