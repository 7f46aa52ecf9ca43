"""From what was said about an object to a checked prompt: opens scribbles and masks.

Coordinates are pixels of the picture as it is shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.errors import PromptError
from zim.images import read_mask
from zim.prompt_json import ObjectPrompt, read_json
from zim.prompts import Prompt


def read_prompt(asked: ObjectPrompt, size: tuple[int, int]) -> Prompt:
    """Open what a prompt names and check it against a picture of ``size`` (height, width).

    Raises:
        PromptError: the prompt is malformed or outside the picture.
        ImageError: a painted scribble or mask cannot be read.
    """
    return Prompt.create(
        size,
        points=asked.points or None,
        box=asked.box,
        scribble=None if asked.scribble is None else _scribble(asked.scribble, size),
        mask=None if asked.mask is None else _mask(asked.mask, size),
    )


def _scribble(scribble: str | list[Any], size: tuple[int, int]) -> Any:
    """Return strokes: polylines as they are, a painted picture as H x W in [0, 1]."""
    if isinstance(scribble, str) and Path(scribble).suffix.lower() != ".json":
        return _painted(scribble, size, cv2.INTER_NEAREST)
    file = scribble if isinstance(scribble, str) else "scribble"
    strokes: Any = read_json(Path(scribble)) if isinstance(scribble, str) else scribble
    inner = cast("list[Any]", strokes) if isinstance(strokes, list) else []
    for _ in range(2):  # strokes, points; what is in a point must be numbers
        inner = [value for part in inner if isinstance(part, list) for value in part]
    if not isinstance(strokes, list) or not strokes or any(isinstance(v, list) for v in inner):
        raise PromptError(f"{file}: expected [[x, y], ...] or a list of such strokes")
    return cast("list[Any]", strokes)


def _mask(file: str, size: tuple[int, int]) -> NDArray[np.float32]:
    return _painted(file, size, cv2.INTER_LINEAR)


def _painted(file: str, size: tuple[int, int], interpolation: int) -> NDArray[np.float32]:
    """Read what is painted in a picture, scaled to ``size``, float32 H x W in [0, 1]."""
    values = read_mask(file)
    (height, width), (own_height, own_width) = size, values.shape
    # 2 % and a pixel of rounding
    allowed = 0.02 * own_height * width + max(size)
    if abs(own_width * height - own_height * width) > allowed:
        raise PromptError(
            f"{file} is {own_width} x {own_height}; expected the proportions of the "
            f"{width} x {height} picture"
        )
    if values.shape != size:
        values = cv2.resize(values, (width, height), interpolation=interpolation)
    return np.clip(values, 0.0, 1.0, dtype=np.float32)
