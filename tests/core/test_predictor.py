"""The predictor: SamPredictor's shapes, and none of the official client's quirks (core.md 1.4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zim
from zim.errors import ImageError, PromptError
from zim.testing import TINY_NANO, picture, tiny_model

H, W = 48, 64


@pytest.fixture(scope="module", params=["tiny", "tiny_nano"])
def predictor(request: pytest.FixtureRequest) -> zim.ZimPredictor:
    model = tiny_model("tiny" if request.param == "tiny" else TINY_NANO)
    predictor = zim.ZimPredictor(model)
    predictor.set_image(picture(H, W))
    return predictor


BOX = np.array([10.0, 8, 50, 40])
POINT = np.array([[30.0, 20.0]])
ONE = np.array([1])


def test_shapes_are_those_of_sam_predictor(predictor: zim.ZimPredictor) -> None:
    mattes, scores, low = predictor.predict(POINT, ONE)
    side = predictor.model.config.image_size // 2
    assert mattes.shape == (3, H, W)
    assert scores.shape == (3,)
    assert low.shape == (3, side, side)
    assert mattes.dtype == scores.dtype == low.dtype == np.float32
    assert 0 <= mattes.min() <= mattes.max() <= 1
    one, _, _ = predictor.predict(POINT, ONE, multimask_output=False)
    assert one.shape == (1, H, W)


def test_quirk_points_and_box_together_both_count(predictor: zim.ZimPredictor) -> None:
    both = predictor.predict(POINT, ONE, BOX)[0]
    assert np.abs(both - predictor.predict(box=BOX)[0]).max() > 1e-4
    assert np.abs(both - predictor.predict(POINT, ONE)[0]).max() > 1e-4
    away = predictor.predict(np.array([[42.0, 30]]), ONE, BOX)[0]
    assert np.abs(both - away).max() > 1e-4


def test_quirk_every_box_of_a_batch_is_answered(predictor: zim.ZimPredictor) -> None:
    boxes = np.array([[10.0, 8, 50, 40], [0, 0, 30, 30], [5, 20, 63, 47]])
    mattes, scores, low = predictor.predict(box=boxes)
    assert mattes.shape == (3, 3, H, W)
    assert scores.shape == (3, 3)
    for i, box in enumerate(boxes):
        alone = predictor.predict(box=box)
        assert alone[0].shape == (3, H, W)
        np.testing.assert_allclose(mattes[i], alone[0], atol=1e-4)
        np.testing.assert_allclose(low[i], alone[2], atol=1e-3)


def test_quirk_multimask_is_three_alternatives_and_single_is_token_0() -> None:
    model = tiny_model()  # without a second look, so that one decode is the whole answer
    predictor = zim.ZimPredictor(model)
    predictor.set_image(picture(H, W))
    frame = predictor.frame
    assert frame is not None
    assert predictor.features is not None
    x, y = frame.to_frame(POINT[0]).tolist()
    points = torch.tensor([[[x, y], [0.0, 0.0]]])
    with torch.inference_mode():
        out = model.decode(predictor.features, points, torch.tensor([[1, -1]]))
    low_all = predictor.predict(POINT, ONE)[2]
    low_one = predictor.predict(POINT, ONE, multimask_output=False)[2]
    np.testing.assert_allclose(low_all, out.logits[0, 1:].numpy(), atol=1e-5)
    np.testing.assert_allclose(low_one, out.logits[0, :1].numpy(), atol=1e-5)


def test_quirk_return_logits_is_honoured(predictor: zim.ZimPredictor) -> None:
    mattes = predictor.predict(box=BOX)[0]
    logits = predictor.predict(box=BOX, return_logits=True)[0]
    assert logits.min() < 0
    np.testing.assert_allclose(1 / (1 + np.exp(-logits.astype(np.float64))), mattes, atol=1e-6)


def test_quirk_low_res_are_logits_and_can_be_given_back(predictor: zim.ZimPredictor) -> None:
    _, _, low = predictor.predict(box=BOX, multimask_output=False)
    assert low.min() < 0
    again = predictor.predict(box=BOX, mask_input=low, multimask_output=False)
    assert np.abs(again[2] - low).max() > 1e-4  # the mask is used
    side = low.shape[-1] // 2
    small = predictor.predict(box=BOX, mask_input=low[:, ::2, ::2])
    assert low[:, ::2, ::2].shape == (1, side, side)
    assert small[0].shape == (3, H, W)
    alone = predictor.predict(mask_input=low, multimask_output=False)[0]
    assert alone.shape == (1, H, W)


def test_quirk_nothing_at_all_is_the_whole_picture(predictor: zim.ZimPredictor) -> None:
    nothing = predictor.predict()[0]
    whole = predictor.predict(box=np.array([0, 0, W, H]))[0]
    np.testing.assert_array_equal(nothing, whole)


@pytest.mark.parametrize("kind", ["path", "bytes", "pil", "tensor", "float"])
def test_quirk_any_image_source(kind: str, tmp_path: Path) -> None:
    rgb = picture(H, W)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    sources: dict[str, Any] = {
        "path": tmp_path / "a.png",
        "bytes": (tmp_path / "a.png").read_bytes(),
        "pil": Image.fromarray(rgb),
        "tensor": torch.from_numpy(rgb).permute(2, 0, 1),
        "float": rgb.astype(np.float32) / 255,
    }
    predictor = zim.ZimPredictor(tiny_model())
    predictor.set_image(rgb)
    expected = predictor.predict(POINT, ONE)[0]
    predictor.set_image(sources[kind])
    np.testing.assert_allclose(predictor.predict(POINT, ONE)[0], expected, atol=1e-5)


def test_bgr_is_rgb_turned_round() -> None:
    rgb = picture(H, W)
    predictor = zim.ZimPredictor(tiny_model())
    predictor.set_image(rgb)
    expected = predictor.predict(POINT, ONE)[0]
    predictor.set_image(np.ascontiguousarray(rgb[..., ::-1]), image_format="BGR")
    np.testing.assert_array_equal(predictor.predict(POINT, ONE)[0], expected)


def test_predict_torch_is_the_tensor_twin(predictor: zim.ZimPredictor) -> None:
    points = torch.tensor([[[30.0, 20.0]], [[12.0, 9.0]]])
    labels = torch.ones(2, 1)
    moved = predictor.transform.apply_coords_torch(points, (H, W))
    mattes, scores, low = predictor.predict_torch(moved, labels)
    arrays = predictor.predict(points.numpy(), labels.numpy())
    assert isinstance(mattes, torch.Tensor)
    np.testing.assert_allclose(mattes.numpy(), arrays[0], atol=1e-4)
    np.testing.assert_allclose(scores.numpy(), arrays[1], atol=1e-4)
    np.testing.assert_allclose(low.numpy(), arrays[2], atol=1e-3)


def test_batch_of_different_prompts_equals_one_by_one(predictor: zim.ZimPredictor) -> None:
    prompts: list[dict[str, Any]] = [
        {"points": [(30, 20, 1)]},
        {"points": [(30, 20, 1), (5, 5, 0), (33, 25, 1)]},
        {"box": BOX},
        {"points": [(30, 20, 1)], "box": BOX},
        {"scribble": [[20, 20], [40, 20], [40, 30]]},
        {},
    ]
    mattes, scores, low = predictor.predict_batch(prompts)
    assert mattes.shape == (len(prompts), 1, H, W)
    for i, prompt in enumerate(prompts):
        alone = predictor.predict_batch([prompt])
        np.testing.assert_allclose(mattes[i], alone[0][0], atol=1e-4)
        np.testing.assert_allclose(scores[i], alone[1][0], atol=1e-4)
        np.testing.assert_allclose(low[i], alone[2][0], atol=1e-3)


def test_many_prompts_in_chunks_equal_one_pass(
    predictor: zim.ZimPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = np.array([[i, i, 40 + i, 40.0 + i % 8] for i in range(7)])
    whole = predictor.predict(box=boxes)[0]
    monkeypatch.setattr("zim.views.DECODE_BYTES", 1)
    np.testing.assert_allclose(predictor.predict(box=boxes)[0], whole, atol=1e-4)


def test_a_second_look_stays_inside_its_crop() -> None:
    """A small box on a large picture is answered from a crop; far away there is nothing."""
    predictor = zim.ZimPredictor(tiny_model(TINY_NANO))
    predictor.set_image(picture(300, 400))
    mattes, _, low = predictor.predict(box=np.array([100.0, 100, 160, 150]), multimask_output=False)
    assert mattes[0, 180:, :].max() < 1e-6
    assert mattes[0, :, 200:].max() < 1e-6
    assert mattes[0, 100:150, 100:160].max() > 1e-3
    side = low.shape[-1]
    assert (low[0, side // 2 :, side // 2 :] == -20).all()


def test_set_torch_image_takes_a_scaled_picture() -> None:
    predictor = zim.ZimPredictor(tiny_model())
    rgb = picture(96, 128)
    small = predictor.transform.apply_image(rgb)
    predictor.set_torch_image(torch.tensor(small).permute(2, 0, 1)[None], (96, 128))
    got = predictor.predict(POINT, ONE)[0]
    predictor.set_image(rgb)
    np.testing.assert_array_equal(got, predictor.predict(POINT, ONE)[0])
    with pytest.raises(ImageError, match="expected 1 x 3 x 48 x 64"):
        predictor.set_torch_image(torch.zeros(1, 3, 10, 10), (96, 128))
    sizes: list[Any] = [(0, 0), (-96, 128), (96.5, 128), (96,), (96, 128, 3), None]
    for size in sizes:
        with pytest.raises(ImageError, match="expected \\(height, width\\)"):
            predictor.set_torch_image(torch.zeros(1, 3, 48, 64), size)
    array: Any = np.zeros((1, 3, 48, 64))
    with pytest.raises(ImageError, match="ndarray was given; expected a tensor"):
        predictor.set_torch_image(array, (96, 128))
    assert predictor.is_image_set


def test_asking_without_an_image_says_so() -> None:
    predictor = zim.ZimPredictor(tiny_model())
    with pytest.raises(ImageError, match="call set_image"):
        predictor.predict(POINT, ONE)
    predictor.set_image(picture())
    predictor.reset_image()
    with pytest.raises(ImageError, match="call set_image"):
        predictor.get_image_embedding()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"point_coords": POINT}, "without point_labels"),
        ({"point_labels": ONE}, "without point_coords"),
        ({"point_coords": POINT, "point_labels": np.array([1, 1])}, "1 points but 2 labels"),
        ({"point_coords": POINT * np.nan, "point_labels": ONE}, "NaN"),
        ({"point_coords": POINT + 1000, "point_labels": ONE}, "outside the 64 x 48"),
        ({"point_coords": POINT, "point_labels": np.array([7])}, "label 7"),
        ({"box": np.array([10.0, 10, 10, 30])}, "no area"),
        ({"box": np.array([100.0, 100, 120, 130])}, "outside"),
        ({"box": np.array([1.0, 2, 3])}, "expected 4"),
        ({"mask_input": np.zeros((3, 8, 8))}, "mask_input has shape"),
        ({"mask_input": np.full((1, 8, 8), np.inf)}, "infinity"),
        (
            {"box": np.array([[0, 0, 9, 9]] * 2), "mask_input": np.zeros((3, 1, 8, 8))},
            "batch sizes differ",
        ),
    ],
)
def test_bad_prompts_are_refused_in_one_line(
    predictor: zim.ZimPredictor, call: dict[str, Any], message: str
) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        predictor.predict(**call)
    assert "\n" not in str(caught.value)


def test_one_shot_single_click_takes_the_best_alternative() -> None:
    model = tiny_model()
    rgb = picture(H, W)
    result = zim.matte(rgb, points=[(30, 20)], model=model)
    predictor = zim.ZimPredictor(model)
    predictor.set_image(rgb)
    mattes, scores, _ = predictor.predict(POINT, ONE)
    assert result.score == pytest.approx(float(scores.max()), abs=1e-6)
    np.testing.assert_allclose(result.alpha, mattes[scores.argmax()], atol=1e-6)
    two = zim.matte(rgb, points=[(30, 20, 1), (2, 2, 0)], model=model)
    single, _, _ = predictor.predict(
        np.array([[30.0, 20], [2, 2]]), np.array([1, 0]), multimask_output=False
    )
    np.testing.assert_allclose(two.alpha, single[0], atol=1e-6)


def test_prompts_with_and_without_a_mask_share_a_batch(predictor: zim.ZimPredictor) -> None:
    mask = np.zeros((H, W), bool)
    mask[10:30, 20:44] = True
    low = predictor.predict(box=BOX, multimask_output=False)[2]
    prompts: list[dict[str, Any]] = [
        {"mask": mask, "points": [(30, 20)]},
        {"points": [(30, 20)]},
        {"box": BOX, "low_res": low},
        {},
    ]
    mattes, _, _ = predictor.predict_batch(prompts)
    for i, prompt in enumerate(prompts):
        np.testing.assert_allclose(mattes[i], predictor.predict_batch([prompt])[0][0], atol=1e-4)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "a NoneType; expected a list"),
        ({"box": BOX}, "a dict; expected a list"),
        ([[1, 1, 50, 50]], "a prompt is a list"),
        ([{"point_coords": POINT}], "unknown prompt key 'point_coords'"),
        ([{"box": BOX, "low_res": np.zeros((3, 8, 8))}], "mask_input has shape"),
        ([{"box": BOX, "low_res": "x"}], "mask_input"),
        ([], "empty"),
    ],
)
def test_bad_batches_are_refused_in_one_line(
    predictor: zim.ZimPredictor, prompts: Any, message: str
) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        predictor.predict_batch(prompts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        {"box": [[1, 2, 3, 4], [5, 6]]},
        {"point_coords": [[1, 2], [3]], "point_labels": [1, 1]},
        {"box": [torch.ones(4, requires_grad=True)]},
        {"mask_input": "x"},
        {"mask_input": np.zeros((1, 0, 0))},
        {"point_coords": np.ones((2, 1, 2)), "point_labels": np.ones((3, 1))},
        {"point_coords": np.ones((2, 1, 2)), "point_labels": np.ones(2)},
    ],
)
def test_ragged_and_mismatched_input_is_a_prompt_error(
    predictor: zim.ZimPredictor, call: dict[str, Any]
) -> None:
    with pytest.raises(PromptError):
        predictor.predict(**call)


def test_logits_of_any_size_and_tensors_with_gradients_are_taken(
    predictor: zim.ZimPredictor,
) -> None:
    huge = predictor.predict(box=BOX, mask_input=np.full((1, 8, 8), 1e38))[0]
    assert np.isfinite(huge).all()
    tensor = torch.zeros(1, 8, 8, requires_grad=True)
    assert predictor.predict(box=BOX, mask_input=tensor)[0].shape == (3, H, W)


def test_what_a_picture_had_cut_away_stays_away() -> None:
    rgba = np.dstack([picture(H, W), np.zeros((H, W), np.uint8)])
    rgba[10:40, 10:50, 3] = 255
    result = zim.matte(rgba, box=BOX, model=tiny_model())
    assert result.alpha[rgba[..., 3] == 0].max() == 0
    assert result.alpha.max() > 0
