"""Scenes and prompts: alphas that add up, prompts that are where they should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zim_training.data import procedural
from zim_training.data.scenes import SceneMaker
from zim_training.prompts import ABSENT, KINDS, MASK_SIDE, MAX_POINTS, PAD, degrade, draw

SIDE = 64


@pytest.fixture(scope="module")
def maker(collection: Path) -> SceneMaker:
    return SceneMaker(collection, "train", SIDE)


@pytest.mark.parametrize("natural", [0.0, 1.0])
def test_scene_follows_from_its_seed(collection: Path, natural: float) -> None:
    for k in range(4):
        one = SceneMaker(collection, "train", SIDE, natural).make((1, k))
        two = SceneMaker(collection, "train", SIDE, natural).make((1, k))
        np.testing.assert_array_equal(one.image, two.image)
        np.testing.assert_array_equal(one.alphas, two.alphas)
        assert one.kind == ("natural" if natural else "composite")
        assert one.image.dtype == np.uint8
        assert max(one.image.shape[:2]) == SIDE
        assert one.alphas.shape[1:] == one.image.shape[:2]
        assert one.alphas.min() >= 0
        assert one.alphas.max() <= 1


def test_visible_alphas_of_a_composite_add_up_to_at_most_one(
    maker: SceneMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # without painted parts every pixel belongs to the objects and the background together
    monkeypatch.setattr("zim_training.data.scenes._part", lambda rng, alpha: np.zeros_like(alpha))
    counts = []
    for k in range(12):
        scene = maker._composite(np.random.default_rng(k))
        if scene is not None:
            counts.append(len(scene.alphas))
            assert scene.alphas.sum(0).max() <= 1 + 1e-5
    assert max(counts) > 1


@pytest.mark.parametrize("style", [style for style, _ in procedural._STYLES if style])
def test_every_style_gives_an_alpha(style) -> None:
    rng = np.random.default_rng(3)
    alpha = style(rng, procedural.shape(rng, 96))
    assert alpha.shape == (96, 96)
    assert alpha.min() >= 0
    assert alpha.max() <= 1 + 1e-6
    assert alpha.max() > 0.1


def ellipse() -> tuple[np.ndarray, np.ndarray]:
    ys, xs = np.mgrid[:48, :64]
    alpha = (((xs - 30) / 14) ** 2 + ((ys - 24) / 10) ** 2 < 1).astype(np.float32)
    others = (xs > 54).astype(np.float32)
    return alpha, others


def test_boxes_are_loose_by_at_most_15_percent() -> None:
    alpha, others = ellipse()
    rows, columns = np.nonzero(alpha)
    truth = np.array([columns.min(), rows.min(), columns.max(), rows.max()], float)
    size = np.tile([truth[2] - truth[0], truth[3] - truth[1]], 2)
    moved = []
    for k in range(60):
        prompt = draw(np.random.default_rng(k), "box", alpha, others, 64)
        assert prompt is not None
        assert prompt.labels.tolist() == [2, 3] + [ABSENT] * (MAX_POINTS - 2)
        moved.append(np.abs(prompt.points[:2].ravel() - truth) / size)
    assert np.max(moved) <= 0.15 + 1e-6
    assert np.max(moved) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_clicks_are_on_the_right_side(kind: str) -> None:
    alpha, others = ellipse()
    for k in range(20):
        prompt = draw(np.random.default_rng(k), kind, alpha, others, 64)
        assert prompt is not None
        assert prompt.points.shape == (MAX_POINTS, 2)
        has_box = (prompt.labels == 2).any()
        assert (prompt.labels == PAD).sum() == (not has_box)
        for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
            if label in (0, 1):
                assert (alpha[int(y), int(x)] > 0.5) == (label == 1)
        assert (prompt.mask is not None) == (kind == "correction")
        if kind == "scribble":
            assert (prompt.labels == 1).sum() >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_smoke_too_thin_for_the_box_rule_is_asked_for_all_the_same(kind: str) -> None:
    alpha = np.zeros((64, 64), np.float32)
    alpha[20:40, 24:44] = 0.08
    for seed in range(5):
        prompt = draw(np.random.default_rng(seed), kind, alpha, np.zeros_like(alpha), 64)
        assert prompt is not None
        corners = prompt.points[prompt.labels >= 2]
        if len(corners) and kind != "whole":
            assert corners[0].max() < 30 < corners[1].min()


def test_degraded_mask_resembles_the_truth() -> None:
    alpha, others = ellipse()
    scores = []
    for k in range(20):
        mask = degrade(np.random.default_rng(k), alpha, others, 64)
        assert mask.shape == (MASK_SIDE, MASK_SIDE)
        found = mask[:48, :64] > 0
        scores.append((found & (alpha > 0.5)).sum() / (found | (alpha > 0.5)).sum())
    assert np.mean(scores) > 0.5
    assert np.min(scores) < 0.9
