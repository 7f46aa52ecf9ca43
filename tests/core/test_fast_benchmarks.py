"""The speed measurements run as written; what they find is for quiet machines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "keys"),
    [("encoder", {"rows", "model"}), ("decoder", {"decode", "batch", "enlarge"})],
)
def test_scripts_check_themselves(script: str, keys: set[str], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, FOLDER / f"{script}.py", "--quick", "--output", report],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| ---" in done.stdout
    found = json.loads(report.read_text())
    assert keys | {"commit", "hardware", "date", "command"} <= set(found)


@pytest.mark.slow
def test_the_gpu_script_measures_every_section(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = ["--quick", "--device", "cpu", "--commit", "abc", "--output", report]
    done = subprocess.run(
        [sys.executable, FOLDER / "gpu.py", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["commit"] == "abc"
    assert {"hardware", "date", "command", "cuda"} <= set(found)
    assert list(found["sections"]) == ["ceiling", "encoder", "decoder", "automatic", "training"]
    for name, section in found["sections"].items():
        assert section["rows"], name
        for part in (section, *section["rows"]):
            assert not {"error", "skipped"} & set(part), (name, part)
    rows = {name: section["rows"] for name, section in found["sections"].items()}
    ours = [row for row in rows["encoder"] if row["code"] == "zim"]
    assert {row["attention"] for row in ours} == {"auto", "reference", "flex"}
    assert any(row["compiled"] for row in ours)
    assert all(row["difference"] < 0.03 for row in ours)
    assert {row["model"] for row in rows["decoder"]} == {"tiny", "tiny_nano"}
    assert [row["checkpointing"] for row in rows["training"]] == [False, True]


@pytest.mark.slow
def test_the_gpu_script_goes_on_after_a_failure(
    benchmark_script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu, report = benchmark_script("gpu"), tmp_path / "report.json"

    def fails(section: object) -> None:
        raise RuntimeError("out of\nluck")

    monkeypatch.setitem(gpu.SECTIONS, "encoder", fails)
    monkeypatch.setattr(gpu.torch, "set_num_threads", lambda count: None)
    words = ["--quick", "--device", "cpu", "--sections", "encoder,decoder"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words, "--output", str(report)])
    gpu.main()
    sections = json.loads(report.read_text())["sections"]
    assert sections["encoder"]["error"] == "RuntimeError: out of luck"
    assert {row["model"] for row in sections["decoder"]["rows"]} == {"tiny", "tiny_nano"}
