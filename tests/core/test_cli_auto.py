"""``zim auto`` from end to end with a tiny random model: files, JSON, exit codes, failures."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import zim
from zim.cli import main
from zim.commands.auto_names import is_result
from zim.object_map import ObjectMap, object_map
from zim.rle import decode_rle
from zim.testing import picture, tiny_model

HEADER = (
    "id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,"
    "stability_score,crop_box_x0,crop_box_y0,crop_box_w,crop_box_h,alpha_file"
)
SEARCH = ["--points-per-side", "3", "--pred-iou-thresh", "0", "--stability-score-thresh", "0.3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(picture()).save(path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


class Run:
    """One call of the command line and what came of it."""

    def __init__(self, capsys: pytest.CaptureFixture[str], model: str, *words: object) -> None:
        self.code = main(["auto", "--model", model, *SEARCH, *map(str, words)])
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> dict[str, Any]:
        assert self.out.count("\n") == 1
        return json.loads(self.out)


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def test_folder_of_masks(
    model: str, photo: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(capsys, model, photo, "--output", out, "--bits", 16)
    assert run.code == 0, run.err
    folder = out / "photo"
    assert set(run.out.split()) == {
        str(folder),
        str(folder / "metadata.csv"),
        str(out / "photo.overlay.png"),
    }
    text = (folder / "metadata.csv").read_text()
    assert text.splitlines()[0] == HEADER
    rows = list(csv.DictReader(text.splitlines()))
    want = zim.ZimAutomaticMaskGenerator(
        model, 3, pred_iou_thresh=0, stability_score_thresh=0.3
    ).generate(photo)
    assert len(rows) == len(want) > 1
    for i, (row, record) in enumerate(zip(rows, want, strict=True)):
        assert row["id"] == str(i)
        mask = read(folder / f"{i}.png")
        np.testing.assert_array_equal(mask, record["segmentation"] * np.uint8(255))
        assert int(row["area"]) == (mask > 0).sum()
        alpha = read(folder / row["alpha_file"]).astype(np.float64)
        np.testing.assert_allclose(alpha / 65535, record["alpha"], atol=1e-5)
        box = [int(row[f"bbox_{k}"]) for k in ("x0", "y0", "w", "h")]
        assert box == record["bbox"]
        point = [float(row["point_input_x"]), float(row["point_input_y"])]
        assert point == record["point_coords"][0]
        assert float(row["predicted_iou"]) == pytest.approx(record["predicted_iou"], abs=1e-6)
    # nothing but masks lies beside the table, as SAM's readers expect, and nothing is left over
    assert {p.name for p in folder.glob("*.png")} == {f"{i}.png" for i in range(len(rows))}
    assert {p.name for p in out.iterdir()} == {"photo", "photo.overlay.png"}
    assert read(out / "photo.overlay.png").shape == (48, 64, 3)


def test_run_lengths(
    model: str, photo: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(capsys, model, photo, "--output", out, "--rle", "--json")
    assert run.code == 0, run.err
    records = json.loads((out / "photo.json").read_text())
    assert run.json["metrics"] == {"masks": len(records)}
    assert run.json["outputs"]["result"] == str(out / "photo.json")
    assert len(records) > 1
    for record in records:
        assert isinstance(record["segmentation"]["counts"], str)
        mask = decode_rle(record["segmentation"])
        assert mask.sum() == record["area"]
        alpha = read(out / record["alpha_file"])
        assert (np.abs(alpha[mask != (alpha > 127)].astype(int) - 128) <= 1).all()
    assert not list((out / "photo").glob("*.*"))


def test_run_lengths_of_an_earlier_run_go_with_it(
    model: str, photo: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Run(capsys, model, photo, "--output", out, "--rle").code == 0
    assert (out / "photo.json").is_file()
    assert Run(capsys, model, photo, "--output", out, "--overwrite").code == 0
    assert not (out / "photo.json").exists()
    (out / "photo.json").write_text('[{"label": "cat"}]')  # somebody's own
    assert Run(capsys, model, photo, "--output", out, "--overwrite").code == 0
    assert (out / "photo.json").is_file()


def test_json_of_one_image(
    model: str, photo: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Run(capsys, model, photo, "--output", out, "--json").json
    assert {"outputs", "seconds", "model", "metrics", "items"} <= set(report)
    assert report["outputs"] == report["items"][0]["outputs"]
    assert set(report["outputs"]) == {"folder", "csv", "overlay"}
    assert all(Path(path).exists() for path in report["outputs"].values())
    assert set(report["seconds"]) == {"start", "read", "search", "write"}
    assert report["items"][0]["error"] is None


def test_a_bad_image_does_not_stop_the_rest(
    model: str, photo: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = photo.with_name("bad.png")
    bad.write_bytes(b"not a picture")
    last = photo.with_name("last.png")
    Image.fromarray(picture(30, 40)).save(last)
    run = Run(capsys, model, photo, bad, last, "--output", out, "--json")
    assert run.code == 1
    assert run.err.count("\n") == 1
    assert str(bad) in run.err
    assert run.json["error"] == "1 of 3 images failed"
    assert [item["error"] is None for item in run.json["items"]] == [True, False, True]
    assert (out / "last" / "metadata.csv").exists()
    assert not (out / "bad").exists()


def test_an_existing_folder_is_refused_kept_or_replaced(
    model: str, photo: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = out / "photo"
    (folder / "alpha").mkdir(parents=True)
    for name in ("99.png", "alpha/99.png", "notes.txt", "keep.png"):
        (folder / name).write_bytes(b"old")
    run = Run(capsys, model, photo, "--output", out)
    assert run.code == 1
    assert f"{folder} exists; use --overwrite" in run.err
    assert sorted(p.name for p in folder.iterdir()) == ["99.png", "alpha", "keep.png", "notes.txt"]

    run = Run(capsys, model, photo, "--output", out, "--skip-existing", "--json")
    assert run.code == 0
    assert run.json["items"][0]["skipped"] is True
    assert not (folder / "metadata.csv").exists()

    run = Run(capsys, model, photo, "--output", out, "--overwrite")
    assert run.code == 0, run.err
    assert (folder / "metadata.csv").exists()
    assert (folder / "0.png").exists()
    # what an earlier run wrote is gone, what somebody else put there is not
    assert not (folder / "99.png").exists()
    assert not (folder / "alpha" / "99.png").exists()
    assert (folder / "notes.txt").read_bytes() == (folder / "keep.png").read_bytes() == b"old"


def test_nothing_found_is_said(
    model: str, photo: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(capsys, model, photo, "--output", out, "--pred-iou-thresh", 99)
    assert run.code == 0
    assert "nothing passed the thresholds" in run.err
    assert (out / "photo" / "metadata.csv").read_text() == HEADER + "\n"


def test_a_failed_write_leaves_nothing(
    model: str,
    photo: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zim.commands.auto_files.save_rgb", full_disk)
    run = Run(capsys, model, photo, "--output", out)
    assert run.code == 1
    assert "No space left on device" in run.err
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "-"], "give a folder"),
        (["--points-per-side", "0"], "not a whole number"),
        (["--output", __file__], "is a file; give a folder"),
    ],
)
def test_wrong_usage(
    model: str,
    photo: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Run(capsys, model, photo, *words)
    assert run.code == 2
    assert message in run.err
    assert run.err.count("\n") == 1


def test_two_pictures_of_one_name(
    model: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(capsys, model, photo, tmp_path / "other" / "photo.jpg")
    assert run.code == 2
    assert "would both write photo" in run.err


def test_a_bad_parameter_is_one_line(
    model: str, photo: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(capsys, model, photo, "--output", out, "--mask-threshold", 2)
    assert run.code == 1
    assert "mask_threshold is 2.0" in run.err
    assert not out.exists()


# The overlay


def test_the_map_tints_by_alpha() -> None:
    rgb = np.full((40, 60, 3), 128, np.uint8)
    alpha = np.zeros((40, 60), np.float32)
    alpha[:, :20] = 0.3
    alpha[:, 20:40] = 0.9
    painted = ObjectMap(rgb)
    before = painted.picture().astype(int)
    colour = np.array(painted.add(alpha))
    after = painted.picture().astype(int)
    change = np.abs(after - before).sum(-1)
    assert not change[:, 42:].any()
    assert 0 < change[20, 10] < change[20, 30]
    # 0.9 of the way to 40 % photograph and 60 % colour
    want = before[20, 30] + 0.9 * (0.4 * 128 + 0.6 * colour - before[20, 30])
    assert np.abs(after[20, 30] - want).max() <= 1


def test_small_objects_stay_visible_and_large_pictures_shrink() -> None:
    rgb = np.zeros((300, 4096, 3), np.uint8)
    small, large = np.zeros((2, 300, 4096), np.uint8)
    large[:], small[100:200, 1000:1400] = 255, 255
    records = [{"alpha": a, "area": int((a > 0).sum())} for a in (small, large)]
    shown = object_map(rgb, records)
    assert shown.shape == (150, 2048, 3)
    assert np.abs(shown[75, 600].astype(int) - shown[20, 600]).sum() > 60
    assert cv2.absdiff(shown[20, 600], shown[140, 2000]).max() <= 1


@pytest.mark.parametrize("flags", [[], ["--rle"]])
def test_a_folder_that_holds_its_results_can_be_searched_again(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(picture()).save(folder / f"{name}.png")
    assert Run(capsys, model, folder, "-o", tmp_path, *flags).code == 0
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert folder / "a.overlay.png" in files
    again = Run(capsys, model, folder, "-o", tmp_path, *flags, "--skip-existing", "--json")
    assert again.code == 0
    assert [item["input"] for item in again.json["items"]] == [
        str(folder / "a.png"),
        str(folder / "b.png"),
    ]
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == files


def test_what_is_read_is_neither_replaced_nor_removed(
    model: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photo").mkdir()
    own = [
        tmp_path / "photo" / "1.png",
        tmp_path / "photo" / "7.png",
        tmp_path / "photo.overlay.png",
    ]
    for path in own:
        Image.fromarray(picture()).save(path)
    before = [path.read_bytes() for path in own]
    found = Run(capsys, model, photo, own[0], own[1], "-o", tmp_path, "--overwrite")
    assert found.code == 1
    assert "holds an input" in found.err
    found = Run(capsys, model, photo, own[2], "-o", tmp_path, "--overwrite")
    assert "photo.overlay.png is an input" in found.err
    assert [path.read_bytes() for path in own] == before


def test_numbered_pictures_are_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("1.png", "metadata.csv", "alpha/2.png", "set/3.png", "set/metadata.csv"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    every = [path for path in Path().rglob("*.png") if not is_result(path)]
    assert sorted(path.name for path in every) == ["1.png", "2.png", "3.png"]
