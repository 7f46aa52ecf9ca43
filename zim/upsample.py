"""A small matte enlarged along the edges of its large picture.

The fast guided filter of He and Sun, "Fast Guided Filter" (2015, arXiv:1505.00996), with the colour
guide of He, Sun and Tang, "Guided Image Filtering" (TPAMI 2013), section 3.5: around every pixel
the matte is a linear function ``a . colour + b`` of the picture. ``a`` and ``b`` are found at the
matte's own resolution, enlarged, and applied to the picture at full resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.errors import ImageError

_STRIP = 128


def guided_upsample(
    small: NDArray[np.floating[Any]],
    guide: NDArray[np.uint8],
    radius: int = 1,
    eps: float = 1e-4,
) -> NDArray[np.float32]:
    """Enlarge a matte, or its logits, to the size of the picture, following the picture's edges.

    Values stay within the range of ``small``; a constant stays exactly that constant.

    Args:
        small: h x w, any range; pixel centres are taken to lie as ``cv2.resize`` puts them.
        guide: the picture, H x W x 3 uint8, RGB.
        radius: of the window in which matte and colour are related, in pixels of ``small``.
        eps: how much colour has to vary in a window to be followed, as variance for colours in
            [0, 1]; larger is closer to plain bilinear enlargement of a blurred matte.

    Returns:
        H x W float32.

    Raises:
        ImageError: shapes or types do not fit, or ``small`` has values that are not finite.
    """
    if small.ndim != 2 or small.size == 0 or not np.isfinite(small).all():
        raise ImageError(f"a matte of shape {small.shape}; expected finite values, h x w")
    if guide.ndim != 3 or guide.shape[2] != 3 or guide.dtype != np.uint8 or guide.size == 0:
        raise ImageError(
            f"a guide of shape {guide.shape} and type {guide.dtype}; expected H x W x 3 uint8"
        )
    if radius < 1 or not eps > 0:
        raise ImageError(f"radius {radius} and eps {eps}; expected at least 1 and above 0")
    values = np.ascontiguousarray(small, dtype=np.float32)
    line = _coefficients(values, guide, radius, eps)
    out = np.empty(guide.shape[:2], dtype=np.float32)
    low, high = values.min(), values.max()
    for top in range(0, len(out), _STRIP):
        rows = slice(top, min(top + _STRIP, len(out)))
        _apply(line, guide[rows], rows, out)
        np.clip(out[rows], low, high, out=out[rows])
    return out


def _coefficients(
    values: NDArray[np.float32], guide: NDArray[np.uint8], radius: int, eps: float
) -> NDArray[np.float32]:
    """Return ``a`` (for R, G, B in 0 to 255) and ``b`` at the size of ``values``, h x w x 4."""
    height, width = values.shape
    # Plane by plane: numpy is twice as fast on them as on interleaved colours.
    planes = cv2.split(cv2.resize(guide, (width, height), interpolation=cv2.INTER_AREA))
    colour = [np.multiply(plane, np.float32(1 / 255), dtype=np.float32) for plane in planes]

    def mean(x: NDArray[Any]) -> NDArray[Any]:
        side = 2 * radius + 1
        return np.asarray(cv2.blur(x, (side, side), borderType=cv2.BORDER_REPLICATE))

    # Sums of squares lose digits; taken around the overall mean they lose fewer.
    colour_mid, value_mid = [plane.mean() for plane in colour], values.mean()
    colour = [plane - mid for plane, mid in zip(colour, colour_mid, strict=True)]
    centred = values - value_mid
    mean_colour, mean_value = [mean(plane) for plane in colour], mean(centred)
    with_value = [mean(colour[i] * centred) - mean_colour[i] * mean_value for i in range(3)]
    covariance = {}
    for i in range(3):
        for j in range(i + 1):
            moment = mean(colour[i] * colour[j])
            covariance[i, j] = moment - mean_colour[i] * mean_colour[j]
        covariance[i, i] += np.float32(eps)
    slope = _solve(covariance, with_value)
    offset = mean(mean_value - _dot(slope, mean_colour))
    slope = [mean(plane) for plane in slope]
    offset += value_mid - _dot(slope, colour_mid)
    line = [*(plane * np.float32(1 / 255) for plane in slope), offset]
    return np.asarray(cv2.merge(line), np.float32)


def _dot(planes: Sequence[NDArray[Any]], factors: Sequence[Any]) -> NDArray[Any]:
    return planes[0] * factors[0] + planes[1] * factors[1] + planes[2] * factors[2]


def _solve(
    matrix: dict[tuple[int, int], NDArray[Any]], right: Sequence[NDArray[Any]]
) -> list[NDArray[Any]]:
    """Solve one symmetric positive 3 x 3 system per pixel: LDL' on whole planes.

    ``matrix`` holds the planes on and below the diagonal. Ten times faster than
    ``numpy.linalg.solve``, which calls LAPACK for every pixel.
    """
    x, y, z = right
    d0 = matrix[0, 0]
    l10, l20 = matrix[1, 0] / d0, matrix[2, 0] / d0
    d1 = matrix[1, 1] - l10 * matrix[1, 0]
    cross = matrix[2, 1] - l20 * matrix[1, 0]
    l21 = cross / d1
    d2 = matrix[2, 2] - l20 * matrix[2, 0] - l21 * cross
    y = y - l10 * x
    z = (z - l20 * x - l21 * y) / d2
    y = y / d1 - l21 * z
    x = x / d0 - l10 * y - l20 * z
    return [x, y, z]


def _apply(
    line: NDArray[np.float32], picture: NDArray[np.uint8], rows: slice, out: NDArray[np.float32]
) -> None:
    """Write rows ``rows`` of the result: enlarge the coefficients there, apply them."""
    height, width = out.shape
    # Rows by hand, because cv2.resize cannot be asked for a part of its result.
    at = (np.arange(rows.start, rows.stop) + 0.5) * (len(line) / height) - 0.5
    at = np.clip(at, 0, len(line) - 1)
    first = at.astype(int)
    second = np.minimum(first + 1, len(line) - 1)
    part = (at - first).astype(np.float32)[:, None, None]
    here = line[first] * (1 - part) + line[second] * part
    wide = cv2.resize(here, (width, len(here)), interpolation=cv2.INTER_LINEAR)
    total = out[rows]
    total[:] = wide[..., 3]
    for channel in range(3):
        total += wide[..., channel] * picture[..., channel]
