"""The modules that become ONNX graphs: our network's parts behind the official tensor names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zim.config import ConvEncoderConfig
from zim.model.attention import PromptAttention, prompt_attention
from zim.model.matting import ZimNetwork
from zim.model.prompt_encoder import ABSENT, PAD


class EncoderGraph(nn.Module):
    """Normalised image to embedding and stem features; float32 outside, any type inside."""

    def __init__(self, model: ZimNetwork) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map ``b 3 S S`` to image_embeddings, feat_D0, feat_D1, feat_D2."""
        image = image.to(self.model.dtype)
        stem = self.model.mask_decoder.pixel_decoder.features(image)
        conv = isinstance(self.model.config.encoder, ConvEncoderConfig)
        embedding = self.model.image_encoder(stem[-1] if conv else image)
        return tuple(x.float() for x in (embedding, *stem))


class DecoderGraph(nn.Module):
    """Features of one image and any number of prompts to logits and quality.

    The attention mask comes from outside, as the official client builds it: logits are multiplied
    by it, and where it is 0 nothing is seen. So one input serves Gaussians, boxes and products of
    both. A mask that is 0 everywhere (all points off the frame) means no preference.
    """

    image_pe: Tensor

    def __init__(self, model: ZimNetwork, *, mask_input: bool = False) -> None:
        super().__init__()
        self.model = model
        self.mask_input = mask_input
        side = model.config.image_size // 16
        grid = model.prompt_encoder.pe_layer.grid(side, side)
        self.register_buffer("image_pe", grid, persistent=False)

    def forward(
        self,
        image_embeddings: Tensor,
        feat_d0: Tensor,
        feat_d1: Tensor,
        feat_d2: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        attn_mask: Tensor,
        *extra: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Shapes as in :mod:`zim.onnx.layout`; ``extra`` is mask_input, has_mask_input, cues."""
        decoder, prompts = self.model.mask_decoder, self.model.prompt_encoder
        dtype = self.model.dtype
        b = point_coords.shape[0]
        h, w = image_embeddings.shape[-2:]
        labels = point_labels.long()
        gain = attn_mask.flatten(1)
        seen = gain > 0
        mask = PromptAttention(gain, seen | ~seen.any(1, keepdim=True))
        dense = prompts.dense(None, b, (h, w))
        rest = list(extra)
        if self.mask_input:
            painted, given = rest.pop(0), rest.pop(0)
            dense = torch.where(given > 0, prompts.dense(painted, b, (h, w)), dense)
        state = decoder.decode_tokens(
            image_embeddings.to(dtype).expand(b, -1, -1, -1),
            self.image_pe,
            prompts.sparse(point_coords, labels, (16 * h, 16 * w)),
            dense,
            mask,
            present=labels != ABSENT,
            cues=rest.pop(0).to(dtype) if self.model.config.cue_planes else None,
        )
        feats = [x.to(dtype) for x in (feat_d0, feat_d1, feat_d2)]
        return decoder.decode_pixels(decoder.pixel_decoder.image_halves(feats), state), state.iou


class SingleGraph(nn.Module):
    """A picture of any size and prompts in its pixels to mattes of that size, in one graph.

    Scaling is written as matrix products over each axis, so that height and width stay free.
    """

    def __init__(self, model: ZimNetwork) -> None:
        super().__init__()
        self.model = model
        self.encoder = EncoderGraph(model)
        self.decoder = DecoderGraph(model)

    def forward(
        self, image: Tensor, point_coords: Tensor, point_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cut objects out.

        Args:
            image: uint8 ``H W 3`` RGB.
            point_coords: ``B N 2`` pixels of the picture.
            point_labels: ``B N``: 1, 0 points; 2, 3 box corners; -2 for unused places.

        Returns:
            alpha ``B 4 H W`` in [0, 1] and iou_predictions ``B 4``.
        """
        size = self.model.config.image_size
        sides = torch.stack(
            [torch.scalar_tensor(image.shape[i], dtype=torch.int64) for i in (0, 1)]
        )
        longest = sides.amax(0)
        scaled = ((2 * size * sides + longest) // (2 * longest)).clamp_min(1)
        ratio = (scaled / sides).flip(0)
        rows = shrink_matrix(image.shape[0], scaled[0], size)
        columns = shrink_matrix(image.shape[1], scaled[1], size)
        # 8 bits between the passes, as Pillow rounds
        x = (image.permute(2, 0, 1).float() @ columns.T + 0.5).floor().clamp(0, 255)
        x = (rows @ x + 0.5).floor().clamp(0, 255)
        x = (x - self.model.pixel_mean.float()) / self.model.pixel_std.float()
        steps = torch.arange(size)
        inside = (steps < scaled[0])[:, None] & (steps < scaled[1])
        features = self.encoder((x * inside)[None])

        labels = point_labels.long()
        boxed = ((labels == 2) | (labels == 3)).any(1, keepdim=True)
        # as the predictor does: points without a box end with SAM's padding point
        labels = torch.cat([labels, torch.where(boxed, ABSENT, PAD)], 1)
        points = F.pad(point_coords * ratio, (0, 0, 0, 1))
        grid = (size // 16, size // 16)
        maps = prompt_attention(points, labels, grid, self.model.config.attention)
        attn = points.new_ones(points.shape[0], grid[0] * grid[1])
        if maps.gain is not None and maps.inside is not None:
            attn = maps.gain * maps.inside
        logits, iou = self.decoder(*features, points, labels, attn.unflatten(1, grid))

        down = enlarge_matrix(image.shape[0], scaled[0], size)
        across = enlarge_matrix(image.shape[1], scaled[1], size)
        return (down @ logits @ across.T).sigmoid(), iou


def shrink_matrix(length: int, scaled: Tensor, size: int) -> Tensor:
    """Return ``size length``: Pillow's antialiased bilinear filter from a picture to the frame.

    Args:
        length: pixels of the picture along this axis.
        scaled: () int64, pixels it takes in the frame; rows beyond are padding and left undefined.
        size: side of the frame.
    """
    ratio = length / scaled.float()
    support = ratio.clamp_min(1)
    centre = (torch.arange(size, dtype=torch.float32)[:, None] + 0.5) * ratio
    distance = (torch.arange(length, dtype=torch.float32) + 0.5 - centre).abs() / support
    weight = (1 - distance).clamp_min(0)
    return weight / weight.sum(1, keepdim=True).clamp_min(1e-6)


def enlarge_matrix(length: int, scaled: Tensor, size: int) -> Tensor:
    """Return ``length size/2``: stride-2 logits to the frame, padding cut, then to the picture."""
    frame = _bilinear(torch.arange(size), 0.5, torch.tensor(size // 2), size // 2)
    picture = _bilinear(torch.arange(length), scaled.float() / length, scaled, size)
    return picture @ frame


def _bilinear(out: Tensor, ratio: Tensor | float, count: Tensor, width: int) -> Tensor:
    """Return ``len(out) width`` bilinear weights (align_corners False) over ``count`` samples."""
    source = ((out.float() + 0.5) * ratio - 0.5).clamp_min(0).minimum(count - 1.0)
    return (1 - (source[:, None] - torch.arange(width)).abs()).clamp_min(0)
