"""The whole demonstration with the bundled model, killed once on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EVAL = [sys.executable, "-m", "zim_medical.cli", "eval", "--demo", "--json", "--output"]


@pytest.mark.slow
def test_the_demo_survives_being_killed(tmp_path: Path) -> None:
    start = time.perf_counter()
    done = subprocess.run([*EVAL, str(tmp_path / "a")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 300
    report = json.loads(done.stdout)
    assert report["metrics"]["scored"] == 131
    whole = Path(report["outputs"]["csv"]).read_bytes()

    table = tmp_path / "b" / "cases.csv"
    running = subprocess.Popen([*EVAL, str(tmp_path / "b")], stdout=subprocess.DEVNULL)
    while running.poll() is None and not (table.exists() and table.stat().st_size > 20_000):
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert table.stat().st_size < len(whole)
    done = subprocess.run([*EVAL, str(tmp_path / "b")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["scored"] < 131
    assert table.read_bytes() == whole
