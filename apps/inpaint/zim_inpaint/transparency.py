"""Pictures that are transparent in places: what a repair sees of them, and what it leaves.

A repair works on colours that show. What is removed takes the transparency of what is around it;
what was painted in its place, or behind the object, is opaque.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.viz import blend
from zim_inpaint.picture import Picture
from zim_inpaint.window import around

#: pixels that the transparency of a removed place is continued from, and the context it needs
_REACH, _CONTEXT = 3, 0.1


def behind(picture: Picture, alpha: NDArray[np.float32]) -> tuple[Picture, NDArray[np.float32]]:
    """Return picture and matte for a new background.

    The background's colours are sRGB, so the picture's have to be too. Where the picture is
    transparent the background shows, as it does where the matte is: the lower of the two counts,
    and black takes the place of colours that nobody sees.

    Args:
        picture: as it was read.
        alpha: the object's matte, H x W in [0, 1].
    """
    rgb, own = picture.srgb, picture.alpha
    if own is not None:
        rgb, alpha = blend(rgb, np.zeros(3, np.uint8), own), np.minimum(alpha, own)
    return replace(picture, rgb=rgb, alpha=None, icc=None), alpha


def seen(picture: Picture) -> Picture:
    """Return the picture to repair: colours that nobody sees become those of the nearest that show.

    What a file holds where it is transparent, often black, would be continued into what shows.
    """
    alpha = picture.alpha
    if alpha is None or alpha.all() or not alpha.any():
        return picture
    shown = np.flatnonzero(alpha)
    kind = cv2.DIST_LABEL_PIXEL
    _, nearest = cv2.distanceTransformWithLabels(
        (alpha == 0).view(np.uint8), cv2.DIST_L2, 5, labelType=kind
    )
    place = np.zeros(int(nearest.max()) + 1, np.intp)
    place[nearest.reshape(-1)[shown]] = shown
    return replace(picture, rgb=picture.rgb.reshape(-1, 3)[place[nearest]])


def repaired(
    picture: Picture, mask: NDArray[np.bool_], weight: NDArray[np.float32], *, removed: bool
) -> Picture:
    """Return the picture with the transparency it has after a repair.

    Args:
        picture: before it.
        mask: what was repainted, H x W.
        weight: how much of each pixel is new, H x W in [0, 1].
        removed: it continues what is around; otherwise something opaque was painted.
    """
    old = picture.alpha
    if old is None:
        return picture
    new = _continued(old, mask) if removed else np.ones_like(old)
    return replace(picture, alpha=np.asarray(old + weight * (new - old), np.float32))


def _continued(alpha: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Continue the transparency around a hole into it; outside of it nothing changes."""
    window = around(mask, _CONTEXT)
    at = (window.rows, window.columns)
    hole = mask[at].astype(np.uint8)
    # 16 bits: with 8 its rounding would make what is opaque a little transparent
    values = np.rint(alpha[at] * 65535).astype(np.uint16)
    filled = np.asarray(cv2.inpaint(values, hole, _REACH, cv2.INPAINT_TELEA), np.float32)
    out = alpha.copy()
    out[at] = np.where(mask[at], filled / np.float32(65535), alpha[at])
    return out
