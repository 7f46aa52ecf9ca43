"""What the caller has set in torch (default type, autocast, training mode) changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zim
from zim.testing import TINY_NANO, picture, tiny_model

RGB = picture(60, 80)
ASKED = [{"box": (10, 8, 50, 44)}, {"points": [(30, 25)]}, {"points": [(30, 25), (60, 40)]}]


def answers(predictor: zim.ZimPredictor) -> tuple[np.ndarray, ...]:
    predictor.set_image(RGB)
    return predictor.predict_batch(ASKED)


def alike(found: tuple[np.ndarray, ...], wanted: tuple[np.ndarray, ...], atol: float = 0.0) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.fixture
def default_type() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("default_type")
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", ["tiny", TINY_NANO], ids=["vit", "nano"])
def test_the_default_type_is_not_ours(config: Any, kind: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(config)
    model.save_pretrained(tmp_path)
    wanted = answers(zim.ZimPredictor(model))
    torch.set_default_dtype(kind)
    alike(answers(zim.ZimPredictor(model)), wanted)
    fresh = zim.load(tmp_path, dtype="float32")
    assert all(p.dtype == torch.float32 for p in fresh.parameters())
    alike(answers(zim.ZimPredictor(fresh)), wanted)
    assert all(p.dtype == torch.float32 for p in zim.build(config).parameters())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_autocast_leaves_no_traces(kind: torch.dtype, dtype: str) -> None:
    model = tiny_model(TINY_NANO).to(dtype=getattr(torch, dtype))
    wanted = answers(zim.ZimPredictor(model))
    other = tiny_model(TINY_NANO).to(dtype=getattr(torch, dtype))
    predictor = zim.ZimPredictor(other)
    with torch.autocast("cpu", kind):
        mixed = answers(predictor)
    if dtype == "float32":
        assert np.isfinite(mixed[0]).all()
    else:  # there is nothing to be gained, and two half types do not mix
        alike(mixed, wanted)
    alike(answers(predictor), wanted)


def test_training_mode_is_left_for_the_answer_and_comes_back() -> None:
    model = tiny_model(TINY_NANO)
    predictor = zim.ZimPredictor(model)
    wanted = answers(predictor)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    model.mask_decoder.pixel_decoder.eval()  # as whoever trains the rest
    alike(answers(predictor), wanted)
    alike(predictor.predict_batch(ASKED), wanted)
    assert model.training
    assert model.image_encoder.training
    assert not model.mask_decoder.pixel_decoder.training
    model.eval()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


def test_a_search_leaves_training_mode_and_statistics_alone() -> None:
    model = tiny_model(TINY_NANO)
    generator = zim.ZimAutomaticMaskGenerator(
        model, 2, pred_iou_thresh=0, stability_score_thresh=0, outline_contrast_thresh=0
    )
    wanted = [(r["predicted_iou"], r["bbox"]) for r in generator.generate(RGB)]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    assert [(r["predicted_iou"], r["bbox"]) for r in generator.generate(RGB)] == wanted
    assert model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    half = zim.ZimAutomaticMaskGenerator(model.to(torch.bfloat16), 2)
    with torch.autocast("cpu", torch.float16):  # two half types do not mix
        half.generate(RGB)


def test_a_model_may_be_converted_while_a_picture_is_set() -> None:
    model = tiny_model(TINY_NANO)
    predictor = zim.ZimPredictor(model)
    answers(predictor)
    model.to(torch.bfloat16)
    found = predictor.predict_batch(ASKED)
    assert predictor.get_image_embedding().dtype == torch.bfloat16
    alike(found, answers(predictor))


def test_results_are_ordinary_tensors() -> None:
    predictor = zim.ZimPredictor(tiny_model(TINY_NANO))
    predictor.set_image(RGB)
    coords = predictor.transform.apply_coords_torch(torch.tensor([[[30.0, 25.0]]]), RGB.shape[:2])
    results = predictor.predict_torch(coords, torch.ones(1, 1))
    for tensor in (*results, predictor.get_image_embedding()):
        assert not tensor.is_inference()
        assert not tensor.requires_grad
        tensor.mul_(1.0)
        weight = torch.ones((), requires_grad=True)
        (tensor * weight).mean().backward()
        assert weight.grad is not None
