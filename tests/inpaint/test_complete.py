"""What goes with an object: parts of other colours that hang on it alone, and its shadow."""

import cv2
import numpy as np

from zim.prompts import Prompt
from zim_inpaint.complete import completed
from zim_inpaint.foreign import with_foreign
from zim_inpaint.shadow import with_shadow

SIZE = (160, 240)
CENTRE, RADIUS = (110, 70), 28


def _scene() -> tuple[np.ndarray, np.ndarray]:
    """A red disc on grey noise, and its matte."""
    rng = np.random.default_rng(0)
    rgb = (130 + rng.normal(0, 4, (*SIZE, 1)) * np.ones(3)).clip(0, 255).astype(np.uint8)
    disc = np.zeros(SIZE, np.uint8)
    cv2.circle(disc, CENTRE, RADIUS, 1, -1)
    rgb[disc > 0] = (200, 30, 30)
    return rgb, disc.astype(np.float32)


def _painted(rgb: np.ndarray, corner: tuple[int, int], other: tuple[int, int]) -> np.ndarray:
    """Paint a blue rectangle behind the disc; return where it shows."""
    area = np.zeros(SIZE, np.uint8)
    cv2.rectangle(area, corner, other, 1, -1)
    shows = (area > 0) & (rgb[..., 0] < 180)
    rgb[shows] = (40, 60, 190)
    return shows


def test_thin_and_broad_parts_of_another_colour_are_added_and_nothing_else() -> None:
    for thickness in (4, 20):
        rgb, disc = _scene()
        part = _painted(rgb, (110, 70 - thickness // 2), (185, 70 + thickness // 2))
        result = with_foreign(rgb, disc)
        assert (result >= disc).all()
        assert (result[part] > 0.5).mean() > 0.9
        whole = (part | (disc > 0)).astype(np.uint8)
        assert not (result[cv2.dilate(whole, np.ones((9, 9))) == 0] > 0.02).any()


def test_what_goes_on_at_the_rim_is_apart_or_refused_stays() -> None:
    rgb, disc = _scene()
    bar = _painted(rgb, (0, 60), (239, 80))  # from side to side behind the disc
    assert not (with_foreign(rgb, disc)[bar & (disc == 0)] > 0.5).any()
    rgb, disc = _scene()
    apart = _painted(rgb, (190, 60), (210, 80))
    assert not (with_foreign(rgb, disc)[apart] > 0.02).any()
    rgb, disc = _scene()
    part = _painted(rgb, (110, 65), (185, 75))
    clicks = Prompt.create(SIZE, points=[[110, 70, 1], [170, 70, 0]])
    assert not (with_foreign(rgb, disc, clicks)[part] > 0.02).any()
    box = Prompt.create(SIZE, box=[80, 40, 140, 100])
    assert not (with_foreign(rgb, disc, box)[:, 150:] > 0.02).any()


def _shadowed(tint: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scene with a soft patch to the lower right multiplied by ``tint``; its strength."""
    rgb, disc = _scene()
    strength = np.zeros(SIZE, np.float32)
    cv2.ellipse(strength, (117, 80), (25, 22), 35, 0, 360, 1.0, -1)
    strength = cv2.GaussianBlur(strength, (0, 0), 3)
    strength[disc > 0] = 0
    shaded = rgb * (1 - strength[..., None] * (1 - np.array(tint)))
    return shaded.astype(np.uint8), disc, strength


def test_a_shadow_is_added_and_a_patch_of_another_colour_is_not_one() -> None:
    rgb, disc, strength = _shadowed((0.7, 0.7, 0.7))
    result = with_shadow(rgb, disc)
    assert (result >= disc).all()
    assert (result[strength > 0.3] > 0.5).mean() > 0.95
    assert not (result[:, :60] > 0.02).any()
    y, x = np.argwhere(strength > 0.6).mean(axis=0)
    clicks = Prompt.create(SIZE, points=[[110, 70, 1], [x, y, 0]])
    assert not (with_shadow(rgb, disc, clicks)[strength > 0.6] > 0.02).any()
    rgb, disc, strength = _shadowed((0.3, 0.9, 0.9))
    assert not (with_shadow(rgb, disc)[strength > 0.6] > 0.02).any()


def test_nothing_to_add_and_nothing_wanted_leave_the_matte() -> None:
    rgb, disc = _scene()
    assert np.array_equal(completed(rgb, disc), disc)
    shaded, _, strength = _shadowed((0.7, 0.7, 0.7))
    assert np.array_equal(completed(shaded, disc, ends=False, shadow=False), disc)
    assert (completed(shaded, disc)[strength > 0.5] > 0.5).all()
    for matte in (np.zeros_like(disc), np.ones_like(disc)):
        assert np.array_equal(completed(shaded, matte), matte)
