"""SAM's image encoder: a plain ViT with windowed attention and a convolutional neck.

State-dict names equal SAM's ``image_encoder.*``. Sizes other than the trained one work: absolute
positions are interpolated bicubically, relative ones linearly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zim.config import ViTConfig
from zim.model.attention import rel_pos_attention, relative_positions
from zim.model.layers import LayerNorm2d, MLPBlock


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``b 3 h w`` to ``b h/16 w/16 c``."""
        return self.proj(x).permute(0, 2, 3, 1)


class Attention(nn.Module):
    """Multi-head attention with decomposed relative positions (SAM ``Attention``)."""

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``b h w c`` to the same shape, every cell attending to all."""
        b, h, w, c = x.shape
        qkv = self.qkv(x).view(b, h * w, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        rel_h = relative_positions(self.rel_pos_h, h, h)
        rel_w = relative_positions(self.rel_pos_w, w, w)
        out = rel_pos_attention(q, k, v, rel_h, rel_w, (h, w))
        return self.proj(out.transpose(1, 2).reshape(b, h, w, c))


class Block(nn.Module):
    """Pre-norm transformer block; ``window`` 0 attends globally."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, window: int, side: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, window or side)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``b h w c`` to the same shape."""
        y = self.norm1(x)
        if self.window:
            windows, padded = partition_windows(y, self.window)
            y = merge_windows(self.attn(windows), self.window, padded, x.shape[1:3])
        else:
            y = self.attn(y)
        x = x + y
        return x + self.mlp(self.norm2(x))


class ImageEncoder(nn.Module):
    """ViT backbone and neck: image to a stride-16 embedding."""

    def __init__(self, config: ViTConfig, image_size: int, out_dim: int) -> None:
        super().__init__()
        side = image_size // config.patch
        dim = config.embed_dim
        self.patch_embed = PatchEmbed(config.patch, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, dim))
        self.blocks = nn.ModuleList(
            Block(
                dim,
                config.heads,
                config.mlp_ratio,
                0 if i in config.global_blocks else config.window,
                side,
            )
            for i in range(config.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(dim, out_dim, 1, bias=False),
            LayerNorm2d(out_dim),
            nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False),
            LayerNorm2d(out_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map a normalised image ``b 3 h w`` to ``b out_dim h/16 w/16``."""
        x = self.patch_embed(x)
        x = x + self._positions(x.shape[1], x.shape[2])
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))

    def _positions(self, h: int, w: int) -> Tensor:
        if self.pos_embed.shape[1:3] == (h, w):
            return self.pos_embed
        table = self.pos_embed.permute(0, 3, 1, 2).float()
        table = F.interpolate(table, (h, w), mode="bicubic", align_corners=False, antialias=False)
        return table.permute(0, 2, 3, 1).to(self.pos_embed.dtype)


def partition_windows(x: Tensor, window: int) -> tuple[Tensor, tuple[int, int]]:
    """Cut ``b h w c`` into ``(b * n) window window c``, zero-padded to whole windows.

    Returns:
        The windows and the padded ``(h, w)``.
    """
    b, h, w, c = x.shape
    x = F.pad(x, (0, 0, 0, -w % window, 0, -h % window))
    ph, pw = x.shape[1:3]
    x = x.view(b, ph // window, window, pw // window, window, c)
    return x.transpose(2, 3).reshape(-1, window, window, c), (ph, pw)


def merge_windows(x: Tensor, window: int, padded: tuple[int, int], size: tuple[int, ...]) -> Tensor:
    """Undo :func:`partition_windows`: back to ``b h w c`` without the padding."""
    ph, pw = padded
    h, w = size
    x = x.view(-1, ph // window, pw // window, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, ph, pw, x.shape[-1])[:, :h, :w]
