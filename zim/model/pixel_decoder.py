"""ZIM's hierarchical pixel decoder: conv features of the image at strides 2, 4, 8 (section 3.2).

The transformer's image embedding is enlarged step by step and fused with them; the result is a
stride-2 map that the hypernetworks' token vectors are multiplied with.

A fusion step is ``ReLU(norm(conv([detail, up])))``. A convolution over a concatenation is a sum of
convolutions, so the detail half is computed once per image (:meth:`FusionStep.image_half`) and
each prompt pays for its own half only. :meth:`FusionStep.joint` is the undivided form, kept as
reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zim.config import DecoderConfig
from zim.model.layers import ConvNormAct, LayerNorm2d, make_norm


class FusionStep(nn.Module):
    """Enlarge by two, join with the image's own detail (and cue planes), convolve."""

    def __init__(
        self, detail: int, up: int, cues: int, out: int, norm: Literal["bn", "gn"]
    ) -> None:
        super().__init__()
        self.split = (detail, up, cues)
        self.conv = nn.Conv2d(detail + up + cues, out, 3, padding=1, bias=False)
        self.norm = make_norm(norm, out)

    def image_half(self, detail: Tensor) -> Tensor:
        """Convolve the image's part, ``b detail h w`` to ``b out h w``, once per image."""
        return F.conv2d(detail, self.conv.weight[:, : self.split[0]], padding=1)

    def forward(self, half: Tensor, x: Tensor, cues: Tensor | None) -> Tensor:
        """Add the prompt's part to the image's.

        Args:
            half: ``b out h w`` from :meth:`image_half` (b may be 1 and is then shared).
            x: ``b up h/2 w/2`` map of the step before.
            cues: ``b cues h w`` or None.

        Returns:
            ``b out h w``.
        """
        up = enlarge(x)
        detail, width, _ = self.split
        y = half + F.conv2d(up, self.conv.weight[:, detail : detail + width], padding=1)
        if cues is not None:
            y = y + F.conv2d(cues, self.conv.weight[:, detail + width :], padding=1)
        return F.relu(self.norm(y))

    def joint(self, detail: Tensor, x: Tensor, cues: Tensor | None) -> Tensor:
        """Do the same in one convolution over the concatenation (reference)."""
        parts = [detail.expand(len(x), -1, -1, -1), enlarge(x)]
        if cues is not None:
            parts.append(cues)
        return F.relu(self.norm(self.conv(torch.cat(parts, 1))))


class HierarchicalPixelDecoder(nn.Module):
    """Conv stem over the image and three fusion steps, at strides 8, 4 and 2."""

    def __init__(self, config: DecoderConfig, cue_planes: int = 0) -> None:
        super().__init__()
        s2, s4, s8 = config.stem
        self.stem = nn.ModuleList(
            ConvNormAct(a, b, stride=2, norm=config.norm) for a, b in ((3, s2), (s2, s4), (s4, s8))
        )
        widths = (config.dim, *config.fusion)
        self.fuse = nn.ModuleList(
            FusionStep(detail, widths[i], cue_planes, widths[i + 1], config.norm)
            for i, detail in enumerate((s8, s4, s2))
        )

    def features(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the stem on ``b 3 h w``: features at strides 2, 4, 8 (official feat_D0, D1, D2)."""
        d0 = self.stem[0](image)
        d1 = self.stem[1](d0)
        return d0, d1, self.stem[2](d1)

    def image_halves(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute what every prompt shares, for strides 8, 4, 2."""
        return tuple(
            step.image_half(detail)  # pyright: ignore[reportCallIssue]
            for step, detail in zip(self.fuse, reversed(features), strict=True)
        )

    def forward(self, halves: Sequence[Tensor], x: Tensor, cues: Tensor | None) -> Tensor:
        """Fuse.

        Args:
            halves: from :meth:`image_halves`, gathered per prompt (or batch 1, shared).
            x: ``b dim h/16 w/16`` embedding after the transformer.
            cues: ``b planes h/2 w/2`` or None.

        Returns:
            ``b fusion[-1] h/2 w/2``.
        """
        for factor, step, half in zip((4, 2, 1), self.fuse, halves, strict=True):
            planes = cues if cues is None or factor == 1 else F.avg_pool2d(cues, factor)
            x = step(half, x, planes)
        return x


class SamUpscaling(nn.Sequential):
    """SAM's own upscaling to stride 4 (the row without ZIM's decoder in Table 4a)."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(dim, 2 * out, 2, stride=2),
            LayerNorm2d(2 * out),
            nn.GELU(),
            nn.ConvTranspose2d(2 * out, out, 2, stride=2),
            nn.GELU(),
        )


def enlarge(x: Tensor) -> Tensor:
    """Double height and width bilinearly."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
