"""SAM's two-way transformer with ZIM's prompt-aware masks in its cross-attention (section 3.2).

State-dict names equal SAM's ``mask_decoder.transformer.*``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from zim.config import DecoderConfig, MaskedAttentionConfig
from zim.model.attention import PromptAttention, masked_attention
from zim.model.fast import allowed
from zim.model.layers import MLPBlock


class Cells(NamedTuple):
    """Image cells with their positions, in two parts that belong together as a sum.

    Attributes:
        shared: ``m dim``, the same for all prompts.
        own: ``b m dim``, or None.
    """

    shared: Tensor
    own: Tensor | None

    @classmethod
    def of(cls, image: Tensor, positions: Tensor) -> Cells:
        """Take image ``b m dim`` and positions ``1 m dim``; cells all prompts share are summed."""
        if len(image) == 1:
            return cls((image + positions)[0], None)
        return cls(positions[0], image)


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
        """Attend from ``b n dim`` to ``b m dim``; masks as in :func:`masked_attention`.

        Either side may have a batch of 1, which all rows of the other share.
        """
        out = masked_attention(
            self._heads(self.q_proj(q)),
            self._heads(self.k_proj(k)),
            self._heads(self.v_proj(v)),
            mask=mask,
            mode=mode,
            cells=cells,
            present=present,
        )
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def to_image(
        self,
        tokens: Tensor,
        keys: Cells,
        image: Tensor,
        mask: PromptAttention | None,
        mode: str,
    ) -> Tensor:
        """Attend from tokens to image cells with the image's projections moved to the tokens.

        There are thousands of cells and few tokens: ``(x K) . q`` is taken as ``x . (K^T q)`` and
        ``w (x V)`` as ``(w x) V``, so no projected copy of the image is made. For inference.

        Args:
            tokens: ``b n dim`` queries.
            keys: the image with its positions.
            image: ``b m dim``, or ``1 m dim`` for all prompts: the same without.
            mask: maps over image cells, or None.
            mode: as in :func:`masked_attention`.

        Returns:
            ``b n dim``.
        """
        b, n, _ = tokens.shape
        q = self._heads(self.q_proj(tokens))
        q = q * q.shape[-1] ** -0.5
        logits = self._against_cells(q, self.k_proj, keys)
        if mask is not None and mode != "none":
            if mask.gain is not None and mode == "paper":
                # the same for all cells, the bias of the keys matters to a product alone
                offset = q @ self._per_head(self.k_proj)[1][..., None]
                logits = (logits + offset) * mask.gain[:, None, None]
            elif mask.gain is not None:
                logits = logits + mask.gain[:, None, None].clamp_min(1e-6).log()
            if mask.inside is not None:
                logits = logits.masked_fill_(~mask.inside[:, None, None], float("-inf"))
        weights = logits.softmax(-1).to(image.dtype).flatten(1, 2)  # b (heads n) m
        if len(image) == 1:
            seen = (weights.flatten(0, 1) @ image[0]).view(b, self.heads, n, -1)
        else:
            seen = (weights @ image).view(b, self.heads, n, -1)
        value, bias = self._per_head(self.v_proj)
        out = seen @ value.transpose(1, 2) + bias[:, None]
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def from_image(
        self,
        keyed: Cells,
        image: Tensor,
        keys: Tensor,
        values: Tensor,
        present: Tensor | None,
    ) -> Tensor:
        """Add to every image cell what it gathers from the tokens; as :meth:`to_image` turned.

        Args:
            keyed: the image with its positions.
            image: ``b m dim``, or ``1 m dim`` for all prompts: the same without.
            keys: ``b n dim``.
            values: ``b n dim``.
            present: ``b n`` bool, False for tokens that are padding.

        Returns:
            ``b m dim``: the image plus the attention's output.
        """
        k, v = self._heads(self.k_proj(keys)), self._heads(self.v_proj(values))
        k = k * k.shape[-1] ** -0.5
        logits = self._against_cells(k, self.q_proj, keyed)
        offset = (k @ self._per_head(self.q_proj)[1][..., None]).float()
        if present is not None:
            offset = offset.masked_fill(~present[:, None, :, None], float("-inf"))
        weights = (logits + offset).softmax(2).to(image.dtype).flatten(1, 2)  # b (heads n) m
        out = self.out_proj.weight.unflatten(1, (self.heads, -1)).permute(1, 2, 0)
        # every head's weights sum to one, so each may carry its share of the bias
        moved = v @ out + self.out_proj.bias / self.heads
        image = image.expand(len(keys), -1, -1)
        return torch.baddbmm(image, weights.transpose(1, 2), moved.flatten(1, 2))

    def _against_cells(self, x: Tensor, projection: nn.Linear, cells: Cells) -> Tensor:
        """Multiply ``b heads n d`` with projected cells, less their bias: float32 b heads n m."""
        b, heads, n, _ = x.shape
        moved = (x @ self._per_head(projection)[0]).flatten(1, 2)  # b (heads n) dim
        if cells.own is None:
            logits = moved @ cells.shared.T
        else:  # two products are sooner done than a sum of all cells for every prompt
            logits = torch.baddbmm(moved @ cells.shared.T, moved, cells.own.transpose(1, 2))
        return logits.view(b, heads, n, -1).float()

    def _per_head(self, projection: nn.Linear) -> tuple[Tensor, Tensor]:
        """Return weight ``heads d dim`` and bias ``heads d`` of a projection."""
        weight = projection.weight.unflatten(0, (self.heads, -1))
        return weight, projection.bias.unflatten(0, (self.heads, -1))

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
        """Update ``tokens`` (b n c) and ``image`` (b hw c, or 1 hw c for all prompts)."""
        if self.first:  # SAM: no positions and no residual in the very first self-attention
            tokens = self.self_attn(tokens, tokens, tokens, present=present)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens, present=present)
        tokens = self.norm1(tokens)

        # A cell outside the box receives nothing (an ablation) only in the plain form.
        fast = allowed(self) and not self.mask_i2t
        seen = mask if self.mask_t2i else None
        q = tokens + token_pe
        t2i, i2t = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        if fast:
            keyed = Cells.of(image, image_pe)
            tokens = tokens + t2i.to_image(q, keyed, image, seen, self.mode)
        else:
            keyed = image + image_pe
            tokens = tokens + t2i(q, keyed, image, mask=seen, mode=self.mode)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))

        q = tokens + token_pe
        seen = mask if self.mask_i2t else None
        if isinstance(keyed, Cells):
            return tokens, self.norm4(i2t.from_image(keyed, image, q, tokens, present))
        image = image + i2t(
            keyed, q, tokens, mask=seen, mode=self.mode, cells="queries", present=present
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
            image: ``b c h w`` embedding plus dense prompt; ``1 c h w`` when all prompts share it,
                which saves the first block most of its work.
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
        mask_final = mask if self.mask_final else None
        final = self.final_attn_token_to_image
        if allowed(self):
            out = final.to_image(q, Cells.of(keys, pe), keys, mask_final, self.final_mode)
        else:
            out = final(q, keys + pe, keys, mask=mask_final, mode=self.final_mode)
        return self.norm_final_attn(queries + out), keys
