"""``zim matte`` from end to end, with a tiny random model: files, JSON, exit codes, failures."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zim
from zim.cli import main

WIDTH, HEIGHT = 90, 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    zim.build("tiny", seed=0).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    pixels = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    pixels[15:45, 20:70] = (220, 120, 60)
    pixels += rng.integers(0, 20, pixels.shape, dtype=np.uint8)
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


class Run:
    """One call of the command line and what came of it."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *words: object) -> None:
        self.code = main(["matte", *map(str, words)])
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> dict[str, Any]:
        assert self.out.count("\n") == 1
        return json.loads(self.out)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_default_files_and_printed_paths(
    capsys: pytest.CaptureFixture[str], model: str, photo: Path, out: Path
) -> None:
    run = Run(capsys, photo, "--points", "45,30", "--model", model, "--output", out)
    assert (run.code, run.err) == (0, "")
    assert files(out) == {"photo.rgba.png", "photo.alpha.png"}
    assert run.out.split() == [str(out / "photo.rgba.png"), str(out / "photo.alpha.png")]
    with Image.open(out / "photo.rgba.png") as rgba, Image.open(out / "photo.alpha.png") as alpha:
        assert (rgba.mode, rgba.size) == ("RGBA", (WIDTH, HEIGHT))
        assert (alpha.mode, alpha.size) == ("L", (WIDTH, HEIGHT))
        assert np.array_equal(np.asarray(rgba)[..., 3], np.asarray(alpha))


def test_the_files_hold_what_the_python_interface_gives(
    capsys: pytest.CaptureFixture[str], model: str, photo: Path, out: Path
) -> None:
    run = Run(
        capsys, photo, "--box", "15,10,75,50", "--model", model, "--output", out,
        "--format", "rgba", "alpha", "--foreground", "none", "--json",
    )  # fmt: skip
    expected = zim.matte(photo, box=(15, 10, 75, 50), model=model)
    with Image.open(out / "photo.alpha.png") as alpha:
        error = np.asarray(alpha) / 255 - expected.alpha
        assert np.abs(error).max() <= 0.5 / 255 + 1e-6
    with Image.open(out / "photo.rgba.png") as rgba:
        assert np.array_equal(np.asarray(rgba)[..., :3], expected.image)
    assert run.json["metrics"]["score"] == pytest.approx(expected.score, abs=1e-3)


def test_json_is_one_object_with_the_promised_keys(
    capsys: pytest.CaptureFixture[str], model: str, photo: Path, out: Path
) -> None:
    run = Run(capsys, photo, "--model", model, "--output", out, "--json")
    assert (run.code, run.err) == (0, "")
    data = run.json
    assert data["model"] == model
    assert data["outputs"] == {
        "rgba": str(out / "photo.rgba.png"),
        "alpha": str(out / "photo.alpha.png"),
    }
    assert {"start", "read", "encode", "decode", "write"} <= set(data["seconds"])
    assert all(value >= 0 for value in data["seconds"].values())
    (item,) = data["items"]
    assert item["input"] == str(photo)
    assert item["outputs"] == data["outputs"]
    assert item["error"] is None


def test_every_format_at_once(
    capsys: pytest.CaptureFixture[str], model: str, photo: Path, out: Path
) -> None:
    run = Run(
        capsys, photo, "--model", model, "--output", out, "--background", "#ff0000",
        "--format", "rgba", "alpha", "composite", "overlay",
    )  # fmt: skip
    assert run.code == 0
    for kind, mode in (("rgba", "RGBA"), ("alpha", "L"), ("composite", "RGB"), ("overlay", "RGB")):
        with Image.open(out / f"photo.{kind}.png") as image:
            assert (image.mode, image.size) == (mode, (WIDTH, HEIGHT))


def test_sixteen_bits(
    capsys: pytest.CaptureFixture[str], model: str, photo: Path, out: Path
) -> None:
    run = Run(capsys, photo, "--model", model, "--bits", "16", "--format", "alpha", "--output", out)
    assert run.code == 0
    with Image.open(out / "photo.alpha.png") as image:
        values = np.asarray(image)
    assert values.dtype == np.uint16
    assert len(np.unique(values)) > 256  # a soft matte in 8 bits scaled up could not have these


def test_a_composite_is_on_the_background_where_nothing_is(
    capsys: pytest.CaptureFixture[str], model: str, photo: Path, out: Path, tmp_path: Path
) -> None:
    backdrop = tmp_path / "backdrop.png"
    Image.new("RGB", (WIDTH, HEIGHT), (10, 200, 30)).save(backdrop)
    for background in (backdrop, "#0ac81e", "rgb(10,200,30)"):
        run = Run(
            capsys, photo, "--model", model, "--output", out, "--overwrite",
            "--background", background, "--format", "composite", "alpha",
        )  # fmt: skip
        assert run.code == 0, run.err
        alpha = np.asarray(Image.open(out / "photo.alpha.png")) / 255.0
        composite = np.asarray(Image.open(out / "photo.composite.png")).astype(float)
        # C = a F + (1 - a) B with 0 <= F <= 255
        low = (1 - alpha[..., None]) * np.array([10, 200, 30])
        assert (composite >= low - 2).all()
        assert (composite <= low + 255 * alpha[..., None] + 2).all()


