"""Intensities to the 8-bit RGB that models take: windows, percentiles, or the cited division."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zim.errors import ZimError

#: soft tissue: level 40, width 400 Hounsfield units
CT_WINDOW = (-160.0, 240.0)
NAMES = ("protocol", "ct", "mr", "minmax")


def parse_norm(text: str) -> str | tuple[float, float]:
    """Return one of ``NAMES`` or the window ``LO,HI``.

    Raises:
        ZimError: it is neither.
    """
    if text in NAMES:
        return text
    try:
        low, high = (float(part) for part in text.removeprefix("window:").split(","))
    except ValueError:
        low = high = 0.0
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ZimError(f"window {text!r}; expected {', '.join(NAMES)} or LO,HI with LO < HI")
    return low, high


def value_range(volume: NDArray[Any], norm: str | tuple[float, float]) -> tuple[float, float]:
    """Return the intensities that become black and white.

    Args:
        volume: the whole volume or picture, finite.
        norm: ``ct`` a soft-tissue window; ``mr`` the 0.5 and 99.5 percentiles of the voxels above
            zero; ``minmax``; ``protocol`` zero to the maximum (applied to a slice, see
            :func:`to_rgb`); or a window.
    """
    if isinstance(norm, tuple):
        return norm
    if norm == "ct":
        return CT_WINDOW
    if norm == "mr":
        inside = volume[volume > 0]
        if inside.size:
            low, high = np.percentile(inside, (0.5, 99.5))
            return float(low), float(high)
    if norm == "protocol":
        return 0.0, float(volume.max())
    return float(volume.min()), float(volume.max())


def to_rgb(
    plane: NDArray[Any], norm: str | tuple[float, float], limits: tuple[float, float]
) -> NDArray[np.uint8]:
    """Return a slice as H x W x 3 uint8.

    Args:
        plane: H x W (or H x W x 3) intensities.
        norm: see :func:`value_range`; ``protocol`` divides by the slice's own maximum and drops
            the fraction, as the cited code does.
        limits: black and white, from the whole volume.
    """
    values = np.asarray(plane, np.float64)
    if norm == "protocol":
        top = float(values.max())
        scaled = np.clip(values, 0, None) / top * 255 if top > 0 else np.zeros_like(values)
        grey = scaled.astype(np.uint8)
    else:
        low, high = limits
        span = high - low if high > low else 1.0
        grey = (np.clip((values - low) / span, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(grey[..., None], 3, -1) if grey.ndim == 2 else grey)
