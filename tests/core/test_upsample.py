"""Edge-following enlargement: against the truth, against bilinear, against a plain loop."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from zim.errors import ImageError
from zim.upsample import guided_upsample

HEIGHT, WIDTH = 120, 160


def _disc(scale, textured):
    """A sharp disc on another colour: picture, true alpha, and the alpha seen ``scale`` smaller."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    alpha = np.clip(40.5 - np.hypot(x - 83, y - 56), 0, 1).astype(np.float32)
    front = np.full((HEIGHT, WIDTH, 3), (0.8, 0.4, 0.2), np.float32)
    if textured:
        noise = rng.random((HEIGHT // 6, WIDTH // 6, 3), dtype=np.float32)
        front += 0.5 * (cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) - 0.5)
    mixed = front * alpha[..., None] + np.array([0.2, 0.5, 0.7], np.float32) * (
        1 - alpha[..., None]
    )
    picture = np.round(np.clip(mixed, 0, 1) * 255).astype(np.uint8)
    small = cv2.resize(alpha, (WIDTH // scale, HEIGHT // scale), interpolation=cv2.INTER_AREA)
    return picture, alpha, np.asarray(small, np.float32)


@pytest.mark.parametrize("scale", [4, 8])
@pytest.mark.parametrize(("textured", "gain"), [(False, 20), (True, 3)])
def test_closer_to_the_truth_than_bilinear(scale, textured, gain):
    picture, alpha, small = _disc(scale, textured)
    bilinear = cv2.resize(small, (WIDTH, HEIGHT))
    ours = guided_upsample(small, picture)
    assert ours.shape == alpha.shape
    assert ours.dtype == np.float32
    error, plain = ((ours - alpha) ** 2).mean(), ((np.asarray(bilinear) - alpha) ** 2).mean()
    assert error * gain < plain


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, -7.25])
def test_constants_stay_exactly(value):
    picture = np.random.default_rng(1).integers(0, 256, (50, 61, 3), dtype=np.uint8)
    assert (guided_upsample(np.full((7, 9), value, np.float32), picture) == np.float32(value)).all()


def test_values_stay_in_range_and_may_be_logits():
    picture, _, small = _disc(8, True)
    logits = small * 16 - 8
    ours = guided_upsample(logits, picture)
    assert ours.min() >= logits.min()
    assert ours.max() <= logits.max()
    # the filter is linear in the values, so logits and alpha follow the same edges
    np.testing.assert_allclose(ours, guided_upsample(small, picture) * 16 - 8, atol=2e-3)


def test_strips_leave_no_seam():
    # A picture of one colour gives no edges to follow: a pure ramp has to stay one.
    ramp = np.repeat(np.linspace(0, 1, 40, dtype=np.float32)[:, None], 5, axis=1)
    out = guided_upsample(ramp, np.full((600, 50, 3), 90, np.uint8))
    steps = np.diff(out[50:-50, 25])
    np.testing.assert_allclose(steps, 1 / 39 / 15, rtol=1e-2)


@pytest.mark.parametrize("radius", [1, 2])
def test_matches_the_papers_formulas(radius):
    """At equal sizes nothing is enlarged: the plain colour guided filter, pixel by pixel."""
    rng = np.random.default_rng(2)
    picture = rng.integers(0, 256, (7, 8, 3), dtype=np.uint8)
    values, eps = rng.random((7, 8), dtype=np.float32), 1e-2
    pad = ((radius, radius), (radius, radius))
    colour = np.pad(picture / 255.0, (*pad, (0, 0)), mode="edge")
    padded = np.pad(values.astype(float), pad, mode="edge")
    slope, offset = np.empty((7, 8, 3)), np.empty((7, 8))
    for y in range(7):
        for x in range(8):
            window = (slice(y, y + 2 * radius + 1), slice(x, x + 2 * radius + 1))
            c, v = colour[window].reshape(-1, 3), padded[window].ravel()
            covariance = np.cov(c.T, bias=True) + eps * np.eye(3)
            slope[y, x] = np.linalg.solve(covariance, (c.T @ v) / len(v) - c.mean(0) * v.mean())
            offset[y, x] = v.mean() - slope[y, x] @ c.mean(0)
    slope = np.pad(slope, (*pad, (0, 0)), mode="edge")
    offset = np.pad(offset, pad, mode="edge")
    want = np.empty((7, 8))
    for y in range(7):
        for x in range(8):
            window = (slice(y, y + 2 * radius + 1), slice(x, x + 2 * radius + 1))
            mean = slope[window].reshape(-1, 3).mean(0)
            want[y, x] = mean @ (picture[y, x] / 255.0) + offset[window].mean()
    want = np.clip(want, values.min(), values.max())
    np.testing.assert_allclose(guided_upsample(values, picture, radius, eps), want, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (33, 2)])
def test_any_size(shape):
    picture = np.zeros((*shape, 3), np.uint8)
    assert guided_upsample(np.array([[0.0, 1.0]], np.float32), picture).shape == shape


@pytest.mark.parametrize(
    ("small", "guide", "options"),
    [
        (np.zeros((2, 2, 1)), np.zeros((4, 4, 3), np.uint8), {}),
        (np.array([[np.nan]]), np.zeros((4, 4, 3), np.uint8), {}),
        (np.zeros((2, 2)), np.zeros((4, 4), np.uint8), {}),
        (np.zeros((2, 2)), np.zeros((4, 4, 3), np.float32), {}),
        (np.zeros((2, 2)), np.zeros((4, 4, 3), np.uint8), {"eps": 0.0}),
        (np.zeros((2, 2)), np.zeros((4, 4, 3), np.uint8), {"radius": 0}),
    ],
)
def test_bad_arguments(small, guide, options):
    with pytest.raises(ImageError, match="expected"):
        guided_upsample(small, guide, **options)
