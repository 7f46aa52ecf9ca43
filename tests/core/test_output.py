"""Writing pictures: whole files or none, the right depth, and one line when it fails."""

from __future__ import annotations

import io
import os
import time

import numpy as np
import pytest
from PIL import Image, ImageCms

from zim import output
from zim.errors import OutputError
from zim.images import load_image, read_alpha, save_alpha, save_rgb, save_rgba
from zim.output import atomic_write, encode_alpha, encode_rgb, encode_rgba, make_folder

RNG = np.random.default_rng(0)
RGBA = RNG.integers(0, 256, (33, 21, 4), dtype=np.uint8)
ALPHA = np.linspace(0, 1, 33 * 21, dtype=np.float32).reshape(33, 21)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".PNG"])
def test_cut_outs_come_back_exactly(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save_rgba(path, RGBA)
    np.testing.assert_array_equal(np.array(Image.open(path)), RGBA)
    save_rgb(path, RGBA[..., :3].copy())
    np.testing.assert_array_equal(load_image(path).rgb, RGBA[..., :3])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_webp_keeps_alpha_exactly_and_colour_closely(tmp_path):
    path = tmp_path / "a.webp"
    smooth = np.dstack([np.tile(np.linspace(0, 255, 21, dtype=np.uint8), (33, 1))] * 3)
    rgba = np.dstack([smooth, RGBA[..., 3]])
    save_rgba(path, rgba)
    got = np.array(Image.open(path))
    np.testing.assert_array_equal(got[..., 3], rgba[..., 3])
    assert np.abs(got[..., :3].astype(int) - smooth).max() <= 12
    save_alpha(path, ALPHA)
    np.testing.assert_array_equal(
        np.array(Image.open(path).convert("L")), np.floor(ALPHA * 255 + 0.5)
    )


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("bits", "top"), [(8, 255), (16, 65535)])
def test_matte_depth(tmp_path, suffix, bits, top):
    path = tmp_path / f"a{suffix}"
    save_alpha(path, ALPHA, bits)
    stored = np.array(Image.open(path))
    assert stored.dtype == (np.uint8 if bits == 8 else np.uint16)
    np.testing.assert_array_equal(stored, np.floor(ALPHA.astype(np.float64) * top + 0.5))
    assert np.abs(read_alpha(path) - ALPHA).max() <= 0.5001 / top


def test_matte_rounding_by_hand():
    # 0.5/255 is the first value that rounds up; what lies outside [0, 1] is clipped
    alpha = np.array([[0.0, 0.4999 / 255, 0.5001 / 255, 0.5, 1.0, -0.2, 1.7]], np.float32)
    np.testing.assert_array_equal(output.quantise(alpha), [[0, 0, 1, 128, 255, 0, 255]])
    np.testing.assert_array_equal(output.quantise(alpha[:, 3:], 16), [[32768, 65535, 0, 65535]])


def test_16_bit_cut_out_round_trip(tmp_path):
    path = tmp_path / "a.png"
    deep = RNG.integers(0, 65536, (5, 6, 4), dtype=np.uint16)
    save_rgba(path, deep)
    loaded = load_image(path)
    np.testing.assert_array_equal(loaded.rgb, np.round(deep[..., :3] / 257))
    assert loaded.alpha is not None
    np.testing.assert_allclose(loaded.alpha, deep[..., 3] / 65535, rtol=1e-6)


def test_jpeg_is_close(tmp_path):
    smooth = np.dstack([np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (48, 1))] * 3)
    smooth[..., 1] = 80
    save_rgb(tmp_path / "a.jpg", smooth)
    assert np.abs(load_image(tmp_path / "a.jpg").rgb.astype(int) - smooth).max() <= 4


def test_colour_is_declared_srgb_and_mattes_are_not():
    rgb = RGBA[..., :3].copy()
    assert Image.open(io.BytesIO(encode_rgb(rgb))).info["srgb"] == 0
    for suffix in (".jpg", ".webp", ".tif"):
        icc = Image.open(io.BytesIO(encode_rgb(rgb, suffix))).info["icc_profile"]
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        assert ImageCms.getProfileDescription(profile).startswith("sRGB")
    assert "srgb" not in Image.open(io.BytesIO(encode_alpha(ALPHA))).info
    Image.open(io.BytesIO(encode_rgba(RGBA))).verify()  # chunk checksums


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda p: save_rgba(p / "a.jpg", RGBA), "no transparency"),
        (lambda p: save_rgba(p / "a.gif", RGBA), "gif"),
        (lambda p: save_rgb(p / "a", RGBA[..., :3]), "no suffix"),
        (lambda p: save_rgb(p / "a.png", RGBA), "H x W x 3"),
        (lambda p: save_rgba(p / "a.png", RGBA.astype(np.float32)), "float32"),  # type: ignore[arg-type]
        (lambda p: save_rgba(p / "a.tif", RGBA.astype(np.uint16)), "png"),
        (lambda p: save_rgba(p / "a.webp", np.zeros((1, 16384, 4), np.uint8)), "16383"),
        (lambda p: save_alpha(p / "a.webp", ALPHA, 16), "8 bits"),
        (lambda p: save_alpha(p / "a.png", ALPHA, 12), "12"),  # type: ignore[arg-type]
        (lambda p: save_alpha(p / "a.png", ALPHA[None]), "H x W"),
        (lambda p: atomic_write(p / "no" / "a.png", b""), "no folder"),
        (lambda p: atomic_write(p, b""), "is a folder"),
        (lambda p: atomic_write(p / ("x" * 300), b""), "cannot be written"),
    ],
)
def test_failures_are_one_line_and_leave_nothing(tmp_path, call, says):
    with pytest.raises(OutputError, match=says) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder closed to us")
def test_closed_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        atomic_write(tmp_path / "a.png", b"data")


@pytest.mark.parametrize("step", ["_write", "replace"])
def test_a_failing_disk_keeps_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "a.bin"
    atomic_write(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    if step == "replace":
        monkeypatch.setattr("pathlib.Path.replace", full)
    else:
        real_open = type(path).open

        def half(self, mode="r", *args, **kwargs):
            file = real_open(self, mode, *args, **kwargs)
            if "x" in mode:
                file.write(b"ha")
                file.close()
                raise OSError(28, "No space left on device")
            return file

        monkeypatch.setattr("pathlib.Path.open", half)
    with pytest.raises(OutputError, match=r"a\.bin cannot be written: No space"):
        atomic_write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_gets_the_bytes_and_stays(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        atomic_write(pipe, b"data")
        assert os.read(reader, 10) == b"data"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_new_files_have_ordinary_permissions(tmp_path):
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    plain.write_bytes(b"")
    atomic_write(ours, b"")
    assert plain.stat().st_mode == ours.stat().st_mode


def test_a_large_cut_out_is_encoded_quickly():
    # 3 megapixels of noise, the worst case; a bound far above the usual 0.3 s, far below zlib 6
    rgba = RNG.integers(0, 256, (1500, 2000, 4), dtype=np.uint8)
    start = time.process_time()
    data = encode_rgba(rgba)
    assert time.process_time() - start < 3
    assert len(data) < rgba.size * 1.05


def test_a_folder_for_results_is_made_or_the_reason_told(tmp_path):
    (tmp_path / "file").write_text("x")
    for _ in range(2):  # there already: no error
        make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(OutputError, match=r"file is a file; --output takes a folder"):
        make_folder(tmp_path / "file")
    with pytest.raises(OutputError, match=r"file.below cannot be made: Not a directory"):
        make_folder(tmp_path / "file" / "below")
