"""What inference may do that training may not: derived weights, computed once and kept.

The network has one set of parameters, SAM's names, and nothing of this reaches a checkpoint. In
evaluation mode without gradients some layers compute with weights derived from them (a batch norm
folded into its convolution, relative positions looked up for a grid). :func:`cached` keeps such
tensors beside the module and derives them anew when a parameter is moved, replaced or written to.

:func:`plain_forms` switches all of it off, which is how the tests compare the two.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zim.model import winograd

_ATTRIBUTE = "_derived"
#: bytes of a result that :func:`fuse_twice` makes at a time
STRIP_BYTES = 4 << 20
_plain: ContextVar[bool] = ContextVar("plain_forms", default=False)

Value = TypeVar("Value")
Accumulate = Callable[[Tensor, Tensor, Tensor, list[int]], Tensor]


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


class Twice(NamedTuple):
    """What "enlarge by two, then convolve 3 x 3" is on the small map, from :func:`twice_kernels`.

    Attributes:
        merged: ``(4 * out) in 3 3`` for every cell, output channels as (row phase, column phase,
            channel); or the same transformed.
        rows: ``2 (3 * in) (4 * out)``, what the first and last row add to results there.
        columns: the same for the first and last column.
        corners: ``4 in (4 * out)``, what the corners add to results there: top left, top right,
            bottom left, bottom right.
    """

    merged: Tensor | winograd.Kernel
    rows: Tensor
    columns: Tensor
    corners: Tensor


def twice_kernels(weight: Tensor) -> Twice:
    """Merge "enlarge by two, then convolve 3 x 3" into kernels on the small map.

    Bilinear enlargement gives row ``2i`` as ``x[i-1]/4 + 3 x[i]/4`` and row ``2i+1`` as
    ``3 x[i]/4 + x[i+1]/4``, so three rows of the large map are combinations of the rows i-1, i and
    i+1 of the small one: each of the four phases (even or odd row and column) is a 3 x 3
    convolution of the small map, at the cost of the one convolution on the large map, which is
    never built.

    On the rim the enlargement repeats the last row, while the convolution pads with zeros. Taking
    zeros for what lies beyond the small map differs from that along one axis by a quarter of the
    last row, here and there with a minus sign: tap k of the large kernel sees ``mix + rim`` of it
    instead of ``mix``. The product of two such sums is one kernel for all cells and one for rows,
    for columns and for corners.

    Args:
        weight: ``out in 3 3``, to be applied to the enlarged map.
    """
    #: phase, small row (i-1, i, i+1), tap of the large kernel
    mix = torch.tensor(
        [
            [[0.75, 0.25, 0.0], [0.25, 0.75, 0.75], [0.0, 0.0, 0.25]],
            [[0.25, 0.0, 0.0], [0.75, 0.75, 0.25], [0.0, 0.25, 0.75]],
        ],
        device=weight.device,
    )
    #: end (first, last), phase, tap of the large kernel
    rim = torch.tensor(
        [[[-0.25, 0.25, 0.0], [0.25, 0.0, 0.0]], [[0.0, 0.0, 0.25], [0.0, 0.25, -0.25]]],
        device=weight.device,
    )
    out, cin = weight.shape[:2]
    taps = weight.float()
    merged = torch.einsum("ptk,qsl,ockl->pqocts", mix, mix, taps).reshape(4 * out, cin, 3, 3)
    rows = torch.einsum("epk,qsl,ockl->escpqo", rim, mix, taps).reshape(2, 3 * cin, 4 * out)
    columns = torch.einsum("ptk,fql,ockl->ftcpqo", mix, rim, taps).reshape(2, 3 * cin, 4 * out)
    corners = torch.einsum("epk,fql,ockl->efcpqo", rim, rim, taps).reshape(4, cin, 4 * out)
    merged, rows, columns, corners = (t.to(weight.dtype) for t in (merged, rows, columns, corners))
    return Twice(merged.contiguous(memory_format=torch.channels_last), rows, columns, corners)


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


class Scratch:
    """Memory for large maps that are made again and again, for every prompt anew.

    What the system hands out afresh it first has to clear, which takes longer than a map. Where
    gradients are wanted nothing is used twice.
    """

    def __init__(self) -> None:
        self._rooms: dict[Hashable, Tensor] = {}

    def empty(self, name: Hashable, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return an uninitialised tensor where an earlier one of the same name was."""
        if torch.is_grad_enabled():
            return like.new_empty(shape)
        size = math.prod(shape)
        room = self._rooms.get(name)
        if room is None or len(room) < size or room.dtype != like.dtype:
            room = self._rooms[name] = like.new_empty(size)
        return room[:size].view(*shape)


class Strip(NamedTuple):
    """Some rows of a result in phases.

    Attributes:
        prompts: rows of the batch.
        rows: rows of the map.
        maps: ``prompts channels rows w``; may be overwritten when the next strip is asked for.
    """

    prompts: slice
    rows: slice
    maps: Tensor


def fuse_twice(
    x: Tensor, kernels: Twice, half: Tensor, own: bool = False, scratch: Scratch | None = None
) -> Iterator[Strip]:
    """Enlarge by two, convolve 3 x 3 with zero padding, add and clip at zero, in phases.

    oneDNN can add a result to what is there already and clip it while it is still in registers;
    the operator that says so is the one torch's compiler uses. Maps too large for a processor's
    cache are made in strips of rows, in memory used again and again, and whoever uses a strip
    finds it in the cache. Where the operator is missing or does not pay, several passes make
    everything at once.

    Args:
        x: ``b in h w``, both sides at least 2.
        kernels: from :func:`twice_kernels`.
        half: ``b (4 * out) h w`` to add, or one for all.
        own: ``half`` may be overwritten.
        scratch: where strips are made.

    Yields:
        Strips that together cover ``b (4 * out) h w``.
    """
    rim, merged = _rim(x, kernels), kernels.merged
    if isinstance(merged, winograd.Kernel):
        y = winograd.convolve(x, merged)
    elif accumulate := _accumulator(x, merged, half):
        yield from _fused_strips(accumulate, x, merged, rim, half, own, scratch or Scratch())
        return
    else:
        y = F.conv2d(x, merged, padding=1)
    rows = slice(0, x.shape[2])
    rim.add_to(y.add_(half), slice(None), rows)
    yield Strip(slice(None), rows, y.relu_())


