"""Photographs without labels: objects outlined by hand, most by GrabCut from box and strokes.

``outlines.json`` keeps what was drawn and nothing else; the mattes are worked out again from it, so
the pictures stay where they are and the labels can be read, corrected and extended by hand. An
entry was kept only after its outline had been looked at.

An entry, all coordinates in pixels of the file::

    "photos/flower_x.jpg": [{"box": [x0, y0, x1, y1], "within": [[x, y], ...],
                             "object": [[[x, y], ...], ...], "rest": [[[x, y], ...], ...]}]

``within`` is a rough polygon that takes the box's place; ``object`` and ``rest`` are strokes on
what belongs to the object and on what does not; a stroke of one point is a click. Where colours
say nothing, as among fruit of one kind, an entry is ``{"polygon": [[x, y], ...]}``: the outline
itself. A photograph may have several objects. A polygon that is ``"proposed"`` is ``nano``'s answer
to a box and clicks, kept after a look at it: for training only, never to score with.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.errors import ConfigError
from zim.grabcut import grabcut
from zim_training.data.natural import read_rgb
from zim_training.data.sources import Split, list_sources

Array = NDArray[Any]
Mask = NDArray[np.bool_]

#: name of the file
OUTLINES = "outlines.json"
#: GrabCut works on a picture of this longest side
SIDE = 400
#: width of a stroke as a share of the longest side
STROKE = 0.02
_ITERATIONS = 6
#: islands and holes smaller than this share of the object are dropped
_SPECK = 0.01


@lru_cache(maxsize=1)
def read_outlines(root: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the drawn boxes and strokes by file below a data root.

    A reduced collection (:mod:`zim_training.data.reduced`) has an ``outlines.json`` of its own.
    """
    own = root / OUTLINES
    path = own if own.is_file() else Path(__file__).with_name(OUTLINES)
    return json.loads(path.read_text(encoding="utf-8"))


def outlines_hash(root: Path) -> str:
    """Return a hash of what was drawn: other outlines make other scenes of the same seeds."""
    return hashlib.sha256(json.dumps(read_outlines(root)).encode()).hexdigest()[:12]


def outline(picture: NDArray[np.uint8], drawn: dict[str, Any]) -> Mask:
    """Find the object a person meant.

    Args:
        picture: h x w x 3 RGB uint8.
        drawn: an entry as described above.

    Returns:
        h x w bool.
    """
    height, width = picture.shape[:2]
    if "polygon" in drawn:
        mask = np.zeros((height, width), np.uint8)
        corners = np.round(np.array(drawn["polygon"], np.float32) * 16).astype(np.int32)
        cv2.fillPoly(mask, [corners], 1, shift=4)
        return mask > 0
    scale = min(1.0, SIDE / max(height, width))
    size = (round(width * scale), round(height * scale))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    trimap = np.full((size[1], size[0]), cv2.GC_BGD, np.uint8)
    if "within" in drawn:
        polygon = np.round(np.array(drawn["within"], np.float32) * scale).astype(np.int32)
        cv2.fillPoly(trimap, [polygon], int(cv2.GC_PR_FGD))
    else:
        x0, y0, x1, y1 = (round(v * scale) for v in drawn["box"])
        trimap[max(0, y0) : y1, max(0, x0) : x1] = cv2.GC_PR_FGD
    thickness = max(2, round(STROKE * max(size)))
    fixed = np.zeros_like(trimap)
    for name, label in (("rest", 1), ("object", 2)):
        for stroke in drawn.get(name, ()):
            points = np.round(np.array(stroke, np.float32) * scale).astype(np.int32)
            cv2.polylines(fixed, [points], False, label, thickness)
    trimap[fixed == 1], trimap[fixed == 2] = cv2.GC_BGD, cv2.GC_FGD
    hard = _without_specks(_without_specks(grabcut(small, trimap, _ITERATIONS)), inverse=True)
    soft = cv2.GaussianBlur(hard.astype(np.float32), (0, 0), 1.0)
    return cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5


def refuse_used(folder: Path) -> None:
    """Raise ConfigError where a folder to write to holds something already."""
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; choose another folder")


def write_outlined(root: Path, out: Path, split: Split | None = None) -> Iterator[str]:
    """Write the photographs with one outlined object as benchmarks read them.

    They go to ``images/`` and ``alphas/``.

    Args:
        root: the image collection.
        out: a folder that does not exist yet, or is empty.
        split: only this side of the split; None means both.

    Yields:
        The file below the data root of every pair that was written; alphas have hard edges.

    Raises:
        ConfigError: ``out`` holds something, or the collection has no outlined photograph.
    """
    refuse_used(out)
    drawn = read_outlines(root)
    single = {f for f, (one, *rest) in drawn.items() if not rest and not one.get("proposed")}
    files = [s.file for s in list_sources(root, "photos", split) if s.file in single]
    if not files:
        raise ConfigError(f"{root} has none of the {len(drawn)} outlined photographs")
    for name in ("images", "alphas"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for file in files:
        picture = read_rgb(root / file)
        mask = outline(picture, drawn[file][0])
        alpha = out / "alphas" / f"{Path(file).stem}.png"
        if not cv2.imwrite(str(alpha), mask.astype(np.uint8) * 255):
            raise ConfigError(f"{alpha} cannot be written")
        shutil.copyfile(root / file, out / "images" / Path(file).name)
        yield file


def _without_specks(mask: Mask, inverse: bool = False) -> Mask:
    region = ~mask if inverse else mask
    least = _SPECK * float(mask.sum())
    _, labels, stats, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=4)
    kept = np.asarray(stats)[:, cv2.CC_STAT_AREA] >= least
    kept[0] = False
    region = kept[np.asarray(labels, np.int64)]
    return ~region if inverse else region
