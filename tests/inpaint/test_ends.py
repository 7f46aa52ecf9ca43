"""Ends: what has the object's colours and hangs on it is added, nothing else, and never much."""

import cv2
import numpy as np

from zim.prompts import Prompt
from zim_inpaint.ends import with_ends

SIZE = (120, 160)


def _scene(spike: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A red disc with a thin red spike on grey noise; the matte knows the disc alone."""
    rng = np.random.default_rng(0)
    rgb = (120 + rng.normal(0, 4, (*SIZE, 3))).clip(0, 255).astype(np.uint8)
    disc, truth = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    cv2.circle(disc, (60, 60), 25, 1, -1)
    truth[:] = disc
    cv2.rectangle(truth, (60, 60 - spike // 2), (100, 60 + spike // 2), 1, -1)
    rgb[truth > 0] = (200, 30, 30)
    return rgb, disc.astype(np.float32), truth.astype(np.float32)


def test_a_spike_of_the_same_colour_is_added_and_nothing_else() -> None:
    rgb, disc, truth = _scene()
    result = with_ends(rgb, disc)
    assert result.dtype == np.float32
    assert (result >= disc).all()
    spike = (truth > 0) & (disc == 0)
    assert (result[spike] > 0.5).mean() > 0.9
    far = cv2.dilate(truth, np.ones((5, 5))) == 0
    assert not (result[far] > 0.02).any()


def test_a_separate_thing_of_the_same_colour_stays() -> None:
    rgb, disc, _ = _scene()
    cv2.circle(rgb, (60, 100), 4, (200, 30, 30), -1)
    assert with_ends(rgb, disc)[100, 60] < 0.02


def test_what_would_add_a_large_part_adds_nothing() -> None:
    rgb, disc, _ = _scene(spike=41)  # 40 x 41 pixels beside a disc of 1963
    assert np.array_equal(with_ends(rgb, disc), disc)


def test_negative_clicks_and_boxes_keep_ends_away() -> None:
    rgb, disc, _ = _scene()
    clicks = Prompt.create(SIZE, points=[[60, 60, 1], [95, 60, 0]])
    assert with_ends(rgb, disc, clicks)[60, 95] < 0.02
    box = Prompt.create(SIZE, box=[35, 35, 86, 86])
    assert with_ends(rgb, disc, box)[60, 98] < 0.02


def test_empty_full_and_tiny_mattes_stay() -> None:
    rgb, disc, _ = _scene()
    speck = np.zeros_like(disc)
    speck[60, 60] = 1
    for matte in (np.zeros_like(disc), np.ones_like(disc), speck):
        assert np.array_equal(with_ends(rgb, matte), matte)
