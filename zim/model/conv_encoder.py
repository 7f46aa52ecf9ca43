"""The small hybrid encoder of ``nano``: convolutions, then a little global attention.

It continues from the stride-8 features of the pixel decoder's stem, so the stem is paid for once.
Fully convolutional apart from the attention, whose positions are sinusoidal: any size works.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zim.config import ConvEncoderConfig
from zim.model.layers import ConvNormAct, LayerNorm2d, MLPBlock, ResidualBlock


class ConvEncoder(nn.Module):
    """Stride-8 stem features to a stride-16 embedding."""

    def __init__(
        self, config: ConvEncoderConfig, stem_dim: int, out_dim: int, norm: Literal["bn", "gn"]
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        if stem_dim != config.width8:
            stages.append(ConvNormAct(stem_dim, config.width8, norm=norm))
        stages += [ResidualBlock(config.width8, norm) for _ in range(config.blocks8)]
        stages.append(ConvNormAct(config.width8, config.width16, stride=2, norm=norm))
        stages += [ResidualBlock(config.width16, norm) for _ in range(config.blocks16)]
        self.stages = nn.Sequential(*stages)
        self.blocks = nn.ModuleList(
            GlobalBlock(config.width16, config.heads) for _ in range(config.attn_blocks)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(config.width16, out_dim, 1, bias=False), LayerNorm2d(out_dim)
        )

    def forward(self, stem: Tensor) -> Tensor:
        """Map ``b c h/8 w/8`` to ``b out_dim h/16 w/16``."""
        x = self.stages(stem)
        if len(self.blocks):
            b, c, h, w = x.shape
            tokens = x.flatten(2).transpose(1, 2)
            tokens = tokens + grid_positions(h, w, c, x.device).to(tokens.dtype)
            for block in self.blocks:
                tokens = block(tokens)
            x = tokens.transpose(1, 2).reshape(b, c, h, w)
        return self.neck(x)


class GlobalBlock(nn.Module):
    """Pre-norm transformer block over all cells, without relative positions."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``b n c`` to the same shape."""
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(self.norm2(x))


def grid_positions(h: int, w: int, dim: int, device: torch.device) -> Tensor:
    """Return fixed 2-D sinusoidal positions, ``1 (h w) dim``, relative to the frame's size."""
    quarter = dim // 4
    cells, rows, columns = (
        torch.arange(n, device=device, dtype=torch.float32) for n in (quarter, h, w)
    )
    frequency = math.pi * 2.0 ** (cells * 6 / quarter)
    y = (rows + 0.5)[:, None] / h * frequency
    x = (columns + 0.5)[:, None] / w * frequency
    rows = torch.cat([y.sin(), y.cos()], -1)[:, None].expand(h, w, -1)
    columns = torch.cat([x.sin(), x.cos()], -1)[None].expand(h, w, -1)
    return 0.5 * torch.cat([rows, columns], -1).reshape(1, h * w, 4 * quarter)
