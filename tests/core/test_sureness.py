"""Mattes of a high predicted quality are drawn towards 0 and 1, others stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import zim
from zim.sureness import sharpened
from zim.testing import TINY_NANO, picture, tiny_model


def test_the_factor_grows_evenly_with_quality() -> None:
    logits = torch.tensor([-2.0, 0.0, 4.0]).expand(5, 1, 3)
    quality = torch.tensor([0.2, 0.85, 0.90, 0.95, 1.4])
    factors = sharpened(logits, quality, 1.5)[:, 0] / torch.tensor([-2.0, 1.0, 4.0])
    torch.testing.assert_close(factors[:, 0], torch.tensor([1.0, 1.0, 1.25, 1.5, 1.5]))
    torch.testing.assert_close(factors[:, 2], factors[:, 0])
    assert (factors[:, 1] == 0).all()  # what is half there stays half there


def test_an_unknown_quality_changes_nothing() -> None:
    logits = torch.tensor([[[1.0]]])
    assert torch.equal(sharpened(logits, torch.tensor([float("nan")]), 1.5), logits)


@pytest.mark.parametrize("box", [(20, 12, 44, 36), (2, 2, 62, 46)], ids=["crop", "whole picture"])
def test_the_predictor_draws_out_what_it_is_sure_of(
    monkeypatch: pytest.MonkeyPatch, box: tuple[int, int, int, int]
) -> None:
    # without guided enlarging the logits are enlarged as they are, and the factor stays visible
    model = tiny_model(replace(TINY_NANO, edges="bilinear"))
    answers = {}
    for factor, sure_from in ((1.0, -9.0), (1.5, -9.0), (1.5, 9.0)):
        monkeypatch.setattr("zim.sureness.SURE_FROM", sure_from)
        monkeypatch.setattr("zim.sureness.SURE_AT", sure_from + 0.01)
        model.config = replace(model.config, sharpen=factor)
        one = zim.ZimPredictor(model)
        one.set_image(picture(48, 64))
        answers[factor, sure_from] = one.predict(
            box=np.array(box), multimask_output=False, return_logits=True
        )
    plain, sharp, doubtful = answers.values()
    np.testing.assert_array_equal(plain[0], doubtful[0])
    inside = plain[0] > -19.9  # beyond a crop all are as far from the object as can be
    np.testing.assert_allclose(sharp[0][inside], 1.5 * plain[0][inside], rtol=1e-5, atol=1e-6)
    for k in (1, 2):  # the network's own words: quality and what may come back as a mask
        np.testing.assert_array_equal(plain[k], sharp[k])


@pytest.mark.parametrize("factor", [0.5, 10**400, float("nan"), float("inf"), "2", None])
def test_impossible_factors_are_refused(factor: object) -> None:
    with pytest.raises(zim.ZimError, match="sharpen"):
        replace(TINY_NANO, sharpen=factor)


def test_automatic_mattes_are_drawn_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zim.sureness.SURE_FROM", -9.0)
    monkeypatch.setattr("zim.sureness.SURE_AT", -8.0)
    found = {}
    for factor in (1.0, 3.0):
        model = tiny_model()
        model.config = replace(model.config, sharpen=factor)
        generator = zim.ZimAutomaticMaskGenerator(
            model, points_per_side=4, pred_iou_thresh=-9.0, stability_score_thresh=0.0
        )
        found[factor] = generator.generate(picture(48, 64))
    assert found[1.0]
    for plain, sharp in zip(found[1.0], found[3.0], strict=True):
        np.testing.assert_array_equal(plain["segmentation"], sharp["segmentation"])
        assert np.abs(sharp["alpha"] - 0.5).mean() > np.abs(plain["alpha"] - 0.5).mean()
