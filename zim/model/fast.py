"""What inference may do that training may not: derived weights, computed once and kept.

The network has one set of parameters, SAM's names, and nothing of this reaches a checkpoint. In
evaluation mode without gradients some layers compute with weights derived from them (a batch norm
folded into its convolution, relative positions looked up for a grid). :func:`cached` keeps such
tensors beside the module and derives them anew when a parameter is moved, replaced or written to.

:func:`plain_forms` switches all of it off, which is how the tests compare the two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zim.model import winograd

_ATTRIBUTE = "_derived"
_plain: ContextVar[bool] = ContextVar("plain_forms", default=False)

Value = TypeVar("Value")


@contextmanager
def plain_forms() -> Iterator[None]:
    """Compute everything in its reference form inside the block."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def tracing() -> bool:
    """Tell whether the network is being exported, which wants the plain operations."""
    jit = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return jit or torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def allowed(module: nn.Module) -> bool:
    """Tell whether a module may use its inference form now."""
    return not (module.training or torch.is_grad_enabled() or _plain.get() or tracing())


def plain_requested() -> bool:
    """Tell whether :func:`plain_forms` is in force."""
    return _plain.get()


def tracked(sources: Sequence[Tensor]) -> bool:
    """Tell whether what is derived from tensors can be kept: inference tensors hide changes."""
    return not any(t.is_inference() for t in sources)


def cached(
    module: nn.Module, name: Hashable, sources: Sequence[Tensor], make: Callable[[], Value]
) -> Value:
    """Return ``make()``, remembered on the module as long as its sources stay what they are.

    Args:
        module: keeps the value in an attribute that is neither parameter nor buffer.
        name: of the value; values of different grids have different names.
        sources: the tensors it is derived from. Writing to one in place, moving it, converting it
            or replacing it makes the next call derive the value again.
        make: derives the value.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not tracked(sources):
        return make()
    key = tuple((t.data_ptr(), t._version, t.dtype, t.device) for t in sources)
    store: dict[Hashable, tuple[Any, Any]] = module.__dict__.setdefault(_ATTRIBUTE, {})
    kept = store.get(name)
    if kept is None or kept[0] != key:
        kept = store[name] = (key, make())
    return kept[1]


def forget(model: nn.Module) -> None:
    """Drop every derived tensor of a model, for code that writes to weights behind torch's back."""
    for module in model.modules():
        module.__dict__.pop(_ATTRIBUTE, None)


def fold_norm(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Fold a batch norm in evaluation mode into the convolution before it.

    Args:
        weight: ``out in kh kw`` of a convolution without bias.
        norm: with running statistics.

    Returns:
        Weight and bias of the one convolution that does both, in the weight's type (computed in
        float32), the weight in channels-last order.
    """
    mean, var, gain, shift = (t.float() for t in norm_sources(norm))
    scale = gain * torch.rsqrt(var + norm.eps)
    folded = (weight.float() * scale[:, None, None, None]).to(weight.dtype)
    bias = (shift - mean * scale).to(weight.dtype)
    return folded.contiguous(memory_format=torch.channels_last), bias


def norm_sources(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the tensors of a batch norm: mean, variance, gain, shift."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var, norm.weight, norm.bias


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a convolution and its norm, as one convolution where that is allowed."""
    if not (isinstance(norm, nn.BatchNorm2d) and allowed(norm)):
        return norm(conv(x))
    sources = (conv.weight, *norm_sources(norm))
    shape = (conv.kernel_size, conv.stride, conv.padding)
    wide = shape == ((3, 3), (1, 1), (1, 1)) and winograd.suits(x, conv.out_channels)
    if wide and tracked(sources):  # a kernel transformed for one call costs more than it saves

        def transform() -> winograd.Kernel:
            return winograd.make_kernel(*fold_norm(conv.weight, norm))

        return winograd.convolve(x, cached(conv, "winograd", sources, transform))
    weight, bias = cached(conv, "folded", sources, lambda: fold_norm(conv.weight, norm))
    return F.conv2d(x, weight, bias, conv.stride, conv.padding)  # pyright: ignore


def twice_kernel(weight: Tensor) -> Tensor:
    """Merge "enlarge by two, then convolve 3 x 3" into one kernel on the small map.

    Bilinear enlargement gives row ``2i`` as ``x[i-1]/4 + 3 x[i]/4`` and row ``2i+1`` as
    ``3 x[i]/4 + x[i+1]/4``, so three rows of the large map are combinations of the rows i-1, i and
    i+1 of the small one: each of the four phases (even or odd row and column) is a 3 x 3
    convolution of the small map, at the cost of the one convolution on the large map, which is
    never built.

    Args:
        weight: ``out in 3 3``, to be applied to the enlarged map.

    Returns:
        ``(4 * out) in 3 3`` in channels-last order, output channels as (row phase, column phase,
        channel). Cells on the rim differ, see :func:`convolve_twice`.
    """
    #: phase, small row (i-1, i, i+1), tap of the large kernel
    mix = torch.tensor(
        [
            [[0.75, 0.25, 0.0], [0.25, 0.75, 0.75], [0.0, 0.0, 0.25]],
            [[0.25, 0.0, 0.0], [0.75, 0.75, 0.25], [0.0, 0.25, 0.75]],
        ],
        device=weight.device,
    )
    out, cin = weight.shape[:2]
    merged = torch.einsum("ptk,qsl,ockl->pqocts", mix, mix, weight.float())
    merged = merged.reshape(4 * out, cin, 3, 3).to(weight.dtype)
    return merged.contiguous(memory_format=torch.channels_last)


