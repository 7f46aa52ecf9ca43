"""GrabCut from a prompt, softened along image edges: the matte before any network.

Boxes start GrabCut as usual (Rother et al. 2004). Clicks start it from a guess: what is nearer
to them than to the rim along paths of even colour. The edge is softened with a guided filter (He et
al. 2010). Everything happens on a half-size picture of at most a few hundred pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.grabcut import grabcut

# in cells; more make a better matte of their own, but not a better hint for nano's fourth weights
# (boxes of 300 dev scenes with 64, 80, 96 and 128 cells: MSE 6.66, 6.59, 6.59, 6.68; clicks with
# 48, 64 and 80: 16.1, 15.2, 15.3, and 51.1, 50.3, 49.7 on large objects), and take longer
_GRABCUT_SIDE = 80
_GRABCUT_ITERATIONS = 2
_GEODESIC_SIDE = 64
#: the object is taken to reach this share of the longest side around a click; certain is far less
_DISC_SHARE, _SEED_SHARE = 0.25, 0.02

Array = NDArray[Any]  # float32 unless said otherwise
Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Marks:
    """One prompt in half-size pixels: box (x0, y0, x1, y1) or None, clicks N x 2."""

    box: tuple[float, float, float, float] | None
    positive: Array
    negative: Array
    mask: Array | None  # earlier probability, h x w of the half-size picture


def border_strip(shape: tuple[int, int]) -> Array:
    """Ones on a strip of 6 % along the edge of the picture."""
    strip = max(1, round(0.06 * min(shape)))
    border = np.ones(shape, np.float32)
    border[strip:-strip, strip:-strip] = 0
    return border


def guess_from_clicks(lab: Array, prompt: Marks, ratio: Array) -> Array:
    """First guess from clicks alone: nearer (along smooth paths) to them than to the border.

    Geodesic distances on a 64-cell grid; a step costs the change of colour plus a constant.
    """
    height, width = lab.shape[:2]
    scale = min(1.0, _GEODESIC_SIDE / max(height, width))
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    small = cv2.resize(lab, size, interpolation=cv2.INTER_AREA)
    small = np.dstack([small, 15.0 * cv2.resize(ratio, size, interpolation=cv2.INTER_AREA)])
    sources = np.full((2, size[1], size[0]), np.inf, np.float32)
    rim = 0.25 * max(size)  # the border is only likely background: a head start for the clicks
    sources[1, [0, -1], :] = rim
    sources[1, :, [0, -1]] = rim
    for k, points in enumerate((prompt.positive, prompt.negative)):
        for x, y in points:
            row = min(int((y + 0.5) * size[1] / height), size[1] - 1)
            column = min(int((x + 0.5) * size[0] / width), size[0] - 1)
            sources[k, row, column] = 0.0
            sources[1 - k, row, column] = np.inf
    to_object, to_rest = _geodesic(small, sources)
    guess = to_rest / np.maximum(to_object + to_rest, 1e-6)
    return cv2.resize(guess.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def _geodesic(features: Array, sources: Array) -> Array:
    """Shortest path lengths K x h x w from K sets of sources (start values, inf elsewhere)."""
    distance = sources.copy()
    steps = []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        height, width = features.shape[:2]
        here = (slice(0, height - dy), slice(max(0, -dx), width - max(0, dx)))
        there = (slice(dy, height), slice(max(0, dx), width - max(0, -dx)))
        length = float(np.hypot(dy, dx))
        change = np.sqrt(((features[here] - features[there]) ** 2).sum(-1))
        steps.append((here, there, (0.3 * change + 0.4 * length).astype(np.float32)))
    for _ in range(4 * max(features.shape[:2])):
        before = distance.copy()
        for here, there, cost in steps:
            left, right = distance[:, *here], distance[:, *there]
            np.minimum(right, left + cost, out=right)
            np.minimum(left, right + cost, out=left)
        if np.array_equal(before, distance):
            break
    return distance


def classical_matte(
    half: NDArray[np.uint8], prompt: Marks, inside: Array, start: Array | None
) -> Array:
    """GrabCut on the neighbourhood of the object, softened along image edges; h x w alpha."""
    height, width = inside.shape
    x0, y0, x1, y1 = _window(prompt, start, (height, width))
    scale = min(1.0, _GRABCUT_SIDE / max(x1 - x0, y1 - y0))
    size = (max(2, round((x1 - x0) * scale)), max(2, round((y1 - y0) * scale)))
    crop = cv2.resize(half[y0:y1, x0:x1], size, interpolation=cv2.INTER_AREA)
    region = cv2.resize(inside[y0:y1, x0:x1], size, interpolation=cv2.INTER_AREA)
    guess = None
    if start is not None:
        guess = cv2.resize(start[y0:y1, x0:x1], size, interpolation=cv2.INTER_AREA)
    trimap = _trimap(region, guess, prompt.box is not None)
    _stamp(trimap, prompt, (x0, y0), size[0] / (x1 - x0))
    hard = _grabcut(crop, trimap)
    expected = region if guess is None else np.minimum(guess, region)
    if hard is None or not 0.02 <= hard.sum() / max(float((expected > 0.5).sum()), 1.0) <= 20.0:
        soft = np.clip(expected, 0.0, 1.0) * 0.8 + 0.1
    else:
        soft = _soften(crop, hard)
        if guess is not None:  # half and half: GrabCut alone often runs away from a weak start
            soft = 0.5 * soft + 0.5 * guess
    alpha = np.zeros((height, width), np.float32)
    alpha[y0:y1, x0:x1] = cv2.resize(soft, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
    return alpha


def matte_of_discs(half: NDArray[np.uint8], prompt: Marks) -> Array:
    """GrabCut from a wide disc around every positive click: what one large object would be.

    :func:`guess_from_clicks` stops where colours change; a wide disc does not mind an object of
    several colours, and is wrong about small things.

    Args:
        half: h x w x 3 RGB uint8, half-size picture.
        prompt: its positive and negative clicks are used.

    Returns:
        h x w alpha; 0.5 everywhere where GrabCut has nothing to start from.
    """
    height, width = half.shape[:2]
    scale = min(1.0, _GRABCUT_SIDE / max(height, width))
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    small = cv2.resize(half, size, interpolation=cv2.INTER_AREA)
    trimap = np.full((size[1], size[0]), cv2.GC_PR_BGD, np.uint8)
    discs = (
        (prompt.positive, _DISC_SHARE, cv2.GC_PR_FGD),
        (prompt.positive, _SEED_SHARE, cv2.GC_FGD),
        (prompt.negative, _SEED_SHARE, cv2.GC_BGD),
    )
    for points, share, label in discs:
        for x, y in points:
            centre = (round(float(x) * scale), round(float(y) * scale))
            cv2.circle(trimap, centre, max(1, round(share * max(size))), int(label), -1)
    hard = _grabcut(small, trimap)
    if hard is None:
        return np.full((height, width), 0.5, np.float32)
    return cv2.resize(_soften(small, hard), (width, height), interpolation=cv2.INTER_LINEAR)


def _window(prompt: Marks, start: Array | None, shape: tuple[int, int]) -> tuple[int, ...]:
    """Box of the object grown by 30 % of its side, as integer x0, y0, x1, y1 within the picture."""
    height, width = shape
    box = prompt.box
    if box is None and prompt.mask is not None and start is not None:
        rows, columns = np.nonzero(start > 0.4)
        if len(rows):
            box = (columns.min(), rows.min(), columns.max(), rows.max())
    if box is None:
        return 0, 0, width, height
    margin = max(3.0, 0.3 * max(box[2] - box[0], box[3] - box[1]))
    x0, y0 = max(0, int(box[0] - margin)), max(0, int(box[1] - margin))
    x1, y1 = min(width, int(box[2] + margin) + 2), min(height, int(box[3] + margin) + 2)
    return x0, y0, x1, y1


def _trimap(region: Array, guess: Array | None, has_box: bool) -> Mask:
    """GrabCut's four labels from the box and, where there is one, a first guess."""
    trimap = np.where(region > 0.5, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    if guess is not None:
        trimap[(guess <= 0.5) & (trimap == cv2.GC_PR_FGD)] = cv2.GC_PR_BGD
    elif has_box and region.mean() > 0.9:
        # the box is the picture: nothing is left outside, so the rim stands in for background
        trimap[border_strip(region.shape) > 0] = cv2.GC_BGD
    return trimap


def _stamp(trimap: Mask, prompt: Marks, origin: tuple[int, int], scale: float) -> None:
    """Fix small discs around the clicks."""
    for points, label in ((prompt.positive, cv2.GC_FGD), (prompt.negative, cv2.GC_BGD)):
        for x, y in points:
            centre = (round((float(x) - origin[0]) * scale), round((float(y) - origin[1]) * scale))
            cv2.circle(trimap, centre, 1, int(label), -1)


def _grabcut(crop: Array, trimap: Mask) -> Array | None:
    """Run GrabCut; None where it cannot start (one of the two classes is empty)."""
    foreground = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
    count = int(foreground.sum())
    if count < 8 or trimap.size - count < 8:
        return None
    try:
        return grabcut(crop, trimap, _GRABCUT_ITERATIONS).astype(np.float32)
    except cv2.error:
        return None


def _soften(crop: Array, hard: Array, radius: int = 3, epsilon: float = 3e-3) -> Array:
    """Guided filter (grey guide): the mask's edge follows the image's edge."""
    guide = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
    window = (2 * radius + 1, 2 * radius + 1)

    def mean(values: Array) -> Array:
        return cv2.blur(values, window, borderType=cv2.BORDER_REFLECT)

    mean_guide, mean_mask = mean(guide), mean(hard)
    slope = (mean(guide * hard) - mean_guide * mean_mask) / (
        mean(guide * guide) - mean_guide**2 + epsilon
    )
    offset = mean_mask - slope * mean_guide
    return np.clip(mean(slope) * guide + mean(offset), 0, 1)
