"""Losses against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from zim_training.losses import matte_loss, prompt_loss, soft_iou


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_matte_loss_by_hand() -> None:
    # prediction 0.75 everywhere, truth 1 at one of four pixels: |M - M'| = .25 + 3 * .75 = 2.5
    logits = torch.full((1, 1, 2, 2), logit(0.75))
    alpha = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    valid = torch.ones(1, 1, 2, 2)
    plain = matte_loss(logits, alpha, valid, gradient=0, entropy=0, overlap=0)
    assert plain.item() == pytest.approx(2.5 / 4)
    # the truth has one step of 1 along x and one along y, the prediction none
    edges = matte_loss(logits, alpha, valid, gradient=10, entropy=0, overlap=0)
    assert edges.item() == pytest.approx(2.5 / 4 + 10 * 2 / 4)
    cross = matte_loss(logits, alpha, valid, gradient=0, entropy=1, overlap=0)
    expected = -(math.log(0.75) + 3 * math.log(0.25)) / 4
    assert cross.item() == pytest.approx(2.5 / 4 + expected, rel=1e-5)
    squared = matte_loss(logits, alpha, valid, gradient=0, entropy=0, overlap=0, square=2)
    assert squared.item() == pytest.approx(2.5 / 4 + 2 * (0.25**2 + 3 * 0.75**2) / 4)
    alone = matte_loss(logits, alpha, valid, gradient=0, entropy=0, overlap=0, absolute=0, square=1)
    assert alone.item() == pytest.approx((0.25**2 + 3 * 0.75**2) / 4)
    # soft IoU: minimum .75, maximum 1 + 3 * .75
    assert soft_iou(logits.sigmoid(), alpha).item() == pytest.approx(0.75 / 3.25)


def test_padding_does_not_count() -> None:
    logits = torch.tensor([[[[2.0, 9.0], [2.0, -9.0]]]])
    alpha = torch.tensor([[[[1.0, 0.0], [1.0, 1.0]]]])
    valid = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    loss = matte_loss(logits, alpha, valid, gradient=0, entropy=0, overlap=0)
    assert loss.item() == pytest.approx(1 - 1 / (1 + math.exp(-2)), rel=1e-5)


def test_the_edge_of_the_picture_is_no_edge_of_the_matte() -> None:
    """A wrong answer that is flat up to the padding has no gradient; packs count that step."""
    logits, alpha = torch.full((1, 1, 4, 6), logit(0.75)), torch.zeros(1, 1, 4, 6)
    valid = torch.zeros(1, 1, 4, 6)
    valid[..., :3, :4] = 1
    weights: dict[str, Any] = {"gradient": 10, "entropy": 0, "overlap": 0}
    assert matte_loss(logits, alpha, valid, **weights).item() == pytest.approx(0.75)
    rim = matte_loss(logits, alpha, valid, rim=True, **weights).item()
    assert rim == pytest.approx(0.75 + 10 * 0.75 * (3 + 4) / 12)
    inner = alpha.clone()
    inner[..., :3, 2:4] = 1  # one step of 1 down three rows, whatever lies beyond
    loss = matte_loss(logits, inner, valid, **weights).item()
    assert loss == pytest.approx((6 * 0.75 + 6 * 0.25) / 12 + 10 * 3 / 12)
    loose = alpha.expand(1, 4, 4, 6).clone().requires_grad_()
    packs = prompt_loss(loose, torch.zeros(1, 4), alpha, valid, torch.zeros(1), **weights)[1]
    assert packs.item() == pytest.approx(0.5 + 10 * 0.5 * 7 / 12)


def test_only_lone_clicks_teach_the_alternatives_and_the_best_most() -> None:
    alpha = torch.ones(1, 1, 2, 2)
    valid = torch.ones(1, 1, 2, 2)
    for single, taught in ((0.0, False), (1.0, True)):
        logits = torch.stack([torch.full((2, 2), v) for v in (0.0, -1.0, 2.0, -3.0)])[None]
        logits.requires_grad_()
        loss, first = prompt_loss(
            logits, torch.zeros(1, 4), alpha, valid, torch.tensor([single]), gradient=0.0
        )
        loss.backward()
        assert logits.grad is not None
        size = logits.grad.abs().sum((0, 2, 3))
        assert size[0] > 0
        assert bool((size[1:] > 0).all()) == taught
        if taught:
            assert size[2] > size[1]  # token 2 is nearest to the truth
        assert first.shape == (1,)
