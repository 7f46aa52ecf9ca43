"""Foreground colours under a matte: what the object looked like before its background mixed in.

A soft pixel of a photograph shows ``alpha * F + (1 - alpha) * B``. Pasting that mixed colour onto a
new background leaves a rim of the old one; pasting ``F`` does not. The cost minimised here is that
of Germer, Uelwer, Conrad and Harmeling, "Fast Multi-Level Foreground Estimation" (ICPR 2020,
arXiv:2006.14970), section 3: per pixel ``i`` and channel::

    (alpha F + (1 - alpha) B - I)^2  +  sum over 4 neighbours j of  w_ij ((F_i-F_j)^2 + (B_i-B_j)^2)
    w_ij = REGULARISATION + GRADIENT_WEIGHT * |alpha_i - alpha_j|

solved from a one-pixel image up to full size, each level starting from the one below. Where this
implementation differs: levels are halved by area averaging and doubled bilinearly, pixels are
updated in red-black order (all red ones at once, then all black ones, so whole arrays move in one
operation), and the two finest levels are solved only in tiles that contain soft pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.errors import ConfigError, ImageError

ForegroundMethod = Literal["ml", "none"]
FOREGROUND_METHODS: tuple[str, ...] = ("ml", "none")

_Floats = NDArray[np.floating[Any]]
_U8 = NDArray[np.uint8]

#: Weights of the smoothness term. The paper's 1e-5 and 1 were chosen for Gauss-Seidel with few
#: iterations; with red-black sweeps a weaker edge term and a stronger floor have the lower error.
_REGULARISATION = 1e-2
_GRADIENT_WEIGHT = 0.1
#: Red-black sweeps per level, finest first; the last entry serves all coarser levels.
_SWEEPS = (2, 4, 6, 10)
#: Tiles of this side stay in a core's cache; even, so that tiles start on a red pixel.
_TILE = 128
#: A matte closer than this to 0 or 1 rounds to it in 8 bits and needs no estimate.
_SOFT_LOW, _SOFT_HIGH = 0.5 / 255.0, 254.5 / 255.0


def estimate_foreground(
    rgb: NDArray[np.uint8], alpha: NDArray[np.float32], method: ForegroundMethod = "ml"
) -> NDArray[np.uint8]:
    """Estimate the object's own colours, free of the background that shines through soft pixels.

    Where ``alpha`` is 1 the picture's colour is returned exactly; where it is 0 the object's
    colours are continued smoothly, so resizing or blurring the cut-out shows no rim.

    Args:
        rgb: H x W x 3 uint8, RGB.
        alpha: H x W float in [0, 1].
        method: ``"ml"`` multi-level estimation (see the module text), ``"none"`` returns ``rgb``
            itself.

    Returns:
        H x W x 3 uint8, RGB.

    Raises:
        ImageError: shapes or types do not fit together.
        ConfigError: ``method`` is unknown.
    """
    if method not in FOREGROUND_METHODS:
        raise ConfigError(
            f"foreground method {method!r} is unknown; expected one of "
            f"{', '.join(FOREGROUND_METHODS)}"
        )
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
        raise ImageError(
            f"foreground estimation got a picture of shape {rgb.shape} and type {rgb.dtype}; "
            "expected H x W x 3 uint8"
        )
    if alpha.shape != rgb.shape[:2]:
        raise ImageError(
            f"the matte is {alpha.shape} but the picture is {rgb.shape[:2]}; resize one of them"
        )
    if method == "none":
        return rgb
    alpha = np.asarray(alpha, dtype=np.float32)
    soft = (alpha > _SOFT_LOW) & (alpha < _SOFT_HIGH)
    workers = max(1, cv2.getNumThreads())
    with ThreadPoolExecutor(workers) as pool:
        coarse = _solve_coarse_levels(rgb, alpha, soft, pool.map)
        # The halved picture covers odd sizes with one extra row or column: double, then crop.
        small = _to_uint8(coarse[:3])
        doubled = cv2.resize(small, (small.shape[1] * 2, small.shape[0] * 2))
        out: _U8 = np.ascontiguousarray(doubled[: rgb.shape[0], : rgb.shape[1]], dtype=np.uint8)
        opaque = (alpha >= _SOFT_HIGH).view(np.uint8)
        cv2.copyTo(rgb, opaque, out)

        def finest(tile: tuple[slice, slice]) -> None:
            solved = _to_uint8(_solve_tile(rgb, alpha, coarse, tile, _SWEEPS[0])[:3])
            np.copyto(solved, rgb[tile], where=opaque[tile].view(bool)[..., None])
            out[tile] = solved

        for _ in pool.map(finest, _tiles(soft)):
            pass
    return out


def _solve_coarse_levels(
    rgb: _U8,
    alpha: _Floats,
    soft: NDArray[np.bool_],
    run: Callable[..., Iterator[None]],
) -> _Floats:
    """Solve every level except the finest; returns F and B at half size, 6 x h x w in [0, 1]."""
    half_rgb = _halve(rgb).astype(np.float32)
    half_rgb *= 1.0 / 255.0
    half_soft = _halve(soft.view(np.uint8) * np.uint8(255)) > 0
    pyramid = [(half_rgb, _halve(alpha), half_soft)]
    while max(pyramid[-1][1].shape) > 1:
        picture, matte, _ = pyramid[-1]
        matte = _halve(matte)
        pyramid.append((_halve(picture), matte, np.ones(matte.shape, dtype=bool)))

    state = _means(*pyramid[-1][:2])
    for level in range(len(pyramid) - 1, -1, -1):
        picture, matte, wanted = pyramid.pop()
        out: _Floats = np.empty((6, *matte.shape), dtype=np.float32)
        if level == 0:
            # Tiles without soft pixels keep the doubled solution of the level below.
            for plane, below in zip(out, state, strict=True):
                doubled = cv2.resize(np.asarray(below), None, fx=2, fy=2)
                plane[:] = doubled[: plane.shape[0], : plane.shape[1]]
        sweeps = _SWEEPS[min(level + 1, len(_SWEEPS) - 1)]

        def solve(
            tile: tuple[slice, slice],
            picture: _Floats = picture,
            matte: _Floats = matte,
            state: _Floats = state,
            out: _Floats = out,
            sweeps: int = sweeps,
        ) -> None:
            out[:, *tile] = _solve_tile(picture, matte, state, tile, sweeps)

        for _ in run(solve, _tiles(wanted)):
            pass
        state = out
    return state


def _solve_tile(
    picture: _U8 | _Floats, alpha: _Floats, coarse: _Floats, tile: tuple[slice, slice], sweeps: int
) -> _Floats:
    """Solve one tile of one level from the level below; returns 6 x h x w (F then B, RGB).

    Every half sweep carries values one pixel further, so with a border of ``2 * sweeps`` pixels
    the result does not depend on where the tiles lie. The tile is kept as its four phases (even
    and odd rows and columns), in which the neighbours of a phase are plain shifts of the others::

        00 01 00 01        red   = 00 and 11
        10 11 10 11        black = 01 and 10
    """
    rows, cols = tile
    height, width = rows.stop - rows.start, cols.stop - cols.start
    border = 2 * (sweeps + 1)
    top, left = rows.start - border, cols.start - border
    # Even sizes; beyond the picture its edge is repeated.
    bottom = rows.stop + border + height % 2
    right = cols.stop + border + width % 2
    image = _window(picture, top, bottom, left, right)
    matte = _window(alpha, top, bottom, left, right)
    below = (top // 2 - 1, bottom // 2 + 1, left // 2 - 1, right // 2 + 1)
    phases = _double(_window(coarse, *below, first=1))
    terms = _terms(image, matte)
    for _ in range(sweeps):
        for py, px in ((0, 0), (1, 1), (0, 1), (1, 0)):
            _update(phases, terms[py, px], py, px)

    out = np.empty((6, bottom - top, right - left), dtype=np.float32)
    for (py, px), values in phases.items():
        out[:, py::2, px::2] = values
    return out[:, border : border + height, border : border + width]


_Phases = dict[tuple[int, int], _Floats]
_Terms = tuple[list[_Floats], _Floats, _Floats, _Floats]


def _double(coarse: _Floats) -> _Phases:
    """Bilinear doubling, given as its four phases; ``coarse`` has a border of one cell."""
    rows = (
        0.25 * coarse[:, :-2] + 0.75 * coarse[:, 1:-1],
        0.75 * coarse[:, 1:-1] + 0.25 * coarse[:, 2:],
    )
    phases: _Phases = {}
    for py, block in enumerate(rows):
        phases[py, 0] = 0.25 * block[:, :, :-2] + 0.75 * block[:, :, 1:-1]
        phases[py, 1] = 0.75 * block[:, :, 1:-1] + 0.25 * block[:, :, 2:]
    return phases


def _terms(image: _U8 | _Floats, alpha: _Floats) -> dict[tuple[int, int], _Terms]:
    """Per phase: the four neighbour weights (they sum to 1), alpha, data-term factor, picture."""
    scale = np.float32(1.0 / 255.0 if image.dtype == np.uint8 else 1.0)
    across = _GRADIENT_WEIGHT * np.abs(np.diff(alpha, axis=1)) + np.float32(_REGULARISATION)
    down = _GRADIENT_WEIGHT * np.abs(np.diff(alpha, axis=0)) + np.float32(_REGULARISATION)
    height, width = alpha.shape
    terms: dict[tuple[int, int], _Terms] = {}
    for py in (0, 1):
        for px in (0, 1):
            # The outermost ring of every phase is never updated, so it needs no terms.
            ys, xs = slice(2 + py, height - 2 + py, 2), slice(2 + px, width - 2 + px, 2)
            before_x = slice(xs.start - 1, xs.stop - 1, 2)
            before_y = slice(ys.start - 1, ys.stop - 1, 2)
            weights = [across[ys, before_x], across[ys, xs], down[before_y, xs], down[ys, xs]]
            total = weights[0] + weights[1] + weights[2] + weights[3]
            inverse = 1.0 / total
            a = np.ascontiguousarray(alpha[ys, xs])
            factor = 1.0 / (total + a * a + (1.0 - a) ** 2)
            colour = np.multiply(
                image[ys, xs].transpose(2, 0, 1), scale, dtype=np.float32, order="C"
            )
            terms[py, px] = ([w * inverse for w in weights], a, factor, colour)
    return terms


def _update(phases: _Phases, terms: _Terms, py: int, px: int) -> None:
    """Set one phase to the exact minimum of the cost given its neighbours.

    With neighbour means ``F'`` and ``B'`` (weights normalised to 1, ``S`` their sum before), the
    2 x 2 system of the paper has the closed solution ``F = F' + alpha r``, ``B = B' + (1-alpha) r``
    with ``r = (I - alpha F' - (1-alpha) B') / (S + alpha^2 + (1-alpha)^2)``.
    """
    weights, alpha, factor, colour = terms
    beside, above = phases[py, 1 - px], phases[1 - py, px]
    inner = slice(1, -1)
    before, after = slice(0, -2), slice(2, None)
    left, right = (before, inner) if px == 0 else (inner, after)
    up, down = (before, inner) if py == 0 else (inner, after)

    mean = beside[:, inner, left] * weights[0]
    part = beside[:, inner, right] * weights[1]
    mean += part
    np.multiply(above[:, up, inner], weights[2], out=part)
    mean += part
    np.multiply(above[:, down, inner], weights[3], out=part)
    mean += part

    rest = 1.0 - alpha
    residual, scratch = part[:3], part[3:]
    np.multiply(mean[:3], alpha, out=residual)
    np.subtract(colour, residual, out=residual)
    np.multiply(mean[3:], rest, out=scratch)
    residual -= scratch
    residual *= factor
    np.multiply(residual, alpha, out=scratch)
    mean[:3] += scratch
    residual *= rest
    mean[3:] += residual
    np.clip(mean, 0.0, 1.0, out=phases[py, px][:, inner, inner])


def _means(picture: _Floats, alpha: _Floats) -> _Floats:
    """Mean colour of what is mostly object and mostly background, to start from; 6 x h x w."""
    colours = []
    for weight in (alpha**2, (1.0 - alpha) ** 2):
        weight = weight + 1e-6
        colours.append((picture * weight[..., None]).sum((0, 1)) / weight.sum())
    start = np.concatenate(colours).astype(np.float32)
    return np.broadcast_to(start[:, None, None], (6, *alpha.shape)).copy()


def _halve(x: NDArray) -> NDArray:
    """Halve by averaging 2 x 2 blocks; an odd last row or column is repeated first."""
    height, width = x.shape[:2]
    if height % 2 or width % 2:
        x = cv2.copyMakeBorder(x, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    size = ((width + 1) // 2, (height + 1) // 2)
    half = cv2.resize(x, size, interpolation=cv2.INTER_AREA)
    return half.reshape(size[1], size[0], *x.shape[2:])


def _window(x: NDArray, top: int, bottom: int, left: int, right: int, first: int = 0) -> NDArray:
    """Crop axes ``first`` and ``first + 1``, repeating the edge beyond the array."""
    height, width = x.shape[first : first + 2]
    y0, y1, x0, x1 = max(top, 0), min(bottom, height), max(left, 0), min(right, width)
    crop = x[:, y0:y1, x0:x1] if first else x[y0:y1, x0:x1]
    if y0 == top and y1 == bottom and x0 == left and x1 == right:
        return crop
    pad = [(0, 0)] * x.ndim
    pad[first : first + 2] = [(y0 - top, bottom - y1), (x0 - left, right - x1)]
    return np.pad(crop, pad, mode="edge")


def _tiles(wanted: NDArray[np.bool_]) -> list[tuple[slice, slice]]:
    """Tiles that contain a wanted pixel, as row and column slices."""
    height, width = wanted.shape
    tiles = []
    for top in range(0, height, _TILE):
        rows = slice(top, min(top + _TILE, height))
        for left in range(0, width, _TILE):
            cols = slice(left, min(left + _TILE, width))
            if wanted[rows, cols].any():
                tiles.append((rows, cols))
    return tiles


def _to_uint8(planes: _Floats) -> _U8:
    """3 x h x w in [0, 1] to h x w x 3 uint8, rounded."""
    scaled = planes * np.float32(255.0)
    scaled += np.float32(0.5)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(1, 2, 0))
