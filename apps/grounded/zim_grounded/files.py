"""The files of one picture: cut-outs, mattes, a label map, an annotated picture, a table.

The table is written last, so a picture whose table exists is done.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.commands.outputs import Result
from zim.errors import OutputError
from zim.output import atomic_write, encode_alpha, encode_rgb
from zim.prompts import Prompt
from zim.result import Matte
from zim_grounded.candidates import Found
from zim_grounded.cli import FORMATS
from zim_grounded.draw import annotate
from zim_grounded.mattes import label_map

#: kinds of which every object has a file of its own
OWN = ("rgba", "alpha")


@dataclass(frozen=True)
class Target:
    """A picture and where its results go."""

    source: str
    folder: Path

    @classmethod
    def of(cls, source: str, output: str | None) -> Target:
        """Plan the results of a picture; without ``output`` they go to the current folder."""
        return cls(source, Path(output).expanduser() if output else Path())

    @property
    def stem(self) -> str:
        """Return what all names begin with."""
        return Result(self.source).stem

    @property
    def table(self) -> Path:
        """Return the JSON table's place."""
        return self.folder / f"{self.stem}.json"

    def own(self, number: int, phrase: str, kind: str) -> Path:
        """Return the place of an object's file of a kind."""
        return self.folder / f"{self.stem}.{number}.{slug(phrase)}.{kind}.png"

    def shared(self, kind: str) -> Path:
        """Return the place of the label map or of the annotated picture."""
        return self.folder / f"{self.stem}.{kind}.{'png' if kind == 'labels' else 'jpg'}"


@dataclass(frozen=True, eq=False)
class Instance:
    """One object: how it was found, its matte and the matte's predicted quality."""

    found: Found | None
    alpha: NDArray[np.float32] | None
    quality: float | None
    prompt: Prompt | None = None

    def row(self) -> dict[str, Any]:
        """Return what is said about it in tables and reports."""
        row: dict[str, Any] = {"metrics": {}}
        if self.found is not None:
            row |= {
                "phrase": self.found.phrase,
                "box": [round(v, 2) for v in self.found.box],
                "fallback": self.found.fallback,
                "tokens": [list(t) for t in self.found.tokens],
            }
            if self.found.owner is not None:
                row["owner_box"] = [round(v, 2) for v in self.found.owner]
            row["metrics"]["score"] = round(self.found.score, 4)
        if self.alpha is not None and self.quality is not None:
            row["metrics"] |= {
                "quality": round(self.quality, 4),
                "area": int((self.alpha > 0.5).sum()),
                "mean_alpha": round(float(self.alpha.mean()), 5),
            }
        return row


def write_results(
    target: Target,
    rgb: NDArray[np.uint8],
    instances: Sequence[Instance],
    table: dict[str, Any],
    formats: Sequence[str] | None,
    *,
    overwrite: bool,
    keep: bool = False,
) -> list[dict[str, str]]:
    """Write everything about one picture.

    Args:
        target: its name and folder.
        rgb: H x W x 3 uint8.
        instances: objects in order.
        table: what the JSON says beside the objects.
        formats: kinds to write; None for all, empty for the table alone.
        overwrite: replace existing files.
        keep: leave existing files as they are and write the others.

    Returns:
        For every object its files by kind, with ``keep`` those of earlier kinds too; label map,
        annotated picture and table are shared.

    Raises:
        OutputError: a file exists, or cannot be written.
    """
    kinds = FORMATS if formats is None else tuple(formats)
    files: dict[Path, bytes] = {}
    shared: dict[str, str] = {}
    own: list[dict[str, str]] = [{} for _ in instances]
    mattes = [i.alpha for i in instances if i.alpha is not None]
    for k, (instance, names) in enumerate(zip(instances, own, strict=True), 1):
        if instance.alpha is None:
            continue
        phrase = instance.found.phrase if instance.found else "scribble"
        matte = Matte(rgb, instance.alpha)
        for kind in OWN:
            path = target.own(k, phrase, kind)
            if kind in kinds:
                rgba = kind == "rgba"
                files[path] = matte.encode("rgba") if rgba else encode_alpha(instance.alpha, 16)
            if path in files or (keep and path.exists()):
                names[kind] = str(path)
    if mattes and "labels" in kinds:
        path = target.shared("labels")
        files[path], shared["labels"] = _grey(label_map(mattes)), str(path)
    if mattes and "overlay" in kinds:
        path = target.shared("overlay")
        files[path], shared["overlay"] = encode_rgb(_picture(rgb, instances), ".jpg"), str(path)
    shared["json"] = str(target.table)
    rows = [i.row() | {"files": names} for i, names in zip(instances, own, strict=True)]
    text = json.dumps(table | {"detections": rows}, indent=1) + "\n"
    files[target.table] = text.encode()
    stale = _earlier(target) - set(files) if overwrite else set[Path]()
    for path in files:
        if path.exists() and not (overwrite or keep):
            raise OutputError(f"{path} exists; use --overwrite or --skip-existing")
    target.folder.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        if overwrite or not path.exists() or path == target.table:
            atomic_write(path, data)
    for path in stale:
        path.unlink(missing_ok=True)
    return [names | shared for names in own]


def read_table(target: Target) -> dict[str, Any]:
    """Return the table of an earlier run; empty where there is none that can be read."""
    try:
        table = json.loads(target.table.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def files_of(target: Target, table: dict[str, Any], kinds: Collection[str]) -> list[Path]:
    """Return the files of some kinds for what a table says was found."""
    rows = found if isinstance(found := table.get("detections"), list) else []
    phrases = [row.get("phrase", "scribble") if isinstance(row, dict) else "" for row in rows]
    own = [kind for kind in OWN if kind in kinds]
    files = [target.own(k, str(p), kind) for k, p in enumerate(phrases, 1) for kind in own]
    return [*files, *(target.shared(kind) for kind in kinds if kind not in OWN and rows)]


def _earlier(target: Target) -> set[Path]:
    """Return the files that an earlier run has left, by its table."""
    return set(files_of(target, read_table(target), FORMATS))


def slug(phrase: str) -> str:
    """Return a phrase as part of a file name: letters, digits and dashes, at most 40."""
    return re.sub(r"[^\w]+", "-", phrase.lower().replace("'", "")).strip("-_")[:40] or "object"


def _picture(rgb: NDArray[np.uint8], instances: Sequence[Instance]) -> NDArray[np.uint8]:
    shown = [i for i in instances if i.alpha is not None]
    captions = []
    for number, i in enumerate(shown, 1):
        caption = f"{number} {i.found.phrase} {i.found.score:.2f}" if i.found else ""
        captions.append(caption + (" (owner)" if i.found and i.found.fallback else ""))
    prompt = next((i.prompt for i in shown if i.prompt is not None), None)
    return annotate(
        rgb,
        [i.alpha for i in shown if i.alpha is not None],
        [i.found.box if i.found else None for i in shown],
        captions,
        None if prompt is None else prompt.points,
        None if prompt is None else prompt.labels,
    )


def _grey(labels: NDArray[Any]) -> bytes:
    done, data = cv2.imencode(".png", labels)
    if not done:
        raise OutputError(f"a label map of shape {labels.shape} cannot be encoded as PNG")
    return data.tobytes()
