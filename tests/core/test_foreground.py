"""Foreground colours: exactness, closeness to known colours, and a brute-force twin."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from zim import foreground
from zim.errors import ConfigError, ImageError
from zim.foreground import estimate_foreground


def _texture(rng, height, width, *cells):
    """Smooth random colours: a sum of cubic-interpolated noise at several cell sizes."""
    total = sum(
        cv2.resize(
            rng.random((height // cell + 2, width // cell + 2, 3), dtype=np.float32),
            (width, height),
            interpolation=cv2.INTER_CUBIC,
        )
        for cell in cells
    )
    return np.clip(total / len(cells), 0, 1)


def _hairy_alpha(rng, height, width):
    mask = np.zeros((height, width), np.uint8)
    centre, radius = (width // 2, height // 2), min(height, width) // 4
    cv2.circle(mask, centre, radius, 255, -1, cv2.LINE_AA)
    for _ in range(150):
        angle, bend = rng.random() * 2 * np.pi, rng.normal() * 0.5
        steps = np.linspace(0.95, 1.2 + 0.6 * rng.random(), 20)
        turn = angle + bend * (steps - 0.95) ** 2
        curve = np.stack([np.cos(turn), np.sin(turn)], -1) * steps[:, None] * radius + centre
        cv2.polylines(mask, [(curve * 16).astype(np.int32)[:, None]], False, 220, 1, cv2.LINE_AA, 4)
    return np.asarray(cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), 0.8), np.float32)


def _blurred_alpha(rng, height, width):
    blobs = (_texture(rng, height, width, height // 4)[..., 0] > 0.5).astype(np.float32)
    return cv2.GaussianBlur(blobs, (0, 0), height / 60)


def _composite(seed, make_alpha, height=240, width=320):
    """A picture with known foreground: F, alpha and the 8-bit picture made from them."""
    rng = np.random.default_rng(seed)
    front = _texture(rng, height, width, 60, 8)
    back = _texture(rng, height, width, 80, 12)
    alpha = np.round(make_alpha(rng, height, width) * 255) / np.float32(255)
    mixed = alpha[..., None] * front + (1 - alpha[..., None]) * back
    return front, alpha, np.round(mixed * 255).astype(np.uint8)


def _error(estimate, front, alpha):
    band = (alpha > 0.02) & (alpha < 0.98)
    return float(((estimate[band] / 255.0 - front[band]) ** 2).mean())


@pytest.mark.parametrize("make_alpha", [_hairy_alpha, _blurred_alpha])
@pytest.mark.parametrize("seed", [0, 1])
def test_error_is_no_worse_than_pymatting(make_alpha, seed):
    pymatting = pytest.importorskip("pymatting", reason="pymatting (reference) is not installed")
    front, alpha, picture = _composite(seed, make_alpha)
    theirs = pymatting.estimate_foreground_ml(picture / 255.0, alpha)
    theirs = np.round(np.clip(theirs, 0, 1) * 255).astype(np.uint8)
    ours = estimate_foreground(picture, alpha)
    assert _error(ours, front, alpha) <= 1.1 * _error(theirs, front, alpha)
    # and the estimate is worth having: leaving the picture's colours is far worse
    assert _error(ours, front, alpha) < 0.5 * _error(picture, front, alpha)


def test_flat_colours_are_recovered():
    # One colour over another through a linear ramp has exactly one smooth explanation.
    front, back = np.array([200.0, 40.0, 90.0]), np.array([20.0, 220.0, 160.0])
    ramp = np.clip((np.arange(160) - 40) / 80, 0, 1).astype(np.float32)
    alpha = np.tile(ramp, (96, 1))
    picture = np.round(alpha[..., None] * front + (1 - alpha[..., None]) * back).astype(np.uint8)
    estimate = estimate_foreground(picture, alpha)
    assert np.abs(estimate[alpha > 0.1].astype(int) - front).max() <= 3
    # ... and continued where nothing of the object shows, so resizing brings no rim
    assert np.abs(estimate.astype(int) - front).max() <= 12


def test_opaque_pixels_keep_the_pictures_colour():
    rng = np.random.default_rng(3)
    picture = rng.integers(0, 256, (150, 201, 3), dtype=np.uint8)
    alpha = _hairy_alpha(rng, 150, 201)
    estimate = estimate_foreground(picture, alpha)
    assert (alpha == 1).any()
    np.testing.assert_array_equal(estimate[alpha == 1], picture[alpha == 1])


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 9), (33, 2), (131, 257)])
@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_any_size_and_flat_mattes_work(shape, value):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    estimate = estimate_foreground(picture, np.full(shape, value, np.float32))
    assert estimate.shape == picture.shape
    assert estimate.dtype == np.uint8
    if value == 1.0:
        np.testing.assert_array_equal(estimate, picture)


def test_result_does_not_depend_on_tiles(monkeypatch):
    _, alpha, picture = _composite(5, _hairy_alpha, 171, 233)
    monkeypatch.setattr(foreground, "_TILE", 4096)
    whole = estimate_foreground(picture, alpha)
    monkeypatch.setattr(foreground, "_TILE", 32)
    tiled = estimate_foreground(picture, alpha)
    soft = (alpha > 0.5 / 255) & (alpha < 254.5 / 255)
    # Far from soft pixels one tiling refines what another leaves to the coarser level.
    assert np.abs(whole.astype(int) - tiled)[soft].max() <= 1


def test_solver_matches_pixel_by_pixel_loop():
    """The vectorised sweeps against a loop solving the paper's 2 x 2 system per pixel."""
    rng = np.random.default_rng(11)
    height, width, sweeps = 6, 8, 2
    picture = rng.random((height, width, 3), dtype=np.float32)
    alpha = rng.random((height, width), dtype=np.float32)
    coarse = rng.random((6, height // 2, width // 2), dtype=np.float32)
    tile = (slice(0, height), slice(0, width))
    got = foreground._solve_tile(picture, alpha, coarse, tile, sweeps)

    # The loop works on the picture with its edge repeated, as far as values travel, starting from
    # the coarse level with its edge repeated and doubled by bilinear interpolation.
    pad = 2 * (sweeps + 1)
    image = np.pad(picture, ((pad, pad), (pad, pad), (0, 0)), mode="edge").astype(float)
    matte = np.pad(alpha, pad, mode="edge").astype(float)
    small = np.pad(coarse, ((0, 0), (8, 8), (8, 8)), mode="edge").astype(float)
    state = np.zeros((height + 2 * pad, width + 2 * pad, 6))
    for y in range(state.shape[0]):
        for x in range(state.shape[1]):
            sy, sx = (y - pad + 0.5) / 2 - 0.5 + 8, (x - pad + 0.5) / 2 - 0.5 + 8
            y0, x0 = int(np.floor(sy)), int(np.floor(sx))
            fy, fx = sy - y0, sx - x0
            block = small[:, y0 : y0 + 2, x0 : x0 + 2]
            state[y, x] = np.einsum("cij,i,j->c", block, [1 - fy, fy], [1 - fx, fx])
    for _ in range(sweeps):
        for parity in (0, 1):
            for y in range(2, state.shape[0] - 2):
                for x in range(2, state.shape[1] - 2):
                    if (y + x) % 2 != parity:
                        continue
                    a = matte[y, x]
                    near = [(y, x - 1), (y, x + 1), (y - 1, x), (y + 1, x)]
                    w = [
                        foreground._REGULARISATION + foreground._GRADIENT_WEIGHT * abs(a - matte[n])
                        for n in near
                    ]
                    system = np.array([[a, 1 - a]]).T @ np.array([[a, 1 - a]]) + np.eye(2) * sum(w)
                    for c in range(3):
                        sums = [
                            sum(wi * state[n][c + k] for wi, n in zip(w, near, strict=True))
                            for k in (0, 3)
                        ]
                        right = image[y, x, c] * np.array([a, 1 - a]) + sums
                        state[y, x, [c, c + 3]] = np.clip(np.linalg.solve(system, right), 0, 1)
    want = state[pad:-pad, pad:-pad].transpose(2, 0, 1)
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_none_returns_the_picture():
    picture = np.zeros((4, 5, 3), np.uint8)
    assert estimate_foreground(picture, np.zeros((4, 5), np.float32), "none") is picture


def test_bad_arguments_are_named():
    picture, alpha = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.float32)
    with pytest.raises(ConfigError, match="'magic'"):
        estimate_foreground(picture, alpha, "magic")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="resize"):
        estimate_foreground(picture, alpha[:2])
    with pytest.raises(ImageError, match="float32"):
        estimate_foreground(picture.astype(np.float32), alpha)  # type: ignore[arg-type]