def unshuffled_kernel(weight: Tensor) -> Tensor:
    """Write a 3 x 3 convolution for maps cut into phases by :func:`to_phases`, exactly.

    Args:
        weight: ``out in 3 3`` for the large map.

    Returns:
        ``(4 * out) (4 * in) 3 3`` on the small map of four phases, zero padding included.
    """
    out, cin = weight.shape[:2]
    merged = weight.new_zeros(2, 2, out, 2, 2, cin, 3, 3)
    for p in range(2):
        for q in range(2):
            for k in range(3):
                for m in range(3):
                    row, column = p + k - 1, q + m - 1  # in the large map, from the cell's corner
                    merged[p, q, :, row % 2, column % 2, :, row // 2 + 1, column // 2 + 1] = weight[
                        :, :, k, m
                    ]
    merged = merged.reshape(4 * out, 4 * cin, 3, 3)
    return merged.contiguous(memory_format=torch.channels_last)


def convolve_twice(x: Tensor, merged: Tensor | winograd.Kernel, weight: Tensor) -> Tensor:
    """Enlarge by two and convolve 3 x 3 with zero padding, in phases.

    Args:
        x: ``b in h w``, both sides at least 2.
        merged: from :func:`twice_kernel`, as it is or transformed.
        weight: the plain ``out in 3 3`` kernel, for the rim: there the enlargement repeats the
            last row while the convolution pads with zeros, which no single kernel does.

    Returns:
        ``b (4 * out) h w`` in phases.
    """
    if isinstance(merged, winograd.Kernel):
        y = winograd.convolve(x, merged)
    else:
        y = F.conv2d(x, merged, padding=1)
    top, bottom, left, right = _rim(x, weight)
    y[:, :, 0], y[:, :, -1], y[..., 0], y[..., -1] = top, bottom, left, right
    return y


def fuse_twice(x: Tensor, merged: Tensor | winograd.Kernel, weight: Tensor, half: Tensor) -> Tensor:
    """Return ``relu(convolve_twice(x, merged, weight) + half)``, in one pass where there is one.

    oneDNN adds and clips while a large map is still in registers; the operator that says so is the
    one torch's compiler uses. Where it is missing, three passes do the same.
    """
    fused = _convolve_add_relu()
    large = x.shape[-1] * x.shape[-2] >= 128 * 128 and half.shape[0] == x.shape[0]
    transformed = isinstance(merged, winograd.Kernel)
    if fused is None or not large or transformed or x.dtype != torch.bfloat16 or not x.is_cpu:
        return convolve_twice(x, merged, weight).add_(half).relu_()
    ones = [1, 1]
    y = fused(x, half, merged, None, ones, ones, ones, 1, "add", 1.0, "relu", [], "none")
    top, bottom, left, right = _rim(x, weight)
    y[:, :, 0] = (top + half[:, :, 0]).relu_()
    y[:, :, -1] = (bottom + half[:, :, -1]).relu_()
    y[..., 0] = (left + half[..., 0]).relu_()
    y[..., -1] = (right + half[..., -1]).relu_()
    return y


@functools.cache
def _convolve_add_relu() -> Callable[..., Tensor] | None:
    if not torch.backends.mkldnn.is_available():
        return None
    # oneDNN refuses bfloat16 on CPUs without AVX512BW or AVX-NE-CONVERT
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if supported is None or not supported():
        return None
    packet = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
    return getattr(packet, "binary", None)


def _rim(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the first and last row and column of :func:`convolve_twice`."""
    b = len(x)
    rows = _twice_plainly(torch.cat([x[:, :, :2], x[:, :, -2:]]), weight)
    columns = _twice_plainly(torch.cat([x[..., :2], x[..., -2:]]), weight)
    return rows[:b, :, 0], rows[b:, :, 1], columns[:b, ..., 0], columns[b:, ..., 1]


def _twice_plainly(x: Tensor, weight: Tensor) -> Tensor:
    large = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return to_phases(F.conv2d(large, weight, padding=1))


def to_phases(x: Tensor) -> Tensor:
    """Cut ``b c 2h 2w`` into ``b (4 * c) h w``: channels as (row phase, column phase, channel)."""
    b, c, h, w = x.shape
    cells = x.permute(0, 2, 3, 1).reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
    return cells.reshape(b, h // 2, w // 2, 4 * c).permute(0, 3, 1, 2)


def from_phases(x: Tensor) -> Tensor:
    """Undo :func:`to_phases`: ``b (4 * c) h w`` to ``b c 2h 2w``, channels last in memory."""
    b, c, h, w = x.shape
    cells = x.permute(0, 2, 3, 1).reshape(b, h, w, 2, c // 2).transpose(2, 3)
    return cells.reshape(b, 2 * h, 2 * w, c // 4).permute(0, 3, 1, 2)
