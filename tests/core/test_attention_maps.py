"""Prompt-aware masked attention (paper Eq. 4 and 5): maps and arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zim.config import MaskedAttentionConfig
from zim.model.attention import (
    PromptAttention,
    box_map,
    masked_attention,
    point_map,
    prompt_attention,
)

GRID = (64, 64)


class OfficialMaps:
    """The parts of the official network object its mask functions read."""

    attn_mask_size = 64
    encode_stride = 16
    encode_kernel = 21

    def __init__(self, module: Any) -> None:
        self.g = module.gaussian(21)
        self.point = lambda p: module.Zim.point_attn_mask(self, p)
        self.box = lambda b: module.Zim.bbox_attn_mask(self, b)


@pytest.mark.parity
def test_maps_equal_the_official_ones(zim_anything: Any) -> None:
    official = OfficialMaps(zim_anything)
    generator = torch.Generator().manual_seed(0)
    # some points lie outside on purpose; fractions test the truncation
    points = torch.rand(40, 5, 2, generator=generator) * 1200 - 80
    use = torch.ones(40, 5, dtype=torch.bool)
    torch.testing.assert_close(
        point_map(points, use, GRID, 21.0), official.point(points), atol=1e-6, rtol=1e-5
    )
    boxes = torch.rand(200, 4, generator=generator) * 1023
    assert torch.equal(box_map(boxes, GRID).float(), official.box(boxes))


@pytest.mark.parity
def test_parity_flag_lets_negative_points_raise_attention(zim_anything: Any) -> None:
    official = OfficialMaps(zim_anything)
    points = torch.tensor([[[100.0, 200.0], [700.0, 900.0], [0.0, 0.0]]])
    labels = torch.tensor([[1, 0, -1]])
    parity = prompt_attention(points, labels, GRID, MaskedAttentionConfig(negative_points=True))
    both = official.point(points[:, :2])
    assert parity.gain is not None
    torch.testing.assert_close(parity.gain.view(1, 64, 64), both, atol=1e-6, rtol=1e-5)
    ours = prompt_attention(points, labels, GRID, MaskedAttentionConfig())
    assert ours.gain is not None
    positive = official.point(points[:, :1])
    torch.testing.assert_close(ours.gain.view(1, 64, 64), positive, atol=1e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1023), st.floats(0, 1023)), min_size=1, max_size=4))
def test_point_map_by_brute_force(xy: list[tuple[float, float]]) -> None:
    expected = np.zeros(GRID)
    for x, y in np.array(xy, np.float32):
        cx, cy = int(x / np.float32(16)), int(y / np.float32(16))
        for row in range(64):
            for column in range(0, 64, 7):
                d = (row - cy) ** 2 + (column - cx) ** 2
                expected[row, column] = max(expected[row, column], math.exp(-d / (2 * 21**2)))
    points = torch.tensor([xy], dtype=torch.float32)
    got = point_map(points, torch.ones(points.shape[:2], dtype=torch.bool), GRID, 21.0)[0].numpy()
    np.testing.assert_allclose(got[:, ::7], expected[:, ::7], atol=1e-6)


def test_box_map_by_hand() -> None:
    # x 20..47.9 touches columns 1 and 2; y 0..16 touches rows 0 and 1; corners may be swapped
    for box in ([20.0, 0, 47.9, 16], [47.9, 16, 20, 0]):
        inside = box_map(torch.tensor([box]), (4, 4))[0]
        expected = torch.zeros(4, 4, dtype=torch.bool)
        expected[0:2, 1:3] = True
        assert torch.equal(inside, expected)
    assert box_map(torch.tensor([[1e6, 1e6, 2e6, 2e6]]), (4, 4)).sum() == 1  # never nothing


def test_points_and_box_together_give_both_maps() -> None:
    points = torch.tensor([[[8.0, 8], [0, 0], [31, 31]], [[8, 8], [0, 0], [0, 0]]])
    labels = torch.tensor([[1, 2, 3], [0, -1, -2]])
    mask = prompt_attention(points, labels, (4, 4), MaskedAttentionConfig())
    assert mask.gain is not None
    assert mask.inside is not None
    assert mask.inside[0].view(4, 4).sum() == 4
    assert mask.gain[0].view(4, 4)[0, 0] == 1
    # only a negative point: nothing is dimmed and nothing is shut out
    assert (mask.gain[1] == 1).all()
    assert mask.inside[1].all()


def by_hand(q: Tensor, k: Tensor, v: Tensor, gain: Tensor, inside: Tensor, mode: str) -> Tensor:
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for n in range(q.shape[2]):
                logits = [float(q[b, h, n] @ key) / math.sqrt(q.shape[-1]) for key in k[b, h]]
                for m, logit in enumerate(logits):
                    g = float(gain[b, m])
                    logits[m] = logit * g if mode == "paper" else logit + math.log(g)
                    if not inside[b, m]:
                        logits[m] = -math.inf
                weights = torch.tensor(logits).softmax(0)
                out[b, h, n] = weights @ v[b, h]
    return out


@pytest.mark.parametrize("mode", ["paper", "log_bias"])
def test_masked_attention_is_equation_5(mode: str) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 6, 4), torch.randn(2, 2, 6, 4)
    gain = torch.rand(2, 6) * 0.9 + 0.1
    inside = torch.tensor([[True] * 6, [True, False, True, True, False, True]])
    got = masked_attention(q, k, v, mask=PromptAttention(gain, inside), mode=mode)
    torch.testing.assert_close(got, by_hand(q, k, v, gain, inside, mode))


def test_image_to_token_side_silences_cells_outside_the_box() -> None:
    torch.manual_seed(0)
    cells, tokens = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 3, 4)
    inside = torch.tensor([[True, False, True, True, False, True]])
    out = masked_attention(
        cells, tokens, tokens, mask=PromptAttention(None, inside), mode="paper", cells="queries"
    )
    plain = masked_attention(cells, tokens, tokens)
    assert (out[0, :, ~inside[0]] == 0).all()
    torch.testing.assert_close(out[0, :, inside[0]], plain[0, :, inside[0]])


def test_padding_keys_change_nothing() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    present = torch.tensor([[True, True, True, False, False]])
    padded = masked_attention(q, k, v, present=present)
    torch.testing.assert_close(padded, masked_attention(q, k[:, :, :3], v[:, :, :3]))
