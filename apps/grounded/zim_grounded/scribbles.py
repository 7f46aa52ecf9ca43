"""Scribbles from files to points: polylines as JSON, or a painted picture.

Points are spread along strokes by arc length, at most 24 over all strokes (paper, appendix C).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from zim.errors import PromptError
from zim.images import read_mask
from zim.prompt_json import read_json
from zim.prompts import SCRIBBLE_POINTS, Prompt, scribble_points

_EXPECTED = (
    'expected [[x, y], ...], a list of such strokes, or {"width": W, "height": H, '
    '"strokes": [{"label": 1, "points": [[x, y], ...]}]}'
)


def read_scribble(file: str | Path, size: tuple[int, int]) -> Prompt:
    """Read a scribble for a picture of ``(height, width)``.

    JSON holds one stroke, a list of strokes, or an object with ``strokes``; there, strokes of
    label 0 say what is not the object, and coordinates are scaled if ``width`` and ``height``
    differ from the picture's. Any other file is a painted picture of the picture's own size.

    Raises:
        PromptError: it cannot be understood, or leaves the picture.
        ImageError: a painted picture cannot be read.
        OSError: the file cannot be read.
    """
    if Path(file).suffix.lower() != ".json":
        painted = read_mask(file)
        if painted.shape != size:
            raise PromptError(
                f"{file} is {painted.shape[1]} x {painted.shape[0]}; expected the picture's own "
                f"{size[1]} x {size[0]}"
            )
        return Prompt.create(size, scribble=painted)
    strokes, labels = _strokes(read_json(Path(file)), str(file), size)
    lengths = [float(np.hypot(*np.diff(s, axis=0).T).sum()) if len(s) > 1 else 0 for s in strokes]
    total = sum(lengths)
    points, kinds = [], []
    for label in (1, 0):
        mine = [s for s, kind in zip(strokes, labels, strict=True) if kind == label]
        if not mine:
            continue
        limit = SCRIBBLE_POINTS
        if len(set(labels)) == 2:  # both kinds share the budget by length, rounded against 0
            own = sum(n for n, kind in zip(lengths, labels, strict=True) if kind == label)
            share = own / total if total else 0.5
            limit = min(max(1, round(limit * share)), limit - 1)
        points.append(scribble_points(mine, size, limit))
        kinds += [label] * len(points[-1])
    return Prompt.create(size, points=np.concatenate(points), labels=kinds)


def _strokes(data: Any, where: str, size: tuple[int, int]) -> tuple[list[np.ndarray], list[int]]:
    scale = np.ones(2)
    if isinstance(data, dict):
        table = cast("dict[str, Any]", data)
        entries = table.get("strokes", table.get("shapes"))  # "shapes": labelme's line strips
        own = (
            table.get("width", table.get("imageWidth")),
            table.get("height", table.get("imageHeight")),
        )
        if all(isinstance(v, float) and v > 0 for v in own):
            scale = np.array([size[1], size[0]]) / np.array(own, float)
        if not isinstance(entries, list) or not entries:
            raise PromptError(f"{where}: no strokes; {_EXPECTED}")
        strokes, labels = [], []
        for entry in cast("list[Any]", entries):
            if not isinstance(entry, dict) or "points" not in entry:
                raise PromptError(f"{where}: a stroke without points; {_EXPECTED}")
            label = cast("dict[str, Any]", entry).get("label", 1)
            strokes.append(_stroke(cast("dict[str, Any]", entry)["points"], where))
            if isinstance(label, int | float) and label not in (0, 1):
                raise PromptError(f"{where}: a stroke of label {label}; expected 1 (object) or 0")
            labels.append(0 if label in (0, "0", "background") else 1)
        if 1 not in labels:
            raise PromptError(f"{where}: no stroke is on the object (label 1)")
        return [s * scale for s in strokes], labels
    if not isinstance(data, list) or not data:
        raise PromptError(f"{where}: {_EXPECTED}")
    listed = cast("list[Any]", data)
    single = isinstance(listed[0], list) and not any(isinstance(v, list) for v in listed[0])
    several: Sequence[Any] = [listed] if single else listed
    return [_stroke(s, where) for s in several], [1] * len(several)


def _stroke(points: Any, where: str) -> np.ndarray:
    try:
        stroke = np.asarray(points, dtype=float)
    except (TypeError, ValueError):
        stroke = np.zeros((0, 0))
    if stroke.ndim != 2 or stroke.shape[1] != 2 or not len(stroke) or not np.isfinite(stroke).all():
        raise PromptError(f"{where}: a stroke that is no list of points; {_EXPECTED}")
    # repeated points have no length and no direction
    keep = np.r_[True, (np.diff(stroke, axis=0) != 0).any(1)]
    return stroke[keep]
