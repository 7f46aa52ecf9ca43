"""The speed measurements run as written; what they find is for quiet machines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
