"""ZIM's hierarchical pixel decoder: conv features of the image at strides 2, 4, 8 (section 3.2).

The transformer's image embedding is enlarged step by step and fused with them; the result is a
stride-2 map that the hypernetworks' token vectors are multiplied with.

A fusion step is ``ReLU(norm(conv([detail, up])))``. A convolution over a concatenation is a sum of
convolutions, so the detail half is computed once per image (:meth:`FusionStep.image_half`) and
each prompt pays for its own half only. :meth:`FusionStep.joint` is the undivided form, kept as
reference.

While inferring, the image halves are laid out in phases (:func:`zim.model.fast.to_phases`), and so
is everything a step computes: the enlarged map, four times the size of what it is made from, never
exists, the norm is folded, and the last step's result stays in phases up to the logits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zim.config import DecoderConfig
from zim.model import onednn, winograd
from zim.model.fast import (
    Scratch,
    Strip,
    Twice,
    allowed,
    cached,
    fold_norm,
    fuse_twice,
    norm_sources,
    prepared,
    to_phases,
    tracked,
    twice_kernels,
)
from zim.model.layers import ConvNormAct, LayerNorm2d, channels_in_eights, make_norm


class _Kernels(NamedTuple):
    """A fusion step's weights for inference, norm folded in."""

    detail: Tensor  # out detail 3 3
    bias: Tensor  # out
    twice: Twice  # for the enlarged map
    cues: Tensor  # out cues 3 3


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
        """Convolve the image's part once per image.

        Args:
            detail: ``b detail h w``.

        Returns:
            ``b out h w``; while inferring ``b (4 * out) h/2 w/2`` in phases, norm included.
        """
        if isinstance(self.norm, nn.BatchNorm2d) and allowed(self) and min(detail.shape[-2:]) >= 4:
            kernels, sources = self._kernels(), self._sources()
            if onednn.suits(detail) and tracked(sources):
                kernel = prepared(
                    self, sources, detail, lambda: (kernels.detail, kernels.bias), name="detail"
                )
                return to_phases(onednn.convolve(detail, kernel))
            return to_phases(F.conv2d(detail, kernels.detail, kernels.bias, padding=1))
        return F.conv2d(detail, self.conv.weight[:, : self.split[0]], padding=1)

    def forward(
        self, half: Tensor, x: Tensor, cues: Tensor | None, scratch: Scratch | None = None
    ) -> Tensor:
        """Add the prompt's part to the image's.

        Args:
            half: ``b out h w`` from :meth:`image_half` (b may be 1 and is then shared).
            x: ``b up h/2 w/2`` map of the step before.
            cues: ``b cues h w`` or None.
            scratch: while inferring, where the result may be put.

        Returns:
            ``b out h w``.
        """
        if self.in_phases(half):
            scratch = scratch or Scratch()
            strips = self.strips(half, x, cues, scratch)
            return self._joined(strips, x, scratch)
        own, weight = enlarge(x), self.conv.weight[:, self.split[0] :]
        if cues is None:
            weight = weight[:, : self.split[1]]
        else:
            own = torch.cat([own, cues], 1)
        own, weight = channels_in_eights(own, weight)
        return F.relu(self.norm(half + F.conv2d(own, weight, padding=1)))

    def in_phases(self, half: Tensor) -> bool:
        """Tell whether an image half is one for inference."""
        return half.shape[1] != self.conv.out_channels

    def _joined(self, strips: Iterable[Strip], x: Tensor, scratch: Scratch) -> Tensor:
        """Put the strips made of ``b c h w`` together: ``b out 2h 2w``."""
        b, _, h, w = x.shape
        out = self.conv.out_channels
        cells = scratch.empty(self, (b, h, 2, w, 2, out), x)
        for prompts, rows, maps in strips:
            phases = maps.permute(0, 2, 3, 1).unflatten(3, (2, 2, out))
            cells[prompts, rows].copy_(phases.transpose(2, 3))
        return cells.view(b, 2 * h, 2 * w, out).permute(0, 3, 1, 2)

    def strips(
        self, half: Tensor, x: Tensor, cues: Tensor | None, scratch: Scratch
    ) -> Iterator[Strip]:
        """Do what :meth:`forward` does, giving ``b (4 * out) h/2 w/2`` in phases, in strips."""
        kernels, sources = self._kernels(), self._sources()
        if cues is not None:
            planes, kernel = channels_in_eights(cues, kernels.cues)
            half = half + to_phases(F.conv2d(planes, kernel, padding=1))
        twice = kernels.twice
        merged = twice.merged
        assert isinstance(merged, Tensor)
        if not allowed(self):
            pass
        elif winograd.suits(x, len(merged)) and tracked(sources):
            make = functools.partial(winograd.make_kernel, merged, None)
            twice = twice._replace(merged=cached(self, "winograd", sources, make))
        elif onednn.suits(x) and half.dtype == x.dtype and tracked(sources):
            kernel = prepared(self, sources, x, lambda: (merged, None), name="merged")
            twice = twice._replace(merged=kernel)
        return fuse_twice(x, twice, half, own=cues is not None, scratch=scratch)

    def _sources(self) -> tuple[Tensor, ...]:
        assert isinstance(self.norm, nn.BatchNorm2d)
        return (self.conv.weight, *norm_sources(self.norm))

    def _kernels(self) -> _Kernels:
        """Return the kernels of inference, derived from the weight and the norm."""
        if self.training:
            raise RuntimeError("features encoded for inference cannot be used in training mode")
        assert isinstance(self.norm, nn.BatchNorm2d)
        norm, detail, width = self.norm, self.split[0], self.split[1]

        def make() -> _Kernels:
            weight, bias = fold_norm(self.conv.weight, norm)
            parts = weight.split([detail, width, weight.shape[1] - detail - width], 1)
            image, up, cues = (p.contiguous(memory_format=torch.channels_last) for p in parts)
            return _Kernels(image, bias, twice_kernels(up), cues)

        return cached(self, "kernels", self._sources(), make)

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
        for i, half in enumerate(halves):
            x = self._step(i)(half, x, self._planes(i, cues))
        return x

    def strips(
        self, halves: Sequence[Tensor], x: Tensor, cues: Tensor | None, scratch: Scratch
    ) -> Iterator[Strip]:
        """Do what :meth:`forward` does, giving ``b (4 * fusion[-1]) h/4 w/4`` in phases, in strips.

        Only for halves that are :meth:`in_phases`.
        """
        last = len(halves) - 1
        for i, half in enumerate(halves[:last]):
            x = self._step(i)(half, x, self._planes(i, cues), scratch)
        return self._step(last).strips(halves[last], x, self._planes(last, cues), scratch)

    def in_phases(self, halves: Sequence[Tensor]) -> bool:
        """Tell whether image halves were made for inference."""
        return halves[-1].shape[1] == 4 * self.fuse[-1].conv.out_channels  # pyright: ignore

    def _step(self, i: int) -> FusionStep:
        step = self.fuse[i]
        assert isinstance(step, FusionStep)
        return step

    def _planes(self, i: int, cues: Tensor | None) -> Tensor | None:
        """Return the cue planes at the size of a step's result."""
        last = len(self.fuse) - 1
        return cues if cues is None or i == last else F.avg_pool2d(cues, 2 ** (last - i))


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