def test_several_boxes_are_several_objects(
    capsys: pytest.CaptureFixture[str], model: str, photo: Path, out: Path
) -> None:
    run = Run(
        capsys, photo, "--box", "5,5,40,50", "45,5,85,50", "--model", model,
        "--format", "alpha", "--output", out, "--json",
    )  # fmt: skip
    assert run.code == 0
    assert files(out) == {"photo.1.alpha.png", "photo.2.alpha.png"}
    assert [item["object"] for item in run.json["items"]] == [1, 2]
    for number, box in ((1, (5, 5, 40, 50)), (2, (45, 5, 85, 50))):
        expected = zim.matte(photo, box=box, model=model).alpha
        got = np.asarray(Image.open(out / f"photo.{number}.alpha.png")) / 255
        assert np.abs(got - expected).max() <= 0.5 / 255 + 1e-4


def test_multimask_writes_candidates_best_first(
    capsys: pytest.CaptureFixture[str], model: str, photo: Path, out: Path
) -> None:
    run = Run(
        capsys, photo, "--points", "45,30", "--multimask", "--model", model,
        "--format", "alpha", "--output", out, "--json",
    )  # fmt: skip
    assert files(out) == {f"photo.c{i}.alpha.png" for i in (1, 2, 3)}
    scores = [item["metrics"]["score"] for item in run.json["items"]]
    assert scores == sorted(scores, reverse=True)
    predictor = zim.ZimPredictor(zim.load(model))
    predictor.set_image(photo)
    _, reference, _ = predictor.predict(np.array([[45, 30]]), np.array([1]))
    assert scores == pytest.approx(sorted(reference.tolist(), reverse=True), abs=1e-3)


def test_prompt_files_scribbles_and_masks(
    capsys: pytest.CaptureFixture[str], model: str, photo: Path, out: Path, tmp_path: Path
) -> None:
    painted = np.zeros((HEIGHT * 2, WIDTH * 2, 3), np.uint8)
    painted[60:64, 60:120] = (255, 0, 0)
    Image.fromarray(painted).save(tmp_path / "painted.png")
    (tmp_path / "strokes.json").write_text("[[[30, 30], [60, 30]], [[40, 20], [40, 40]]]")
    (tmp_path / "prompts.json").write_text('{"point": [[45, 30, 1]], "bbox": [15, 10, 75, 50]}')
    mask = Image.new("L", (WIDTH // 2, HEIGHT // 2), 0)
    mask.paste(255, (10, 8, 35, 22))
    mask.save(tmp_path / "mask.png")
    for flag, name in (
        ("--scribble", "painted.png"),
        ("--scribble", "strokes.json"),
        ("--prompts", "prompts.json"),
        ("--mask", "mask.png"),
    ):
        run = Run(
            capsys, photo, flag, tmp_path / name, "--model", model, "--overwrite",
            "--output", out / "a.png", "--format", "alpha",
        )  # fmt: skip
        assert (run.code, run.err) == (0, ""), (flag, name, run.err)
        assert run.out == f"{out / 'a.png'}\n"


def test_a_mask_of_other_proportions_is_refused(
    capsys: pytest.CaptureFixture[str], model: str, photo: Path, out: Path, tmp_path: Path
) -> None:
    Image.new("L", (50, 50), 255).save(tmp_path / "square.png")
    run = Run(capsys, photo, "--mask", tmp_path / "square.png", "--model", model, "--output", out)
    assert run.code == 1
    assert "square.png is 50 x 50" in run.err
    assert files(out) == set()


def test_existing_files(
    capsys: pytest.CaptureFixture[str], model: str, photo: Path, out: Path
) -> None:
    words = (photo, "--model", model, "--output", out, "--format", "alpha")
    assert Run(capsys, *words).code == 0
    target = out / "photo.alpha.png"
    target.write_bytes(b"mine")
    run = Run(capsys, *words)
    assert run.code == 1
    assert "exists; use --overwrite or --skip-existing" in run.err
    run = Run(capsys, *words, "--skip-existing", "--json")
    assert run.code == 0
    assert run.json["items"][0]["skipped"] is True
    assert target.read_bytes() == b"mine"
    assert Run(capsys, *words, "--overwrite").code == 0
    assert target.read_bytes() != b"mine"


def test_one_bad_image_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], model: str, photo: Path, out: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("this is no picture")
    other = tmp_path / "other.png"
    Image.open(photo).save(other)
    run = Run(
        capsys, photo, bad, other, "--model", model, "--format", "alpha", "--output", out, "--json"
    )
    assert run.code == 1
    assert files(out) == {"photo.alpha.png", "other.alpha.png"}
    items = run.json["items"]
    assert [Path(item["input"]).name for item in items] == ["photo.jpg", "bad.png", "other.png"]
    assert [item["error"] is None for item in items] == [True, False, True]
    assert run.err.count("\n") == 1
    assert "bad.png" in run.err


@pytest.mark.parametrize("as_file", [False, True], ids=["boxes", "prompts"])
def test_one_bad_object_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str],
    model: str,
    photo: Path,
    out: Path,
    tmp_path: Path,
    as_file: bool,
) -> None:
    boxes = [[5, 5, 40, 50], [500, 500, 600, 600], [45, 5, 85, 50]]
    words: list[object] = ["--box", *(",".join(map(str, box)) for box in boxes)]
    if as_file:
        (tmp_path / "p.json").write_text(json.dumps([{"bbox": box} for box in boxes]))
        words = ["--prompts", tmp_path / "p.json"]
    run = Run(
        capsys, photo, *words, "--model", model, "--format", "alpha", "--output", out, "--json"
    )
    assert run.code == 1
    assert files(out) == {"photo.1.alpha.png", "photo.3.alpha.png"}
    items = run.json["items"]
    assert [item["object"] for item in items] == [1, 2, 3]
    assert [item["error"] is None for item in items] == [True, False, True]
    assert "outside" in items[1]["error"]
    assert run.json["error"] == "1 of 3 objects failed"
    assert run.err.count("\n") == 1
    assert run.err.startswith(f"zim matte: {photo}, object 2: ")


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.fixture
def bad_files(tmp_path: Path, photo: Path) -> dict[str, Path]:
    folder = tmp_path / "bad"
    folder.mkdir()
    contents = {
        "truncated.jpg": photo.read_bytes()[:700],
        "text.png": b"hello",
        "empty.png": b"",
        "no-pixels.png": png_header(0, 5),
        "huge.png": png_header(30_000, 30_000),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "folder.png").mkdir()
    names = [*contents, "folder.png", "missing.png"]
    return {name: folder / name for name in names}


