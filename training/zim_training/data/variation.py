"""Change how whole batches of pictures look, on the device they are on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from zim_training.data.resample import blurring, resampled, rows_to_one

Array = NDArray[Any]
Rng = np.random.Generator


def to_device(values: Array, device: torch.device) -> Tensor:
    """Copy numbers to a device without waiting; floats become float32."""
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
    return torch.from_numpy(values).to(device, non_blocking=True)


def tinted(rng: Rng, image: Tensor) -> Tensor:
    """Change light, contrast and the balance of colours, and add a camera's noise to some."""
    n = len(image)

    def column(values: Array) -> Tensor:
        return to_device(values.reshape(n, -1, 1, 1), image.device)

    gain = rng.uniform(0.8, 1.25, (n, 1)) * rng.uniform(0.92, 1.08, (n, 3))
    gamma = np.where(rng.random(n) < 0.3, rng.uniform(0.75, 1.3, n), 1.0)
    noise = np.where(rng.random(n) < 0.25, rng.uniform(0.5, 6.0, n), 0.0)
    grain = torch.Generator(image.device).manual_seed(int(rng.integers(2**31)))
    image = mixed(rng, image)
    image = (image / 255.0).clamp_min(1e-4) ** column(gamma) * 255.0
    image = image * column(gain) + column(rng.uniform(-16, 16, n))
    random = torch.randn(image.shape, generator=grain, device=image.device)
    return (image + random * column(noise)).clamp(0, 255)


def mixed(rng: Rng, image: Tensor) -> Tensor:
    """Mix the colours of a third: a little, in another order, or into grey."""
    n = len(image)
    mix = np.broadcast_to(np.eye(3), (n, 3, 3)).copy()
    draw = rng.random(n)
    slight = np.eye(3) + rng.normal(0, 0.15, (n, 3, 3))
    slight /= slight.sum(2, keepdims=True)
    order = np.eye(3)[rng.permuted(np.tile(np.arange(3), (n, 1)), axis=1)]
    grey = np.broadcast_to((0.299, 0.587, 0.114), (3, 3))
    for above, below, matrices in ((0.0, 0.2, slight), (0.2, 0.28, order), (0.28, 0.32, grey)):
        chosen = (above <= draw) & (draw < below)
        mix[chosen] = np.broadcast_to(matrices, (n, 3, 3))[chosen]
    weights = to_device(mix, image.device)
    return torch.einsum("nij,njhw->nihw", weights, image).clamp(0, 255)


def dimmed(rng: Rng, image: Tensor, chance: float) -> Tensor:
    """Darken some pictures as too little light does, with its noise."""
    n, device = len(image), image.device
    gamma, gain = rng.uniform(1.3, 2.2, n), rng.uniform(0.3, 0.9, n)
    grain = torch.Generator(device).manual_seed(int(rng.integers(2**31)))
    dark = (image / 255.0).clamp(1e-4, 1) ** to_device(gamma, device)[:, None, None, None]
    dark = dark * 255.0 * to_device(gain, device)[:, None, None, None]
    dark = dark + 5.0 * torch.randn(image.shape, generator=grain, device=device)
    return _some(rng, chance, dark.clamp(0, 255), image)


def softened(rng: Rng, image: Tensor, chance: float) -> Tensor:
    """Put some pictures out of focus."""
    sigma = to_device(rng.uniform(0.5, 1.2, len(image)), image.device)
    lines = rows_to_one(blurring(sigma, image.shape[-1]))
    return _some(rng, chance, resampled(image, lines, lines), image)


def compressed(rng: Rng, image: Tensor, chance: float) -> Tensor:
    """Store some square pictures as JPEG of quality 25 to 89 and read them again."""
    quality = rng.integers(25, 90, len(image)).astype(np.float64)
    return _some(rng, chance, jpeg(image, to_device(quality, image.device)), image)


def _some(rng: Rng, chance: float, changed: Tensor, image: Tensor) -> Tensor:
    coin = to_device(rng.random(len(image)) < chance, image.device)
    return torch.where(coin[:, None, None, None], changed, image)


#: RGB to YCbCr of JPEG, without the offset of 128
_YCC = np.array([(0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312)])
#: quantisation of luminance and chrominance at quality 50 (ITU-T T.81, Annex K)
_LUMA = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100
103 99
"""
_CHROMA = """
17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99
"""


def jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """Quantise pictures as JPEG does, chrominance at half the size.

    Args:
        image: ``n 3 h w`` RGB, 0 to 255; h and w multiples of 16.
        quality: ``n``, 1 to 100, as in libjpeg.

    Returns:
        ``n 3 h w`` RGB, 0 to 255.
    """
    device = image.device
    matrix, back = to_device(_YCC, device), to_device(np.linalg.inv(_YCC), device)
    planes = torch.einsum("ij,njhw->nihw", matrix, image.round())
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None, None]

    def quantised(planes: Tensor, table: str) -> Tensor:
        steps = to_device(np.array(table.split(), np.float32).reshape(8, 8), device)
        steps = ((steps * scale + 50) / 100).floor().clamp(1, 255)
        n, c, h, w = planes.shape
        blocks = planes.reshape(n, c, h // 8, 8, w // 8, 8).transpose(3, 4)
        cosines = _cosines(device)
        frequencies = cosines @ blocks @ cosines.T
        steps = steps[:, None, None, None]
        blocks = cosines.T @ ((frequencies / steps).round() * steps) @ cosines
        return blocks.transpose(3, 4).reshape(n, c, h, w)

    luma = quantised(planes[:, :1] - 128, _LUMA) + 128
    chroma = quantised(F.avg_pool2d(planes[:, 1:], 2), _CHROMA)
    planes = torch.cat([luma, F.interpolate(chroma, scale_factor=2.0, mode="bilinear")], 1)
    return torch.einsum("ij,njhw->nihw", back, planes).round().clamp(0, 255)


def _cosines(device: torch.device) -> Tensor:
    """The 8 x 8 matrix of the orthonormal cosine transform."""
    line = torch.arange(8, device=device)
    matrix = torch.cos((2 * line + 1) * line[:, None] * (torch.pi / 16)) * 0.5
    matrix[0] *= 0.5**0.5
    return matrix
