"""The second look: how it and the first are joined for a lone click."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zim
from zim.framing import FIRST_LOOK, Window, join_looks
from zim.geometry import Frame
from zim.predictor import ZimPredictor
from zim.testing import TINY_NANO

SIDE = 32
FRAME = Frame((64, 64), 64)
#: a quarter of the picture, seen at its own size
WINDOW, INNER = Window(16, 16, 48, 48), Frame((32, 32), 64)


def logits(alpha: float) -> torch.Tensor:
    return torch.full((1, SIDE, SIDE), alpha).logit()


def test_looks_that_agree_keep_the_edges_of_the_second() -> None:
    second = torch.full((1, SIDE, SIDE), -9.0)
    second[:, 10:21, 7:18] = 9.0  # an edge between cells of the first look
    low = second.sigmoid()
    # the first look sees the same things at half the resolution
    first = torch.full((1, SIDE, SIDE), -9.0)
    seen = torch.nn.functional.interpolate(low[None], (16, 16), mode="bilinear", antialias=True)
    first[:, 8:24, 8:24] = seen[0].logit()
    joined = join_looks(first, second, WINDOW, FRAME, INNER)
    torch.testing.assert_close(joined.sigmoid(), low, rtol=0, atol=1e-4)


def test_where_looks_differ_the_answer_lies_between() -> None:
    joined = join_looks(logits(0.9), logits(0.2), WINDOW, FRAME, INNER).sigmoid()
    expected = 0.2 + FIRST_LOOK * 0.7
    torch.testing.assert_close(joined, torch.full_like(joined, expected), rtol=1e-4, atol=1e-4)
    # what the second look is sure of stays
    joined = join_looks(logits(0.9), logits(0.001), WINDOW, FRAME, INNER).sigmoid()
    assert joined.max() < 0.01


@pytest.mark.parametrize("more", ["a second click", "a mask"])
def test_only_a_lone_click_is_tempered(more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (48, 64, 3), np.uint8)
    picture[18:26, 20:28] = (250, 20, 20)
    predictor = ZimPredictor(zim.build(TINY_NANO, seed=0))
    predictor.set_image(picture)
    joined = []
    monkeypatch.setattr(
        "zim.predictor.join_looks", lambda *args: joined.append(1) or join_looks(*args)
    )
    monkeypatch.setattr(
        "zim.predictor.object_region", lambda *_: np.array([19.0, 17.0, 29.0, 27.0])
    )
    click = {"point_coords": [[24, 22]], "point_labels": [1]}
    _, _, low = predictor.predict(**click, multimask_output=False)
    assert joined == [1]
    if more == "a mask":
        predictor.predict(**click, mask_input=low, multimask_output=False)
    else:
        two = {"point_coords": [[24, 22], [21, 20]], "point_labels": [1, 1]}
        predictor.predict(**two, multimask_output=False)
    assert joined == [1]
