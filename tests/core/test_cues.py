"""Cues: shapes, meaning of every plane, and results that depend on the arguments alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from zim.cues import CUE_NAMES, CUE_PLANES, PRIOR_SCALE, compute_cues, prior_alpha
from zim.errors import PromptError

SIDE = 128


def disc_image(height: int = 96, width: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """A red disc on a green, slightly noisy ground, and its mask."""
    rng = np.random.default_rng(0)
    image = np.full((height, width, 3), (40, 140, 60), np.float32)
    ys, xs = np.mgrid[:height, :width]
    mask = (xs - 60) ** 2 + (ys - 50) ** 2 < 26**2
    image[mask] = (200, 50, 40)
    image += rng.normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask


BOX = np.array([[[30, 20], [90, 80]]], np.float32), np.array([[2, 3]])
CLICK = np.array([[[60, 50], [0, 0]]], np.float32), np.array([[1, -1]])


def test_shape_range_and_padding() -> None:
    image, _ = disc_image()
    points = np.concatenate([BOX[0], CLICK[0]])
    labels = np.concatenate([BOX[1], CLICK[1]])
    cues = compute_cues(image, points, labels, SIDE)
    assert cues.shape == (2, CUE_PLANES, SIDE // 2, SIDE // 2)
    assert cues.dtype == np.float32
    assert len(CUE_NAMES) == CUE_PLANES
    assert np.abs(cues).max() <= 1.0
    # the picture is 96 high: rows from 48 on are padding
    assert (cues[:, 0, 48:] == -1).all()
    assert (cues[:, 1:, 48:] == 0).all()


@pytest.mark.parametrize(("points", "labels"), [BOX, CLICK])
def test_prior_finds_the_disc(points: np.ndarray, labels: np.ndarray) -> None:
    image, mask = disc_image()
    alpha = prior_alpha(image, points, labels)[0]
    assert alpha.shape == mask.shape
    found = alpha > 0.5
    overlap = (found & mask).sum() / (found | mask).sum()
    assert overlap > 0.85


def test_prior_plane_is_a_scaled_logit() -> None:
    image, _ = disc_image()
    plane = compute_cues(image, *BOX, SIDE)[0, 0]
    # frame of prior_alpha is the picture's own 128 x 128 square: the same planes enlarged
    alpha = prior_alpha(image, *BOX)[0]
    enlarged = cv2.resize(plane, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)[:96]
    np.testing.assert_allclose(alpha, 1 / (1 + np.exp(-PRIOR_SCALE * enlarged)), atol=1e-6)


def test_order_company_and_the_callers_generator_do_not_matter() -> None:
    image, _ = disc_image()
    points = np.concatenate([BOX[0], CLICK[0], BOX[0] + 4])
    labels = np.concatenate([BOX[1], CLICK[1], BOX[1]])
    together = compute_cues(image, points, labels, SIDE)
    cv2.setRNGSeed(123)
    backwards = compute_cues(image, points[::-1], labels[::-1], SIDE)[::-1]
    np.testing.assert_array_equal(together, backwards)
    for k in range(3):
        alone = compute_cues(image, points[k : k + 1], labels[k : k + 1], SIDE)[0]
        np.testing.assert_array_equal(together[k], alone)

    def draw() -> np.ndarray:
        return cv2.randu(np.zeros((2, 2), np.uint8), np.zeros(1), np.full(1, 255.0))

    cv2.setRNGSeed(9)
    expected = draw()
    cv2.setRNGSeed(9)
    compute_cues(image, points, labels, SIDE)
    np.testing.assert_array_equal(draw(), expected)


def test_planes_mean_what_they_say() -> None:
    image, mask = disc_image()
    points = np.array([[[60, 50], [10, 10], [0, 0]]], np.float32)
    cues = compute_cues(image, points, np.array([[1, 0, -1]]), SIDE)[0]
    half = mask[::2, ::2]
    ratio, likeness, positive, negative, box, discs = cues[1:, :48, :64]
    assert ratio[half].mean() > 0.2 > -0.2 > ratio[~half].mean()
    assert likeness[half].mean() > 0.7
    assert likeness[~half].mean() < 0.2
    # (60, 50) is the middle between cells 29 and 30, 24 and 25 of the half-size picture
    assert np.unravel_index(positive.argmax(), positive.shape) in {(24, 29), (25, 30), (24, 30)} | {
        (25, 29)
    }
    assert np.unravel_index(negative.argmax(), negative.shape) in {(4, 4), (5, 5), (4, 5), (5, 4)}
    assert (box == 1).all()
    assert discs[half].mean() > 0.5 > -0.5 > discs[~half].mean()
    with_box = compute_cues(image, *BOX, SIDE)[0]
    assert (with_box[6] == 0).all()  # a box says more than a disc
    np.testing.assert_array_equal(compute_cues(image, *BOX, SIDE, planes=6)[0], with_box[:6])
    inside = compute_cues(image, *BOX, SIDE)[0, 5]
    # pixels 30..90 x 20..80 are cells 14.75..44.75 x 9.75..39.75
    assert inside[9:40, 15:45].min() > 0.2
    assert inside[8].max() == 0
    assert inside[:, 46:].max() == 0


def test_negative_click_takes_its_place_out() -> None:
    image, _ = disc_image()
    image[60:90, 100:125] = (200, 50, 40)  # a second red thing
    one = prior_alpha(image, CLICK[0], CLICK[1])[0]
    points = np.array([[[60, 50], [112, 75]]], np.float32)
    two = prior_alpha(image, points, np.array([[1, 0]]))[0]
    assert two[68:82, 104:121].mean() < 0.3
    assert two[68:82, 104:121].mean() < one[68:82, 104:121].mean() + 1e-6


def test_no_prompt_means_the_whole_picture_is_the_box() -> None:
    image, mask = disc_image()
    empty = compute_cues(image, np.zeros((1, 2, 2), np.float32), np.array([[-1, -2]]), SIDE)
    corners = np.array([[[0, 0], [127, 95]]], np.float32)
    whole = compute_cues(image, corners, np.array([[2, 3]]), SIDE)
    np.testing.assert_allclose(empty[:, :2], whole[:, :2], atol=1e-6)
    found = empty[0, 0, :48] > 0
    half = mask[::2, ::2]
    assert (found & half).sum() / (found | half).sum() > 0.7


def test_earlier_mask_leads() -> None:
    image, mask = disc_image()
    logits = np.full((1, 32, 32), -8.0, np.float32)
    small = cv2.resize(mask.astype(np.float32), (32, 24), interpolation=cv2.INTER_AREA)
    logits[0, :24] = np.where(small > 0.5, 8.0, -8.0)
    cues = compute_cues(image, np.zeros((1, 1, 2), np.float32), np.array([[-1]]), SIDE, logits)
    found = cues[0, 0, :48] > 0
    half = mask[::2, ::2]
    assert (found & half).sum() / (found | half).sum() > 0.85


@pytest.mark.parametrize(
    "image", [np.zeros((64, 96, 3), np.uint8), np.full((3, 128, 3), 255, np.uint8)]
)
@pytest.mark.parametrize(
    ("points", "labels"),
    [
        ([[5, 1], [6, 2]], [2, 3]),  # a box of one pixel
        ([[0, 0], [127, 95]], [2, 3]),  # corners at and beyond the edge
        ([[5, 1], [5, 1]], [1, 0]),  # positive and negative in one place
        ([[5, 1], [90, 2]], [0, 0]),  # negatives alone
    ],
)
def test_degenerate_input_gives_finite_planes(image, points, labels) -> None:
    cues = compute_cues(image, np.array([points], np.float32), np.array([labels]), SIDE)
    assert np.isfinite(cues).all()
    assert np.abs(cues).max() <= 1


def test_no_prompts_at_all_give_an_empty_batch() -> None:
    image, _ = disc_image()
    cues = compute_cues(image, np.zeros((0, 1, 2), np.float32), np.zeros((0, 1), int), SIDE)
    assert cues.shape == (0, CUE_PLANES, SIDE // 2, SIDE // 2)


def test_wrong_shapes_are_named() -> None:
    image, _ = disc_image()
    with pytest.raises(PromptError, match="uint8"):
        compute_cues(image.astype(np.float32), *BOX, SIDE)  # pyright: ignore[reportArgumentType]
    with pytest.raises(PromptError, match="does not fit a frame"):
        compute_cues(image, *BOX, 64)
    with pytest.raises(PromptError, match="points"):
        compute_cues(image, BOX[0], np.array([[2]]), SIDE)
    with pytest.raises(PromptError, match="mask"):
        compute_cues(image, *BOX, SIDE, np.zeros((2, 8, 8), np.float32))


def test_without_grabcut_the_other_planes_stay() -> None:
    image, _ = disc_image()
    points, labels = np.concatenate([BOX[0], CLICK[0]]), np.concatenate([BOX[1], CLICK[1]])
    full = compute_cues(image, points, labels, SIDE)
    simple = compute_cues(image, points, labels, SIDE, grabcut=False)
    np.testing.assert_array_equal(simple[:, 1:6], full[:, 1:6])
    assert not simple[:, [0, 6]].any()
    assert full[:, 0, :48].any()
    assert full[1, 6].any()
