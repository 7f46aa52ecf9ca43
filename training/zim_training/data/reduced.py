"""A smaller copy of what is trained on, for machines to which little can be carried.

Pictures keep their names and become WebP, which OpenCV tells from the content; photographs shrink
to the frame's needs, outlines along with them, and of the emoji, of which there are many,
every second one stays. Only what :mod:`zim_training.data.sources` lists is copied.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from zim.errors import ConfigError
from zim_training.data.outlines import OUTLINES, read_outlines, refuse_used
from zim_training.data.sources import FOLDERS, list_sources

#: longest side of plain photographs in pixels
PHOTO_SIDE = 576
#: WebP quality of photographs and of cut-outs, whose alpha stays exact
QUALITY, CUT_QUALITY = 79, 82
#: one of so many emoji is kept
EMOJI_STEP = 2


def write_reduced(root: Path, out: Path) -> Iterator[int]:
    """Write the reduced collection.

    Args:
        root: the image collection.
        out: a folder that does not exist yet, or is empty.

    Yields:
        The size of every picture in bytes.

    Raises:
        ConfigError: ``out`` holds something, or a picture cannot be read or written.
    """
    refuse_used(out)
    drawn, kept = read_outlines(root), set()
    scaled: dict[str, Any] = {}
    for folder in FOLDERS:
        cuts = folder == "foregrounds"
        sources = list_sources(root, folder)
        emoji = [s for s in sources if cuts and "/cut_" not in s.file]
        dropped = {s.file for k, s in enumerate(emoji) if k % EMOJI_STEP}
        for source in sources:
            if source.file in dropped:
                continue
            scale = PHOTO_SIDE if folder == "photos" else 0
            factor, size = _copy(root, out, source.file, scale, CUT_QUALITY if cuts else QUALITY)
            if source.file in drawn and folder == "photos":
                scaled[source.file] = [
                    {key: _times(value, factor) for key, value in one.items()}
                    for one in drawn[source.file]
                ]
            kept.add(source.file)
            yield size
    (out / OUTLINES).write_text(json.dumps(scaled), encoding="utf-8")
    _copy_tables(root, out, kept)


def _copy(root: Path, out: Path, file: str, side: int, quality: int) -> tuple[float, int]:
    """Write a picture, at most ``side`` pixels long; return its scale and its bytes."""
    picture = cv2.imread(str(root / file), cv2.IMREAD_UNCHANGED if not side else cv2.IMREAD_COLOR)
    if picture is None:
        raise ConfigError(f"{root / file} is not a readable image")
    height, width = picture.shape[:2]
    factor = min(1.0, side / max(height, width)) if side else 1.0
    if factor < 1:
        size = (round(width * factor), round(height * factor))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    written, data = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, quality])
    if not written:
        raise ConfigError(f"{file} cannot be written as WebP by this OpenCV")
    path = out / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())
    return factor, int(np.asarray(data).nbytes)


def _times(value: Any, factor: float) -> Any:
    """Scale coordinates in nested lists."""
    if isinstance(value, list):
        return [_times(one, factor) for one in value]
    return value if isinstance(value, bool) else round(value * factor, 1)


def _copy_tables(root: Path, out: Path, kept: set[str]) -> None:
    """Copy label maps and the tables that name the kept pictures."""
    masks = out / "segments" / "masks"
    masks.mkdir(parents=True, exist_ok=True)
    for file in kept:
        label_map = root / "segments" / "masks" / f"{Path(file).stem}.png"
        if file.startswith("segments/") and label_map.is_file():
            shutil.copyfile(label_map, masks / label_map.name)
    for table in (root / "segments").glob("*.csv"):
        shutil.copyfile(table, out / "segments" / table.name)
    with (root / "index.csv").open(newline="") as source:
        rows = list(csv.reader(source))
    with (out / "index.csv").open("w", newline="") as target:
        csv.writer(target).writerows([rows[0], *(row for row in rows[1:] if row[0] in kept)])
