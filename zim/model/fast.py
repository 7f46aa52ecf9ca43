"""What inference may do that training may not: derived weights, computed once and kept.

The network has one set of parameters, SAM's names, and nothing of this reaches a checkpoint. In
evaluation mode without gradients some layers compute with weights derived from them (a batch norm
folded into its convolution, relative positions looked up for a grid). :func:`cached` keeps such
tensors beside the module and derives them anew when a parameter is moved, replaced or written to.

:func:`plain_forms` switches all of it off, which is how the tests compare the two.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zim.model import onednn, winograd

_ATTRIBUTE = "_derived"
#: values of a tensor that are looked at for changes
_TRACED = 4
#: bytes of a result that :func:`fuse_twice` makes at a time
STRIP_BYTES = 4 << 20
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


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast is off on a device."""
    kind = device.type
    if kind in ("cpu", "cuda", "mps") and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


class _Kept(dict[Hashable, tuple[Any, Any]]):
    """What is remembered on a module; a copy or a pickle of the module begins without."""

    def __deepcopy__(self, memo: object) -> _Kept:
        return _Kept()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, ()


def cached(
    module: nn.Module,
    name: Hashable,
    sources: Sequence[Tensor],
    make: Callable[[], Value],
    made_for: Hashable = None,
) -> Value:
    """Return ``make()``, remembered on the module as long as its sources stay what they are.

    Args:
        module: keeps the value in an attribute that is neither parameter nor buffer.
        name: of the value; values of different grids have different names.
        sources: the tensors it is derived from. Writing to one in place, moving it, converting it
            or replacing it makes the next call derive the value again. Torch does not count what
            is written through ``.data`` and numpy, nor what batch norms and fused optimisers
            write: in main memory a few values are looked at, too, and a network that is put into
            training forgets all that is kept. Other code calls :func:`forget`.
        make: derives the value.
        made_for: what else the value depends on; one value of a name is kept, the last one.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not tracked(sources):
        return make()

    key = made_for, *((t.data_ptr(), t._version, t.dtype, t.device, _trace(t)) for t in sources)
    store: _Kept = module.__dict__.setdefault(_ATTRIBUTE, _Kept())
    kept = store.get(name)
    if kept is None or kept[0] != key:
        with without_autocast(sources[0].device):  # callers without it get the same
            kept = store[name] = (key, make())
    return kept[1]


def forget(model: nn.Module) -> None:
    """Drop every derived tensor of a model, for code that writes to weights behind torch's back."""
    for module in model.modules():
        module.__dict__.pop(_ATTRIBUTE, None)


