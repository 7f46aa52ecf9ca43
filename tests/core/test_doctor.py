"""Doctor, extras and progress: what the installation says about itself."""

from __future__ import annotations

import importlib.metadata
import io
import json
import sys
from pathlib import Path

import pytest

from zim import _extras, _progress, doctor
from zim.cli import main
from zim.errors import MissingExtraError


def named(checks: list[doctor.Check]) -> dict[str, doctor.Check]:
    return {check.name: check for check in checks}


def test_doctor_looks_at_everything_that_was_promised() -> None:
    names = set(named(doctor.examine()))
    assert {"python", "torch", "threads", "cpu", "opencv", "ZIM_HOME", "bundled model"} <= names
    assert any(name.startswith("gpu") for name in names)
    assert "extra onnx" in names
    assert "extra all" not in names


def test_two_opencv_distributions_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("opencv-python", "opencv-python-headless"):
            return "4.10.0.84"
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    check = named(doctor.examine())["opencv"]
    assert check.status == "warning"
    assert "opencv-python 4.10.0.84, opencv-python-headless 4.10.0.84" in check.value


def test_a_home_that_cannot_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    monkeypatch.setenv("ZIM_HOME", str(blocker / "below"))
    check = named(doctor.examine())["ZIM_HOME"]
    assert check.status == "error"


def test_a_home_that_does_not_exist_yet_is_fine_and_stays_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZIM_HOME", str(tmp_path / "a" / "b"))
    assert named(doctor.examine())["ZIM_HOME"].status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_breaks_becomes_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, list[str]]:
        raise RuntimeError("no\nmetadata")

    monkeypatch.setattr(doctor, "missing_by_extra", broken)
    check = named(doctor.examine())["extras"]
    assert (check.status, check.value) == ("error", "no metadata")


def test_doctor_json_is_one_object(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "new" / "doctor.json"
    code = main(["doctor", "--json", "--output", str(path)])
    data = json.loads(capsys.readouterr().out)
    assert {"outputs", "seconds", "model", "metrics", "checks"} <= set(data)
    assert code == int(any(check["status"] == "error" for check in data["checks"]))
    assert data["outputs"] == {"report": str(path)}
    assert json.loads(path.read_text())["checks"] == data["checks"]


def test_models_lists_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    from zim.weights import REGISTRY
    from zim.weights.rivals import RIVALS

    assert main(["models", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    names = [row["name"] for row in data["models"]]
    assert names[: len(REGISTRY)] == list(REGISTRY)
    assert set(names) == set(REGISTRY) | set(RIVALS)
    assert len(names) == len(set(names))
    assert all(row["licence"] and row["source"] for row in data["models"])
    main(["models"])
    table = capsys.readouterr().out
    assert all(f"\n{name} " in table for name in names)


def test_models_tells_what_is_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZIM_HOME", str(tmp_path))
    (tmp_path / "models" / "vit_b").mkdir(parents=True)
    (tmp_path / "models" / "vit_b" / "model.safetensors").write_bytes(b"x" * 1234)
    main(["models", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert rows["vit_b"]["installed"]
    assert rows["vit_b"]["bytes"] == 1234
    assert not rows["vit_l"]["installed"]


def test_a_missing_module_names_its_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"\[onnx\]"):
        _extras.require("no_such_module_of_ours", "onnx")
    assert _extras.require("json", "onnx") is json


def test_a_broken_module_shows_its_own_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken_of_ours.py").write_text("import also_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="also_not_there"):
        _extras.require("broken_of_ours", "onnx")


def test_extras_compare_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    versions = {"groundingdino-py": "0.4.0", "transformers": "5.1.0"}
    monkeypatch.setattr(importlib.metadata, "version", lambda n: versions.get(n) or real(n))
    (missing,) = _extras.missing_by_extra()["groundingdino"]
    assert missing.startswith("transformers")  # below 5 is wanted
    versions["transformers"] = "4.50.0"
    assert _extras.missing_by_extra()["groundingdino"] == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_shows_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # a dumb terminal gets no bars
    for stream, shown in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        with _progress.progress_on_stderr():
            assert list(_progress.track([1, 2, 3], "counting")) == [1, 2, 3]
        assert ("counting" in stream.getvalue()) == shown
        before = stream.getvalue()
        assert list(_progress.track([4], "after the block")) == [4]
        assert stream.getvalue() == before
