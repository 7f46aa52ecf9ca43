"""Losses of the paper (Eq. 1 to 3) and two helpers for training from scratch.

All are taken on probabilities in float32, per prompt, over the picture without its padding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def matte_loss(
    logits: Tensor,
    alpha: Tensor,
    valid: Tensor,
    *,
    gradient: float = 2.0,
    entropy: float = 0.3,
    overlap: float = 0.3,
    absolute: float = 1.0,
    square: float = 0.0,
    rim: bool = False,
) -> Tensor:
    """Compare predicted and true mattes.

    Args:
        logits: ``b k h w`` predicted logits, k alternatives.
        alpha: ``b 1 h w`` true alpha in [0, 1].
        valid: ``b 1 h w``, 1 on the picture and 0 on padding.
        gradient: weight of the gradient loss (lambda of Eq. 1; the paper's 10 is for long training
            from SAM's weights).
        entropy: weight of binary cross-entropy, which still has a slope where the answer is
            confidently wrong.
        overlap: weight of ``1 - soft IoU``, which keeps small objects from being ignored.
        absolute: weight of the absolute difference (the paper's 1), least at the likelier of two
            answers.
        square: weight of the squared difference, least at the mean of what may be meant, so that
            doubt shows as grey.
        rim: count the step of the difference from the picture to the padding, too, in the gradient
            loss; the bundled weights were trained so.

    Returns:
        ``b k`` losses.
    """
    logits = logits.float()
    pixels = valid.sum((2, 3)).clamp_min(1)
    predicted = logits.sigmoid()
    difference = (predicted - alpha) * valid
    total = absolute * difference.abs().sum((2, 3)) / pixels
    if square:
        total = total + square * difference.square().sum((2, 3)) / pixels
    if gradient:
        dx = difference[..., :, 1:] - difference[..., :, :-1]
        dy = difference[..., 1:, :] - difference[..., :-1, :]
        if not rim:
            dx = dx * (valid[..., :, 1:] * valid[..., :, :-1])
            dy = dy * (valid[..., 1:, :] * valid[..., :-1, :])
        total = total + gradient * (dx.abs().sum((2, 3)) + dy.abs().sum((2, 3))) / pixels
    if entropy:
        target = alpha.expand_as(logits)
        cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        total = total + entropy * (cross * valid).sum((2, 3)) / pixels
    if overlap:
        total = total + overlap * (1 - soft_iou(predicted * valid, alpha * valid))
    return total


def soft_iou(predicted: Tensor, alpha: Tensor) -> Tensor:
    """Intersection over union of mattes, ``b k h w`` and ``b 1 h w`` to ``b k`` in [0, 1]."""
    both = torch.minimum(predicted, alpha).sum((2, 3))
    either = torch.maximum(predicted, alpha).sum((2, 3))
    return both / either.clamp_min(1e-6)


def prompt_loss(
    logits: Tensor, quality: Tensor, alpha: Tensor, valid: Tensor, single: Tensor, **weights: float
) -> tuple[Tensor, Tensor]:
    """Supervise the four mask tokens and their predicted quality, as SAM does; for packs.

    Token 0 answers every prompt. For a lone click, whose meaning is open, the best of tokens 1 to 3
    learns as well, so that they come to stand for different meanings.

    Args:
        logits: ``b 4 h w``.
        quality: ``b 4`` predicted soft IoU.
        alpha: ``b 1 h w`` in [0, 1].
        valid: ``b 1 h w``.
        single: ``b`` bool, prompts that are a lone positive click.
        weights: passed to :func:`matte_loss`.

    Returns:
        Mean loss, and the ``b`` losses of token 0 (detached) for the record.
    """
    losses = matte_loss(logits, alpha, valid, rim=True, **weights)
    best = losses[:, 1:].min(1).values
    # the other alternatives follow a little, so that none is left untrained
    spread = losses[:, 1:].mean(1)
    total = losses[:, 0] + single * (best + 0.05 * spread)
    with torch.no_grad():
        actual = soft_iou(logits.float().sigmoid() * valid, alpha * valid)
    seen = torch.ones_like(actual)
    seen[:, 1:] = single[:, None].float()
    rating = ((quality.float() - actual) ** 2 * seen).sum(1) / seen.sum(1)
    return (total + rating).mean(), losses[:, 0].detach()
