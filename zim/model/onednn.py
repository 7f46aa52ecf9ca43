"""Convolutions of single pictures by oneDNN, with prepared kernels and what follows fused.

Torch hands oneDNN a kernel as it is stored, which is laid out anew at every call, and adds and
clips in passes of their own. The operators used here are those of torch's compiler: they take a
kernel that was laid out once, and add and clip while results are in registers. Values are those
of the plain convolution, up to rounding.

With one picture and several threads that saves up to a tenth of encoding it with ``nano``. A layout
is chosen for one shape and one number of threads, and a wrong one can cost more than it saves, so
batches and single threads are left to torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Accumulate = Callable[[Tensor, Tensor, Tensor, list[int]], Tensor]


class Kernel(NamedTuple):
    """A prepared kernel, in oneDNN's own layout, its bias and how it is applied."""

    weight: Tensor
    bias: Tensor | None
    stride: list[int]
    padding: list[int]


def suits(x: Tensor) -> bool:
    """Tell whether prepared kernels are the faster way for a map ``b c h w``."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # which does the same by itself
        return False
    return (
        len(x) == 1
        and x.dtype == torch.float32
        and torch.get_num_threads() > 1
        and torch.backends.mkl.is_available()  # measured on x86 only
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and _operators() is not None
    )


def made_for(x: Tensor) -> Hashable:
    """Return what a kernel for ``x`` depends on beside its values."""
    return tuple(x.shape), torch.get_num_threads()


def prepare(weight: Tensor, bias: Tensor | None, x: Tensor, stride: int, padding: int) -> Kernel:
    """Lay out a kernel ``out in kh kw`` for maps like ``x``."""
    operators = _operators()
    assert operators is not None
    strides, paddings, ones = [stride] * 2, [padding] * 2, [1, 1]
    shape = list(x.shape)
    made = operators.reorder(weight.to_mkldnn(), paddings, strides, ones, 1, shape)
    return Kernel(made, bias, strides, paddings)


def convolve(x: Tensor, kernel: Kernel, add: Tensor | None = None, relu: bool = False) -> Tensor:
    """Convolve.

    Args:
        x: ``1 in h w`` float32, a map like the one the kernel was prepared for.
        kernel: from :func:`prepare`.
        add: ``1 out h' w'`` to add to the result, or None.
        relu: clip the sum at zero.

    Returns:
        ``1 out h' w'``, channels last in memory.
    """
    operators = _operators()
    assert operators is not None
    weight, bias, stride, padding = kernel
    how: tuple[Any, ...] = (weight, bias, padding, stride, [1, 1], 1)
    if add is None:
        return operators.convolve(x, *how, "relu" if relu else "none", [], "")
    return operators.convolve_add(x, add, *how, "add", 1.0, "relu" if relu else None, [], "")


def accumulate(y: Tensor, x: Tensor, kernel: Kernel) -> Tensor:
    """Write ``relu(y + convolution of x)`` into ``y`` and return it."""
    operators = _operators()
    assert operators is not None
    weight, bias, stride, padding = kernel
    how: tuple[Any, ...] = (weight, bias, padding, stride, [1, 1], 1)
    return operators.accumulate(y, x, *how, "add", 1.0, "relu", [], "")


def bfloat16_accumulate() -> Accumulate | None:
    """Return ``y, x, weight, padding``: ``y = relu(y + conv(x))`` where oneDNN has it in bf16.

    The weight is as torch stores it, and has to be ``out in 3 3``.
    """
    operators = _operators()
    # oneDNN refuses bfloat16 on CPUs without AVX512BW or AVX-NE-CONVERT
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if operators is None or supported is None or not supported():
        return None
    operator, ones = operators.accumulate, [1, 1]

    def accumulate(y: Tensor, x: Tensor, weight: Tensor, padding: list[int]) -> Tensor:
        last = ("add", 1.0, "relu", [], "none")
        return operator(y, x, weight, None, padding, ones, ones, 1, *last)

    return accumulate


class _Operators(NamedTuple):
    reorder: Callable[..., Tensor]
    convolve: Callable[..., Tensor]
    convolve_add: Callable[..., Tensor]
    accumulate: Callable[..., Tensor]


@functools.cache
def _operators() -> _Operators | None:
    """Return torch's operators; None where they are missing or are not what they were.

    They are not part of torch's public interface, so each is tried once, on a tiny map.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    names = (
        (torch.ops.aten, "mkldnn_reorder_conv2d_weight", "default"),
        (torch.ops.mkldnn, "_convolution_pointwise", "default"),
        (torch.ops.mkldnn, "_convolution_pointwise", "binary"),
        (torch.ops.mkldnn, "_convolution_pointwise_", "binary"),
    )
    found: list[Any] = [
        getattr(getattr(space, name, None), kind, None) for space, name, kind in names
    ]
    if None in found:
        return None
    operators = _Operators(*found)
    try:
        return operators if _right(operators) else None
    except (RuntimeError, TypeError):  # other arguments
        return None


def _right(operators: _Operators) -> bool:
    """Tell whether the operators compute what is expected of them."""
    values = torch.arange(-13, 14, dtype=torch.float32, device="cpu")
    x, weight, add = values.view(1, 3, 3, 3), values[:9].view(1, 1, 3, 3), values[9:18]
    weight, add = weight.expand(2, 3, 3, 3).contiguous(), add.view(1, 1, 3, 3).expand(1, 2, 3, 3)
    plain, add = F.conv2d(x, weight, padding=1), add.contiguous()
    made = operators.reorder(weight.to_mkldnn(), [1, 1], [1, 1], [1, 1], 1, list(x.shape))
    how: tuple[Any, ...] = (made, None, [1, 1], [1, 1], [1, 1], 1)
    pairs = (
        (operators.convolve(x, *how, "relu", [], ""), plain.relu()),
        (operators.convolve_add(x, add, *how, "add", 1.0, None, [], ""), plain + add),
        (
            operators.accumulate(add.clone(), x, *how, "add", 1.0, "relu", [], ""),
            (plain + add).relu(),
        ),
    )
    return all(torch.allclose(ours, theirs) for ours, theirs in pairs)
