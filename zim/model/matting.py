"""The whole network: encode an image once, decode many prompts.

Tensors in, tensors out. Reading pictures, scaling them to the model's frame and scaling mattes back
is the predictor's work (``zim/predictor.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zim.config import ConvEncoderConfig, ZimConfig
from zim.model.attention import prompt_attention
from zim.model.conv_encoder import ConvEncoder
from zim.model.fast import allowed, cached, forget
from zim.model.image_encoder import ImageEncoder
from zim.model.layers import in_float32
from zim.model.mask_decoder import CACHED_BYTES, MaskDecoder, TokenState
from zim.model.prompt_encoder import ABSENT, PromptEncoder
from zim.parallel import spread, workers

Answer = TypeVar("Answer")

#: bytes of a prompt's embedding from which prompts are decoded on threads of their own
THREAD_BYTES = 1 << 20


@dataclass(frozen=True)
class ImageFeatures:
    """What the decoder needs of an image; computed once, usable for any number of prompts.

    Attributes:
        embedding: ``b dim h/16 w/16``.
        halves: image-only parts of the fusion steps at strides 8, 4, 2 (empty for SAM's decoder).
        frame: ``(height, width)`` of the model frame in pixels.
    """

    embedding: Tensor
    halves: tuple[Tensor, ...]
    frame: tuple[int, int]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.embedding)

    def row(self, index: int) -> ImageFeatures:
        """Return the features of one image, as a batch of one."""
        some = slice(index, index + 1)
        return replace(
            self, embedding=self.embedding[some], halves=tuple(h[some] for h in self.halves)
        )

    def repeated(self, times: int) -> ImageFeatures:
        """Return the features with every image so often in a row, one for each of its prompts."""
        return replace(
            self,
            embedding=self.embedding.repeat_interleave(times, 0),
            halves=tuple(h.repeat_interleave(times, 0) for h in self.halves),
        )

    def to(self, *args: object, **kwargs: object) -> ImageFeatures:
        """Move or convert, as ``Tensor.to``."""
        return replace(
            self,
            embedding=self.embedding.to(*args, **kwargs),  # pyright: ignore
            halves=tuple(h.to(*args, **kwargs) for h in self.halves),  # pyright: ignore
        )


@dataclass(frozen=True)
class ZimOutput:
    """Decoded prompts: ``logits`` b k h/2 w/2 float32 and predicted quality ``iou`` b k."""

    logits: Tensor
    iou: Tensor


class ZimNetwork(nn.Module):
    """Promptable matting network (paper section 3.2, Fig. 4)."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: ZimConfig) -> None:
        super().__init__()
        self.config = config
        decoder = config.decoder
        self.mask_decoder = MaskDecoder(config)
        self.image_encoder: nn.Module
        if isinstance(config.encoder, ConvEncoderConfig):
            self.image_encoder = ConvEncoder(
                config.encoder, decoder.stem[2], decoder.dim, decoder.norm
            )
        else:
            self.image_encoder = ImageEncoder(config.encoder, config.image_size, decoder.dim)
        self.prompt_encoder = PromptEncoder(decoder.dim)
        pixel = (config.pixel_mean, config.pixel_std)
        mean, std = (torch.tensor(v, dtype=torch.float32) for v in pixel)
        self.register_buffer("pixel_mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", std.view(3, 1, 1), persistent=False)
        #: the encoder runs as a CUDA graph, whose output the next run overwrites
        self._captured = False
        self.float()  # whatever torch's default type is

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert; what pictures are normalised with stays in float32."""
        kept = self.pixel_mean, self.pixel_std
        super()._apply(fn, recurse)
        self.pixel_mean = in_float32(self.pixel_mean, kept[0])
        self.pixel_std = in_float32(self.pixel_std, kept[1])
        return self

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; what was derived from weights is forgotten."""
        if mode:
            forget(self)
        return super().train(mode)

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return self.pixel_mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the type the network computes in."""
        return self.prompt_encoder.no_mask_embed.weight.dtype

    def compile_encoder(self) -> Self:
        """Compile the image encoder for its frame (``torch.compile``); the first run takes long.

        On CUDA the compiled encoder is recorded as CUDA graphs, one per batch size, which is worth
        most for single pictures, where starting kernels costs as much as running them. Weights
        and state-dict keys stay as they are. Move and convert the model before, not after.
        """
        self._captured = self.device.type == "cuda"
        mode = "reduce-overhead" if self._captured else None
        self.image_encoder.compile(dynamic=False, mode=mode)
        return self

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalise and pad to the square model frame.

        Args:
            images: ``b 3 h w`` RGB in 0..255 (any type), at most ``image_size`` a side.

        Returns:
            ``b 3 S S`` in the model's type, zero right of and below the picture, as in SAM.
        """
        size = self.config.image_size
        x = (images.float() - self.pixel_mean.float()) / self.pixel_std.float()
        x = F.pad(x, (0, size - x.shape[-1], 0, size - x.shape[-2]))
        return x.to(self.dtype)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Run the encoder and the stem on normalised images ``b 3 h w`` (multiples of 16)."""
        frame = (images.shape[-2], images.shape[-1])
        if allowed(self):
            images = images.contiguous(memory_format=torch.channels_last)
        if self.mask_decoder.stride == 4:
            return ImageFeatures(self._embed(images), (), frame)
        pixels = self.mask_decoder.pixel_decoder
        features = pixels.features(images)
        conv = isinstance(self.config.encoder, ConvEncoderConfig)
        embedding = self._embed(features[-1] if conv else images)
        return ImageFeatures(embedding, pixels.image_halves(features), frame)

    def _embed(self, images: Tensor) -> Tensor:
        if self._captured:
            torch.compiler.cudagraph_mark_step_begin()
            return self.image_encoder(images).clone()
        return self.image_encoder(images)

    def decode_tokens(
        self,
        features: ImageFeatures,
        points: Tensor,
        labels: Tensor,
        *,
        mask_input: Tensor | None = None,
        has_mask: Tensor | None = None,
        cues: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> TokenState:
        """Decode prompts as far as their tokens and quality estimates.

        Args:
            features: from :meth:`encode_image`, one image or several.
            points: ``b n 2`` pixels (x, y) in the model frame.
            labels: ``b n``: 1 positive, 0 negative, 2 and 3 box corners, -1 SAM's padding point,
                -2 nothing there (ragged batches).
            mask_input: ``b 1 m n`` logits or None.
            has_mask: ``b`` bool, which prompts have a mask; None means all when there are masks.
            cues: ``b planes h/2 w/2`` from :mod:`zim.cues` when the configuration asks for them.
            image_index: ``b`` long, the image of each prompt; needed when there are several.
        """

        def answer(rows: slice) -> TokenState:
            mask, has, planes, owner = (
                None if t is None else t[rows] for t in (mask_input, has_mask, cues, image_index)
            )
            return self._decode_tokens(
                features, points[rows], labels[rows], mask, has, planes, owner
            )

        return TokenState.joined(self._in_parts(answer, features, len(points)))

    def _decode_tokens(
        self,
        features: ImageFeatures,
        points: Tensor,
        labels: Tensor,
        mask_input: Tensor | None,
        has_mask: Tensor | None,
        cues: Tensor | None,
        image_index: Tensor | None,
    ) -> TokenState:
        embedding = features.embedding
        if image_index is not None:
            embedding = embedding[image_index]
        grid = (embedding.shape[-2], embedding.shape[-1])
        b = points.shape[0]
        present: Tensor | None = labels != ABSENT
        # asking whether any slot is empty would make a GPU wait
        if allowed(self) and points.device.type == "cpu" and present.all():
            present = None
        layer = self.prompt_encoder.pe_layer
        matrix = layer.positional_encoding_gaussian_matrix
        image_pe = cached(
            layer, (*grid, self.dtype), (matrix,), lambda: layer.grid(*grid).to(self.dtype)
        )
        return self.mask_decoder.decode_tokens(
            embedding,
            image_pe,
            self.prompt_encoder.sparse(points, labels, features.frame),
            self.prompt_encoder.dense(mask_input, 1 if mask_input is None else b, grid, has_mask),
            prompt_attention(points, labels, grid, self.config.attention),
            present=present,
            cues=cues,
            image_index=image_index,
        )

    def decode_pixels(
        self, features: ImageFeatures, state: TokenState, tokens: slice = slice(None)
    ) -> Tensor:
        """Return stride-2 logits ``b k h/2 w/2`` of the chosen mask tokens."""

        def answer(rows: slice) -> Tensor:
            return self.mask_decoder.decode_pixels(features.halves, state.select(rows), tokens)

        parts = self._in_parts(answer, features, len(state))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def decode(
        self,
        features: ImageFeatures,
        points: Tensor,
        labels: Tensor,
        mask_input: Tensor | None = None,
        cues: Tensor | None = None,
        image_index: Tensor | None = None,
        tokens: slice = slice(None),
        has_mask: Tensor | None = None,
    ) -> ZimOutput:
        """Decode prompts to logits and quality; arguments as :meth:`decode_tokens`."""

        def answer(rows: slice) -> ZimOutput:
            state = self.decode_tokens(
                features,
                points[rows],
                labels[rows],
                mask_input=None if mask_input is None else mask_input[rows],
                has_mask=None if has_mask is None else has_mask[rows],
                cues=None if cues is None else cues[rows],
                image_index=None if image_index is None else image_index[rows],
            )
            return ZimOutput(self.decode_pixels(features, state, tokens), state.iou[:, tokens])

        parts = self._in_parts(answer, features, len(points))
        if len(parts) == 1:
            return parts[0]
        return ZimOutput(torch.cat([p.logits for p in parts]), torch.cat([p.iou for p in parts]))

    def _in_parts(
        self, work: Callable[[slice], Answer], features: ImageFeatures, count: int
    ) -> list[Answer]:
        """Return what ``work`` makes of the rows of ``count`` prompts, in parts and in order.

        On a CPU maps that stay in the cache are worth more than long batches. Where prompts have
        large maps, two threads with half of the prompts each are faster than two for every layer;
        over small ones they would wait for each other in Python.
        """
        if count < 2 or self.device.type != "cpu" or not allowed(self):
            return [work(slice(None))]
        cells = features.embedding[0].numel() * features.embedding.element_size()
        threads = workers() if cells >= THREAD_BYTES else 1
        rounds = -(-count * cells // (threads * CACHED_BYTES))
        bounds = np.linspace(0, count, min(count, rounds * threads) + 1).astype(int).tolist()
        done: dict[int, Answer] = {}

        def fill(i: int) -> None:
            done[i] = work(slice(bounds[i], bounds[i + 1]))

        spread(fill, range(len(bounds) - 1), threads)
        return [done[i] for i in range(len(done))]

    def forward(
        self,
        images: Tensor,
        points: Tensor,
        labels: Tensor,
        mask_input: Tensor | None = None,
        cues: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> ZimOutput:
        """Encode normalised images and decode prompts in one go (training)."""
        features = self.encode_image(images)
        return self.decode(features, points, labels, mask_input, cues, image_index)
