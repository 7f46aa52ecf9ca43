"""Scale, move and blur many pictures at once, each by its own amount, with two matrix products.

Placing and blurring are separable, so a picture is multiplied with one matrix for its rows and one
for its columns: what a GPU does fastest, and exact for any scale.
"""

from __future__ import annotations

import torch
from torch import Tensor


def placing(start: Tensor, scale: Tensor, inner: int, outer: int, flip: Tensor) -> Tensor:
    """Return matrices that lay lines of ``inner`` pixels on lines of ``outer``.

    By area where the line shrinks, linear where it grows; nothing beyond its ends.

    Args:
        start: ``n``, where the line's first edge comes to lie, in outer pixels.
        scale: ``n``, outer pixels per inner pixel.
        inner: length of the line.
        outer: length of the frame.
        flip: ``n`` bool, whether the line is reversed first.

    Returns:
        ``n outer inner``.
    """
    places = torch.arange(outer, device=start.device) + 0.5
    middle = (places - start[:, None]) / scale[:, None]
    middle = torch.where(flip[:, None], inner - middle, middle)[..., None]
    half = 0.5 * (1 / scale).clamp_min(1.0)[:, None, None]
    low = torch.arange(inner, device=start.device)
    covered = torch.minimum(middle + half, low + 1.0) - torch.maximum(middle - half, low.float())
    return covered.clamp_min(0) / (2 * half)


def blurring(sigma: Tensor, side: int, move: Tensor | None = None) -> Tensor:
    """Return matrices that blur lines with a Gaussian, darker towards their ends.

    Args:
        sigma: ``n`` standard deviations in pixels.
        side: length of the lines.
        move: ``n``, how far the blurred line is moved.

    Returns:
        ``n side side``.
    """
    line = torch.arange(side, device=sigma.device, dtype=torch.float32)
    apart = line[:, None] - line
    if move is not None:
        apart = apart - move[:, None, None]
    sigma = sigma[:, None, None]
    return torch.exp(-0.5 * (apart / sigma) ** 2) / (sigma * 2.5066283)


def rows_to_one(matrices: Tensor) -> Tensor:
    """Scale the rows of matrices to a sum of one, so that edges go on as they are."""
    return matrices / matrices.sum(-1, keepdim=True).clamp_min(1e-6)


def resampled(pictures: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply ``n c h w`` with ``n H h`` for the rows and ``n W w`` for the columns."""
    return rows[:, None] @ (pictures @ columns.transpose(1, 2)[:, None])
