"""Overlap and statistics against MONAI, scikit-learn, scipy and values worked out by hand."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from zim_medical.scoring import overlap, surface
from zim_medical.statistics import cluster_interval, compare, holm


def test_iou_and_dice_equal_monai_and_scikit_learn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from monai.metrics.meandice import DiceMetric
        from monai.metrics.meaniou import MeanIoU
    mean_iou: Any = MeanIoU(include_background=True)
    mean_dice: Any = DiceMetric(include_background=True)
    from sklearn.metrics import jaccard_score

    rng = np.random.default_rng(3)
    for share in (0.02, 0.2, 0.6):
        truth, predicted = rng.random((2, 23, 31)) < share
        truth[0, 0] = True
        iou, dice = overlap(predicted, truth)
        a, b = (torch.tensor(m[None, None], dtype=torch.float32) for m in (predicted, truth))
        assert iou == pytest.approx(float(mean_iou(a, b)), abs=1e-6)
        assert dice == pytest.approx(float(mean_dice(a, b)), abs=1e-6)
        assert iou == pytest.approx(jaccard_score(truth.ravel(), predicted.ravel()), abs=1e-12)


def test_nothing_found_is_zero_and_an_empty_truth_is_refused() -> None:
    truth = np.ones((3, 3), bool)
    assert overlap(np.zeros_like(truth), truth) == (0.0, 0.0)
    with pytest.raises(ValueError, match="empty truth"):
        overlap(truth, np.zeros_like(truth))


def test_surface_distances_are_in_millimetres() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth, moved = np.zeros((2, 20, 20), bool)
        truth[5:10, 5:10] = moved[5:10, 8:13] = True
        # three columns of 0.5 mm: 1.5 mm at the far sides
        distance, share = surface(moved, truth, (2.0, 0.5), 1.6)
        assert distance == pytest.approx(1.5)
        assert share == pytest.approx(1.0)
        assert surface(moved, truth, (2.0, 0.5), 0.4)[1] < 0.9
        assert surface(np.zeros_like(truth), truth, (1, 1), 2) == (None, 0.0)


def test_the_interval_resamples_patients_not_slices() -> None:
    # two patients of 50 equal slices each: as many independent values as patients, not slices
    values = [0.0] * 50 + [1.0] * 50
    wide = cluster_interval(values, [0] * 50 + [1] * 50)
    narrow = cluster_interval(values, range(100))
    assert wide == (0.0, 1.0)
    assert narrow is not None
    assert 0.39 < narrow[0] < 0.42
    assert 0.58 < narrow[1] < 0.61
    assert cluster_interval([0.5, 0.6], ["a", "a"]) is None


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        means = rng.normal(0.5, 0.1, 40)
        values = (means[:, None] + rng.normal(0, 0.02, (40, 3))).ravel()
        low, high = cluster_interval(values.tolist(), np.repeat(range(40), 3).tolist(), trial) or (
            1,
            0,
        )
        inside += low <= 0.5 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_comparison_by_hand() -> None:
    patients = [p for p in range(8) for _ in range(2)]
    first = [0.5 + 0.01 * (p + 1) for p in patients]
    result = compare(first, [0.5] * 16, patients)
    assert result.difference == pytest.approx(0.045)
    assert result.effect == 1.0
    # eight patients, all better: 2 of the 2^8 ways to give signs are as extreme
    assert result.p == pytest.approx(2 / 256)
    assert compare(first[:10], [0.5] * 10, patients[:10]).p is None
    same = compare(first, first, patients)
    assert (same.p, same.effect) == (1.0, 0.0)


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