@pytest.mark.parametrize(
    "name",
    [
        "truncated.jpg",
        "text.png",
        "empty.png",
        "no-pixels.png",
        "huge.png",
        "folder.png",
        "missing.png",
    ],
)
def test_bad_images_are_one_line_and_leave_nothing(
    capsys: pytest.CaptureFixture[str], model: str, out: Path, bad_files: dict[str, Path], name: str
) -> None:
    run = Run(capsys, bad_files[name], "--model", model, "--output", out)
    assert run.code == 1
    assert run.out == ""
    assert run.err.count("\n") == 1
    assert name in run.err
    assert "Traceback" not in run.err
    assert files(out) == set()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--points", "nan,3"], 2),
        (["--points", "1,2,3,4"], 2),
        (["--points", "1"], 2),
        (["--points"], 2),
        (["--points", "500,20"], 1),
        (["--points", "-5,20"], 1),
        (["--box", "10,10,10,40"], 2),
        (["--box", "200,200,300,300"], 1),
        (["--box", "1,2,3"], 2),
        (["--box", "1,2,inf,4"], 2),
        (["--prompts", "missing.json"], 1),
        (["--scribble", "missing.json"], 1),
        (["--mask", "missing.png"], 1),
        (["--background", "no-such-colour"], 1),
        (["--output", "out.jpg"], 2),
        (["--output", "out.gif"], 2),
        (["--format", "gif"], 2),
        (["--device", "abacus"], 1),
    ],
)
def test_bad_requests_are_one_line_and_leave_nothing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    photo: Path,
    tmp_path: Path,
    words: list[str],
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    output = [] if "--output" in words else ["--output", "out"]
    run = Run(capsys, photo, "--model", model, *output, *words)
    assert (run.code, run.out) == (code, "")
    assert run.err.count("\n") == 1
    assert files(tmp_path) - before <= {"out"}
    assert files(tmp_path / "out") == set()


def test_json_holds_the_error_too(
    capsys: pytest.CaptureFixture[str], model: str, photo: Path, out: Path
) -> None:
    run = Run(capsys, photo, "--points", "500,20", "--model", model, "--output", out, "--json")
    assert run.code == 1
    assert "outside" in run.json["error"]
    assert "outside" in run.json["items"][0]["error"]
    run = Run(capsys, photo, "--points", "x", "--json")
    assert run.code == 2
    assert "'x' is not" in run.json["error"]


