"""Small layers shared by encoder and decoder."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zim.model.fast import conv_norm


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of a ``b c h w`` map (eps 1e-6 as in SAM)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (b c h w) at every pixel."""
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class MLPBlock(nn.Module):
    """Two linear layers with an activation between, named as in SAM (``lin1``, ``lin2``)."""

    def __init__(self, dim: int, hidden: int, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``... dim`` to ``... dim``."""
        return self.lin2(self.act(self.lin1(x)))


class MLP(nn.Module):
    """ReLU network of ``depth`` linear layers (SAM's hypernetworks and IoU head)."""

    def __init__(self, dim_in: int, hidden: int, dim_out: int, depth: int) -> None:
        super().__init__()
        sizes = [dim_in, *[hidden] * (depth - 1), dim_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``... dim_in`` to ``... dim_out``; the last layer is linear."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def make_norm(kind: Literal["bn", "gn"], channels: int) -> nn.Module:
    """Return the convolutional norm chosen in the configuration.

    Batch norm folds into the convolution at inference; group norm is for tiny batches.
    """
    if kind == "bn":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(max(1, channels // 16), channels)


def channels_in_eights(x: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Pad channels with zeros on a GPU, whose tensor cores want them in eights.

    Args:
        x: ``b c h w``.
        kernel: ``out c k k``.
    """
    odd = -x.shape[1] % 8
    if not odd or not x.is_cuda:
        return x, kernel
    return F.pad(x, (0, 0, 0, 0, 0, odd)), F.pad(kernel, (0, 0, 0, 0, 0, odd))


class ConvNormAct(nn.Sequential):
    """3x3 convolution without bias, norm, ReLU."""

    def __init__(
        self, dim_in: int, dim_out: int, *, stride: int = 1, norm: Literal["bn", "gn"] = "bn"
    ) -> None:
        super().__init__(
            nn.Conv2d(dim_in, dim_out, 3, stride=stride, padding=1, bias=False),
            make_norm(norm, dim_out),
            nn.ReLU(inplace=True),
        )

    def forward(self, input: Tensor) -> Tensor:
        """Map ``b dim_in h w`` to ``b dim_out h' w'``."""
        conv, norm, _ = self  # the ReLU is part of what conv_norm does
        return conv_norm(conv, norm, input, relu=True)  # pyright: ignore[reportArgumentType]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection (He et al. 2016, basic block)."""

    def __init__(self, channels: int, norm: Literal["bn", "gn"] = "bn") -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, channels, norm=norm)
        self.conv2 = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), make_norm(norm, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``b c h w`` to the same shape."""
        conv, norm = self.conv2
        return conv_norm(conv, norm, self.conv1(x), add=x, relu=True)  # pyright: ignore


def in_float32(moved: Tensor, original: Tensor) -> Tensor:
    """Undo the loss of digits when a module was converted: where ``moved`` is, as exact as before.

    Args:
        moved: what ``Module.to`` made of ``original``.
        original: the tensor before; double precision is granted.
    """
    if moved.dtype in (original.dtype, torch.float64) or moved.device.type == "meta":
        return moved
    return original.to(moved.device)
