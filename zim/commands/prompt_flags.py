"""Prompts as people type them: ``--points 120,80 300,200,0``, ``--box 10,10,90,90``, files.

Coordinates are pixels of the original image, (x, y), 0-based from the top left corner; a box is
x0,y0,x1,y1. Nothing here needs numpy: pictures that serve as prompts are opened later.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shorten
from typing import Any, cast

from zim.commandline import UsageError
from zim.errors import PromptError

Point = tuple[float, float, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ObjectPrompt:
    """What was said about one object; nothing at all means the whole frame."""

    points: tuple[Point, ...] = ()
    box: Box | None = None
    scribble: str | None = None
    mask: str | None = None


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what to cut out."""
    group = parser.add_argument_group(
        "prompts (pixels of the original image; without any, the whole frame is the box)"
    )
    group.add_argument(
        "--points",
        nargs="+",
        action="extend",
        type=parse_point,
        metavar="X,Y[,LABEL]",
        help="clicks on one object: LABEL 1 is on the object (default), 0 is not on it",
    )
    group.add_argument(
        "--box",
        nargs="+",
        action="extend",
        type=parse_box,
        metavar="X0,Y0,X1,Y1",
        help="a box around the object; several boxes are several objects",
    )
    group.add_argument(
        "--scribble",
        metavar="FILE",
        help="strokes on the object: a painted picture, or JSON [[x,y],...] or a list of such",
    )
    group.add_argument("--mask", metavar="FILE", help="a rough mask of the object, any size")
    group.add_argument(
        "--prompts",
        metavar="FILE",
        help='JSON {"point": [[x,y,label],...], "bbox": [x0,y0,x1,y1]}, or a list of such, '
        "one per object",
    )


def parse_point(text: str) -> Point:
    """Parse ``X,Y`` or ``X,Y,LABEL``; without a label the point is on the object."""
    values = _numbers(text)
    if values is None or len(values) not in (2, 3):
        raise argparse.ArgumentTypeError(
            f"{text.strip()!r} is not X,Y or X,Y,LABEL with finite numbers{_position_hint(text)}"
        )
    label = values[2] if len(values) == 3 else 1
    if label not in (0, 1):
        raise argparse.ArgumentTypeError(
            f"{text.strip()!r} has the label {label:g}; expected 1 (object) or 0 (not the object)"
        )
    return values[0], values[1], int(label)


def parse_box(text: str) -> Box:
    """Parse ``X0,Y0,X1,Y1``."""
    values = _numbers(text)
    if values is None or len(values) != 4:
        raise argparse.ArgumentTypeError(
            f"{text.strip()!r} is not X0,Y0,X1,Y1 with finite numbers{_position_hint(text)}"
        )
    return values[0], values[1], values[2], values[3]


def object_prompts(args: argparse.Namespace) -> list[ObjectPrompt]:
    """Return one prompt per object from parsed flags; always at least one.

    Raises:
        UsageError: flags that leave open which object they are about.
        PromptError: a prompt file that cannot be understood.
        OSError: a prompt file that cannot be read.
    """
    points: tuple[Point, ...] = tuple(args.points or ())
    boxes: list[Box] = list(args.box or ())
    if args.prompts:
        if points or boxes or args.scribble or args.mask:
            raise UsageError("--prompts takes the place of the other prompt flags; give one kind")
        return read_prompts(Path(args.prompts))
    if len(boxes) > 1:
        if points or args.scribble or args.mask:
            raise UsageError(
                f"{len(boxes)} boxes are {len(boxes)} objects, and points, scribbles or a mask "
                "would belong to none of them; use --prompts FILE"
            )
        return [ObjectPrompt(box=box) for box in boxes]
    box = boxes[0] if boxes else None
    return [ObjectPrompt(points, box, args.scribble, args.mask)]


def read_prompts(path: Path) -> list[ObjectPrompt]:
    """Read a prompt file: one object in MicroMat-3K's style, or a list of them."""
    data = read_json(path)
    entries = cast("list[Any]", data if isinstance(data, list) else [data])
    if not entries:
        raise PromptError(f"{path}: an empty list; expected at least one object")
    return [_read_entry(entry, f"{path}, object {i}") for i, entry in enumerate(entries, 1)]


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


def _read_entry(entry: Any, where: str) -> ObjectPrompt:
    if not isinstance(entry, dict) or not entry:
        raise PromptError(f'{where}: expected {{"point": [[x,y,label],...], "bbox": [...]}}')
    values = cast("dict[str, Any]", entry)
    unknown = sorted(set(values) - {"point", "bbox"})
    if unknown:
        raise PromptError(f"{where}: unknown key {unknown[0]!r}; expected 'point' and 'bbox'")
    points: list[Point] = []
    raw_points = values.get("point") or []
    if not isinstance(raw_points, list):
        raise PromptError(f"{where}: 'point' is {shorten(raw_points)}; expected [[x,y,label],...]")
    for raw in cast("list[Any]", raw_points):
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
                f"{where}: bbox {shorten(values['bbox'])} is not finite [x0, y0, x1, y1]"
            )
        box = (numbers[0], numbers[1], numbers[2], numbers[3])
    return ObjectPrompt(tuple(points), box)


def _numbers(text: str) -> list[float] | None:
    try:
        return _finite([float(part) for part in text.split(",")])
    except ValueError:
        return None


def _finite(values: Any) -> list[float] | None:
    """Return the values as finite floats, or None if they are anything else."""
    if not isinstance(values, list):
        return None
    numbers: list[float] = []
    for value in cast("list[Any]", values):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        if not math.isfinite(value):
            return None
        numbers.append(float(value))
    return numbers


def _position_hint(text: str) -> str:
    """Explain the usual mistake: a picture behind a flag that takes several values."""
    return "; put images before --points and --box" if Path(text).is_file() else ""
