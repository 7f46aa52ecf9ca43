"""SAM's two-way transformer with ZIM's prompt-aware masks in its cross-attention (section 3.2).

State-dict names equal SAM's ``mask_decoder.transformer.*``.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from zim.config import DecoderConfig, MaskedAttentionConfig
from zim.model.attention import PromptAttention, masked_attention
from zim.model.layers import MLPBlock


class TokenAttention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the tokens'."""

    def __init__(self, dim: int, heads: int, downsample: int = 1) -> None:
        super().__init__()
        self.heads = heads
        inner = dim // downsample
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: PromptAttention | None = None,
        mode: str = "none",
        cells: Literal["keys", "queries"] = "keys",
        present: Tensor | None = None,
    ) -> Tensor:
        """Attend from ``b n dim`` to ``b m dim``; masks as in :func:`masked_attention`."""
        b, n, _ = q.shape
        out = masked_attention(
            self._heads(self.q_proj(q)),
            self._heads(self.k_proj(k)),
            self._heads(self.v_proj(v)),
            mask=mask,
            mode=mode,
            cells=cells,
            present=present,
        )
        return self.out_proj(out.transpose(1, 2).reshape(b, n, -1))

    def _heads(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        return x.view(b, n, self.heads, c // self.heads).transpose(1, 2)


class TwoWayBlock(nn.Module):
    """Tokens attend to tokens, tokens to image, MLP, image to tokens."""

    def __init__(
        self, config: DecoderConfig, attention: MaskedAttentionConfig, *, first: bool
    ) -> None:
        super().__init__()
        dim, heads = config.dim, config.heads
        self.first = first
        self.mode = attention.mode
        self.mask_t2i = attention.side in ("t2i", "both")
        self.mask_i2t = attention.side in ("i2t", "both")
        self.self_attn = TokenAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = TokenAttention(dim, heads, 2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, config.mlp_dim, nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = TokenAttention(dim, heads, 2)

    def forward(
        self,
        tokens: Tensor,
        image: Tensor,
        token_pe: Tensor,
        image_pe: Tensor,
        mask: PromptAttention,
        present: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Update ``tokens`` (b n c) and ``image`` (b hw c)."""
        if self.first:  # SAM: no positions and no residual in the very first self-attention
            tokens = self.self_attn(tokens, tokens, tokens, present=present)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens, present=present)
        tokens = self.norm1(tokens)

        q, k = tokens + token_pe, image + image_pe
        seen = mask if self.mask_t2i else None
        tokens = tokens + self.cross_attn_token_to_image(q, k, image, mask=seen, mode=self.mode)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))

        q = tokens + token_pe
        seen = mask if self.mask_i2t else None
        image = image + self.cross_attn_image_to_token(
            k, q, tokens, mask=seen, mode=self.mode, cells="queries", present=present
        )
        return tokens, self.norm4(image)


class TwoWayTransformer(nn.Module):
    """Mask, IoU and prompt tokens exchange with the image embedding."""

    def __init__(self, config: DecoderConfig, attention: MaskedAttentionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(config, attention, first=i == 0) for i in range(config.depth)
        )
        self.final_attn_token_to_image = TokenAttention(config.dim, config.heads, 2)
        self.norm_final_attn = nn.LayerNorm(config.dim)
        self.final_mode = attention.mode
        self.mask_final = attention.final and attention.side in ("t2i", "both")

    def forward(
        self,
        image: Tensor,
        image_pe: Tensor,
        tokens: Tensor,
        mask: PromptAttention,
        present: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run all blocks.

        Args:
            image: ``b c h w`` embedding plus dense prompt.
            image_pe: ``1 c h w`` positions.
            tokens: ``b n c``: IoU token, mask tokens, prompt tokens.
            mask: the prompt's attention maps.
            present: ``b n`` bool, False for tokens that are padding.

        Returns:
            Tokens ``b n c`` and image ``b hw c`` after the exchange.
        """
        keys = image.flatten(2).transpose(1, 2)
        pe = image_pe.flatten(2).transpose(1, 2).to(keys.dtype)
        queries = tokens
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, pe, mask, present)
        q = queries + tokens
        queries = queries + self.final_attn_token_to_image(
            q,
            keys + pe,
            keys,
            mask=mask if self.mask_final else None,
            mode=self.final_mode,
        )
        return self.norm_final_attn(queries), keys
