"""Reading pictures of every kind a user has, and refusing the rest in one line."""

from __future__ import annotations

import io
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from zim import images
from zim.errors import ImageError
from zim.images import load_image, read_alpha

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def _encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png(width, height, depth, colour_type, rows=b""):
    """A PNG assembled by hand, for headers and layouts that no writer here produces."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def _tiff(planes, compression=1, photometric=2):
    """A 16-bit TIFF with a strip for every plane h x w, assembled by hand as well."""
    strips = [plane.astype("<u2").tobytes() for plane in planes]
    if compression == 8:
        strips = [zlib.compress(strip) for strip in strips]
    count, (height, width) = len(strips), planes[0].shape
    starts = [8 + sum(map(len, strips[:k])) for k in range(count)]
    tags = {256: [width], 257: [height], 258: [16] * count, 259: [compression], 262: [photometric]}
    tags |= {273: starts, 277: [count], 278: [height], 279: list(map(len, strips))}
    tags |= {284: [2 if count > 1 else 1]}
    end = 8 + sum(map(len, strips))
    far = end + 2 + 12 * len(tags) + 4
    entries, beyond = b"", b""
    for tag, values in tags.items():
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            packed, beyond = struct.pack("<I", far + len(beyond)), beyond + packed
        entries += struct.pack("<HHI", tag, 4, len(values)) + packed
    head = b"II*\0" + struct.pack("<I", end) + b"".join(strips)
    return head + struct.pack("<H", len(tags)) + entries + bytes(4) + beyond


def _one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 250
    return text


# --- ways in ---------------------------------------------------------------------------------


def test_every_source_gives_the_same_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)
    data = path.read_bytes()
    stdin = io.TextIOWrapper(io.BytesIO(data))
    monkeypatch.setattr("sys.stdin", stdin)
    sources = [
        path,
        str(path),
        data,
        bytearray(data),
        io.BytesIO(data),
        "-",
        Image.fromarray(PICTURE),
        PICTURE,
        PICTURE.astype(np.uint16) * 257,
        PICTURE.astype(np.float32) / 255,
        PICTURE.astype(np.float64) / 255,
        torch.from_numpy(PICTURE.transpose(2, 0, 1).copy()),
        torch.from_numpy(PICTURE.transpose(2, 0, 1).copy()).float() / 255,
    ]
    for source in sources:
        loaded = load_image(source)
        assert loaded.rgb.dtype == np.uint8
        assert loaded.rgb.flags.c_contiguous
        assert loaded.rgb.flags.writeable
        assert loaded.alpha is None
        np.testing.assert_array_equal(loaded.rgb, PICTURE)
    assert load_image(path).name == "a.png"
    assert load_image(data).name is None


def test_an_open_file_is_read(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)
    with path.open("rb") as file:
        np.testing.assert_array_equal(load_image(file).rgb, PICTURE)
    with path.open("r", encoding="latin-1") as file, pytest.raises(ImageError, match="binary"):
        load_image(file)


def test_result_is_independent_of_the_callers_array():
    own = PICTURE.copy()
    loaded = load_image(own)
    own[:] = 0
    np.testing.assert_array_equal(loaded.rgb, PICTURE)


def test_grey_mask_and_alpha_arrays():
    grey = PICTURE[..., 0]
    for source in (grey, grey[..., None], torch.from_numpy(grey[None].copy())):
        np.testing.assert_array_equal(load_image(source).rgb, np.dstack([grey] * 3))
    assert set(np.unique(load_image(grey > 99).rgb)) == {0, 255}
    rgba = np.dstack([PICTURE, grey])
    loaded = load_image(rgba)
    np.testing.assert_array_equal(loaded.rgb, PICTURE)
    np.testing.assert_array_equal(loaded.alpha, grey.astype(np.float32) / 255)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (np.zeros((3, 20, 30), np.uint8), "transpose"),
        (np.zeros((2, 2, 2, 3), np.uint8), "2 x 2 x 2 x 3"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.full((4, 4), np.nan, np.float32), "nan"),
        (np.full((4, 4, 3), 200.0), "200"),
        (np.full((4, 4, 3), -0.1), "-0.1"),
        (np.array(5), "scalar"),
        (torch.zeros(1, 3, 4, 4), "batch"),
        (torch.zeros(5, 4, 3), "5 x 4 x 3"),
        (None, "NoneType"),
        (b"", "empty"),
        (io.BytesIO(), "empty"),
        (b"hello, this is no picture", "not an image"),
    ],
)
def test_unusable_values_are_refused(source, says):
    with pytest.raises(ImageError, match=says) as caught:
        load_image(source)
    _one_line(caught)


# --- kinds of file ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    blocks = np.kron(
        RNG.integers(0, 256, (2, 3, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8)
    )
    data = _encoded(Image.fromarray(blocks), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    got = load_image(data).rgb
    assert got.shape == ((48, 32, 3) if orientation >= 5 else (32, 48, 3))
    np.testing.assert_array_equal(got, np.array(upright))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_colour_is_scaled_and_rounded(suffix):
    deep = RNG.integers(0, 65536, (5, 7, 4), dtype=np.uint16)
    deep[0, 0] = 65535
    rgb = cv2.imencode(suffix, deep[..., 2::-1])[1].tobytes()
    np.testing.assert_array_equal(load_image(rgb).rgb, np.round(deep[..., :3] / 257))


def test_16_bit_alpha_keeps_its_precision():
    deep = RNG.integers(0, 65536, (5, 7, 4), dtype=np.uint16)
    data = cv2.imencode(".png", deep[..., [2, 1, 0, 3]])[1].tobytes()
    want = deep[..., 3] / np.float32(65535)
    loaded = load_image(data)
    np.testing.assert_array_equal(loaded.rgb, np.round(deep[..., :3] / 257))
    assert loaded.alpha is not None
    np.testing.assert_allclose(loaded.alpha, want, rtol=1e-7)
    np.testing.assert_allclose(read_alpha(data), want, rtol=1e-7)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    deep = np.array([[0, 128, 129, 257], [32768, 65279, 65407, 65535]], np.uint16)
    data = _encoded(Image.fromarray(deep), kind)
    np.testing.assert_array_equal(
        load_image(data).rgb[..., 0], [[0, 0, 1, 1], [128, 254, 255, 255]]
    )
    np.testing.assert_allclose(read_alpha(data), deep / 65535, rtol=1e-6)


def test_16_bit_grey_may_begin_at_white():
    deep = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    for photometric, want in ((1, deep), (0, 65535 - deep)):
        data = _tiff([deep], photometric=photometric)
        np.testing.assert_allclose(read_alpha(data), want / 65535, rtol=1e-6)


def test_grey_of_12_bits_reaches_white():
    black_and_white = bytes([0x00, 0x0F, 0xFF])
    entries = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1)]
    entries.append((279, len(black_and_white)))
    data = b"II*\0" + struct.pack("<I", 12) + black_and_white + b"\0"
    data += struct.pack("<H", len(entries))
    for tag, value in entries:
        data += struct.pack("<HHIHH", tag, 3, 1, value, 0)
    assert load_image(data + bytes(4)).rgb[..., 0].tolist() == [[0, 255]]


def test_16_bit_colour_in_planes_is_right_or_refused():
    deep = RNG.integers(0, 65536, (3, 5, 7), dtype=np.uint16)
    got = load_image(_tiff(deep, compression=8)).rgb  # of which Pillow keeps the upper 8 bits
    np.testing.assert_array_equal(got, (deep >> 8).transpose(1, 2, 0))
    for source in (_tiff(deep), Image.open(io.BytesIO(_tiff(deep)))):
        with pytest.raises(ImageError, match="plane by plane"):
            load_image(source)


def test_16_bit_grey_with_alpha():
    values = RNG.integers(0, 65536, (3, 4, 2), dtype=np.uint16)
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    loaded = load_image(_png(4, 3, 16, 4, rows))
    np.testing.assert_array_equal(loaded.rgb[..., 1], np.round(values[..., 0] / 257))
    assert loaded.alpha is not None
    np.testing.assert_allclose(loaded.alpha, values[..., 1] / 65535, rtol=1e-6)


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_float_tiff_is_read_by_its_range(top):
    values = np.linspace(0, top, 12, dtype=np.float32).reshape(3, 4)
    data = _encoded(Image.fromarray(values), "TIFF")
    np.testing.assert_allclose(load_image(data).rgb[..., 0], values / top * 255, atol=0.51)


def test_float_tiff_with_nan_is_refused():
    data = _encoded(Image.fromarray(np.array([[0.5, np.nan]], np.float32)), "TIFF")
    with pytest.raises(ImageError, match="NaN") as caught:
        load_image(data)
    _one_line(caught)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind):
    # JPEGs of this mode are stored inverted, as Adobe's programs do.
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    got = load_image(_encoded(red, kind)).rgb
    assert np.abs(got.astype(int) - (255, 0, 0)).max() <= 3


def test_palette_with_and_without_transparency():
    flat = Image.new("P", (4, 2), 1)
    flat.putpalette([10, 20, 30, 200, 100, 50])
    loaded = load_image(_encoded(flat, "PNG"))
    assert loaded.alpha is None
    assert (loaded.rgb == (200, 100, 50)).all()
    flat.putpixel((0, 0), 0)
    loaded = load_image(_encoded(flat, "PNG", transparency=b"\x40\xff"))
    assert loaded.alpha is not None
    np.testing.assert_allclose(loaded.alpha[0, :2], [64 / 255, 1])
    assert (loaded.rgb[0, 0] == (10, 20, 30)).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "YCbCr", "HSV"])
def test_other_modes(mode):
    base = Image.fromarray(PICTURE)
    image = base.convert("L").convert(mode) if mode in ("1", "LA") else base.convert(mode)
    loaded = load_image(image)
    np.testing.assert_array_equal(loaded.rgb, np.array(image.convert("RGB")))
    assert (loaded.alpha is not None) == mode.endswith("A")


def test_transparent_pictures_keep_straight_colour():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[...] = (250, 120, 60, 1)
    for kind in ("PNG", "TIFF"):
        loaded = load_image(_encoded(Image.fromarray(rgba), kind))
        assert (loaded.rgb == (250, 120, 60)).all()
        assert loaded.alpha is not None
        np.testing.assert_allclose(loaded.alpha, 1 / 255)


def test_transparent_key_colour():
    rgb = Image.new("RGB", (2, 1), (9, 9, 9))
    rgb.putpixel((0, 0), (1, 2, 3))
    loaded = load_image(_encoded(rgb, "PNG", transparency=(1, 2, 3)))
    np.testing.assert_array_equal(loaded.alpha, [[0, 1]])


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), c) for c in ((255, 0, 0), (0, 255, 0))]
    data = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (load_image(data).rgb == (255, 0, 0)).all()


def _swapped_profile():
    """An sRGB profile whose red and green primaries have changed places, under another name."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = data.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1)
    return data.replace(b"????", b"gXYZ", 1).replace("sRGB".encode("utf-16-be"), b"\0o\0d\0d\0!")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_profile_is_applied(mode):
    profile = _swapped_profile()
    image = Image.new("RGB", (4, 4), (255, 0, 0)).convert(mode)
    loaded = load_image(_encoded(image, "PNG", icc_profile=profile))
    assert np.abs(loaded.rgb.astype(int) - (0, 255, 0)).max() <= 2
    assert loaded.icc == profile
    deep = cv2.imencode(".png", np.full((4, 4, 3), (0, 0, 65535), np.uint16))[1].tobytes()
    assert (load_image(deep).rgb == (255, 0, 0)).all()


