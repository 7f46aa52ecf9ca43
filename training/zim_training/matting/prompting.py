"""Prompts as the paper trains with: a jittered box, or points sampled as RITM does (Sec. 5.1)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim_training.prompts import draw

Array = NDArray[Any]
Rng = np.random.Generator
#: RITM: at most so many points of each sign, decaying by GAMMA
MOST, GAMMA = 24, 0.8
SLOTS = 2 * MOST
ABSENT, PAD = -2, -1
#: how often people are taken to give which kind of prompt
KINDS = {"box": 0.4, "click": 0.3, "clicks": 0.15, "box_click": 0.1, "scribble": 0.05}


def box_prompt(rng: Rng, alpha: Array, jitter: float) -> tuple[Array, NDArray[np.int8]]:
    """Min-max box of the matte (alpha > 0.1), every side moved by up to ``jitter`` of its length.

    Returns:
        Points 2 x 2 float32 (x, y) and labels 2 and 3; at least 2 pixels wide, inside the picture.
    """
    rows, columns = np.nonzero(alpha > min(0.1, 0.5 * float(alpha.max())))
    height, width = alpha.shape
    x0, x1, y0, y1 = columns.min(), columns.max(), rows.min(), rows.max()
    move = rng.uniform(-jitter, jitter, 4)
    w, h = x1 - x0, y1 - y0
    left, right = x0 + move[0] * w, x1 + move[1] * w
    top, bottom = y0 + move[2] * h, y1 + move[3] * h
    left, right = np.clip([min(left, right), max(left, right, left + 2)], 0, width - 1)
    top, bottom = np.clip([min(top, bottom), max(top, bottom, top + 2)], 0, height - 1)
    return np.array([[left, top], [right, bottom]], np.float32), np.array([2, 3], np.int8)


def point_prompt(
    rng: Rng, alpha: Array, others: Array, single: float
) -> tuple[Array, NDArray[np.int8]]:
    """Positive and negative points as in RITM, with SAM's padding point at the end.

    Args:
        rng: source of randomness.
        alpha: h x w matte.
        others: h x w bool, other objects of the picture.
        single: probability of one positive point and nothing else.

    Returns:
        Points n x 2 float32 and labels 1, 0, and -1 for the padding.
    """
    inside = alpha > min(0.5, 0.5 * float(alpha.max()))
    lone = rng.random() < single
    count = 1 if lone else 1 + _decaying(rng, MOST - 1)
    body = inside
    if rng.random() < 0.9:
        eroded = cv2.erode(inside.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=3) > 0
        body = eroded if eroded.sum() > 10 else inside
    marks = [(x, y, 1) for x, y in _uniform(rng, body, count)]
    for _ in range(0 if lone else _decaying(rng, MOST)):
        draw = rng.random()
        region = ~inside
        if draw < 0.5:
            reach = 2 * int(np.ceil(0.1 * np.sqrt(inside.sum()))) + 1
            grown = cv2.dilate(inside.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0
            region = grown & ~inside
        elif draw < 0.9 and (others & ~inside).any():
            region = others & ~inside
        marks += [(x, y, 0) for x, y in _uniform(rng, region, 1)]
    marks.append((0.0, 0.0, PAD))
    array = np.array(marks, np.float32)
    return array[:, :2], array[:, 2].astype(np.int8)


def people_prompt(
    rng: Rng, alpha: Array, others: Array, frame: int
) -> tuple[Array, NDArray[np.int8]]:
    """A prompt as ``nano`` was trained with (:mod:`zim_training.prompts`).

    Args:
        rng: source of randomness.
        alpha: h x w matte.
        others: h x w bool, other objects of the picture.
        frame: side of the model frame.

    Returns:
        Points n x 2 float32 and labels as in SAM, without unused slots.
    """
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    prompt = draw(rng, kind, alpha, others.astype(np.float32), frame)
    if prompt is None:  # too little to click on
        return box_prompt(rng, alpha, 0.0)
    used = prompt.labels != ABSENT
    return prompt.points[used], prompt.labels[used]


def _decaying(rng: Rng, most: int) -> int:
    weights = GAMMA ** np.arange(most + 1)
    return int(rng.choice(most + 1, p=weights / weights.sum()))


def _uniform(rng: Rng, region: NDArray[np.bool_], count: int) -> list[tuple[float, float]]:
    rows, columns = np.nonzero(region)
    if not len(rows):
        return []
    chosen = rng.integers(len(rows), size=count)
    return [(float(columns[k]), float(rows[k])) for k in chosen]


def padded(points: Array, labels: NDArray[np.int8]) -> tuple[Array, NDArray[np.int64]]:
    """Fill up to ``SLOTS + 1`` slots; unused ones are absent."""
    full, kind = np.zeros((SLOTS + 1, 2), np.float32), np.full(SLOTS + 1, ABSENT, np.int64)
    full[: len(points)], kind[: len(labels)] = points, labels
    return full, kind
