"""3 x 3 convolutions with a quarter of the multiplications, for inference on CPUs.

The minimal filtering of Winograd as Lavin and Gray use it ("Fast Algorithms for Convolutional
Neural Networks", 2016, arXiv:1509.09308): a tile of 6 x 6 cells is transformed, multiplied with a
transformed kernel at each of its 36 places, which for all channels and tiles is 36 matrix products,
and transformed back to 4 x 4 results. The transforms follow from Toom and Cook's interpolation
points; with 0, +-sqrt(1/2), +-sqrt(2) and infinity the rounding error is that of the direct
convolution, where the usual 0, +-1, +-2 cost a digit (Barabasz et al., 2018, arXiv:1803.10986).

Transformed kernels take four times the memory of the plain ones.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

#: side of a tile's result, and of the tile
_OUT, _IN = 4, 6
_POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))
#: tiles transformed at a time, so that they are still in the cache when they are multiplied
_TILES = 128
#: with fewer channels than this the transforms cost more than the products save
_CHANNELS = 64
#: more threads would wait for each other's share of products this short; two of them need more
#: channels, and more tiles where they share a single map
_THREADS, _WIDE, _MANY = 2, 256, 256


class Kernel(NamedTuple):
    """A transformed kernel: ``36 in out``, and its bias ``out`` or None."""

    weight: Tensor
    bias: Tensor | None


class _Transforms(NamedTuple):
    tile: Tensor  # 36 36
    result: Tensor  # 16 36
    kernel: Tensor  # 36 9, float64


def suits(x: Tensor, out: int) -> bool:
    """Tell whether :func:`convolve` is the faster way for a map ``b c h w`` and ``out`` channels.

    Measured in float32 with MKL's matrix products, on one thread and on two that share each
    product; more were not tried.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # which cannot see threads
        return False
    threads, widest = torch.get_num_threads(), max(x.shape[1], out)
    tiles = x.shape[0] * x.shape[2] * x.shape[3] // _OUT**2
    enough = threads == 1 or (widest >= _WIDE and (x.shape[0] > 1 or tiles >= _MANY))
    return (
        x.shape[0] > 0
        and threads <= _THREADS
        and enough
        and x.dtype == torch.float32
        and min(x.shape[1], out) >= _CHANNELS
        and widest >= 2 * _CHANNELS
        and x.shape[2] % _OUT == 0
        and x.shape[3] % _OUT == 0
        and torch.backends.mkl.is_available()
    )


def make_kernel(weight: Tensor, bias: Tensor | None) -> Kernel:
    """Transform a kernel ``out in 3 3``."""
    taps = weight.double().permute(2, 3, 1, 0).flatten(0, 1).flatten(1)  # 9 (in out)
    moved = (_transforms().kernel @ taps).to(weight.dtype)
    return Kernel(moved.view(_IN * _IN, weight.shape[1], weight.shape[0]), bias)


def convolve(x: Tensor, kernel: Kernel) -> Tensor:
    """Convolve 3 x 3 with a padding of one zero.

    Args:
        x: ``b in h w`` float32, height and width multiples of 4.
        kernel: from :func:`make_kernel`.

    Returns:
        ``b out h w``, channels last in memory.
    """
    weight, bias = kernel
    b, c, h, w = x.shape
    rows, columns, out = h // _OUT, w // _OUT, weight.shape[2]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    one, row, column, _ = padded.stride()
    # the tiles overlap by two cells: 6 6 b rows columns c
    shape = (_IN, _IN, b, rows, columns, c)
    tiles = padded.as_strided(shape, (row, column, one, _OUT * row, _OUT * column, 1))
    result = x.new_empty(b, rows, _OUT, columns, _OUT, out)
    places = result.permute(2, 4, 0, 1, 3, 5)  # 4 4 b rows columns out
    few = min(rows, max(1, _TILES // columns))
    many = min(b, max(1, _TILES // (rows * columns)))
    transforms, count = _transforms(), _IN * _IN
    taken = x.new_empty(count * many * few * columns * c)
    moved, products = torch.empty_like(taken), x.new_empty(count * many * few * columns * out)
    for i in range(0, b, many):
        for j in range(0, rows, few):
            part = tiles[:, :, i : i + many, j : j + few]
            place = places[:, :, i : i + many, j : j + few]
            some, size = part.shape[2] * part.shape[3] * columns, part.numel()
            taken[:size].view(part.shape).copy_(part)
            mine = moved[:size].view(count, some * c)
            torch.mm(transforms.tile, taken[:size].view(count, some * c), out=mine)
            product = products[: count * some * out].view(count, some, out)
            torch.bmm(mine.view(count, some, c), weight, out=product)
            back = (transforms.result @ product.view(count, some * out)).view(place.shape)
            if bias is None:
                place.copy_(back)
            else:
                torch.add(back, bias, out=place)
    return result.view(b, h, w, out).permute(0, 3, 1, 2)


@functools.cache
def _transforms() -> _Transforms:
    """Return the transforms of two dimensions, Kronecker products of those of one.

    Outputs are ``A ((G g) * (B d))`` for every tile d and kernel g, that is
    ``sum_j A[i, j] G[j, k] B[j, l]`` is one where l = i + k and zero elsewhere.
    """
    points = np.array(_POINTS)
    a, g = np.zeros((_OUT, _IN)), np.zeros((_IN, 3))
    a[:, :-1] = points ** np.arange(_OUT)[:, None]
    g[:-1] = points[:, None] ** np.arange(3)
    for j, point in enumerate(points):
        g[j] /= np.prod(point - np.delete(points, j))
    a[-1, -1] = g[-1, -1] = 1  # the point at infinity
    system = np.einsum("ij,jk->ikj", a, g).reshape(-1, _IN)
    wanted = np.stack([np.eye(_IN)[i + k] for i in range(_OUT) for k in range(3)])
    t = np.linalg.lstsq(system, wanted, rcond=None)[0]
    tile, result = (torch.from_numpy(np.kron(m, m)).float() for m in (t, a))
    return _Transforms(tile, result, torch.from_numpy(np.kron(g, g)))
