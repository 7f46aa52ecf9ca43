"""The second opinion: asked of the mirrored view, of doubtful single answers only."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import zim
import zim.cues
from zim.geometry import Frame
from zim.prompts import Prompt
from zim.second_opinion import FADE, mirrored_logits, mirrored_prompt, second_opinion
from zim.testing import TINY_NANO, picture, tiny_model
from zim.views import View, cues_of, decode_views, encode_views

WIDTH, HEIGHT = 96, 72


@functools.cache
def network() -> zim.Zim:
    return tiny_model(TINY_NANO)


def predictor(mirror_below: float, framing: float = 1.4) -> zim.ZimPredictor:
    # a random network's quality is about 0: below 100 is all of it
    model = copy.copy(network())
    model.config = replace(model.config, framing=framing, mirror_below=mirror_below)
    return zim.ZimPredictor(model)


def prompts() -> dict[str, dict[str, Any]]:
    mask = np.zeros((HEIGHT, WIDTH), np.float32)
    mask[20:40, 10:40] = 0.8
    return {
        "small box": {"box": [20, 16, 50, 44]},
        "large box": {"box": [2, 3, 90, 70]},
        "clicks": {"points": [[30, 30], [70, 20]], "labels": [1, 0]},
        "lone click": {"points": [[33, 28]], "labels": [1]},
        "mask": {"mask": mask},
    }


def turned(prompt: dict[str, Any]) -> dict[str, Any]:
    """Write a prompt down for somebody who sees the picture in a mirror."""
    result = dict(prompt)
    if "box" in prompt:
        x0, y0, x1, y1 = prompt["box"]
        result["box"] = [WIDTH - x1, y0, WIDTH - x0, y1]
    if "points" in prompt:
        result["points"] = [[WIDTH - 1 - x, y] for x, y in prompt["points"]]
    if "mask" in prompt:
        result["mask"] = np.ascontiguousarray(prompt["mask"][:, ::-1])
    return result


def spy_on_cues(monkeypatch: pytest.MonkeyPatch, grabcut: bool = True) -> list[int]:
    """Note how many prompts cues are computed for, and leave GrabCut out where it says so."""
    original: Any = zim.cues.compute_cues
    asked: list[int] = []

    def spy(image: Any, points: Any, *rest: Any) -> Any:
        asked.append(len(points))
        return original(image, points, *rest[:-1], grabcut and rest[-1])

    monkeypatch.setattr("zim.cues.compute_cues", spy)
    return asked


@pytest.mark.parametrize("kind", prompts())
def test_the_mean_of_both_opinions_does_not_know_left_from_right(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_cues(*args: Any, **named: Any) -> Any:
        return second_opinion(*args[:8], **{**named, "cues": None})

    # cues that are turned with the view know left from right: where GrabCut began, and to which
    # side a view of odd width was filled up
    monkeypatch.setattr("zim.predictor.second_opinion", without_cues)
    rgb, prompt = picture(HEIGHT, WIDTH), prompts()[kind]
    apart = []
    for below in (100.0, 0.0):
        one = predictor(below)
        one.set_image(rgb)
        seen = one.predict_batch([prompt])[0][0, 0]
        one.set_image(np.ascontiguousarray(rgb[:, ::-1]))
        mirrored = one.predict_batch([turned(prompt)])[0][0, 0, :, ::-1]
        apart.append(float(np.abs(seen - mirrored).max()))
    asked_twice, asked_once = apart
    # cues come from OpenCV, whose GrabCut starts at random and not in a mirror
    assert asked_twice < 0.01
    assert asked_once > 3 * asked_twice


@pytest.mark.parametrize("kind", prompts())
def test_the_second_opinion_has_the_cues_of_the_first(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, counts = spy_on_cues(monkeypatch), []
    for below in (0.0, 100.0):
        one = predictor(below)
        one.set_image(picture(HEIGHT, WIDTH))
        asked.clear()
        one.predict_batch([prompts()[kind]] * 2)
        counts.append(sum(asked))
    assert counts[1] == counts[0] >= 2


def test_cues_given_are_those_of_the_mirrored_view(monkeypatch: pytest.MonkeyPatch) -> None:
    spy_on_cues(monkeypatch, grabcut=False)
    model = predictor(100.0).model
    # clicks: the plane of a box is filled up to one side, as that of a view of odd width
    view = View.of(picture(64, 58), 64)
    prompt = Prompt.create((64, 58), points=[[10, 12], [41, 50]], labels=[1, 0])
    where, asked = [0], [prompt]
    with torch.inference_mode():
        cues = cues_of([view], where, asked, model.config)
        assert cues is not None
        features = encode_views(model, [view])
        first = decode_views(model, features, [view], where, asked, slice(0, 1), cues)
        opinions = [
            second_opinion(model, [view], where, asked, slice(0, 1), *first, cues=given)
            for given in (list(cues), None, [None])
        ]
    for other in opinions[1:]:
        for a, b in zip(opinions[0], other, strict=True):
            torch.testing.assert_close(a.sigmoid(), b.sigmoid(), rtol=0, atol=1e-4)


def test_alternatives_stay() -> None:
    rgb, prompt = picture(HEIGHT, WIDTH), [prompts()["small box"]]
    answers = {}
    for below in (0.0, 100.0):
        one = predictor(below)
        one.set_image(rgb)
        answers[below] = one.predict_batch(prompt), one.predict_batch(prompt, multimask_output=True)
    for k in range(3):
        np.testing.assert_array_equal(answers[0.0][1][k], answers[100.0][1][k])
    assert not np.array_equal(answers[0.0][0][0], answers[100.0][0][0])


def test_alpha_and_quality_are_means_and_fade_in() -> None:
    model = predictor(0.0, framing=0.0).model
    rgb = picture(64, 64)
    view, prompt = View.of(rgb, 64), Prompt.create((64, 64), box=[10, 12, 40, 50])
    glass = View.of(np.ascontiguousarray(rgb[:, ::-1]), 64)
    mirrored = Prompt.create((64, 64), box=[24, 12, 54, 50])
    with torch.inference_mode():
        low, iou = decode_views(
            model, encode_views(model, [view]), [view], [0], [prompt], slice(0, 1)
        )
        other, quality = decode_views(
            model, encode_views(model, [glass]), [glass], [0], [mirrored], slice(0, 1)
        )
        for share in (0.5, 1.0):  # of the way from "sure enough" to "as doubtful as can be"
            model.config = replace(model.config, mirror_below=float(iou[0, 0]) + share * FADE)
            joined, score = second_opinion(model, [view], [0], [prompt], slice(0, 1), low, iou)
            weight = share / 2
            alpha = (1 - weight) * low.sigmoid() + weight * other.sigmoid().flip(-1)
            torch.testing.assert_close(joined.sigmoid(), alpha, rtol=0, atol=1e-4)
            expected = (1 - weight) * iou + weight * quality
            torch.testing.assert_close(score, expected, rtol=0, atol=1e-4)


def test_a_batch_is_its_prompts_one_by_one() -> None:
    one = predictor(100.0)
    one.set_image(picture(HEIGHT, WIDTH))
    asked = list(prompts().values())
    together = one.predict_batch(asked)
    for i, prompt in enumerate(asked):
        alone = one.predict_batch([prompt])
        for a, b in zip(together[:2], alone[:2], strict=True):
            np.testing.assert_allclose(a[i], b[0], rtol=0, atol=1e-3)
        # a mean of alphas near 1 has few digits left as a logit
        alphas = [torch.from_numpy(low).sigmoid() for low in (together[2][i], alone[2][0])]
        torch.testing.assert_close(*alphas, rtol=0, atol=1e-4)


def test_many_doubtful_prompts_are_as_each_by_itself() -> None:
    one = predictor(100.0)
    one.set_image(picture(HEIGHT, WIDTH))
    asked = [{"box": [1, 1, 80 + k % 15, 60 + k // 15]} for k in range(90)]
    together = one.predict_batch(asked)[0]
    for i in range(0, 90, 11):
        np.testing.assert_allclose(one.predict_batch([asked[i]])[0][0], together[i], atol=1e-3)


@pytest.mark.parametrize("width", [40, 41])
def test_logits_are_mirrored_about_the_middle_of_the_view(width: int) -> None:
    # every cell holds the place of its middle, in pixels of the frame
    place = torch.arange(32.0) * 2 + 0.5
    mirrored = mirrored_logits(place.expand(1, 32, 32), width)[0, 0]
    columns = -(-width // 2)
    expected = (width - 1) - place[:columns]
    inner = slice(0, columns - width % 2)  # half of the last cell of an odd view lies beyond it
    torch.testing.assert_close(mirrored[inner], expected[inner])
    torch.testing.assert_close(mirrored[columns:], place[columns:])


def test_a_prompt_mirrored_twice_is_the_prompt() -> None:
    view = View(np.zeros((48, 64, 3), np.uint8), Frame((48, 64), 64))
    mask = np.random.default_rng(0).random((48, 64), np.float32)
    low = np.random.default_rng(1).normal(size=(1, 32, 32)).astype(np.float32)
    prompt = Prompt.create(
        (48, 64),
        points=[[3, 5], [60, 40]],
        labels=[1, 0],
        box=[1, 2, 30, 40],
        mask=mask,
        low_res=low,
    )
    once = mirrored_prompt(prompt, view)
    assert once.points[0].tolist() == [60, 5]
    assert once.box is not None
    assert once.box.tolist() == [34, 2, 63, 40]
    twice = mirrored_prompt(once, view)
    for name, value in vars(prompt).items():
        np.testing.assert_array_equal(getattr(twice, name), value, err_msg=name)


def test_answers_that_are_sure_or_without_a_quality_stay() -> None:
    model = predictor(0.8).model
    view, prompt = View.of(picture(64, 64), 64), Prompt.create((64, 64), box=[10, 12, 40, 50])
    low = torch.randn(2, 1, 32, 32)
    iou = torch.tensor([[0.8], [float("nan")]])
    given = (low.clone(), iou.clone())
    kept = second_opinion(model, [view], [0, 0], [prompt] * 2, slice(0, 1), low, iou)
    torch.testing.assert_close(kept, given, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("size", [(171, 1), (1, 171), (400, 2), (97, 61), (300, 11)])
@pytest.mark.parametrize("side", [2, 32, 256])
def test_pictures_of_any_shape(size: tuple[int, int], side: int) -> None:
    height, width = size
    one = predictor(100.0)
    one.set_image(picture(height, width))
    low = np.zeros((1, side, side), np.float32)
    middle = [[width // 2, height // 2]]
    asked: list[dict[str, Any]] = [
        {},
        {"box": [0, 0, width, height]},
        {"points": middle, "labels": [0]},
        {"points": middle, "labels": [1], "low_res": low},
        {"mask": np.ones((height, width), np.float32)},
    ]
    mattes, quality, logits = one.predict_batch(asked)
    assert mattes.shape == (5, 1, height, width)
    assert np.isfinite(mattes).all()
    assert np.isfinite(quality).all()
    assert np.isfinite(logits).all()


def test_several_pictures_are_as_each_by_itself() -> None:
    one, rgbs = predictor(100.0), [picture(72, 96, seed=1), picture(50, 61, seed=2)]
    asked = [[{"box": [3, 3, 50, 40]}, {}], [{"points": [[20, 20]], "labels": [1]}]]
    one.set_image_batch(rgbs)
    together = one.predict_batch(asked)
    for rgb, some, found in zip(rgbs, asked, together, strict=True):
        one.set_image(rgb)
        for a, b in zip(found, one.predict_batch(some), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-3)


def test_the_mirrored_picture_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, encoded = predictor(100.0, framing=0.0), []
    monkeypatch.setattr(
        "zim.second_opinion.encode_views",
        lambda model, views: encoded.append(len(views)) or encode_views(model, views),
    )
    for seed in (0, 1):
        one.set_image(picture(HEIGHT, WIDTH, seed=seed))
        one.predict(box=[5, 5, 60, 50], multimask_output=False)
        one.predict([[20, 20]], [1], multimask_output=False)
    assert encoded == [1, 1]


@pytest.mark.parametrize("limit", [-1, float("nan"), float("inf"), "0.8"])
def test_a_limit_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(zim.ZimError, match="mirror_below"):
        replace(TINY_NANO, mirror_below=limit)
