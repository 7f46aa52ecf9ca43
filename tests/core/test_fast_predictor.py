"""Batches over prompts and pictures: the same mattes, in bounded memory, in any precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import zim
from zim.api import choose_dtype
from zim.errors import ImageError, PromptError
from zim.processor import bfloat16_units
from zim.testing import TINY_NANO, picture, tiny_model

PICTURES = [picture(48, 64), picture(80, 50, seed=1), picture(64, 64, seed=2)]
PROMPTS: list[list[dict[str, Any]]] = [
    [{"points": [[30, 20, 1]]}, {"box": [10, 8, 50, 40]}],
    [{"box": [5, 20, 30, 60]}],
    [{"points": [[30, 30, 1], [3, 3, 0]]}, {"box": [0, 0, 60, 60]}, {}],
]


@pytest.fixture(scope="module", params=["tiny", TINY_NANO], ids=["tiny", "tiny_nano"])
def predictor(request: pytest.FixtureRequest) -> zim.ZimPredictor:
    return zim.ZimPredictor(tiny_model(request.param))


@pytest.mark.parametrize("multimask", [False, True])
def test_pictures_together_equal_each_alone(predictor: zim.ZimPredictor, multimask: bool) -> None:
    predictor.set_image_batch(PICTURES)
    together = predictor.predict_batch(PROMPTS, multimask_output=multimask)
    assert [t[0].shape[:2] for t in together] == [
        (len(some), 3 if multimask else 1) for some in PROMPTS
    ]
    for rgb, prompts, (mattes, scores, low) in zip(PICTURES, PROMPTS, together, strict=True):
        predictor.set_image(rgb)
        alone = predictor.predict_batch(prompts, multimask_output=multimask)
        assert mattes.shape[2:] == rgb.shape[:2]
        np.testing.assert_allclose(mattes, alone[0], atol=2e-3)
        np.testing.assert_allclose(scores, alone[1], atol=1e-3)
        np.testing.assert_allclose(low, alone[2], atol=2e-2)


def test_prompts_with_and_without_a_mask_share_a_batch_of_crops() -> None:
    predictor = zim.ZimPredictor(tiny_model(TINY_NANO))
    predictor.set_image(PICTURES[0])
    mask = np.zeros((48, 64), np.float32)
    mask[10:30, 10:30] = 1
    prompts = [
        {"box": [5, 5, 30, 30]},
        {"box": [8, 8, 32, 32], "mask": mask},
        {"box": [20, 10, 50, 40]},
    ]
    together = predictor.predict_batch(prompts, return_logits=True)
    for i, prompt in enumerate(prompts):
        alone = predictor.predict_batch([prompt], return_logits=True)
        np.testing.assert_allclose(together[0][i], alone[0][0], atol=2e-2)
        np.testing.assert_allclose(together[1][i], alone[1][0], atol=1e-3)


def test_lists_and_pictures_must_fit(predictor: zim.ZimPredictor) -> None:
    predictor.set_image_batch(PICTURES[:2])
    with pytest.raises(PromptError, match="for 1 pictures were given, 2 are set"):
        predictor.predict_batch(PROMPTS[0])
    with pytest.raises(PromptError, match="for 3 pictures"):
        predictor.predict_batch(PROMPTS)
    with pytest.raises(PromptError, match="empty"):
        predictor.predict_batch([PROMPTS[0], []])
    with pytest.raises(ImageError, match="2 images are set"):
        predictor.predict(box=np.array([0, 0, 9, 9]))
    with pytest.raises(ImageError, match="list of images is empty"):
        predictor.set_image_batch([])
    predictor.reset_image()
    with pytest.raises(ImageError, match="no image is set"):
        predictor.predict_batch(PROMPTS[0])


def test_a_batch_of_one_picture_is_a_picture(predictor: zim.ZimPredictor) -> None:
    predictor.set_image_batch(PICTURES[:1])
    (first,) = predictor.predict_batch(PROMPTS[:1])
    assert first[0].shape == (2, 1, 48, 64)
    assert predictor.predict(box=np.array([0, 0, 9, 9]))[0].shape == (3, 48, 64)


@pytest.mark.parametrize("config", ["tiny", TINY_NANO], ids=["tiny", "tiny_nano"])
def test_half_precision_through_the_predictor(config: str | zim.ZimConfig) -> None:
    """bfloat16 mattes differ by less than a few grey levels on average."""
    model = zim.build(config, seed=0).eval()
    answers = []
    for dtype in (torch.float32, torch.bfloat16):
        predictor = zim.ZimPredictor(model.to(dtype))
        predictor.set_image(PICTURES[0])
        answers.append(predictor.predict_batch([*PROMPTS[0], {"mask": np.eye(48, 64)}][:2]))
    for array in answers[1]:
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
    error = np.abs(answers[0][0] - answers[1][0])
    assert error.mean() <= 0.02


def test_enlarging_many_mattes_holds_one_beside_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every prompt's matte is enlarged alone, straight into the array that is returned."""
    predictor = zim.ZimPredictor(tiny_model())
    predictor.set_image(picture(300, 400))
    seen: list[int] = []
    original = zim.predictor.enlarge_low_res  # pyright: ignore[reportAttributeAccessIssue]

    def spy(low: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(len(low))
        return original(low, *rest)

    monkeypatch.setattr("zim.predictor.enlarge_low_res", spy)
    boxes = np.array([[i, i, 100.0 + i, 100 + i] for i in range(9)])
    assert predictor.predict(box=boxes, multimask_output=False)[0].shape == (9, 1, 300, 400)
    assert seen == [1] * 9


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ({"box": (2, 2, 60, 45)}, [(1, False)]),
        ({"points": [(20, 20), (30, 25)]}, [(1, False)]),
        ({"points": [(20, 20)]}, [(1, True)]),  # what a lone click means is found without GrabCut
    ],
)
def test_a_look_at_the_whole_picture_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, prompt: dict[str, object], expected: list[tuple[int, bool]]
) -> None:
    predictor = zim.ZimPredictor(tiny_model(replace(TINY_NANO, quick_click=True)))
    predictor.set_image(picture(48, 64))
    monkeypatch.setattr("zim.predictor.Window.around", lambda *_: None)  # as for large objects
    looks: list[tuple[int, bool]] = []
    decoded: list[int] = []
    decode = zim.predictor.decode_views  # pyright: ignore[reportAttributeAccessIssue]
    describe = zim.predictor.cues_of  # pyright: ignore[reportAttributeAccessIssue]

    def spy_on_cues(*args: Any) -> Any:
        quick = args[4]
        looks.append((len(quick), any(quick)))
        return describe(*args)

    def spy(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        decoded.append(len(args[3]))
        return decode(*args)

    monkeypatch.setattr("zim.predictor.cues_of", spy_on_cues)
    monkeypatch.setattr("zim.predictor.decode_views", spy)
    mattes, quality, low = predictor.predict_batch([prompt])
    assert looks == expected
    assert decoded == [1]
    assert np.isfinite(mattes).all()
    enlarged = zim.predictor.enlarge_low_res(  # pyright: ignore[reportAttributeAccessIssue]
        torch.from_numpy(low), predictor.frame, predictor.image, predictor.model.config.edges
    )
    np.testing.assert_allclose(mattes, enlarged.sigmoid().numpy(), atol=1e-6)
    assert quality.shape == (1, 1)


@pytest.mark.parametrize(
    ("units", "expected"),
    [("matrix", torch.bfloat16), ("vector", torch.bfloat16), (None, torch.float32)],
)
def test_auto_precision_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, units: str | None, expected: torch.dtype
) -> None:
    monkeypatch.setattr("zim.api.bfloat16_units", lambda: units)
    assert choose_dtype("auto", torch.device("cpu")) == expected
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert choose_dtype("auto", torch.device("mps")) == torch.float32
    assert choose_dtype("float32", torch.device("cuda")) == torch.float32


@pytest.mark.parametrize(
    ("flags", "usable", "expected"),
    [
        ("avx2 amx_bf16 avx512_bf16", True, "matrix"),
        ("avx2 avx512_bf16", True, "vector"),
        ("avx2 avx512_bf16", False, None),
        ("avx2 avx512f", True, None),
        ("", True, None),
    ],
)
def test_bfloat16_needs_the_instructions_and_their_use(
    monkeypatch: pytest.MonkeyPatch, flags: str, usable: bool, expected: str | None
) -> None:
    monkeypatch.setattr("zim.processor.cpu_flags", lambda: flags.split())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for ask in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, ask, lambda: usable, raising=False)
    assert bfloat16_units.__wrapped__() == expected
