"""Between a picture's own pixels and the model's square frame (SAM's ``ResizeLongestSide``)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from zim._arrays import as_numpy


@dataclass(frozen=True)
class Frame:
    """How a picture lies in the model frame: longest side scaled to ``size``, top left, padded.

    Attributes:
        original: ``(height, width)`` of the picture.
        size: side of the square frame in pixels.
    """

    original: tuple[int, int]
    size: int

    @property
    def scaled(self) -> tuple[int, int]:
        """Return ``(height, width)`` of the picture inside the frame."""
        h, w = self.original
        scale = self.size / max(h, w)
        return max(1, int(h * scale + 0.5)), max(1, int(w * scale + 0.5))

    def resize(self, rgb: np.ndarray) -> np.ndarray:
        """Scale a picture, uint8 H x W x 3 RGB, to the frame (antialiased bilinear as in SAM)."""
        h, w = self.scaled
        if rgb.shape[:2] == (h, w):
            return rgb
        return np.asarray(Image.fromarray(rgb).resize((w, h), Image.Resampling.BILINEAR))

    def to_frame(self, xy: np.ndarray) -> np.ndarray:
        """Scale coordinates ``... 2`` (x, y) from the picture to the frame, float32."""
        (h, w), (sh, sw) = self.original, self.scaled
        return (np.asarray(xy, np.float64) * (sw / w, sh / h)).astype(np.float32)

    def from_frame(self, xy: np.ndarray) -> np.ndarray:
        """Undo :meth:`to_frame`, float32."""
        (h, w), (sh, sw) = self.original, self.scaled
        return (np.asarray(xy, np.float64) * (w / sw, h / sh)).astype(np.float32)

    def enlarge(self, logits: Tensor) -> Tensor:
        """Bring low-res logits back to the picture.

        Args:
            logits: ``b c m m`` over the whole padded frame, any m.

        Returns:
            ``b c H W`` logits: bilinear to the frame, padding cut off, bilinear to the picture.
        """
        return F.interpolate(
            self.inside(logits), self.original, mode="bilinear", align_corners=False
        )

    def inside(self, logits: Tensor) -> Tensor:
        """Enlarge low-res logits ``b c m m`` to the frame and cut the padding off."""
        frame = F.interpolate(logits, (self.size, self.size), mode="bilinear", align_corners=False)
        h, w = self.scaled
        return frame[..., :h, :w]

    def cells(self, side: int) -> tuple[int, int]:
        """Return height and width of the picture in a ``side`` x ``side`` frame, not zero."""
        h, w = self.scaled
        return max(1, round(h * side / self.size)), max(1, round(w * side / self.size))

    def shrink_mask(self, mask: np.ndarray, side: int) -> np.ndarray:
        """Bring a mask of the picture, float32 H x W, into a ``side`` x ``side`` low-res frame.

        The padding repeats nothing: it is filled with the mask's minimum.
        """
        low_h, low_w = self.cells(side)
        small = F.interpolate(
            torch.from_numpy(np.ascontiguousarray(mask, np.float32))[None, None],
            (low_h, low_w),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )[0, 0].numpy()
        frame = np.full((side, side), small.min(), np.float32)
        frame[:low_h, :low_w] = small
        return frame


@dataclass(frozen=True)
class ResizeLongestSide:
    """SAM's ``predictor.transform``: pictures, points and boxes into the model frame.

    Attributes:
        target_length: side of the model frame.
    """

    target_length: int

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """Scale an H x W x 3 uint8 picture."""
        return Frame((image.shape[0], image.shape[1]), self.target_length).resize(image)

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
        """Scale points ``... 2`` (x, y) of a picture of ``(height, width)``."""
        return Frame(original_size, self.target_length).to_frame(coords)

    def apply_boxes(self, boxes: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
        """Scale boxes ``b 4``, or one of 4 numbers to ``1 4``."""
        corners = np.asarray(boxes).reshape(-1, 2, 2)
        return self.apply_coords(corners, original_size).reshape(-1, 4)

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """Scale pictures ``b c h w`` as tensors; differs a little from :meth:`apply_image`."""
        frame = Frame((image.shape[-2], image.shape[-1]), self.target_length)
        return F.interpolate(
            image, frame.scaled, mode="bilinear", align_corners=False, antialias=True
        )

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """Return height and width of a picture in a frame of that side."""
        return Frame((oldh, oldw), long_side_length).scaled

    def apply_coords_torch(self, coords: Tensor, original_size: tuple[int, int]) -> Tensor:
        """Scale points ``... 2``, keeping them on their device."""
        moved = self.apply_coords(as_numpy(coords), original_size)
        return torch.from_numpy(moved).to(coords.device)

    def apply_boxes_torch(self, boxes: Tensor, original_size: tuple[int, int]) -> Tensor:
        """Scale boxes ``b 4``, keeping them on their device."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(boxes.shape)
