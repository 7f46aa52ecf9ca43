"""The second pass: what it must leave alone, what it must gain, and no seams."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import zim
from zim import metrics
from zim import refine as refining
from zim.cli import main
from zim.errors import ImageError
from zim.refine import cell_size, refine
from zim.testing import TINY_NANO, picture, tiny_model

Scene = tuple[NDArray[np.uint8], NDArray[np.float32]]


def strands(height: int = 400, width: int = 480, seed: int = 0) -> Scene:
    """A disc with hairs of 1 to 2 pixels on a smooth background: picture and true alpha."""
    rng = np.random.default_rng(seed)
    scale = 4
    large = np.zeros((height * scale, width * scale), np.uint8)
    middle = np.array([width, height]) * scale / 2
    radius = 0.22 * min(height, width) * scale
    cv2.circle(large, middle.astype(int).tolist(), int(radius), 255, -1)
    for angle in rng.uniform(0, 2 * np.pi, 260):
        turn = angle + rng.normal(0, 0.3) + np.linspace(0, rng.normal(0, 0.6), 8)
        steps = np.stack([np.cos(turn), np.sin(turn)], -1) * radius * rng.uniform(0.05, 0.13)
        curve = middle + 0.9 * radius * np.array([np.cos(angle), np.sin(angle)])
        curve = np.rint(curve + np.cumsum(steps, 0)).astype(np.int32)
        cv2.polylines(large, [curve], False, 255, int(rng.integers(4, 8)))
    small = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
    alpha = np.asarray(small, np.float32) * np.float32(1 / 255)
    behind = cv2.resize(
        rng.uniform(110, 220, (5, 6, 3)), (width, height), interpolation=cv2.INTER_CUBIC
    )
    hair = np.array([70.0, 45, 30]) + rng.normal(0, 5, (height, width, 1))
    mixed = alpha[..., None] * hair + (1 - alpha[..., None]) * behind
    mixed += rng.normal(0, 1.5, mixed.shape)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8), alpha


def coarse(alpha: NDArray[np.float32], cell: float) -> NDArray[np.float32]:
    """What a perfect model with cells of that size would say: box means, enlarged."""
    height, width = alpha.shape
    grid = (round(width / cell), round(height / cell))
    low = cv2.resize(alpha, grid, interpolation=cv2.INTER_AREA)
    large = cv2.resize(low, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(large, 0, 1).astype(np.float32)


@pytest.mark.parametrize("cell", [6, 16])
def test_strands_come_back(cell: int) -> None:
    rgb, truth = strands()
    first = coarse(truth, cell)
    better = refine(rgb, first, cell=cell)
    band = (truth > 0.02) & (truth < 0.98)
    for measure in (metrics.mse, metrics.grad):
        assert measure(better, truth, mask=band) < 0.7 * measure(first, truth, mask=band)
    # and not by spoiling what lies outside the band
    assert metrics.mse(better, truth) < 0.7 * metrics.mse(first, truth)


def test_a_smaller_matte_is_taken_as_cells() -> None:
    rgb, truth = strands()
    low = np.asarray(cv2.resize(truth, (60, 50), interpolation=cv2.INTER_AREA), np.float32)
    better = refine(rgb, low)
    band = (truth > 0.02) & (truth < 0.98)
    assert better.shape == truth.shape
    assert metrics.mse(better, truth, mask=band) < 0.7 * metrics.mse(
        coarse(truth, 8), truth, mask=band
    )


def test_no_step_at_tile_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 64 pixels against one tile as large as the picture."""
    rgb, truth = strands(330, 410)
    first = coarse(truth, 8)
    monkeypatch.setattr(refining, "_TILE", 64)
    tiled = refine(rgb, first, cell=8)
    monkeypatch.setattr(refining, "_TILE", 4096)
    whole = refine(rgb, first, cell=8)
    assert np.abs(whole - first).max() > 0.3  # there is something to disagree on
    for axis in (0, 1):
        steps = np.abs(np.diff(tiled, axis=axis) - np.diff(whole, axis=axis))
        assert steps.max() <= 2 / 255
    np.testing.assert_allclose(tiled, whole, atol=2e-3)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.5, 0.8, 0.97, 1.0])