def _fused_strips(
    accumulate: Accumulate,
    x: Tensor,
    merged: Tensor,
    rim: _Rim,
    half: Tensor,
    own: bool,
    scratch: Scratch,
) -> Iterator[Strip]:
    b, _, h, w = x.shape
    own = own and len(half) == b and half.is_contiguous(memory_format=torch.channels_last)
    lines = max(1, STRIP_BYTES // (half.shape[1] * w * half.element_size()))
    whole = own or b * h <= lines
    if whole:
        each, lines = [slice(None)], h
    else:  # rows of one map lie together in memory
        each = [slice(i, i + 1) for i in range(b)]
    shape = (b if whole else 1, min(h, lines + 1), w, half.shape[1])
    room = half if own else scratch.empty("strip", shape, half).permute(0, 3, 1, 2)
    for one in each:
        source = half if len(half) == 1 else half[one]
        for start in range(0, h, lines):
            rows = slice(start, min(start + lines, h))
            # Rows at the ends of the map are padded; in a strip that has one end, the row beside
            # it at the other end is padded too, and wrong.
            low, high = max(start - 1, 0), min(rows.stop + 1, h)
            inner = low < start and high > rows.stop
            made = rows if inner else slice(low, high)
            y = room[:, :, : made.stop - made.start]
            if not own:
                y.copy_(source[:, :, made].expand_as(y))
            rim.add_to(y, one, made)
            accumulate(y, x[one, :, low:high], merged, [0 if inner else 1, 1])
            yield Strip(one, rows, y[:, :, start - made.start : rows.stop - made.start])


def _accumulator(x: Tensor, merged: Tensor, half: Tensor) -> Accumulate | None:
    """Return oneDNN's operator where it pays; it knows neither gradients nor autocast."""
    same = x.dtype == merged.dtype == half.dtype == torch.bfloat16
    if not (same and x.is_cpu) or torch.is_grad_enabled():
        return None
    return _convolve_accumulate()


@functools.cache
def _convolve_accumulate() -> Accumulate | None:
    """Return ``y, x, weight, padding``: ``y = relu(y + conv(x))`` where oneDNN has it in bf16."""
    if not torch.backends.mkldnn.is_available():
        return None
    # oneDNN refuses bfloat16 on CPUs without AVX512BW or AVX-NE-CONVERT
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if supported is None or not supported():
        return None
    packet = getattr(torch.ops.mkldnn, "_convolution_pointwise_", None)
    operator = getattr(packet, "binary", None)
    if operator is None:
        return None
    ones = [1, 1]

    def accumulate(y: Tensor, x: Tensor, weight: Tensor, padding: list[int]) -> Tensor:
        last = ("add", 1.0, "relu", [], "none")
        return operator(y, x, weight, None, padding, ones, ones, 1, *last)

    return accumulate


class _Rim(NamedTuple):
    """What rows and columns at the ends of a map add to its results, channels last."""

    rows: Tensor  # 2 b w (4 * out)
    columns: Tensor  # 2 b h (4 * out)

    def add_to(self, y: Tensor, prompts: slice, made: slice) -> None:
        """Add to some rows ``prompts (4 * out) made w`` of the result."""
        cells = y.permute(0, 2, 3, 1)
        cells[:, :, 0] += self.columns[0, prompts, made]
        cells[:, :, -1] += self.columns[1, prompts, made]
        if made.start == 0:
            cells[:, 0] += self.rows[0, prompts]
        if made.stop == self.columns.shape[2]:
            cells[:, -1] += self.rows[1, prompts]


def _rim(x: Tensor, kernels: Twice) -> _Rim:
    cells = x.permute(0, 2, 3, 1)
    rows = torch.stack([cells[:, 0], cells[:, -1]])  # 2 b w c
    columns = torch.stack([cells[:, :, 0], cells[:, :, -1]])  # 2 b h c
    corners = torch.stack([rows[:, :, 0], rows[:, :, -1]], 1).flatten(0, 1)  # 4 b c
    turns = (corners @ kernels.corners).unflatten(0, (2, 2))
    added = _along(rows, kernels.rows)
    added[:, :, 0] += turns[:, 0]
    added[:, :, -1] += turns[:, 1]
    return _Rim(added, _along(columns, kernels.columns))


def _along(lines: Tensor, kernel: Tensor) -> Tensor:
    """Convolve two lines of cells ``2 b n in`` each with its kernel ``2 (3 * in) out``."""
    before, after = F.pad(lines, (0, 0, 1, -1)), F.pad(lines, (0, 0, -1, 1))
    taps = torch.cat([before, lines, after], 3)
    return (taps.flatten(1, 2) @ kernel).view(*lines.shape[:3], -1)


def to_phases(x: Tensor) -> Tensor:
    """Cut ``b c 2h 2w`` into ``b (4 * c) h w``: channels as (row phase, column phase, channel)."""
    b, c, h, w = x.shape
    cells = x.permute(0, 2, 3, 1).reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
    return cells.reshape(b, h // 2, w // 2, 4 * c).permute(0, 3, 1, 2)
