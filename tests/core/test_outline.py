"""Whether an outline follows something in the picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from zim.outline import outline_contrast

SIZE = (96, 128)


def disc(radius: float = 30) -> NDArray[np.bool_]:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.hypot(x - 64, y - 48) < radius


def flat(colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.full((*SIZE, 3), colour, np.uint8)


def test_the_difference_is_that_of_the_two_colours() -> None:
    inside, outside = (200, 60, 40), (90, 140, 200)
    rgb = np.where(disc()[..., None], flat(inside), flat(outside))
    pair = np.array([[inside, outside]], np.float32) / 255
    lab = cv2.cvtColor(pair, cv2.COLOR_RGB2LAB)[0]
    expected = float(np.linalg.norm(lab[0] - lab[1]))
    assert outline_contrast(rgb, disc()) == pytest.approx(expected, rel=1e-3)
    large = cv2.resize(rgb, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
    assert outline_contrast(large, disc()) == pytest.approx(expected, rel=1e-3)


def test_shapes_in_front_of_nothing_have_none() -> None:
    size = (3 * SIZE[0], 3 * SIZE[1], 3)  # a picture is larger than the mask as a rule
    noise = np.random.default_rng(0).normal(128, 12, size).clip(0, 255).astype(np.uint8)
    slope = np.broadcast_to(np.linspace(60, 190, SIZE[1])[None, :, None], (*SIZE, 3))
    assert outline_contrast(flat((90, 140, 200)), disc()) < 1e-3
    assert outline_contrast(noise, disc()) < 1.2
    assert outline_contrast(slope.astype(np.uint8), disc()) < 1.2


def test_a_quarter_of_an_outline_may_be_lost() -> None:
    rgb = np.where(disc()[..., None], flat((200, 60, 40)), flat((90, 140, 200)))
    rgb[52:] = (90, 140, 200)  # four tenths of the disc cannot be seen
    assert outline_contrast(rgb, disc()) < 1e-3
    rgb = np.where(disc()[..., None], flat((200, 60, 40)), flat((90, 140, 200)))
    rgb[72:] = (90, 140, 200)  # a fifth
    assert outline_contrast(rgb, disc()) > 20


def test_a_line_round_it_is_enough() -> None:
    large = np.full((3 * SIZE[0], 3 * SIZE[1], 3), 250, np.uint8)
    cv2.circle(large, (3 * 64, 3 * 48), 90, (40, 40, 40), 5)
    assert outline_contrast(large, disc()) > 10
    assert outline_contrast(large, disc(15)) < 1e-3


def test_the_pictures_border_is_no_outline() -> None:
    assert outline_contrast(flat((1, 2, 3)), np.ones(SIZE, bool)) == 0
    assert outline_contrast(flat((1, 2, 3)), np.zeros(SIZE, bool)) == 0
    half = np.zeros(SIZE, bool)
    half[:, :64] = True
    rgb = np.where(half[..., None], flat((200, 60, 40)), flat((90, 140, 200)))
    assert outline_contrast(rgb, half) > 50
