"""A second look: crops around the prompted object, for small models with a small frame.

``nano`` sees 256 pixels a side. Where the object fills only a part of the picture, a crop of the
picture around it is encoded again and decoded with the same prompt; the matte outside the crop is
zero. A model asks for this with ``ZimConfig.framing``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zim.geometry import Frame
from zim.model.prompt_encoder import ABSENT

#: logit outside a crop: alpha 2e-9, and finite for whoever averages logits
OUTSIDE = -20.0
#: a crop of more than this share of the picture gains nothing over the whole picture
WHOLE = 0.8
#: the same for a crop round a first guess instead of a box: a wrong guess becomes final in its crop
#: (nano's fourth weights on dev scenes, MSE for limits of 0.33, 0.6 and 0.8, looks joined: small
#: things 16.5, 15.9, 15.9, large ones 47.9, 48.7, 48.8, regions of photographs 67.3, 66.9, 67.2)
GUESSED = 0.6
#: weight of the first look where it and the second differ about a lone click, and how soon, as the
#: second gets surer, it counts less: fully from alpha 0.11 to 0.89, a tenth of that at 0.01
FIRST_LOOK, SURE = 0.5, 10.0
#: smallest side of a crop in picture pixels
SMALLEST = 32


@dataclass(frozen=True)
class Window:
    """A crop of the picture, ``x0 <= x < x1`` and ``y0 <= y < y1``."""

    x0: int
    y0: int
    x1: int
    y1: int

    @classmethod
    def around(
        cls, region: np.ndarray, size: tuple[int, int], factor: float, most: float = WHOLE
    ) -> Window | None:
        """Return a crop ``factor`` times the region, or None where the whole picture is as good.

        Args:
            region: x0, y0, x1, y1 of the object in pixels.
            size: ``(height, width)`` of the picture.
            factor: the crop's long side over the region's.
            most: share of the picture above which the whole picture is taken.
        """
        height, width = size
        x0, y0, x1, y1 = (float(v) for v in region)
        # A square of the long side: thin objects need context along their short side as well.
        half = max(x1 - x0, y1 - y0, SMALLEST / factor) * factor / 2
        cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
        window = cls(
            int(max(0, np.floor(cx - half))),
            int(max(0, np.floor(cy - half))),
            int(min(width, np.ceil(cx + half))),
            int(min(height, np.ceil(cy + half))),
        )
        return None if window.width * window.height > most * width * height else window

    @property
    def width(self) -> int:
        """Return the width in pixels."""
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        """Return the height in pixels."""
        return self.y1 - self.y0

    def crop(self, rgb: np.ndarray) -> np.ndarray:
        """Cut the window out of an H x W x c array."""
        return rgb[self.y0 : self.y1, self.x0 : self.x1]

    def move_points(self, points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shift points N x 2 into the crop; clicks outside it become absent, corners are cut."""
        moved = points - (self.x0, self.y0)
        last = np.array([self.width, self.height])
        outside = ((moved < -0.5) | (moved > last - 0.5)).any(-1)
        labels = np.where(outside & np.isin(labels, (0, 1)), ABSENT, labels)
        return np.clip(moved, 0, last).astype(np.float32), labels

    def scaled(self, frame: Frame, side: int) -> tuple[int, int, int, int]:
        """Return the window's x0, y0, x1, y1 in a ``side`` x ``side`` low-res frame, not empty."""
        height, width = frame.original
        sh, sw = frame.scaled
        fx, fy = sw / width * side / frame.size, sh / height * side / frame.size
        x0, y0 = round(self.x0 * fx), round(self.y0 * fy)
        return x0, y0, max(round(self.x1 * fx), x0 + 1), max(round(self.y1 * fy), y0 + 1)


def crop_mask(mask: Tensor, window: Window, frame: Frame, inner: Frame) -> Tensor:
    """Cut low-res logits ``1 m m`` of the whole frame to those of the crop's frame."""
    side = mask.shape[-1]
    x0, y0, x1, y1 = window.scaled(frame, side)
    low = inner.cells(side)
    part = F.interpolate(mask[None, :, y0:y1, x0:x1], low, mode="bilinear", align_corners=False)
    return F.pad(part[0], (0, side - low[1], 0, side - low[0]), value=float(mask.min()))


def paste_low_res(logits: Tensor, window: Window, frame: Frame, inner: Frame) -> Tensor:
    """Bring a crop's low-res logits ``c m m`` into the whole picture's low-res frame."""
    side = logits.shape[-1]
    x0, y0, x1, y1 = window.scaled(frame, side)
    low_h, low_w = inner.cells(side)
    part = F.interpolate(
        logits[None, :, :low_h, :low_w], (y1 - y0, x1 - x0), mode="bilinear", antialias=True
    )
    canvas = logits.new_full((logits.shape[0], side, side), OUTSIDE)
    canvas[:, y0:y1, x0:x1] = part[0, :, : side - y0, : side - x0]
    return canvas


def join_looks(first: Tensor, second: Tensor, window: Window, frame: Frame, inner: Frame) -> Tensor:
    """Let the look at the whole picture temper the look at a crop, where that is unsure.

    What a lone click means is open, and each look may take it differently. Half of the difference,
    as seen at the first look's resolution, is added to the second look's alpha where that is
    neither 0 nor 1; where they agree the crop's finer edges stay.

    Args:
        first: ``c m m`` low-res logits of the whole picture.
        second: ``c m m`` low-res logits of the crop.
        window: the crop.
        frame: of the picture.
        inner: of the crop.

    Returns:
        ``c m m`` logits of the crop.
    """
    side = second.shape[-1]
    x0, y0, x1, y1 = window.scaled(frame, side)
    low = inner.cells(side)
    alpha = second[None, :, : low[0], : low[1]].sigmoid()
    coarse = first[None, :, y0:y1, x0:x1].sigmoid()
    seen = F.interpolate(alpha, coarse.shape[-2:], mode="bilinear", antialias=True)
    weight = FIRST_LOOK * (SURE * alpha * (1 - alpha)).clamp_max(1)
    moved = alpha + weight * F.interpolate(coarse - seen, low, mode="bilinear")
    joined = second.clone()
    joined[:, : low[0], : low[1]] = torch.logit(moved[0], 1e-6)
    return joined


def object_region(logits: Tensor, frame: Frame, points: np.ndarray) -> np.ndarray | None:
    """Return the box around everything above alpha 0.5, and the clicks on it, in pixels.

    Args:
        logits: ``c m m`` low-res logits of the candidates.
        frame: the picture's frame.
        points: N x 2 positive clicks in picture pixels.

    Returns:
        x0, y0, x1, y1, or None where nothing is above 0.5.
    """
    side = logits.shape[-1]
    inside = (logits > 0).any(0)
    rows, columns = torch.nonzero(inside.any(1)).flatten(), torch.nonzero(inside.any(0)).flatten()
    if not len(rows):
        return None
    (height, width), (sh, sw) = frame.original, frame.scaled
    low = np.array([columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1])
    scale = frame.size / side * np.array([width / sw, height / sh] * 2)
    box = np.clip(low * scale, 0, [width, height, width, height])
    if len(points):
        box[:2] = np.minimum(box[:2], points.min(0))
        box[2:] = np.maximum(box[2:], points.max(0) + 1)
    return box
