"""Prompts as JSON, one object in MicroMat-3K's style or a list of them; nothing is opened here.

No numpy: pictures that serve as prompts are opened later, by :mod:`zim.prompt_files`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shorten
from typing import Any, cast

from zim.errors import PromptError

Point = tuple[float, float, int]
Box = tuple[float, float, float, float]
#: what an object's entry may hold
KEYS = ("point", "bbox", "scribble", "mask")
#: the flags' names, which are taken as well
ALIASES = {"points": "point", "box": "bbox"}
_HERE = Path()


@dataclass(frozen=True)
class ObjectPrompt:
    """What was said about one object; nothing at all means the whole frame.

    Attributes:
        points: clicks.
        box: x0, y0, x1, y1.
        scribble: a file (painted picture, or JSON strokes), or the strokes themselves.
        mask: a picture file.
    """

    points: tuple[Point, ...] = ()
    box: Box | None = None
    scribble: str | list[Any] | None = None
    mask: str | None = None


def read_prompts(path: Path) -> list[ObjectPrompt]:
    """Read a prompt file: one object in MicroMat-3K's style, or a list of them."""
    data = read_json(path)
    entries = cast("list[Any]", data if isinstance(data, list) else [data])
    if not entries:
        raise PromptError(f"{path}: an empty list; expected at least one object")
    return [
        read_entry(entry, f"{path}, object {i}", path.parent) for i, entry in enumerate(entries, 1)
    ]


def read_json(path: Path) -> Any:
    """Read a JSON file, with or without a byte order mark; every number becomes a float.

    Raises:
        PromptError: it is not JSON, or nested too deeply.
        OSError: it cannot be read.
    """
    try:
        # parse_int: whole numbers beyond the range of floats become inf, which is refused later
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_int=float)
    except RecursionError:
        raise PromptError(f"{path}: brackets nested too deeply for a prompt") from None
    except ValueError as error:
        raise PromptError(f"{path}: not JSON ({' '.join(str(error).split())})") from error


def read_entry(entry: Any, where: str, folder: Path = _HERE) -> ObjectPrompt:
    """Check one object's prompt in MicroMat-3K's style, with a scribble and a mask besides.

    Args:
        entry: ``{"point": [[x, y, label], ...], "bbox": [x0, y0, x1, y1], "scribble": file or
            strokes, "mask": file}``, each if wanted, also as ``points`` and ``box``; points of a
            negative label are padding.
        where: it stands, for messages.
        folder: files are relative to it.

    Raises:
        PromptError: anything else.
    """
    if not isinstance(entry, dict) or not entry:
        raise PromptError(f'{where}: expected {{"point": [[x,y,label],...], "bbox": [...]}}')
    values = with_usual_names(cast("dict[str, Any]", entry), where)
    unknown = sorted(set(values) - set(KEYS))
    if unknown:
        known = ", ".join(map(repr, KEYS))
        raise PromptError(f"{where}: unknown key {unknown[0]!r}; expected {known}")
    points: list[Point] = []
    raw_points = values.get("point")
    if not isinstance(raw_points, list | None):
        raise PromptError(f"{where}: 'point' is {shorten(raw_points)}; expected [[x,y,label],...]")
    for raw in cast("list[Any]", raw_points or []):
        numbers = _finite(raw)
        if numbers is None or len(numbers) not in (2, 3):
            raise PromptError(
                f"{where}: point {shorten(raw)} is not [x, y] or [x, y, label] with finite numbers"
            )
        label = numbers[2] if len(numbers) == 3 else 1
        if label < 0:  # padding, as the data set's own loader writes it
            continue
        if label not in (0, 1):
            raise PromptError(f"{where}: point {shorten(raw)} has a label that is not 0 or 1")
        points.append((numbers[0], numbers[1], int(label)))
    box = None
    if values.get("bbox") is not None:
        numbers = _finite(values["bbox"])
        if numbers is None or len(numbers) != 4:
            raise PromptError(
                f"{where}: bbox {shorten(values['bbox'])} is not four numbers "
                "[x0, y0, x1, y1], or they are not finite"
            )
        box = (numbers[0], numbers[1], numbers[2], numbers[3])
    scribble, mask = values.get("scribble"), values.get("mask")
    if not isinstance(scribble, str | list | None) or scribble == "":
        raise PromptError(f"{where}: scribble {shorten(scribble)} is neither a file nor strokes")
    if not isinstance(mask, str | None) or mask == "":
        raise PromptError(f"{where}: mask {shorten(mask)} is not the name of a file")
    if isinstance(scribble, str):
        scribble = str(folder / scribble)
    mask = None if mask is None else str(folder / mask)
    return ObjectPrompt(tuple(points), box, cast("str | list[Any] | None", scribble), mask)


def with_usual_names(entry: dict[str, Any], where: str) -> dict[str, Any]:
    """Return an entry with ``point`` for ``points`` and ``bbox`` for ``box``.

    Raises:
        PromptError: both names of one thing are there.
    """
    for alias, name in ALIASES.items():
        if alias in entry and name in entry:
            raise PromptError(f"{where}: {alias!r} and {name!r} are one thing; give one of them")
    return {ALIASES.get(key, key): value for key, value in entry.items()}


def _finite(values: Any) -> list[float] | None:
    """Return the values as finite floats, or None if they are anything else."""
    if not isinstance(values, list):
        return None
    numbers: list[float] = []
    for value in cast("list[Any]", values):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        try:
            number = float(value)
        except OverflowError:  # a whole number beyond the range of floats
            return None
        if not math.isfinite(number):
            return None
        numbers.append(number)
    return numbers
