"""Procedural foregrounds with a true alpha: hair, holes, mesh, blur, glass, smoke, leaves.

Everything is drawn at twice the wanted size and reduced by area averaging, so that an edge pixel's
alpha is the share of it that is covered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float32 unless said otherwise
Rng = np.random.Generator


def noise(rng: Rng, side: int, cell: float, octaves: int = 3) -> Array:
    """Smooth random field side x side in [0, 1]; ``cell`` is the size of the largest blob."""
    total = np.zeros((side, side), np.float32)
    weight = 1.0
    for _ in range(octaves):
        n = max(2, round(side / cell))
        grid = rng.random((n, n), dtype=np.float32)
        total += weight * cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        weight, cell = weight * 0.5, cell * 0.5
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def texture(rng: Rng, side: int) -> Array:
    """Random coloured pattern side x side x 3 in [0, 1]: clouds, stripes, spots, grain."""
    colours = rng.random((3, 3), dtype=np.float32)
    kind = rng.integers(4)
    if kind == 0:
        field = noise(rng, side, side * rng.uniform(0.1, 0.8), 4)
    elif kind == 1:
        ys, xs = np.mgrid[:side, :side].astype(np.float32)
        angle, period = rng.uniform(0, np.pi), rng.uniform(5, max(6, side / 3))
        wave = np.cos(angle) * xs + np.sin(angle) * ys + 10 * noise(rng, side, side / 3, 2)
        field = 0.5 + 0.5 * np.sin(wave * 2 * np.pi / period)
    elif kind == 2:
        field = (noise(rng, side, rng.uniform(6, max(7, side / 4)), 2) > 0.55).astype(np.float32)
        field = cv2.GaussianBlur(field, (0, 0), rng.uniform(0.6, 3))
    else:
        ramp = np.linspace(0, 1, side, dtype=np.float32)
        field = 0.5 * (ramp[:, None] * rng.uniform(-1, 1) + ramp[None] * rng.uniform(-1, 1)) + 0.5
    field = np.clip(field, 0, 1)[..., None]
    picture = colours[0] * (1 - field) + colours[1] * field
    grain = noise(rng, side, rng.uniform(3, 20), 2)[..., None] - 0.5
    return np.clip(picture + rng.uniform(0, 0.4) * grain * colours[2], 0, 1).astype(np.float32)


def shape(rng: Rng, side: int) -> Array:
    """Hard-edged random silhouette side x side in {0, 1}, roughly filling the square."""
    canvas = np.zeros((side, side), np.uint8)
    centre = side / 2
    kind = rng.integers(5)
    if kind <= 1:  # wobbly blob
        angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
        radius = np.ones_like(angles)
        for k in range(2, 8):
            radius += rng.normal(0, 0.35 / k) * np.cos(k * angles + rng.uniform(0, 6.3))
        radius = np.clip(radius, 0.2, None)
        radius *= 0.46 * side / radius.max()
        stretch = rng.uniform(0.45, 1.0, 2) if rng.random() < 0.5 else np.ones(2)
        points = np.stack([np.cos(angles) * stretch[0], np.sin(angles) * stretch[1]], 1)
        points = centre + points * radius[:, None]
        cv2.fillPoly(canvas, [np.round(points).astype(np.int32)], 1)
    elif kind == 2:  # polygon
        n = int(rng.integers(3, 9))
        angles = np.sort(rng.uniform(0, 2 * np.pi, n))
        radius = rng.uniform(0.2, 0.48, n) * side
        points = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None]
        cv2.fillPoly(canvas, [np.round(points).astype(np.int32)], 1)
    elif kind == 3:  # several joined ellipses (bodies with limbs)
        for k in range(int(rng.integers(2, 7))):
            far = 0.0 if k == 0 else 0.25
            middle = np.round(centre + rng.uniform(-far, far, 2) * side).astype(int)
            axes = np.round(rng.uniform(0.06, 0.24, 2) * side).astype(int)
            cv2.ellipse(
                canvas, middle.tolist(), axes.tolist(), rng.uniform(0, 180), 0, 360, (1,), -1
            )
    else:  # thick strokes (branches, wires, letters)
        for _ in range(int(rng.integers(1, 5))):
            points = rng.uniform(0.12, 0.88, (int(rng.integers(2, 6)), 2)) * side
            width = int(rng.integers(2, max(3, side // 10)))
            cv2.polylines(canvas, [np.round(points).astype(np.int32)], False, (1,), width)
    return canvas.astype(np.float32)


def _hair(rng: Rng, alpha: Array) -> Array:
    """Strands that grow outwards from the silhouette."""
    side = len(alpha)
    contours, _ = cv2.findContours(
        (alpha > 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    if not contours:
        return alpha
    contour = max(contours, key=len)[:, 0].astype(np.float32)
    middle = contour.mean(0)
    length = rng.uniform(0.03, 0.16) * side
    out = alpha.copy()
    comb = rng.normal(0, 0.6, 2)
    start = rng.random()
    cover = rng.uniform(0.3, 1.0)
    for _ in range(int(rng.integers(60, 320))):
        place = (start + cover * rng.random()) % 1.0
        root = contour[int(place * (len(contour) - 1))]
        direction = root - middle
        direction = direction / max(float(np.hypot(*direction)), 1e-3) + comb
        direction += rng.normal(0, 0.35, 2)
        bend = rng.normal(0, 0.5, 2)
        steps = np.linspace(-0.15, 1, 7)[:, None]
        path = root + (direction * steps + bend * steps**2) * length * rng.uniform(0.4, 1.2)
        value = float(rng.uniform(0.35, 1.0))
        strand = [np.round(path * 8).astype(np.int32)]
        layer_width = 1 if rng.random() < 0.7 else 2
        cv2.polylines(out, strand, False, (value,), layer_width, cv2.LINE_AA, 3)
    return np.maximum(out, alpha)


def _holes(rng: Rng, alpha: Array) -> Array:
    """Lace, mesh, or a few openings."""
    side = len(alpha)
    kind = rng.integers(3)
    if kind == 0:
        openings = np.zeros_like(alpha)
        step = int(rng.integers(side // 30 + 4, max(side // 8, side // 30 + 5)))
        radius = max(2, int(step * rng.uniform(0.2, 0.42)))
        for y in range(0, side, step):
            for x in range((y // step % 2) * step // 2, side, step):
                cv2.circle(openings, (x, y), radius, (1.0,), -1)
    elif kind == 1:
        ys, xs = np.mgrid[:side, :side].astype(np.float32)
        angle, step = rng.uniform(0, np.pi), rng.uniform(side / 40 + 5, side / 8 + 5)
        u = np.cos(angle) * xs + np.sin(angle) * ys
        v = -np.sin(angle) * xs + np.cos(angle) * ys
        wall = rng.uniform(0.15, 0.4)
        openings = ((u / step % 1 > wall) & (v / step % 1 > wall)).astype(np.float32)
    else:
        openings = np.zeros_like(alpha)
        for _ in range(int(rng.integers(1, 5))):
            middle = rng.integers(side // 4, 3 * side // 4, 2).tolist()
            axes = rng.integers(side // 30 + 2, max(side // 7, side // 30 + 3), 2).tolist()
            cv2.ellipse(openings, middle, axes, rng.uniform(0, 180), 0, 360, (1.0,), -1)
    return alpha * (1 - openings)


def _feather(rng: Rng, alpha: Array) -> Array:
    return cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.01, 0.05) * len(alpha))


def _motion(rng: Rng, alpha: Array) -> Array:
    length = int(rng.integers(7, max(9, len(alpha) // 8)))
    kernel = np.zeros((length, length), np.float32)
    angle = rng.uniform(0, np.pi)
    reach = (length - 1) / 2 * np.array([np.cos(angle), np.sin(angle)])
    middle = (length - 1) / 2
    ends = np.round([middle - reach, middle + reach]).astype(int)
    cv2.line(kernel, ends[0].tolist(), ends[1].tolist(), (1.0,), 1)
    return cv2.filter2D(alpha, -1, kernel / max(float(kernel.sum()), 1.0))


def _glass(rng: Rng, alpha: Array) -> Array:
    side = len(alpha)
    inner = cv2.erode(alpha, np.ones((3, 3), np.uint8), iterations=max(1, side // 60))
    body = rng.uniform(0.15, 0.6) + 0.25 * noise(rng, side, side / 3, 2)
    rim = rng.uniform(0.5, 1.0)
    return np.clip(alpha * np.where(inner > 0.5, body, rim), 0, 1).astype(np.float32)


def _smoke(rng: Rng, alpha: Array) -> Array:
    side = len(alpha)
    soft = cv2.GaussianBlur(alpha, (0, 0), 0.08 * side)
    field = noise(rng, side, side * rng.uniform(0.15, 0.4), 4)
    return np.clip(soft * np.clip(2.2 * field - 0.5, 0, 1), 0, 1).astype(np.float32)


def _leaves(rng: Rng, alpha: Array) -> Array:
    side = len(alpha)
    out = np.zeros_like(alpha)
    rows, columns = np.nonzero(alpha > 0.5)
    if not len(rows):
        return alpha
    for _ in range(int(rng.integers(25, 120))):
        k = rng.integers(len(rows))
        axes = np.round(rng.uniform(0.01, 0.07, 2) * side + 1).astype(int).tolist()
        middle = (int(columns[k]), int(rows[k]))
        cv2.ellipse(out, middle, axes, rng.uniform(0, 180), 0, 360, (1.0,), -1)
    return out


_STYLES: tuple[tuple[Callable[[Rng, Array], Array] | None, float], ...] = (
    (None, 0.22),
    (_hair, 0.26),
    (_holes, 0.12),
    (_feather, 0.12),
    (_motion, 0.08),
    (_glass, 0.07),
    (_smoke, 0.06),
    (_leaves, 0.07),
)


def foreground(rng: Rng, side: int, picture: Array | None = None) -> tuple[Array, Array]:
    """Draw one object.

    Args:
        rng: source of randomness.
        side: side of the square to return.
        picture: optional photograph crop side x side x 3 in [0, 1] used as its texture.

    Returns:
        Colours side x side x 3 and alpha side x side, float32 in [0, 1].
    """
    large = 2 * side
    alpha = shape(rng, large)
    weights = np.array([w for _, w in _STYLES])
    style = _STYLES[int(rng.choice(len(_STYLES), p=weights / weights.sum()))][0]
    if style is not None:
        alpha = style(rng, alpha)
    if rng.random() < 0.12:
        alpha = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(1.0, 4.0))
    alpha = cv2.resize(alpha, (side, side), interpolation=cv2.INTER_AREA)
    colour = texture(rng, side) if picture is None or rng.random() < 0.4 else picture
    if rng.random() < 0.5:  # some shading, so that the object is not flat
        shade = 0.6 + 0.8 * noise(rng, side, side * 0.8, 1)
        colour = colour * shade[..., None]
    return np.clip(colour, 0, 1).astype(np.float32), np.clip(alpha, 0, 1).astype(np.float32)
