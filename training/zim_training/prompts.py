"""Prompts as people give them, drawn from a true alpha: clicks, loose boxes, scribbles, old masks.

Click counts follow RITM (Sofiiuk et al. 2021: one plus a truncated geometric number of positives,
negatives near the border, on other objects or anywhere); boxes are loose by up to 15 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float32 unless said otherwise
Rng = np.random.Generator

#: slots per prompt; a scribble fills them all
MAX_POINTS = 24
#: side of the degraded masks that stand for an earlier answer (logits over the square frame)
MASK_SIDE = 64
#: label of a slot that is not there, and of the padding point SAM adds to clicks without a box
ABSENT, PAD = -2, -1
KINDS = ("box", "click", "clicks", "box_click", "scribble", "whole", "correction")


@dataclass(frozen=True)
class Prompt:
    """One prompt in frame pixels.

    Attributes:
        kind: one of ``KINDS``.
        points: 24 x 2 float32 (x, y), unused slots zero.
        labels: 24 int8: 1, 0, 2 and 3 as in SAM, -1 SAM's padding point, -2 unused.
        mask: 64 x 64 float32 logits of an earlier answer, or None.
    """

    kind: str
    points: Array
    labels: NDArray[np.int8]
    mask: Array | None = None


def draw(rng: Rng, kind: str, alpha: Array, others: Array, frame: int) -> Prompt | None:
    """Draw a prompt of a kind for a target.

    Args:
        rng: source of randomness.
        kind: one of ``KINDS``.
        alpha: h x w true alpha of the target.
        others: h x w union of everything else that could be meant.
        frame: side of the square model frame.

    Returns:
        The prompt, or None when the target gives no place for it.
    """
    inside = alpha > 0.5
    if inside.sum() < 12:
        inside = alpha > 0.5 * float(alpha.max())
    if inside.sum() < 6:
        return None
    marks: list[tuple[float, float, int]] = []
    mask = None
    if kind in ("box", "box_click"):
        marks += _box(rng, alpha)
    if kind == "whole":
        height, width = alpha.shape
        marks += [(0, 0, 2), (width - 1, height - 1, 3)]
    if kind in ("click", "box_click"):
        marks += _clicks(rng, inside, 1, 1)
    if kind == "box_click" and rng.random() < 0.4:
        marks += _negatives(rng, alpha, others, 1)
    if kind == "clicks":
        marks += _clicks(rng, inside, 1 + _geometric(rng, 7), 1)
        marks += _negatives(rng, alpha, others, _geometric(rng, 6))
    if kind == "scribble":
        marks += _scribble(rng, inside)
    if kind == "correction":
        mask = degrade(rng, alpha, others, frame)
        marks += _correction(rng, alpha, mask, frame)
        marks += _earlier(rng, alpha, mask, frame)
        if rng.random() < 0.4:
            marks += _box(rng, alpha)
    if not any(label in (2, 3) for _, _, label in marks):
        marks = [*marks[: MAX_POINTS - 1], (0.0, 0.0, PAD)]
    marks = marks[:MAX_POINTS]
    points = np.zeros((MAX_POINTS, 2), np.float32)
    labels = np.full(MAX_POINTS, ABSENT, np.int8)
    for k, (x, y, label) in enumerate(marks):
        points[k], labels[k] = (x, y), label
    return Prompt(kind, points, labels, mask)


def _box(rng: Rng, alpha: Array) -> list[tuple[float, float, int]]:
    """Box of the matte (alpha > 0.1), every side moved: mostly outwards, by up to 15 %."""
    rows, columns = np.nonzero(alpha > min(0.1, 0.5 * float(alpha.max())))  # smoke can be thinner
    x0, x1, y0, y1 = columns.min(), columns.max(), rows.min(), rows.max()
    loose = 0.15 if rng.random() < 0.3 else 0.06
    width, height = max(x1 - x0, 2), max(y1 - y0, 2)
    move = rng.uniform(-0.4 * loose, loose, 4)
    h, w = alpha.shape
    left = float(np.clip(x0 - move[0] * width, 0, w - 3))
    top = float(np.clip(y0 - move[1] * height, 0, h - 3))
    right = float(np.clip(x1 + move[2] * width, left + 2, w - 1))
    bottom = float(np.clip(y1 + move[3] * height, top + 2, h - 1))
    return [(left, top, 2), (right, bottom, 3)]


def _clicks(rng: Rng, inside: NDArray[np.bool_], count: int, label: int):
    """Places inside a region, mostly deep in it: people click on the middle of things."""
    padded = np.pad(inside.astype(np.uint8), 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    deep = depth > float(rng.choice((0.85, 0.5, 0.15), p=(0.4, 0.4, 0.2))) * depth.max()
    first = _places(rng, deep, 1, label)
    return first + (_places(rng, inside & (depth > 1), count - 1, label) if count > 1 else [])


def _places(rng: Rng, region: NDArray[np.bool_], count: int, label: int):
    rows, columns = np.nonzero(region)
    if not len(rows):
        return []
    chosen = rng.integers(len(rows), size=count)
    return [(float(columns[k]), float(rows[k]), label) for k in chosen]


def _negatives(rng: Rng, alpha: Array, others: Array, count: int):
    """Clicks on what is not meant: rim 0.5, other objects 0.4, anywhere 0.1 (RITM)."""
    outside = alpha < 0.02
    reach = 2 * int(np.ceil(0.1 * np.sqrt(float(alpha.sum())))) + 1
    ring = cv2.dilate((alpha > 0.05).astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0
    marks = []
    for _ in range(count):
        draw_ = rng.random()
        region = ring & outside if draw_ < 0.5 else (others > 0.5) & outside
        if draw_ > 0.9 or not region.any():
            region = outside
        marks += _places(rng, region, 1, 0)
    return marks


def _geometric(rng: Rng, most: int, gamma: float = 0.7) -> int:
    weights = gamma ** np.arange(most + 1)
    return int(rng.choice(most + 1, p=weights / weights.sum()))


def _scribble(rng: Rng, inside: NDArray[np.bool_]):
    """Points along a wandering path that stays in the object."""
    start = _clicks(rng, inside, 1, 1)
    if not start:
        return []
    height, width = inside.shape
    x, y, _ = start[0]
    angle = rng.uniform(0, 2 * np.pi)
    step = max(1.5, 0.05 * float(np.sqrt(inside.sum())))
    marks = [(x, y, 1)]
    for _ in range(int(rng.integers(8, MAX_POINTS - 1))):
        for turn in (rng.normal(0, 0.3), *rng.uniform(-np.pi, np.pi, 4)):
            nx, ny = x + step * np.cos(angle + turn), y + step * np.sin(angle + turn)
            if 0 <= nx < width and 0 <= ny < height and inside[int(ny), int(nx)]:
                x, y, angle = float(nx), float(ny), angle + turn
                marks.append((x, y, 1))
                break
    return marks


def degrade(rng: Rng, alpha: Array, others: Array, frame: int) -> Array:
    """Imitate an earlier, imperfect answer: MASK_SIDE^2 logits over the square frame."""
    full = np.zeros((frame, frame), np.float32)
    full[: alpha.shape[0], : alpha.shape[1]] = alpha
    wrong = np.zeros_like(full)
    wrong[: alpha.shape[0], : alpha.shape[1]] = others
    shape = (MASK_SIDE, MASK_SIDE)
    small = cv2.resize(full, shape, interpolation=cv2.INTER_AREA)
    wrong = cv2.resize(wrong, shape, interpolation=cv2.INTER_AREA)
    grid = rng.random((6, 6), dtype=np.float32)
    field = cv2.resize(grid, shape, interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.5:  # parts of neighbours taken for the object
        small = np.maximum(small, wrong * (field > 0.6))
    if rng.random() < 0.6:  # parts of the object missed
        small = small * (np.roll(field, 21, 1) < 0.72)
    if rng.random() < 0.5:
        kernel = np.ones((3, 3), np.uint8)
        small = cv2.dilate(small, kernel) if rng.random() < 0.5 else cv2.erode(small, kernel)
    small = cv2.GaussianBlur(small.astype(np.float32), (0, 0), rng.uniform(0.5, 2.0))
    soft = np.clip(small * rng.uniform(0.8, 1.0) + rng.uniform(0, 0.08), 0.002, 0.998)
    return np.log(soft / (1 - soft)).astype(np.float32)


def _earlier(rng: Rng, alpha: Array, mask: Array, frame: int):
    """Clicks that an earlier answer has heeded: none for a third of the draws, at most three."""
    old = cv2.resize(mask, (frame, frame), interpolation=cv2.INTER_LINEAR)
    answered = old[: alpha.shape[0], : alpha.shape[1]] > 0
    count = int(rng.choice(4, p=(0.34, 0.36, 0.2, 0.1)))
    if not count:
        return []
    marks = _clicks(rng, (alpha > 0.5) & answered, 1, 1)
    for _ in range(count - 1):
        if rng.random() < 0.6:
            marks += _places(rng, (alpha > 0.5) & answered, 1, 1)
        else:
            marks += _places(rng, (alpha < 0.02) & ~answered, 1, 0)
    return marks


def _correction(rng: Rng, alpha: Array, mask: Array, frame: int):
    """Click where the earlier answer is most wrong."""
    old = cv2.resize(mask, (frame, frame), interpolation=cv2.INTER_LINEAR)
    wrong = (old[: alpha.shape[0], : alpha.shape[1]] > 0) != (alpha > 0.5)
    depth = cv2.distanceTransform(np.pad(wrong.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    if depth.max() < 2:
        return _clicks(rng, alpha > 0.5, 1, 1)
    rows, columns = np.nonzero(depth > 0.5 * depth.max())
    k = int(rng.integers(len(rows)))
    label = int(alpha[rows[k], columns[k]] > 0.5)
    return [(float(columns[k]), float(rows[k]), label)]
