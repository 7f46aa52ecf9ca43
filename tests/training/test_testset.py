"""A test set from pictures: candidates, page, a review with a brush, MicroMat's layout, scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from zim_training import cli
from zim_training.converter.model import Converter
from zim_training.testset.layout import paint


@pytest.fixture(scope="module")
def proposed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("testset")
    torch.manual_seed(0)
    Converter("tiny").save_pretrained(folder / "converter")
    (folder / "pictures").mkdir()
    picture = np.full((90, 120, 3), (60, 120, 40), np.uint8)
    cv2.circle(picture, (60, 45), 24, (200, 60, 220), -1)
    assert cv2.imwrite(str(folder / "pictures" / "a disc.png"), picture)
    (folder / "pictures" / "broken.jpg").write_bytes(b"no picture")
    flags = ["--converter", str(folder / "converter"), "--size", "64", "--points-per-side", "3"]
    out = folder / "set"
    words = ["testset", str(folder / "pictures"), *flags, "--output", str(out), "--device", "cpu"]
    assert cli.main(words) == 1  # the broken picture is reported, the other one is done
    return out


def test_candidates_and_page(proposed: Path) -> None:
    rows = json.loads((proposed / "candidates.json").read_text())
    assert rows
    assert {r["image"] for r in rows} == {"a_disc"}
    page = (proposed / "review.html").read_text()
    assert rows[0]["key"] in page
    assert "TITLE" not in page


def test_review_builds_micromats_layout(
    proposed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = json.loads((proposed / "candidates.json").read_text())[0]["key"]
    stroke = {"alpha": 0.5, "radius": 3, "points": [[2, 2]]}
    review = tmp_path / "review.json"
    review.write_text(json.dumps({"accepted": {key: {"level": "fine", "strokes": [stroke]}}}))
    assert cli.main(["testset", "--review", str(review), "--output", str(proposed)]) == 0
    line = (proposed / "data_list.txt").read_text().split()
    assert [Path(p).parts[0] for p in line] == ["img", "matte", "prompt", "seg"]
    assert all((proposed / p).is_file() for p in line)
    before = cv2.imread(str(proposed / f"candidates/matte/{key}.png"), cv2.IMREAD_GRAYSCALE)
    after = cv2.imread(str(proposed / line[1]), cv2.IMREAD_GRAYSCALE)
    assert before is not None
    assert after is not None
    assert after[2, 2] == 128
    np.testing.assert_array_equal(after[20:], before[20:])
    prompt = json.loads((proposed / line[2]).read_text())
    assert {"point", "bbox"} == set(prompt)
    assert all(label in (0, 1) for _, _, label in prompt["point"])
    x0, y0, x1, y1 = prompt["bbox"]
    rows, columns = np.nonzero(after > 0.1 * 255)
    assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max(), rows.max())
    capsys.readouterr()
    words = ["eval-converter", str(proposed.parent / "converter"), "--data", str(proposed)]
    assert cli.main([*words, "--size", "64", "--device", "cpu", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["metrics"]
    assert scores["fine"]["n"] == 1
    seg = cv2.imread(str(proposed / line[3]), cv2.IMREAD_GRAYSCALE)
    assert seg is not None
    expected = np.mean((seg / 255.0 - after / 255.0) ** 2) * 1e3
    assert scores["fine"]["mse_label"] == pytest.approx(expected, abs=0.01)


def test_pictures_of_somebody_else_stay(
    proposed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    shutil.copytree(proposed / "candidates", out / "candidates")
    shutil.copy(proposed / "candidates.json", out)
    (out / "img").mkdir()
    mine = out / "img" / "mine.png"
    shutil.copy(next((out / "candidates" / "img").iterdir()), mine)
    build = ["testset", "--accept-all", "--output", str(out)]
    assert cli.main(build) == 1
    assert "was not written by testset" in capsys.readouterr().err
    words = ["testset", str(mine.parent), "--converter", str(proposed.parent / "converter")]
    assert cli.main([*words, "--output", str(out)]) == 2
    assert "mine.png lies where testset writes" in capsys.readouterr().err
    assert [p.name for p in (out / "img").iterdir()] == ["mine.png"]
    mine.rename(tmp_path / "mine.png")
    assert cli.main(build) == 0
    first = (out / "data_list.txt").read_text()
    assert cli.main(build) == 0  # its own files are replaced
    assert (out / "data_list.txt").read_text() == first
    assert not list(out.glob(".*"))


def test_brush_strokes() -> None:
    alpha = paint(
        np.zeros((20, 30), np.float32),
        [
            {"alpha": 1, "radius": 2, "points": [[5, 10], [20, 10]]},
            {"alpha": 0, "radius": 1, "points": [[12, 10]]},
        ],
    )
    assert alpha[10, 6] == 1
    assert alpha[10, 12] == 0
    assert alpha[15].max() == 0


@pytest.mark.parametrize("text", ["", "{}", '{"accepted": {"x": {"level": "best"}}}'])
def test_a_broken_review_is_one_line(
    proposed: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    review = tmp_path / "review.json"
    review.write_text(text)
    assert cli.main(["testset", "--review", str(review), "--output", str(proposed)]) == 1
    assert "is no saved review" in capsys.readouterr().err
