"""SAM's image encoder: a plain ViT with windowed attention and a convolutional neck.

State-dict names equal SAM's ``image_encoder.*``. Sizes other than the trained one work: absolute
positions are interpolated bicubically, relative ones linearly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zim.config import ViTConfig
from zim.errors import ConfigError
from zim.model.attention import REL_POS_FORMS, fastest_form, relative_positions
from zim.model.fast import allowed, cached, plain_requested, tracing
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
        #: a name from ``REL_POS_FORMS``, or "auto"
        self.form = "auto"
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``b h w c`` to the same shape, every cell attending to all."""
        b, h, w, c = x.shape
        return self.proj(self.mix(self.qkv(x).view(b, h * w, 3 * c), (h, w)).view(b, h, w, c))

    def forward_windows(self, x: Tensor, window: int) -> Tensor:
        """Map ``b h w c`` to the same shape, every cell attending to those of its window.

        The linear layers run on the cells that exist: what is filled up to whole windows is zero
        before ``qkv`` and therefore equals its bias behind it. One gather cuts the windows, with
        the filling taken from an extra row of zeros, and one puts them back.
        """
        b, h, w, c = x.shape
        cut, back = cached(
            self,
            ("windows", h, w),
            (self.qkv.weight,),
            lambda: window_index(h, w, window, x.device),
        )
        cells = F.pad(x.reshape(b, h * w, c), (0, 0, 0, 1))
        windows = self.qkv(cells).index_select(1, cut).view(-1, window * window, 3 * c)
        mixed = self.mix(windows, (window, window)).view(b, -1, c)
        return self.proj(mixed.index_select(1, back)).view(b, h, w, c)

    def mix(self, qkv: Tensor, grid: tuple[int, int]) -> Tensor:
        """Attend: ``b (h w) 3c`` queries, keys and values to ``b (h w) c``."""
        b, n, c = qkv.shape
        q, k, v = qkv.view(b, n, 3, self.heads, c // 3 // self.heads).permute(2, 0, 3, 1, 4)
        h, w = grid
        rel_h, rel_w = cached(
            self,
            ("relative", h, w),
            (self.rel_pos_h, self.rel_pos_w),
            lambda: (
                relative_positions(self.rel_pos_h, h, h),
                relative_positions(self.rel_pos_w, w, w),
            ),
        )
        out = REL_POS_FORMS[self._form(qkv)](q, k, v, rel_h, rel_w, grid)
        return out.transpose(1, 2).reshape(b, n, c // 3)

    def _form(self, x: Tensor) -> str:
        if self.form != "auto":
            return self.form
        if plain_requested() or tracing():
            return "reference"
        if torch.is_grad_enabled() and x.device.type == "cpu":
            return "reference"
        return fastest_form(x.device, x.dtype)


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
        if not self.window:
            y = self.attn(y)
        elif allowed(self):
            y = self.attn.forward_windows(y, self.window)
        else:
            windows, padded = partition_windows(y, self.window)
            y = merge_windows(self.attn(windows), self.window, padded, x.shape[1:3])
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

    @property
    def attention(self) -> str:
        """Return how attention is computed: ``auto`` or a name from ``REL_POS_FORMS``."""
        return self.blocks[0].attn.form  # pyright: ignore

    @attention.setter
    def attention(self, form: str) -> None:
        if form != "auto" and form not in REL_POS_FORMS:
            raise ConfigError(
                f"attention {form!r} is unknown; expected auto, {', '.join(REL_POS_FORMS)}"
            )
        for block in self.blocks:
            block.attn.form = form  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        """Map a normalised image ``b 3 h w`` to ``b out_dim h/16 w/16``."""
        # the patches come channel by channel; what follows works cell by cell
        x = self.patch_embed(x).contiguous()
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


def window_index(h: int, w: int, window: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return where the cells of windows come from, and where they go back to.

    Returns:
        ``n window window`` flattened: the cell ``y * w + x`` of every place in every window, and
        ``h * w`` where the window lies outside; and ``h w`` flattened: the place of every cell.
    """
    cells = torch.arange(h * w, device=device).view(1, h, w, 1)
    padded = F.pad(cells, (0, 0, 0, -w % window, 0, -h % window), value=h * w)
    cut = partition_windows(padded, window)[0].flatten()
    back = torch.empty(h * w + 1, dtype=torch.long, device=device)
    back[cut] = torch.arange(len(cut), device=device)
    return cut, back[:-1]