def _trace(tensor: Tensor) -> bytes:
    """Return the bytes of a few values, by which writes that torch does not count are noticed.

    Of plain tensors in main memory alone: the others would have to be waited for, or have none.
    """
    if type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_cpu:
        return b""
    size, count = tensor.element_size(), tensor.numel()
    if tensor.layout != torch.strided or not count:
        return b""
    end = (tensor.storage_offset() + count) * size
    if end > tensor.untyped_storage().nbytes():  # freed, or the same few values again and again
        return b""
    start, step = tensor.data_ptr(), max(1, count // _TRACED) * size
    return b"".join(ctypes.string_at(start + i * step, size) for i in range(min(count, _TRACED)))


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


def conv_norm(
    conv: nn.Conv2d, norm: nn.Module, x: Tensor, add: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Apply a convolution and its norm, as one convolution where that is allowed.

    Args:
        conv: without bias.
        norm: of its results.
        x: ``b in h w``.
        add: ``b out h' w'`` to add to the result, or None.
        relu: clip the sum at zero.
    """
    if not (isinstance(norm, nn.BatchNorm2d) and allowed(norm)):
        y = norm(conv(x))
        y = y if add is None else y + add
        return F.relu(y, inplace=True) if relu else y
    sources = (conv.weight, *norm_sources(norm))
    folded = functools.partial(fold_norm, conv.weight, norm)
    stride, shape = conv.stride[0], (conv.kernel_size, conv.padding, conv.dilation, conv.groups)
    usual = shape == ((3, 3), (1, 1), (1, 1), 1) and conv.stride == (stride, stride)
    # what is made for one call, as from sources that are not tracked, costs more than it saves
    short = usual and stride == 1 and winograd.suits(x, conv.out_channels)
    if short and tracked(sources):
        kernel = cached(conv, "winograd", sources, lambda: winograd.make_kernel(*folded()))
        y = winograd.convolve(x, kernel)
    elif usual and onednn.suits(x) and tracked(sources):
        return onednn.convolve(x, prepared(conv, sources, x, folded, stride), add, relu)
    else:
        weight, bias = cached(conv, "folded", sources, folded)
        how = (conv.stride, conv.padding, conv.dilation, conv.groups)
        y = F.conv2d(x, weight, bias, *how)  # pyright: ignore
    y = y if add is None else y.add_(add)
    return y.relu_() if relu else y


def prepared(
    module: nn.Module,
    sources: Sequence[Tensor],
    x: Tensor,
    make: Callable[[], tuple[Tensor, Tensor | None]],
    stride: int = 1,
    name: Hashable = "onednn",
) -> onednn.Kernel:
    """Return oneDNN's form of a 3 x 3 kernel for maps like ``x``, kept as :func:`cached` does.

    Args:
        module: keeps it.
        sources: the tensors it is derived from.
        x: ``1 in h w``.
        make: derives weight and bias.
        stride: of the convolution, whose padding is 1.
        name: of the kernel, where a module has several.
    """

    def lay_out() -> onednn.Kernel:
        return onednn.prepare(*make(), x, stride, 1)

    return cached(module, name, sources, lay_out, onednn.made_for(x))


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

    merged: Tensor | winograd.Kernel | onednn.Kernel
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
        dtype=torch.float32,
    )
    #: end (first, last), phase, tap of the large kernel
    rim = torch.tensor(
        [[[-0.25, 0.25, 0.0], [0.25, 0.0, 0.0]], [[0.0, 0.0, 0.25], [0.0, 0.25, -0.25]]],
        device=weight.device,
        dtype=torch.float32,
    )
    out, cin = weight.shape[:2]
    taps = weight.float()
    merged = torch.einsum("ptk,qsl,ockl->pqocts", mix, mix, taps).reshape(4 * out, cin, 3, 3)
    rows = torch.einsum("epk,qsl,ockl->escpqo", rim, mix, taps).reshape(2, 3 * cin, 4 * out)
    columns = torch.einsum("ptk,fql,ockl->ftcpqo", mix, rim, taps).reshape(2, 3 * cin, 4 * out)
    corners = torch.einsum("epk,fql,ockl->efcpqo", rim, rim, taps).reshape(4, cin, 4 * out)
    merged, rows, columns, corners = (t.to(weight.dtype) for t in (merged, rows, columns, corners))
    return Twice(merged.contiguous(memory_format=torch.channels_last), rows, columns, corners)


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
        kernels: from :func:`twice_kernels`; with the merged one in oneDNN's form b is 1.
        half: ``b (4 * out) h w`` to add, or one for all.
        own: ``half`` may be overwritten.
        scratch: where strips are made.

    Yields:
        Strips that together cover ``b (4 * out) h w``.
    """
    rim, merged = _rim(x, kernels), kernels.merged
    if isinstance(merged, onednn.Kernel):
        y = half if own else half.clone(memory_format=torch.channels_last)
        rows = slice(0, x.shape[2])
        rim.add_to(y, slice(None), rows)
        yield Strip(slice(None), rows, onednn.accumulate(y, x, merged))
        return
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
    accumulate: onednn.Accumulate,
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


def _accumulator(x: Tensor, merged: Tensor, half: Tensor) -> onednn.Accumulate | None:
    """Return oneDNN's operator where it pays; it knows neither gradients nor autocast."""
    same = x.dtype == merged.dtype == half.dtype == torch.bfloat16
    if not (same and x.is_cpu) or torch.is_grad_enabled():
        return None
    return onednn.bfloat16_accumulate()


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
