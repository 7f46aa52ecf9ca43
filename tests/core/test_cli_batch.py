"""``zim batch`` where lines or flags cannot be used: they stop nothing, or are said at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from zim.cli import main
from zim.testing import picture, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model().save_pretrained(tmp_path_factory.mktemp("model")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(picture()).save(folder / "a.png")
    return folder


def test_a_name_that_cannot_be_written_stops_nothing(
    folder: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["x" * 300, "a.alpha.png/inner", "a", "last"]
    lines = [json.dumps({"image": "a.png", "name": name}) for name in names]
    (folder / "list.jsonl").write_text("\n".join(lines))
    out = folder.parent / "out"
    call = ["batch", str(folder / "list.jsonl"), "--output", str(out), "--model", model, "--json"]
    for _ in range(2):
        assert main(call) == 1
        report = json.loads(capsys.readouterr().out)
        assert [entry["name"] for entry in report["failures"]] == ["x" * 300, "a"]
        assert "too long" in report["failures"][0]["error"]
        assert "is a folder" in report["failures"][1]["error"]
    assert (out / "last.alpha.png").is_file()


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--background", "nothing.png", "--format", "composite"], 1, "no colour name"),
        (["--background", "blue", "--format", "alpha"], 2, "--background is for --format"),
    ],
)
def test_a_background_is_checked_before_the_work(
    folder: Path,
    model: str,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    code: int,
    said: str,
) -> None:
    out = folder.parent / "out"
    assert main(["batch", str(folder), "--output", str(out), "--model", model, *flags]) == code
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_background_alone_adds_a_composite(folder: Path, model: str) -> None:
    out = folder.parent / "out"
    flags = ["--output", str(out), "--model", model, "--background", "blue"]
    assert main(["batch", str(folder), *flags]) == 0
    assert sorted(p.name for p in out.glob("*.png")) == ["a.alpha.png", "a.composite.png"]
