"""Prompt tokens and image embedding to matte logits and quality (SAM ``mask_decoder.py``, ZIM 3.2).

Decoding is in two parts: :meth:`MaskDecoder.decode_tokens` is cheap and already yields the quality
estimates, :meth:`MaskDecoder.decode_pixels` is the costly fusion, so poor candidates can be dropped
in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zim.config import ZimConfig
from zim.model.attention import PromptAttention
from zim.model.fast import Scratch
from zim.model.layers import MLP, ResidualBlock, channels_in_eights
from zim.model.pixel_decoder import HierarchicalPixelDecoder, SamUpscaling, enlarge
from zim.model.transformer import TwoWayTransformer

#: bytes of the widest map that prompts are taken through the fusion with at a time, on a CPU
CACHED_BYTES = 24 << 20


@dataclass(frozen=True)
class TokenState:
    """Everything about prompts before pixels are spent on them.

    Attributes:
        image: ``b dim h/16 w/16`` embedding after the transformer.
        weights: ``b tokens c`` hypernetwork vectors, c the pixel decoder's width.
        iou: ``b tokens`` predicted quality.
        tokens: ``b n dim`` transformer output (for parity tests).
        cues: ``b planes h/2 w/2`` or None.
        image_index: ``b`` which image each prompt belongs to, None when there is one image.
    """

    image: Tensor
    weights: Tensor
    iou: Tensor
    tokens: Tensor
    cues: Tensor | None
    image_index: Tensor | None

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.weights)

    @classmethod
    def joined(cls, parts: Sequence[TokenState]) -> TokenState:
        """Put prompts of the same images one after the other."""
        if len(parts) == 1:
            return parts[0]
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(None if c[0] is None else torch.cat(c) for c in columns))  # pyright: ignore

    def select(self, rows: Tensor | slice) -> TokenState:
        """Keep some of the prompts."""
        return TokenState(
            self.image[rows],
            self.weights[rows],
            self.iou[rows],
            self.tokens[rows],
            None if self.cues is None else self.cues[rows],
            None if self.image_index is None else self.image_index[rows],
        )


class CueEncoder(nn.Module):
    """Cue planes at stride 2 to a dense prompt at stride 16."""

    def __init__(self, planes: int, dim: int) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for a, b in ((planes, 16), (16, 32), (32, dim)):
            steps += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*steps[:-1])

    def forward(self, cues: Tensor) -> Tensor:
        """Map ``b planes h/2 w/2`` to ``b dim h/16 w/16``."""
        first = self.layers[0]
        assert isinstance(first, nn.Conv2d)
        cues, kernel = channels_in_eights(cues, first.weight)
        x = F.conv2d(cues, kernel, first.bias, stride=2, padding=1)
        return self.layers[1:](x)


class MaskDecoder(nn.Module):
    """Two-way transformer, pixel decoder, hypernetworks and IoU head.

    State-dict names equal SAM's ``mask_decoder.*``, except ``pixel_decoder.*`` in place of
    ``output_upscaling.*`` and the parts that cue planes add.
    """

    def __init__(self, config: ZimConfig) -> None:
        super().__init__()
        decoder = config.decoder
        dim, width = decoder.dim, decoder.fusion[-1]
        self.stride = 2 if decoder.pixel_decoder == "hierarchical" else 4
        self.transformer = TwoWayTransformer(decoder, config.attention)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(decoder.mask_tokens, dim)
        if decoder.pixel_decoder == "hierarchical":
            self.pixel_decoder = HierarchicalPixelDecoder(decoder, config.cue_planes)
        else:
            self.output_upscaling = SamUpscaling(dim, width)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(dim, dim, width, 3) for _ in range(decoder.mask_tokens)
        )
        self.iou_prediction_head = MLP(
            dim, decoder.iou_hidden, decoder.mask_tokens, decoder.iou_depth
        )
        self.prompt_mixer = nn.Sequential(
            *[ResidualBlock(dim, decoder.norm) for _ in range(config.prompt_blocks)]
        )
        if config.cue_planes:
            self.cue_encoder = CueEncoder(config.cue_planes, dim)
            # the matte starts as the classical estimate; training moves away from it
            self.prior_gain = nn.Parameter(torch.full((decoder.mask_tokens,), 4.0))

    def decode_tokens(
        self,
        embedding: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        dense: Tensor,
        mask: PromptAttention,
        *,
        present: Tensor | None = None,
        cues: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> TokenState:
        """Let prompt tokens and image exchange.

        Args:
            embedding: ``b dim h w`` per prompt, or ``1 dim h w`` for all.
            image_pe: ``1 dim h w``.
            sparse: ``b n dim`` prompt tokens.
            dense: ``b dim h w`` mask embedding, or ``1 dim h w`` for all.
            mask: attention maps of the prompts.
            present: ``b n`` bool, which prompt tokens exist; None means all.
            cues: ``b planes 8h 8w`` or None.
            image_index: kept in the result for :meth:`decode_pixels`.
        """
        b, count = sparse.shape[0], self.mask_tokens.num_embeddings
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(b, -1, -1), sparse.to(own.dtype)], 1)
        if present is not None:
            present = F.pad(present, (1 + count, 0), value=True)
        image = embedding + dense
        if cues is not None:
            image = image + self.cue_encoder(cues)
        image = self.prompt_mixer(image)
        tokens, cells = self.transformer(image, image_pe, tokens, mask, present)
        vectors = [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        return TokenState(
            image=cells.transpose(1, 2).reshape(b, *image.shape[1:]),
            weights=torch.stack(vectors, 1),
            iou=self.iou_prediction_head(tokens[:, 0]).float(),
            tokens=tokens,
            cues=cues,
            image_index=image_index,
        )

    def decode_pixels(
        self, halves: Sequence[Tensor], state: TokenState, tokens: slice = slice(None)
    ) -> Tensor:
        """Spend pixels on the chosen mask tokens.

        Args:
            halves: the image-only part of every fusion step, one row per image.
            state: prompts from :meth:`decode_tokens`.
            tokens: which mask tokens; 0 is the single-mask token, 1 to 3 are the alternatives.

        Returns:
            ``b k h/2 w/2`` float32 logits.
        """
        if self.stride == 2 and self.pixel_decoder.in_phases(halves):
            return self._pixels_in_phases(halves, state, tokens)
        if self.stride == 4:
            features = self.output_upscaling(state.image)
        else:
            if state.image_index is not None:
                halves = [half[state.image_index] for half in halves]
            features = self.pixel_decoder(halves, state.image, state.cues)
        b, _, h, w = features.shape
        logits = (state.weights[:, tokens] @ features.flatten(2)).view(b, -1, h, w).float()
        if state.cues is not None:
            logits = logits + self.prior_gain[tokens, None, None] * state.cues[:, :1].float()
        return enlarge(logits) if self.stride == 4 else logits

    def _pixels_in_phases(
        self, halves: Sequence[Tensor], state: TokenState, tokens: slice
    ) -> Tensor:
        """Do what :meth:`decode_pixels` does with image halves made for inference."""
        phased, h, w = halves[-1].shape[1:]
        vectors = state.weights[:, tokens].transpose(1, 2)
        logits = vectors.new_empty(len(state), vectors.shape[2], 2 * h, 2 * w, dtype=torch.float32)
        # Maps that stay in a core's cache are worth more on a CPU than long batches.
        step = len(state)
        if logits.device.type == "cpu":
            step = max(1, CACHED_BYTES // (phased * h * w * vectors.element_size()))
        scratch = Scratch()
        for start in range(0, len(state), step):
            rows = slice(start, start + step)
            image_halves = halves
            if state.image_index is not None:
                image_halves = [half[state.image_index[rows]] for half in halves]
            cues = None if state.cues is None else state.cues[rows]
            own, mine = logits[rows].view(-1, vectors.shape[2], h, 2, w, 2), vectors[rows]
            if mine.dtype == torch.bfloat16:  # one product with four times the columns is faster
                mine = torch.stack([torch.block_diag(v, v, v, v) for v in mine])
            strips = self.pixel_decoder.strips(image_halves, state.image[rows], cues, scratch)
            for prompts, lines, maps in strips:
                cells = maps.permute(0, 2, 3, 1).reshape(len(maps), -1, mine.shape[1])
                dots = (cells @ mine[prompts]).float().view(len(maps), -1, w, 2, 2, own.shape[1])
                own[prompts, :, lines].copy_(dots.permute(0, 5, 1, 3, 2, 4))
        if state.cues is not None:
            logits += self.prior_gain[tokens, None, None] * state.cues[:, :1].float()
        return logits