def test_a_constant_matte_stays(value: float) -> None:
    rgb, _ = strands(160, 200)
    flat = np.full(rgb.shape[:2], value, np.float32)
    np.testing.assert_allclose(refine(rgb, flat, cell=8), flat, atol=1e-3)


def test_certain_regions_stay_bit_by_bit() -> None:
    rgb = picture(512, 512)
    first = np.zeros((512, 512), np.float32)
    first[:, 256:] = 1.0
    first[:, 252:260] = np.linspace(0, 1, 8)
    better = refine(rgb, first, cell=4)
    far = 4 * 12  # eight cells, the soft one itself, and blocks of eight pixels
    assert (better[:, : 256 - far] == 0).all()
    assert (better[:, 256 + far :] == 1).all()


def test_what_a_model_calls_solid_is_not_pulled_to_one() -> None:
    rgb, truth = strands()
    first = 0.01 + 0.965 * coarse(truth, 4)
    better = refine(rgb, first, cell=4)
    assert abs(float(better[200, 240]) - 0.975) < 1e-3


def test_the_input_is_not_touched_and_the_result_is_repeatable() -> None:
    rgb, truth = strands(200, 200)
    first = coarse(truth, 8)
    kept, picture_kept = first.copy(), rgb.copy()
    one, two = refine(rgb, first, cell=8), refine(rgb, first, cell=8)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(rgb, picture_kept)
    np.testing.assert_array_equal(one, two)
    assert one.dtype == np.float32
    assert one.min() >= 0
    assert one.max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (65, 1), (33, 47)])
def test_any_size(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    alpha = rng.random(size, dtype=np.float32)
    better = refine(rgb, alpha, cell=4)
    assert better.shape == size
    assert np.isfinite(better).all()


@pytest.mark.parametrize(
    ("image", "alpha", "words"),
    [
        (np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.float32), "H x W x 3 uint8"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), "h x w float"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8), np.float32), "the picture's size"),
        (np.zeros((8, 8, 3), np.uint8), np.full((8, 8), np.nan, np.float32), r"\[0, 1\]"),
        (np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 2.0, np.float32), r"\[0, 1\]"),
    ],
)
def test_bad_input_is_refused(image: np.ndarray, alpha: np.ndarray, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        refine(image, alpha)


def test_cells_of_a_frame_and_of_a_crop() -> None:
    alpha = np.zeros((300, 400), np.float32)
    alpha[100:150, 200:260] = 1  # 60 wide: a crop 84 pixels wide around it
    assert cell_size(None, alpha) == 400 / 512
    plain = zim.ZimPredictor(tiny_model())
    assert cell_size(plain, alpha) == 400 / (plain.model.config.image_size / 2)
    framed = zim.ZimPredictor(tiny_model(TINY_NANO))
    assert cell_size(framed, alpha) == pytest.approx(84 / (TINY_NANO.image_size / 2), abs=0.1)


def test_matte_refines_only_when_asked() -> None:
    rgb = picture(96, 128)
    model = tiny_model()
    plain = zim.matte(rgb, box=(30, 15, 100, 80), model=model)
    sharp = zim.matte(rgb, box=(30, 15, 100, 80), model=model, refine=True)
    again = refine(rgb, plain.alpha, cell=128 / (model.config.image_size / 2))
    np.testing.assert_allclose(sharp.alpha, again, atol=1e-5)
    assert not np.array_equal(sharp.alpha, plain.alpha)


def test_the_command_refines_every_candidate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    tiny_model().save_pretrained(model)
    photo = tmp_path / "photo.png"
    Image.fromarray(picture(96, 128)).save(photo)
    common = ["matte", str(photo), "--box", "30,15,100,80", "--model", str(model)]
    common += ["--format", "alpha", "--multimask", "--output"]
    assert main([*common, str(tmp_path / "plain")]) == 0
    assert main([*common, str(tmp_path / "sharp"), "--refine"]) == 0
    assert capsys.readouterr().err == ""
    plain, sharp = (sorted((tmp_path / n).iterdir()) for n in ("plain", "sharp"))
    assert [p.name for p in plain] == [p.name for p in sharp]
    assert len(plain) == 3
    for before, after in zip(plain, sharp, strict=True):
        with Image.open(before) as one, Image.open(after) as two:
            assert not np.array_equal(np.asarray(one), np.asarray(two))
