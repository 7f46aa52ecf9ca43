"""The files of ``zim auto``: a folder per picture laid out as SAM's ``amg.py`` does it.

    DIR/STEM/0.png, 1.png, ...     masks, 0 and 255
    DIR/STEM/alpha/0.png, ...      mattes
    DIR/STEM/metadata.csv          SAM's columns, and ``alpha_file``
    DIR/STEM.json                  instead of masks and table: records with COCO run lengths
    DIR/STEM.overlay.png           all mattes in colour on the picture

Everything is written to a hidden folder first and renamed when it is complete.
"""

from __future__ import annotations

import csv
import io
import json
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zim.commands.auto_names import OVERLAY, TABLE
from zim.errors import OutputError
from zim.images import atomic_write, encode_alpha, save_rgb
from zim.object_map import ObjectMap

#: SAM's header, and ours
HEADER = (
    "id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,"
    "stability_score,crop_box_x0,crop_box_y0,crop_box_w,crop_box_h,alpha_file"
)


@dataclass(frozen=True)
class Target:
    """Where the results of one picture go."""

    output: Path
    stem: str
    rle: bool

    @property
    def folder(self) -> Path:
        """Folder of masks and mattes."""
        return self.output / self.stem

    @property
    def table(self) -> Path:
        """What lists the objects."""
        return self.output / f"{self.stem}.json" if self.rle else self.folder / TABLE

    @property
    def overlay(self) -> Path:
        """The picture of everything."""
        return self.output / f"{self.stem}{OVERLAY}"

    @property
    def places(self) -> tuple[Path, ...]:
        """Everything that must not be there yet."""
        places = (self.folder, self.overlay)
        return (*places, self.table) if self.rle else places

    def existing(self) -> Path | None:
        """Return something of an earlier run, or None."""
        return next((path for path in self.places if path.exists()), None)

    def outputs(self) -> dict[str, str]:
        """Return the report's paths."""
        table = {"result" if self.rle else "csv": str(self.table)}
        return {"folder": str(self.folder), **table, "overlay": str(self.overlay)}


def write_results(
    target: Target,
    rgb: NDArray[np.uint8],
    records: Sequence[Any],
    threshold: float = 0.5,
    bits: Literal[8, 16] = 8,
) -> None:
    """Write all results of one picture, whole or not at all.

    Args:
        target: where to.
        rgb: the picture.
        records: of the generator; ``segmentation`` as COCO run lengths where ``target.rle``.
        threshold: alpha above which a pixel belongs to the mask.
        bits: depth of the mattes.

    Raises:
        OutputError: something cannot be written.
    """
    with _hidden_folder(target) as new:
        alphas = new / target.stem / "alpha"
        alphas.mkdir(parents=True)
        overlay = ObjectMap(rgb)
        rows: dict[int, Any] = {}
        # Largest first, as the overlay needs it; every matte is made once and dropped.
        for i in sorted(range(len(records)), key=lambda i: -records[i]["area"]):
            record, name = records[i], f"{i}.png"
            alpha = record["alpha"]
            atomic_write(alphas / name, encode_alpha(alpha, bits))
            overlay.add(alpha)
            if target.rle:
                rows[i] = _plain(record) | {"id": i, "alpha_file": f"{target.stem}/alpha/{name}"}
            else:
                # what record["segmentation"] is, without making the matte a second time
                mask = (alpha > threshold).astype(np.float32)
                atomic_write(new / target.stem / name, encode_alpha(mask))
                rows[i] = _row(i, record, f"alpha/{name}")
        ordered = [rows[i] for i in range(len(records))]
        text = json.dumps(ordered) + "\n" if target.rle else _csv(ordered)
        atomic_write(new / target.table.relative_to(target.output), text.encode())
        save_rgb(new / target.overlay.name, overlay.picture())
        _move_in(target, new)


@contextmanager
def _hidden_folder(target: Target) -> Iterator[Path]:
    new = target.output / f".{secrets.token_hex(8)}.tmp"
    try:
        new.mkdir(parents=True)
        yield new
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"{target.folder} cannot be written: {error.strerror or error}"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _move_in(target: Target, new: Path) -> None:
    """Put a finished result in place; of an earlier one only what such a run writes is removed."""
    if target.folder.exists():
        for old in [*target.folder.glob("*.png"), *target.folder.glob("alpha/*.png")]:
            if re.fullmatch(r"\d+\.png", old.name):
                old.unlink()
        (target.folder / TABLE).unlink(missing_ok=True)
        runs = target.output / f"{target.stem}.json"
        if not target.rle and _is_ours(runs):
            runs.unlink()
        for file in sorted((new / target.stem).rglob("*"), key=lambda f: f.name == TABLE):
            if file.is_file():
                place = target.folder / file.relative_to(new / target.stem)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.replace(place)
    else:
        (new / target.stem).replace(target.folder)
    for file in (target.overlay, target.table):
        if (new / file.name).exists():
            (new / file.name).replace(file)


def _is_ours(path: Path) -> bool:
    """Tell whether a file is what ``--rle`` writes, and not somebody's of the same name."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    listed = isinstance(rows, list) and bool(rows)
    return listed and all(isinstance(row, dict) and "alpha_file" in row for row in rows)


def _plain(record: Any) -> dict[str, Any]:
    return {key: record[key] for key in record if key != "alpha"}


def _row(i: int, record: Any, alpha_file: str) -> list[Any]:
    return [
        i,
        record["area"],
        *record["bbox"],
        *record["point_coords"][0],
        record["predicted_iou"],
        record["stability_score"],
        *record["crop_box"],
        alpha_file,
    ]


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return f"{HEADER}\n{text.getvalue()}"
