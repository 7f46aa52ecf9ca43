"""The command: pictures in, files out, and what it says when that cannot be done."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from zim import plugins
from zim.protocols import Detection
from zim.testing import disc, picture
from zim_inpaint import backends, flags
from zim_inpaint import picture as picture_module
from zim_inpaint.api import MODES
from zim_inpaint.cli import main
from zim_inpaint.picture import Picture, encode_picture, is_deep, read_picture
from zim_inpaint.transparency import repaired

SIZE = (96, 128)
ALPHA = disc(*SIZE, softness=6)
IMAGE = picture(*SIZE)


class Discs:
    """A segmenter that answers every prompt with a disc round its first point or box centre."""

    def set_image(self, image: np.ndarray) -> None:
        self.size = image.shape[:2]

    def predict(self, **prompt: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if prompt["point_coords"] is not None:
            x, y = prompt["point_coords"][0]
        else:
            x0, y0, x1, y1 = prompt["box"]
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
        if (x, y) == (1, 1):  # the corner is nothing
            return np.zeros((1, *self.size), np.float32), np.ones(1), np.zeros((1, 4, 4))
        alpha = disc(*self.size, centre=(float(x), float(y)), radius=12)
        return alpha[None], np.array([0.75]), np.zeros((1, 4, 4))


@pytest.fixture(autouse=True)
def _discs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zim_inpaint.finder.load_segmenter", lambda *a, **k: Discs())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(IMAGE).save(path)
    return path


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def test_the_flags_name_what_the_library_has() -> None:
    assert flags.BACKENDS == backends.NAMES
    assert flags.MODES == MODES


def test_one_click_one_result(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photo.parent / "out"
    words = [
        "--image",
        str(photo),
        "--points",
        "64,48",
        "100,20,0",
        "--output",
        f"{out}/",
        "--json",
    ]
    assert main(words) == 0
    data = report(capsys)
    assert set(data["outputs"]) == {"result", "alpha", "mask"}
    assert {"start", "matte", "repaint", "write"} <= set(data["seconds"])
    assert data["metrics"]["objects"] == 1
    assert data["items"][0]["settings"]["seed"] == 0
    result = np.array(Image.open(data["outputs"]["result"]))
    mask = np.array(Image.open(data["outputs"]["mask"])) > 0
    wide = np.pad(mask, 8)
    for _ in range(8):
        wide[1:-1, 1:-1] |= wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    far = ~wide[8:-8, 8:-8]
    assert (result[far] == IMAGE[far]).all()
    assert (result[mask] != IMAGE[mask]).any()
    assert main(words) == 1  # the files exist now
    assert "use --overwrite or --skip-existing" in capsys.readouterr().err
    before = Path(data["outputs"]["result"]).read_bytes()
    assert main([*words, "--overwrite"]) == 0
    assert Path(data["outputs"]["result"]).read_bytes() == before


def test_several_boxes_are_one_repair(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = ["--box", "10,10,40,40", "80,50,110,80"]
    words = ["--image", str(photo), *boxes, "-o", str(photo.parent / "x.png"), "--json"]
    assert main(words) == 0
    data = report(capsys)
    assert data["metrics"]["objects"] == 2
    assert list(data["outputs"]) == ["result"]


def test_words_go_through_the_detector(
    photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Detector:
        def detect(self, image: np.ndarray, phrases: list[str]) -> list[Detection]:
            asked.append((image.shape, list(phrases)))
            return [Detection((40, 30, 80, 70), "disc", 0.9)] if "disc" in phrases else []

    monkeypatch.setattr(plugins, "names", lambda group: ["mine"])
    monkeypatch.setattr(plugins, "find", lambda group, name: lambda **options: Detector())
    words = ["--image", str(photo), "-o", str(photo.parent / "x.png"), "--json", "--text"]
    assert main([*words, "disc, dot"]) == 0
    assert asked == [((96, 128, 3), ["disc", "dot"])]
    assert report(capsys)["metrics"]["objects"] == 1
    assert main([*words, "cat", "--overwrite"]) == 1
    assert "nothing in the picture answers 'cat'" in capsys.readouterr().err
    monkeypatch.setattr(Detector, "limits", "it knows drawings; use another", raising=False)
    assert main([*words, "cat", "--overwrite"]) == 1
    error = capsys.readouterr().err
    assert "'cat': it knows drawings; use another, or click with --points" in error
    monkeypatch.setattr(plugins, "names", lambda group: [])
    assert main([*words, "cat", "--overwrite"]) == 1
    assert "[grounded]'" in capsys.readouterr().err


def test_a_batch_goes_on_and_the_exit_code_tells(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photo.parent / "many"
    folder.mkdir()
    Image.fromarray(IMAGE).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"not a picture")
    Image.fromarray(IMAGE).save(folder / "c.png")
    out = photo.parent / "out"
    words = ["--image", str(folder), "--points", "64,48", "-o", f"{out}/", "--json"]
    assert main(words) == 1
    streams = capsys.readouterr()
    data = json.loads(streams.out)
    assert [Path(item["input"]).name for item in data["items"]] == ["a.png", "b.png", "c.png"]
    assert [item["error"] is None for item in data["items"]] == [True, False, True]
    assert data["error"] == "1 of 3 images failed"
    assert streams.err.count("\n") == 1
    assert not list(out.glob("b.*"))
    assert (out / "c.result.png").exists()


def test_a_manifest_says_something_for_every_picture(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray((ALPHA * 255).astype(np.uint8)).save(photo.parent / "m.png")
    Image.fromarray(IMAGE).save(photo.parent / "other.png")
    Image.fromarray(IMAGE).save(photo.parent / "third.png")
    rows = [
        {"image": "photo.png", "points": [[64, 48]]},
        {"image": "other.png", "matte": "m.png"},
        {"image": "third.png", "points": [[64]]},
        {"image": "./photo.png", "box": [40, 30, 90, 70]},
        {"image": "other.png", "matte": 5},
        {"image": 5},
        {"image": "~nobody-at-all/b.png", "points": [[1, 2]]},
        {"image": "other.png", "points": []},
        {"image": "other.png", "points": [[1, 2]], "matte": "m.png"},
    ]
    manifest = photo.parent / "list.jsonl"
    manifest.write_text("\n".join([*map(json.dumps, rows), "no JSON"]))
    words = ["--manifest", str(manifest), "-o", str(photo.parent / "out/"), "--json"]
    assert main(words) == 1
    data = report(capsys)
    assert main([*words, "--points", "1,1"]) == 2
    assert "with --manifest its lines say which object" in capsys.readouterr().err
    errors = [item["error"] for item in data["items"] if item["error"]]
    expected = (
        "line 3: point [64",
        "line 5: matte is 5",
        "line 6: expected",
        "such home",
        "line 8: its",
    )
    expected += ("line 9: its matte is used as it is", "line 10: not JSON")
    assert len(errors) == len(expected)
    for said in expected:
        assert any(said in error for error in errors), said
    for name in ("photo.1.result.png", "photo.2.result.png"):  # two objects of one picture
        assert (photo.parent / "out" / name).is_file()
    written = np.array(Image.open(photo.parent / "out/other.1.alpha.png"))
    assert (written == (ALPHA * 255).astype(np.uint8)).all()


def test_profile_exif_resolution_and_transparency_survive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    exif[0x010E] = "a disc"
    alpha = np.full(SIZE, 255, np.uint8)
    alpha[:10] = 7
    source = tmp_path / "in.png"
    stored = np.rot90(np.dstack([IMAGE, alpha]))  # so that it is shown upright
    Image.fromarray(np.ascontiguousarray(stored)).save(
        source, icc_profile=wide, exif=exif, dpi=(300, 300)
    )
    target = tmp_path / "out.png"
    words = ["--image", str(source), "--points", "64,48", "-o", str(target)]
    assert main(words) == 0
    capsys.readouterr()
    with Image.open(target) as image:
        out = np.array(image)
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert image.getexif()[0x010E] == "a disc"
        assert 0x0112 not in image.getexif()
    assert out.shape == (*SIZE, 4)
    assert (out[..., 3] == alpha).all()
    assert (out[:20, :20, :3] == IMAGE[:20, :20]).all()


@pytest.mark.parametrize("dpi", [None, (240, 240)])
@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg"])
def test_a_tiff_has_the_resolution_that_it_states_or_none(
    tmp_path: Path, dpi: tuple[int, int] | None, suffix: str
) -> None:
    source, target = tmp_path / "in.tif", tmp_path / f"out{suffix}"
    stated: dict[str, Any] = {"dpi": dpi} if dpi else {}
    Image.fromarray(IMAGE).save(source, **stated)
    assert read_picture(str(source)).dpi == dpi
    target.write_bytes(encode_picture(IMAGE, read_picture(str(source)), suffix))
    with Image.open(target) as image:
        found = image.info.get("dpi") if suffix != ".tif" or 282 in image.getexif() else None
    assert found == (pytest.approx(dpi, abs=0.1) if dpi else None)


def test_a_wide_gamut_file_keeps_its_values_and_its_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # a matrix profile that is not sRGB: sRGB with red and blue primaries exchanged
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.find(b"rXYZ"), profile.find(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    place = profile.find(b"s\x00R\x00G\x00B") if b"s\x00R\x00G\x00B" in profile else -1
    if place >= 0:
        profile[place : place + 5] = b"x\x00x\x00x"
    source, target = tmp_path / "in.tif", tmp_path / "out.png"
    Image.fromarray(IMAGE).save(source, icc_profile=bytes(profile))
    words = ["--image", str(source), "--points", "64,48", "--mode", "replace", "-o"]
    assert main([*words, str(tmp_path / "red.png"), "--background", "#ff1000"]) == 0
    with Image.open(tmp_path / "red.png") as image:  # the colour that was asked for, in sRGB
        assert "icc_profile" not in image.info
        assert image.getpixel((0, 0)) == (255, 16, 0)
    assert main(["--image", str(source), "--points", "64,48", "-o", str(target)]) == 0
    capsys.readouterr()
    with Image.open(target) as image:
        assert image.info["icc_profile"] == bytes(profile)
        assert (np.array(image)[:20, :20] == IMAGE[:20, :20]).all()


@pytest.mark.parametrize("backend", ["telea", "patchmatch"])
def test_colours_that_nobody_sees_are_not_continued(tmp_path: Path, backend: str) -> None:
    """A blue sheet, transparent around it where the file says green, and something across it."""
    picture = np.full((*SIZE, 4), (0, 255, 0, 0), np.uint8)
    picture[20:, :] = (60, 90, 200, 255)
    alpha = np.zeros(SIZE, np.uint8)
    alpha[5:40, 50:80] = 255
    source, matte, target = (tmp_path / f"{name}.png" for name in ("in", "m", "out"))
    Image.fromarray(picture).save(source)
    Image.fromarray(alpha).save(matte)
    words = ["--image", str(source), "--matte", str(matte), "--backend", backend]
    assert main([*words, "-o", str(target)]) == 0
    out = np.array(Image.open(target)).astype(int)
    seen = out[..., 3] > 0
    assert np.abs(out[seen][:, :3] - (60, 90, 200)).max() < 8
    far = np.ones(SIZE, bool)
    far[:60, 30:100] = False
    assert (out[far] == picture[far]).all()  # hidden or not


def test_transparency_goes_with_what_it_belongs_to(tmp_path: Path) -> None:
    """An opaque disc on transparent: removed, filled in, and put on blue."""
    shape = (disc(*SIZE, radius=20, softness=2) * 255).astype(np.uint8)
    yellow = np.where(shape[..., None] > 0, np.array([220, 180, 40]), 0).astype(np.uint8)
    source, matte = tmp_path / "in.png", tmp_path / "m.png"
    Image.fromarray(np.dstack([yellow, shape])).save(source)
    Image.fromarray(shape).save(matte)
    words = ["--image", str(source), "--matte", str(matte), "--backend", "telea", "-o"]
    gone, blue = tmp_path / "gone.png", tmp_path / "blue.jpg"
    assert main([*words, str(gone)]) == 0
    assert np.array(Image.open(gone))[..., 3].max() == 0
    words = ["--image", str(source), "--matte", str(matte), "--mode", "replace", "-o", str(blue)]
    assert main([*words, "--background", "#00f"]) == 0
    # JPEG has no transparency: nothing of it is left, and the rim mixes yellow with blue alone
    out = np.array(Image.open(blue)).astype(int)
    share = shape[..., None] / 255
    expected = share * [220, 180, 40] + (1 - share) * [0, 0, 255]
    assert np.abs(out - expected).mean() < 3
    assert np.abs(out - expected).max() < 60


@pytest.mark.parametrize("removed", [True, False])
def test_a_hole_over_an_edge_of_transparency(removed: bool) -> None:
    alpha = np.ones((40, 40), np.float32)
    alpha[:, 20:] = 0
    mask = np.zeros((40, 40), np.bool_)
    mask[15:25, 10:30] = True
    like = Picture(picture(40, 40), picture(40, 40), alpha)
    out = repaired(like, mask, mask.astype(np.float32), removed=removed).alpha
    assert out is not None
    assert (out[~mask] == alpha[~mask]).all()
    assert out[20, 12] == pytest.approx(1, abs=1e-3)
    assert out[20, 27] == pytest.approx(0 if removed else 1, abs=1e-3)


def test_jpeg_and_webp_are_written(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in (".jpg", ".webp", ".tif"):
        target = photo.with_name(f"out{suffix}")
        assert main(["--image", str(photo), "--points", "64,48", "-o", str(target)]) == 0
        out = np.array(Image.open(target).convert("RGB"))
        difference = np.abs(out[:20, :20].astype(int) - IMAGE[:20, :20]).max()
        assert difference == 0 if suffix != ".jpg" else difference < 30
    capsys.readouterr()


@pytest.mark.parametrize(
    ("mode", "more"),
    [
        ("I;16", {}),
        ("CMYK", {}),
        ("L", {}),
        ("P", {}),
        ("1", {"compression": "group4"}),
        ("RGB", {"tiffinfo": {0x0112: 6}}),
        ("RGB", {"tiffinfo": {282: 4e9, 283: 4e9}}),
        ("RGB", {"tiffinfo": {282: 0.0, 283: 0.0}}),
    ],
)
def test_a_tiff_of_any_kind_comes_out_readable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, more: dict[str, Any]
) -> None:
    source = tmp_path / "in.tif"
    grey = Image.fromarray(IMAGE[..., 0].astype(np.uint16) * 257)
    stored = grey if mode == "I;16" else Image.fromarray(IMAGE).convert(mode)
    info = {0x010E: "a disc"} | more.get("tiffinfo", {})
    stored.save(source, **more | {"tiffinfo": info})
    for name in ("out.tif", "out.png"):
        target = tmp_path / name
        assert main(["--image", str(source), "--points", "64,48", "-o", str(target)]) == 0
        with Image.open(target) as image:
            assert image.mode == "RGB"
            assert image.size == ((96, 128) if 0x0112 in info else (128, 96))
            assert np.array(image)[48, 64].shape == (3,)
            assert image.getexif()[0x010E] == "a disc"
    assert ("16 bits become 8" in capsys.readouterr().err) == (mode == "I;16")


@pytest.mark.parametrize(
    ("mode", "raw", "format", "deep"),
    [
        ("RGB", ("RGB", 0, 16), "TIFF", False),
        ("RGB", ("BGR;16", 516, -1), "BMP", False),
        ("RGB", "RGB;16B", "PNG", True),
        ("RGB", ("RGB;16N", False, 101978), "TIFF", True),
        ("I;16", "I;16B", "PNG", True),
        ("RGB", ("RGB", 65535), "PPM", True),
        ("RGB", ("RGB", 100), "PPM", False),
        ("I", "I;16B", "PPM", True),
    ],
)
def test_sixteen_bits_are_what_the_pixels_have(
    mode: str, raw: Any, format: str, deep: bool
) -> None:
    opened: Any = SimpleNamespace(mode=mode, tile=[("raw", (), 16, raw)], format=format)
    assert is_deep(opened) is deep


def test_whatever_a_picture_raises_stops_that_picture_only(
    photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = photo.with_name("strange.png")
    Image.fromarray(IMAGE).save(other)
    read = picture_module.read_picture

    def strange(source: str) -> Any:
        if source == str(other):
            raise RuntimeError("deep inside")
        return read(source)

    monkeypatch.setattr(picture_module, "read_picture", strange)
    out = photo.parent / "out"
    words = ["--image", str(other), str(photo), "--points", "64,48", "-o", f"{out}/", "--json"]
    assert main(words) == 1
    streams = capsys.readouterr()
    assert [bool(item["error"]) for item in json.loads(streams.out)["items"]] == [True, False]
    assert streams.err == f"zim-inpaint: {other}: deep inside\n"


@pytest.mark.parametrize("last", [False, True])
def test_a_picture_without_its_flag_is_told_the_flag(
    photo: Path, capsys: pytest.CaptureFixture[str], last: bool
) -> None:
    flags = ["--points", "64,48", "-o", str(photo.parent / "out.png")]
    assert main([*flags, str(photo)] if last else [str(photo), *flags]) == 2
    assert capsys.readouterr().err == (
        f"zim-inpaint: {photo} is a file; give pictures with --image\n"
    )


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--points", "1,1"], 1, "matte is empty at the click (1, 1)"),
        (["--points", "500,1"], 1, "outside the 128 x 96 picture"),
        (["--points", "64,48", "--mode", "fill"], 2, "--text"),
        (["--points", "64,48", "--mode", "replace"], 2, "--background"),
        (["--points", "64,48", "--background", "red"], 2, "--mode replace"),
        (["--points", "64,48", "--mode", "fill", "--text", "x"], 2, "takes none"),
        (["--object", ""], 2, "--object is empty"),
        (["--points", "64,48", "--lama", "/none"], 2, "--lama would do nothing"),
        (["--points", "64,48", "--steps", "5"], 2, "--steps would do nothing"),
        (["--points", "64,48", "--offload", "model"], 2, "--backend diffusers, not telea"),
        (["--points", "64,48", "--pipeline", "foo"], 2, "--pipeline would do nothing"),
        (["--points", "64,48", "--negative", "x"], 2, "--negative would do nothing"),
        (["--points", "64,48", "--resize-matte"], 2, "there is no --matte"),
        (["--points", "64,48", "--detector", "nosuch"], 2, "no words for it"),
        (
            ["--points", "64,48", "--mode", "replace", "--background", "red", "--feather", "9"],
            2,
            "would do nothing",
        ),
        (["--points", "64,48", "--backend", "lama"], 1, "206 MB, Apache-2.0"),
        (["--points", "64,48", "--grow", "wide"], 2, "auto or a whole number"),
        (["--points", "64,48", "--grow", "-1"], 2, "'-1' is not auto or a whole number"),
        (["--points", "64,48", "--matte", "m.png"], 2, "used as it is"),
        (["--points", "64,48", "--colour", "red"], 2, "unknown option --colour"),
        (["--object", "red", "cup"], 2, "cup stands behind no flag; give pictures with --image"),
        (["--cover", "nan"], 2, "above 0 and below 0.5"),
        (["--feather", "nan"], 2, "'nan' is not a number of at least 0"),
        (["--context", "inf"], 2, "'inf' is not a number of at least 0"),
        (["--guidance", "-1"], 2, "'-1' is not a number of at least 0"),
        (["--strength", "nan"], 2, "above 0 and up to 1"),
        (["--strength", "0"], 2, "above 0 and up to 1"),
        (["--matte", "gone.png"], 1, "gone.png does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    words: list[str],
    code: int,
    line: str,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ZIM_HOME", str(photo.parent / "home"))
    monkeypatch.setenv("LAMA_MODEL", "")
    out = photo.parent / "out"
    backend = [] if "--backend" in words else ["--backend", "telea"]
    assert main(["--image", str(photo), *words, *backend, "-o", f"{out}/"]) == code
    streams = capsys.readouterr()
    assert line in streams.err
    assert streams.err.count("\n") == 1
    assert streams.out == ""
    assert not out.exists()


def test_a_matte_of_another_size_is_refused_or_scaled(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matte = photo.with_name("m.png")
    Image.fromarray((ALPHA * 255).astype(np.uint8)).resize((64, 48)).save(matte)
    words = ["--image", str(photo), "--matte", str(matte), "-o", str(photo.with_name("x.png"))]
    assert main(words) == 1
    assert "is 64 x 48 but the picture is 128 x 96" in capsys.readouterr().err
    assert main([*words, "--resize-matte"]) == 0
    Image.fromarray(np.full((96, 128), 255, np.uint8)).save(matte)
    assert main([*words, "--overwrite"]) == 1
    assert "covers 100% of the picture" in capsys.readouterr().err


def test_replace_with_a_colour(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = photo.with_name("x.png")
    words = ["--image", str(photo), "--points", "64,48", "--mode", "replace"]
    assert main([*words, "--background", "#102030", "-o", str(target)]) == 0
    out = np.array(Image.open(target))
    assert out[0, 0].tolist() == [16, 32, 48]
    assert (out[48, 64] == IMAGE[48, 64]).all()
    capsys.readouterr()