@pytest.mark.parametrize(("name", "code"), [("no-such-model", 2), ("sam_vit_b", 1)])
def test_a_model_that_is_not_here(
    capsys: pytest.CaptureFixture[str], photo: Path, out: Path, name: str, code: int
) -> None:
    run = Run(capsys, photo, "--model", name, "--output", out)
    assert run.code == code
    assert run.err.count("\n") == 1
    assert name in run.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[[10, 20], [1" + "0" * 400 + ", 5]]", 1),
        ("[" * 100_000 + "]" * 100_000, 1),
        ("[" * 300 + "]" * 300, 1),
        ("\ufeff[[10, 20], [30, 20]]", 0),
    ],
    ids=["400-digits", "100000-brackets", "300-brackets", "byte-order-mark"],
)
def test_strange_scribbles_are_one_line(
    capsys: pytest.CaptureFixture[str],
    model: str,
    photo: Path,
    out: Path,
    tmp_path: Path,
    text: str,
    code: int,
) -> None:
    strokes = tmp_path / "s.json"
    strokes.write_text(text, encoding="utf-8")
    run = Run(capsys, photo, "--scribble", strokes, "--model", model, "--output", out)
    assert run.code == code, run.err
    assert run.err.count("\n") == code
    assert "unexpected" not in run.err
    assert len(run.err) < len(str(photo)) + len(str(strokes)) + 200


def test_an_unwritable_output(
    capsys: pytest.CaptureFixture[str], model: str, photo: Path, tmp_path: Path
) -> None:
    blocker = tmp_path / "blocker"
    blocker.write_text("a file, where a folder is needed")
    run = Run(capsys, photo, "--model", model, "--output", blocker / "out")
    assert run.code == 1
    assert run.err.count("\n") == 1
    assert "blocker" in run.err


def test_debug_shows_the_trace(
    capsys: pytest.CaptureFixture[str], model: str, photo: Path, out: Path
) -> None:
    run = Run(capsys, photo, "--points", "500,20", "--model", model, "--output", out, "--debug")
    assert run.code == 1
    assert "Traceback" in run.err


def test_stdin_and_stdout(model: str, photo: Path) -> None:
    code = "import sys; from zim.cli import main; raise SystemExit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "matte", "-", "--model", model, "--output", "-"],
        input=photo.read_bytes(),
        capture_output=True,
        check=False,
        env=os.environ | {"ZIM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert (image.mode, image.size) == ("RGBA", (WIDTH, HEIGHT))


def test_json_and_a_picture_do_not_share_stdout(
    capsys: pytest.CaptureFixture[str], photo: Path
) -> None:
    assert Run(capsys, photo, "--output", "-", "--json").code == 2


def test_interrupt_is_tidy(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    photo: Path,
    out: Path,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zim.ZimPredictor, "set_image", interrupted)
    run = Run(capsys, photo, "--model", model, "--output", out)
    assert (run.code, run.out, run.err) == (130, "", "zim matte: interrupted\n")
    assert files(out) == set()


def test_a_rival_answers_as_in_batch_and_evaluation(
    capsys: pytest.CaptureFixture[str], photo: Path, out: Path
) -> None:
    words = (photo, "--box", "12,8,78,52", "--model", "grabcut", "--output", out)
    run = Run(capsys, *words, "--format", "alpha")
    assert (run.code, run.err) == (0, "")
    alpha = np.asarray(Image.open(out / "photo.alpha.png")) / 255
    assert alpha[15:45, 20:70].mean() > 0.9
    assert alpha[:8].max() == alpha[:, :12].max() == 0
    for flag in ("--refine", "--multimask"):
        run = Run(capsys, *words, "--overwrite", flag)
        assert run.code == 1
        assert run.err == f"zim matte: {flag} is for ZIM's own models, not grabcut; leave it out\n"


def test_a_name_that_is_too_long_stops_no_other(
    capsys: pytest.CaptureFixture[str], model: str, photo: Path, tmp_path: Path
) -> None:
    long = "x" * 300 + ".png"
    words = ["matte", str(photo), long, "--model", model, "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert "File name too long" in capsys.readouterr().err
    assert len(files(tmp_path / "out")) == 2


def test_a_seed_that_torch_cannot_take_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], photo: Path
) -> None:
    assert main(["matte", str(photo), "--seed", str(2**64)]) == 2
    assert "is no seed; expected less than 2**64" in capsys.readouterr().err
    assert main(["matte", str(photo), "--threads", "1000000"]) == 2
    assert "expected 1 to 1024" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"), [("", "is a folder; give its pictures"), ("gone.png", "does not exist")]
)
def test_what_is_no_file_is_told_before_a_model_is_loaded(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(tmp_path / name) if name else str(tmp_path)
    assert main(["matte", source, "--model", "no/such", "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())