def test_srgb_profile_changes_nothing_and_a_broken_one_is_not_fatal():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"this is no profile"):
        data = _encoded(Image.fromarray(PICTURE), "PNG", icc_profile=profile)
        np.testing.assert_array_equal(load_image(data).rgb, PICTURE)


def test_read_alpha_picks_alpha_or_brightness():
    painted = np.zeros((4, 5, 3), np.uint8)
    painted[1, 2] = (0, 0, 255)  # a blue brush counts as much as a white one
    assert read_alpha(painted)[1, 2] == 1
    assert read_alpha(painted).sum() == 1
    opaque = np.dstack([painted, np.full((4, 5), 255, np.uint8)])
    np.testing.assert_array_equal(read_alpha(opaque), read_alpha(painted))
    clear = opaque.copy()
    clear[0, 0, 3] = 51
    assert read_alpha(clear)[0, 0] == pytest.approx(0.2)
    assert read_alpha(clear).dtype == np.float32


# --- what cannot be read ---------------------------------------------------------------------


def test_huge_header_fails_at_once(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(_png(30_000, 30_000, 8, 2))
    start = time.perf_counter()
    with pytest.raises(ImageError, match="900 megapixels") as caught:
        load_image(path)
    assert time.perf_counter() - start < 1
    assert str(path) in _one_line(caught)


def test_limit_is_ours_not_pillows(monkeypatch):
    # Pillow warns from 89 million pixels on; nothing may come through up to our own limit.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    assert load_image(_encoded(Image.fromarray(PICTURE), "PNG")).rgb.shape == PICTURE.shape
    assert Image.MAX_IMAGE_PIXELS == 4
    monkeypatch.setattr(images, "MAX_PIXELS", 53)
    with pytest.raises(ImageError, match="9 x 6"):
        load_image(_encoded(Image.fromarray(PICTURE), "PNG"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF"])
@pytest.mark.parametrize("keep", [0.5, 0.05])
def test_truncated_files_are_refused(tmp_path, kind, keep):
    path = tmp_path / f"cut.{kind.lower()}"
    big = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = _encoded(big, kind)
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(path) in _one_line(caught)


def test_truncated_16_bit_png_is_refused():
    data = cv2.imencode(".png", RNG.integers(0, 65536, (64, 64, 3), dtype=np.uint16))[1].tobytes()
    with pytest.raises(ImageError):
        load_image(data[: len(data) // 2])


def test_files_that_are_no_pictures(tmp_path):
    text = tmp_path / "text.png"
    text.write_text("certainly not a picture\n")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    none = tmp_path / "none.png"
    none.write_bytes(_png(0, 0, 8, 2))
    heic = tmp_path / "phone.heic"
    heic.write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    eps = tmp_path / "a.eps"
    Image.fromarray(PICTURE).save(eps)
    for path, says in [
        (text, "not an image"),
        (empty, "empty"),
        (none, "none.png"),
        (heic, "HEIC"),
        (eps, "PostScript"),
        (tmp_path, "folder"),
        (tmp_path / "missing.png", "does not exist"),
        ("http://localhost/cat.png", "URL"),
        ("a\0b.png", "usable path"),
    ]:
        with pytest.raises(ImageError, match=says) as caught:
            load_image(path)
        assert str(path) in _one_line(caught) or repr(path) in _one_line(caught)


def test_masks_of_zeros_and_ones_are_binary_and_faint_mattes_are_not() -> None:
    ones = np.array([[0, 1], [1, 1]], np.uint8)
    assert images.read_mask(ones).tolist() == [[0, 1], [1, 1]]
    assert images.read_mask(Image.fromarray(ones)).tolist() == [[0, 1], [1, 1]]
    faint = np.full((2, 2), 0.003, np.float32)
    assert np.array_equal(images.read_mask(faint), faint)
    assert np.array_equal(images.read_mask(torch.from_numpy(faint)), faint)
