"""The function ``inpaint``: what is repainted, what is not, and what is refused."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from zim.errors import ConfigError, ImageError, PromptError
from zim.testing import disc, picture
from zim.viz import blend
from zim_inpaint import inpaint
from zim_inpaint.cover import covered, grown, growth, paste_weight
from zim_inpaint.window import around, bounds, shrink, work_shape

SOFT = disc(96, 128, softness=6)
IMAGE = picture(96, 128)


def test_the_cover_takes_faint_pixels_and_drops_specks() -> None:
    alpha = np.zeros((40, 40), np.float32)
    alpha[10:20, 10:20] = 1
    alpha[20, 10:20] = 0.03  # a faint edge of the object
    alpha[30:33, 30:33] = 0.05  # 9 faint pixels on their own
    alpha[2, 2] = 0.5  # one pixel, but a clear one
    expected = alpha > 0.02
    expected[30:33, 30:33] = False
    assert (covered(alpha) == expected).all()


def test_the_cover_leaves_doubt_that_is_far_from_everything_solid() -> None:
    alpha = np.zeros((100, 200), np.float32)
    alpha[20:60, 20:60] = 1
    alpha[60:68, 20:60] = 0.3  # its soft edge
    alpha[20:60, 60:140] = 0.2  # what it sits on, perhaps
    alpha[80:95, 150:180] = 0.3  # another thing, perhaps
    found = covered(alpha)
    assert found[20:68, 20:60].all()
    assert not found[:, 71:].any()
    thin = np.where(alpha == 0.3, alpha, 0)  # smoke is nowhere solid
    assert (covered(thin) == (thin > 0)).all()


def test_growing_is_a_disc_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((30, 40)) > 0.98
    out = grown(mask, 3)
    ys, xs = np.nonzero(mask)
    y, x = np.mgrid[:30, :40]
    distance = np.hypot(y[..., None] - ys, x[..., None] - xs).min(axis=-1)
    assert out[distance <= 2.5].all()
    assert not out[distance > 3.7].any()


def test_growth_follows_the_soft_band() -> None:
    widths = [growth(disc(200, 200, radius=60, softness=s)) for s in (1, 8, 24)]
    # one pixel and 15 % of the band
    assert widths == [1, 2, 4]
    assert growth((SOFT > 0.5).astype(np.float32)) == round(7 * 128 / 1024)
    hard = (disc(512, 1024) > 0.5).astype(np.float32)
    assert growth(hard) == 7  # a 15 x 15 kernel


def test_the_ramp_never_reaches_inside() -> None:
    mask = SOFT > 0.02
    weight = paste_weight(mask, 2)
    assert (weight[mask] == 1).all()
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    assert (weight[distance > 10] == 0).all()
    assert 0 < weight[(distance > 0) & (distance < 2)].min() < 1
    assert (paste_weight(mask, 0) == mask).all()


def test_pasting_by_hand() -> None:
    image, fill = np.full((1, 3, 3), 100, np.uint8), np.full((1, 3, 3), 201, np.uint8)
    out = blend(fill, image, np.array([[0, 0.5, 1]], np.float32))
    assert out[0, :, 0].tolist() == [100, 151, 201]  # 150.5 is rounded up


def test_a_window_near_the_edge_is_moved_not_cut() -> None:
    mask = np.zeros((100, 300), bool)
    mask[40:60, 280:300] = True
    window = around(mask, 1.0)  # 20 + 16 on each side
    assert (window.left, window.right) == (300 - 92, 300)
    assert (window.top, window.bottom) == (4, 96)
    assert bounds(np.zeros((3, 3), bool)) is None
    assert work_shape(window, 46) == (46, 46)
    assert work_shape(window, 500, multiple=8) == (96, 96)  # never enlarged on its own
    assert work_shape(window, 184, multiple=8, enlarge=True) == (184, 184)


def test_shrinking_loses_no_hole() -> None:
    mask = np.zeros((64, 64), bool)
    mask[:, 31] = True  # one pixel wide
    small, hole = shrink(picture(64, 64), mask, (16, 16))
    assert small.shape == (16, 16, 3)
    assert (hole[:, 7] == 255).all()
    assert hole.sum() == 16 * 255


@pytest.mark.parametrize("backend", ["patchmatch", "telea"])
def test_removal_leaves_the_rest_bit_identical_and_repeats(backend: str) -> None:
    first = inpaint(IMAGE, SOFT, backend=backend, seed=3)
    again = inpaint(IMAGE, SOFT, backend=backend, seed=3)
    assert (first.image == again.image).all()
    untouched = first.weight == 0
    assert (first.image[untouched] == IMAGE[untouched]).all()
    assert untouched.mean() > 0.5
    # the disc is yellow (220, 180, 40) on a dark ground: nothing of it is left
    assert first.image[..., 0].max() < 150
    assert first.meta["backend"] == backend


def test_a_filler_that_repaints_everything_is_kept_outside(painter: Any) -> None:
    filler = painter()
    result = inpaint(IMAGE, SOFT, backend=filler, feather=2)
    assert (result.image[result.mask] == filler.colour).all()
    far = cv2.distanceTransform((~result.mask).astype(np.uint8), cv2.DIST_L2, 5) > 10
    assert (result.image[far] == IMAGE[far]).all()
    given = filler.calls[0]
    assert given["mask"].dtype == np.uint8
    assert set(np.unique(given["mask"])) == {0, 255}


def test_the_work_size_is_kept_and_the_result_is_full_size(painter: Any) -> None:
    filler = painter(side=40)
    result = inpaint(IMAGE, SOFT, backend=filler)
    assert max(filler.calls[0]["image"].shape[:2]) == 40
    assert result.image.shape == IMAGE.shape
    assert (result.image[result.mask] == filler.colour).all()


def test_margins_of_any_size(painter: Any) -> None:
    assert around(SOFT > 0.5, 1e308) == around(SOFT > 0.5, 50)
    assert grown(SOFT > 0.5, 100000).all()
    assert paste_weight(SOFT > 0.5, 1e6)[0, 0] > 0
    # a wide ramp falls gently and is not cut at the window
    small = np.zeros((300, 300), np.float32)
    small[148:152, 148:152] = 1
    weight = inpaint(picture(300, 300), small, backend=painter(), grow=0, feather=20).weight
    assert np.abs(np.diff(weight[150, 152:])).max() < 0.1


def test_fill_hands_the_words_on(painter: Any) -> None:
    filler = painter(words=True)
    result = inpaint(IMAGE, SOFT, "fill", filler, text="a fern", negative="a cat", seed=5)
    call = filler.calls[0]
    assert (call["text"], call["negative"], call["seed"]) == ("a fern", "a cat", 5)
    assert result.meta["text"] == "a fern"


def test_replace_keeps_the_object_and_clears_the_old_background() -> None:
    # red object over green; the true colours are known everywhere
    alpha = disc(96, 128, softness=10)
    image = (alpha[..., None] * [200, 0, 0] + (1 - alpha[..., None]) * [0, 200, 0]).round()
    result = inpaint(image.astype(np.uint8), alpha, "replace", background=(0, 0, 255))
    kept = alpha >= 0.98
    assert (result.image[kept] == image[kept]).all()
    assert (result.image[alpha == 0] == (0, 0, 255)).all()
    soft = (alpha > 0.1) & (alpha < 0.9)
    expected = alpha[..., None] * [200, 0, 0] + (1 - alpha[..., None]) * [0, 0, 255]
    # the old green must be gone; with the picture's own colours 50 % pixels would keep 50
    assert result.image[soft][:, 1].max() <= 12
    assert np.abs(result.image[soft] - expected[soft]).mean() < 4


def test_replace_by_words_paints_behind_the_object(painter: Any) -> None:
    filler = painter((0, 0, 255), words=True)
    result = inpaint(IMAGE, SOFT, "replace", filler, text="the sea")
    assert (filler.calls[0]["mask"] == np.where(SOFT < 0.98, 255, 0)).all()
    assert (result.image[SOFT == 0] == (0, 0, 255)).all()
    assert (result.image[SOFT >= 0.98] == IMAGE[SOFT >= 0.98]).all()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"alpha": np.zeros((96, 128), np.float32)}, PromptError, "empty"),
        ({"alpha": np.ones((96, 128), np.float32)}, PromptError, "covers 100%"),
        ({"alpha": SOFT[:50]}, ImageError, "matte is 128 x 50 but the picture is 128 x 96"),
        ({"mode": "fill"}, PromptError, "needs words"),
        ({"mode": "replace"}, PromptError, "background or text"),
        ({"mode": "erase"}, ConfigError, "remove, fill, replace"),
        ({"backend": "magic"}, ConfigError, "patchmatch"),
        ({"mode": "fill", "text": "x", "backend": "telea"}, ConfigError, "takes none"),
        ({"background": "white"}, ConfigError, "replace"),
        ({"cover": 0.7}, ConfigError, "0.5"),
        ({"grow": -1}, ConfigError, "at least 0"),
        ({"feather": -1.0}, ConfigError, "feather is -1"),
        ({"feather": float("nan")}, ConfigError, "feather is nan"),
        ({"context": float("inf")}, ConfigError, "context inf"),
        ({"work_size": 3}, ConfigError, "32"),
    ],
)
def test_what_cannot_be_done_is_said(change: dict[str, Any], kind: type, words: str) -> None:
    arguments: dict[str, Any] = {"image": IMAGE, "alpha": SOFT, "backend": "telea"} | change
    with pytest.raises(kind, match=words) as caught:
        inpaint(**arguments)
    assert "\n" not in str(caught.value)
