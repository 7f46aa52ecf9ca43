"""The matte and what is made from it: hand-worked blending, backgrounds, files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import zim.result
from zim.errors import ConfigError, ImageError, OutputError
from zim.images import load_image, read_alpha
from zim.result import Matte

RNG = np.random.default_rng(0)


def _ramp(height=40, width=64):
    """One colour over another through a ramp, so foreground and composites are known."""
    front, back = np.array([200.0, 60.0, 30.0]), np.array([10.0, 90.0, 220.0])
    alpha = np.tile(np.clip((np.arange(width) - 12) / 40, 0, 1), (height, 1)).astype(np.float32)
    mixed = alpha[..., None] * front + (1 - alpha[..., None]) * back
    return Matte(np.round(mixed).astype(np.uint8), alpha, 0.9), front


def test_foreground_is_computed_once(monkeypatch):
    calls = []

    def estimate(rgb, alpha, method):
        calls.append(method)
        return rgb.copy()

    monkeypatch.setattr(zim.result, "estimate_foreground", estimate)
    matte, _ = _ramp()
    matte.rgba()
    matte.composite("red")
    matte.composite("blue", foreground="none")
    np.testing.assert_array_equal(matte.foreground(), matte.foreground())
    assert calls == ["ml", "none"]


def test_rgba_is_straight_and_exact():
    matte, front = _ramp()
    rgba = matte.rgba()
    assert rgba.dtype == np.uint8
    np.testing.assert_array_equal(rgba[..., 3], np.floor(matte.alpha * 255.0 + 0.5))
    # straight, not premultiplied: full colour down to the faintest pixel, and beyond
    assert np.abs(rgba[..., :3].astype(int) - front).max() <= 12
    deep = matte.rgba(bits=16)
    assert deep.dtype == np.uint16
    np.testing.assert_array_equal(deep[..., :3], rgba[..., :3].astype(np.uint16) * 257)
    np.testing.assert_array_equal(deep[..., 3], np.floor(matte.alpha * 65535.0 + 0.5))
    np.testing.assert_array_equal(matte.rgba(foreground="none")[..., :3], matte.image)


@pytest.mark.parametrize("background", ["lime", "#00ff00", "#0f0", (0, 255, 0), [0, 255, 0]])
def test_colours(background):
    alpha = np.array([[0.0, 0.25, 0.5, 1.0]], np.float32)
    matte = Matte(np.full((1, 4, 3), (100, 0, 201), np.uint8), alpha)
    # by hand: 0.25 * 201 = 50.25 and 0.5 * 201 = 100.5, halves go up; 255 * 0.75 = 191.25
    want = [[(0, 255, 0), (25, 191, 50), (50, 128, 101), (100, 0, 201)]]
    np.testing.assert_array_equal(matte.composite(background, foreground="none"), want)


def test_no_old_background_remains_in_a_composite():
    matte, front = _ramp()
    new = np.array([0.0, 128.0, 0.0])
    want = matte.alpha[..., None] * front + (1 - matte.alpha[..., None]) * new
    assert np.abs(matte.composite("green") - want).max() <= 3
    assert np.abs(matte.composite("green", foreground="none") - want).max() > 30


def test_composites_are_exact_against_double_precision():
    alpha = RNG.random((300, 33), dtype=np.float32)
    rgb, behind = RNG.integers(0, 256, (2, 300, 33, 3), dtype=np.uint8)
    got = Matte(rgb, alpha).composite(behind, foreground="none")
    exact = alpha[..., None].astype(float) * rgb + (1 - alpha[..., None].astype(float)) * behind
    assert np.abs(got - exact).max() <= 0.5001


def test_a_picture_behind_covers_and_is_centred(tmp_path):
    clear = Matte(np.zeros((10, 20, 3), np.uint8), np.zeros((10, 20), np.float32))
    # 40 wide, 40 high for a 20 x 10 matte: half size, and a quarter cut off above and below
    wide = np.zeros((40, 40, 3), np.uint8)
    wide[10:30] = (255, 0, 0)
    assert (clear.composite(wide) == (255, 0, 0)).all()
    # 10 high, 40 wide: same size, and 10 columns cut off on either side
    flat = np.zeros((10, 40, 3), np.uint8)
    flat[:, 10:30] = RNG.integers(0, 256, (10, 20, 3), dtype=np.uint8)
    np.testing.assert_array_equal(clear.composite(flat), flat[:, 10:30])
    path = tmp_path / "red"  # a colour name wins over a file of that name
    Image.new("RGB", (3, 3), (1, 2, 3)).save(path, "PNG")
    assert (clear.composite(path) == (1, 2, 3)).all()
    assert (clear.composite(str(path)) == (1, 2, 3)).all()
    assert (clear.composite("red") == (255, 0, 0)).all()
    tiny = np.full((1, 1, 3), 77, np.uint8)
    assert (clear.composite(tiny) == 77).all()


@pytest.mark.parametrize(
    "background", ["purpel", "#12", "#ff000080", (1, 2), (0, 0, 300), ("a", "b", "c"), 5, None]
)
def test_unusable_backgrounds(background):
    matte, _ = _ramp(4, 8)
    with pytest.raises(ImageError) as caught:
        matte.composite(background)
    assert "\n" not in str(caught.value)


def test_binary():
    matte = Matte(np.zeros((1, 3, 3), np.uint8), np.array([[0.2, 0.5, 0.6]], np.float32))
    np.testing.assert_array_equal(matte.binary(), [[False, False, True]])
    np.testing.assert_array_equal(matte.binary(0.1), [[True, True, True]])


def test_files(tmp_path):
    matte, _ = _ramp()
    path = matte.save(tmp_path / "a.rgba.png")
    np.testing.assert_array_equal(np.array(Image.open(path)), matte.rgba())
    path = matte.save(tmp_path / "a.alpha.png", "alpha", bits=16)
    np.testing.assert_allclose(read_alpha(path), matte.alpha, atol=0.51 / 65535)
    path = matte.save(tmp_path / "a.composite.png", "composite", background="navy")
    np.testing.assert_array_equal(load_image(path).rgb, matte.composite("navy"))
    path = matte.save(tmp_path / "a.overlay.jpg", "overlay")
    assert load_image(path).rgb.shape == matte.image.shape
    data = matte.encode("rgba", ".webp")
    assert Image.open(io.BytesIO(data)).mode == "RGBA"
    with pytest.raises(OutputError, match="no transparency"):
        matte.save(tmp_path / "a.jpg")
    with pytest.raises(OutputError, match="'trimap'"):
        matte.save(tmp_path / "b.png", "trimap")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'blur'"):
        matte.save(tmp_path / "b.png", foreground="blur")  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == 4


def test_matte_and_picture_must_fit():
    with pytest.raises(ImageError, match="resize"):
        Matte(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.float32))
    with pytest.raises(ImageError, match="uint8"):
        Matte(np.zeros((4, 5, 3), np.float32), np.zeros((4, 5), np.float32))  # type: ignore[arg-type]
