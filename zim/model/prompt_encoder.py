"""SAM's prompt encoder: points, box corners and a coarse mask to embeddings.

State-dict names equal SAM's ``prompt_encoder.*``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zim.model.layers import LayerNorm2d, in_float32

#: label of SAM's own padding token ("not a point"), which takes part in attention
PAD = -1
#: label of a slot that is not there at all (ragged batches); hidden from attention
ABSENT = -2


class RandomFourierPositions(nn.Module):
    """Positions by random spatial frequencies (Tancik et al. 2020), always in float32."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer(
            "positional_encoding_gaussian_matrix", torch.randn(2, dim // 2, dtype=torch.float32)
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move as asked, but stay in float32 when the network is converted."""
        kept = self.positional_encoding_gaussian_matrix
        super()._apply(fn, recurse)
        self.positional_encoding_gaussian_matrix = in_float32(
            self.positional_encoding_gaussian_matrix, kept
        )
        return self

    def encode(self, xy: Tensor) -> Tensor:
        """Map coordinates in [0, 1], ``... 2``, to ``... dim``."""
        matrix = self.positional_encoding_gaussian_matrix.float()
        angle = 2 * math.pi * ((2 * xy.float() - 1) @ matrix)
        return torch.cat([angle.sin(), angle.cos()], -1)

    def grid(self, h: int, w: int) -> Tensor:
        """Return the positions of all cell centres, ``1 dim h w``."""
        device = self.positional_encoding_gaussian_matrix.device
        y = (torch.arange(h, device=device, dtype=torch.float32) + 0.5) / h
        x = (torch.arange(w, device=device, dtype=torch.float32) + 0.5) / w
        xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
        return self.encode(xy).permute(2, 0, 1)[None]


class PromptEncoder(nn.Module):
    """Sparse tokens for points and boxes, a dense map for a mask."""

    def __init__(self, dim: int, mask_channels: int = 16) -> None:
        super().__init__()
        self.pe_layer = RandomFourierPositions(dim)
        # negative point, positive point, top-left corner, bottom-right corner
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, 2, stride=2),
            LayerNorm2d(mask_channels // 4),
            nn.GELU(),
            nn.Conv2d(mask_channels // 4, mask_channels, 2, stride=2),
            LayerNorm2d(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, dim, 1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)

    def sparse(self, points: Tensor, labels: Tensor, frame: tuple[int, int]) -> Tensor:
        """Embed points and box corners.

        Args:
            points: ``b n 2`` pixels (x, y) of the model frame; half a pixel is added here.
            labels: ``b n``: 0 negative, 1 positive, 2 and 3 box corners, -1 SAM's padding point,
                -2 absent.
            frame: ``(height, width)`` of the model frame in pixels.

        Returns:
            ``b n dim``.
        """
        h, w = frame
        size = torch.tensor([w, h], device=points.device, dtype=torch.float32)
        position = self.pe_layer.encode((points.float() + 0.5) / size)
        kinds = torch.cat([e.weight for e in self.point_embeddings])  # pyright: ignore
        known = labels >= 0
        kind = torch.where(
            known[..., None], kinds[labels.clamp_min(0)], self.not_a_point_embed.weight[0]
        )
        return kind + (position * known[..., None]).to(kind.dtype)

    def dense(
        self,
        mask: Tensor | None,
        batch: int,
        grid: tuple[int, int],
        has_mask: Tensor | None = None,
    ) -> Tensor:
        """Embed a mask of logits, or say that there is none.

        Args:
            mask: ``b 1 m n`` logits of any size (SAM's 256 x 256, or our stride-2 low-res).
            batch: number of prompts.
            grid: ``(h, w)`` of the image embedding.
            has_mask: ``b`` bool, which rows of ``mask`` count; None means all.

        Returns:
            ``b dim h w`` (broadcast when there is no mask).
        """
        none = self.no_mask_embed.weight.view(1, -1, 1, 1)
        if mask is None:
            return none.expand(batch, -1, *grid)
        h, w = grid
        if mask.shape[-2:] != (4 * h, 4 * w):
            mask = F.interpolate(
                mask.float(), (4 * h, 4 * w), mode="bilinear", align_corners=False, antialias=True
            )
        embedded = self.mask_downscaling(mask.to(self.no_mask_embed.weight.dtype))
        if has_mask is None:
            return embedded
        return torch.where(has_mask[:, None, None, None], embedded, none)
