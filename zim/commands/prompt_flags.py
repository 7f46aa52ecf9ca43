"""Prompts as people type them: ``--points 120,80 300,200,0``, ``--box 10,10,90,90``, files.

Coordinates are pixels of the original image, (x, y), 0-based from the top left corner; a box is
x0,y0,x1,y1. Nothing here needs numpy: pictures that serve as prompts are opened later.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from pathlib import Path

from zim.commandline import UsageError
from zim.prompt_json import Box, ObjectPrompt, Point, read_prompts


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
        help='JSON {"point": [[x,y,label],...], "bbox": [x0,y0,x1,y1]} with "scribble" and "mask" '
        "(files beside it, or strokes) if wanted, or a list of such, one per object",
    )


def parse_point(text: str) -> Point:
    """Parse ``X,Y`` or ``X,Y,LABEL``; without a label the point is on the object."""
    values = _numbers(text)
    if values is None or len(values) not in (2, 3):
        raise argparse.ArgumentTypeError(
            f"{text.strip()!r} is not X,Y or X,Y,LABEL with finite numbers{_hint(text)}"
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
            f"{text.strip()!r} is not X0,Y0,X1,Y1 with finite numbers{_hint(text)}"
        )
    if values[2] <= values[0] or values[3] <= values[1]:
        raise argparse.ArgumentTypeError(
            f"{text.strip()!r} is not X0,Y0,X1,Y1 with X0 < X1 and Y0 < Y1 (nor X,Y,WIDTH,HEIGHT)"
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


def _numbers(text: str) -> list[float] | None:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None


def _hint(text: str) -> str:
    """Explain the usual mistakes: a picture behind a flag of several values, and spaces."""
    if os.path.isfile(text):  # noqa: PTH113 (whose name may be too long)
        return "; put images before --points and --box"
    numbers = re.fullmatch(r"[-+.\d\s(),]+", text)
    spoilt = "," not in text or re.search(r"[\s()]", text)
    return "; write it with commas and without spaces" if numbers and spoilt else ""
