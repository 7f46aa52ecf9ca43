"""Worker processes end when their parent is told to, and remove what is half written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zim.errors import ZimError
from zim.pools import worker_processes

PROGRAM = """
import sys, time
from pathlib import Path
from zim.commandline import Command, Report, run_command
from zim.pools import worker_processes

FOLDER = Path(sys.argv[1])

def slow(number):
    half = FOLDER / f"{number}.half"
    half.write_text("half")
    try:
        time.sleep(60)
    finally:
        half.unlink()

def work(_):
    with worker_processes(2) as pool:
        for job in [pool.submit(slow, number) for number in range(8)]:
            job.result()
    return Report()

if __name__ == "__main__":
    sys.exit(run_command("slow", Command("slow", "work", None, work), []))
"""


def test_jobs_are_done_and_their_errors_come_back() -> None:
    with worker_processes(2, os.nice, 0) as pool:
        jobs = [pool.submit(pow, 2, k) for k in range(4)]
        assert [job.result() for job in jobs] == [1, 2, 4, 8]
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_jobs_end_with_the_parent(tmp_path: Path, number: signal.Signals) -> None:
    program, folder = tmp_path / "program.py", tmp_path / "out"
    program.write_text(PROGRAM)
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(program), str(folder)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)  # until all that write to stderr have ended
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert said == "slow: terminated\n"
    assert list(folder.iterdir()) == []


def test_a_worker_that_is_killed_is_an_error_in_words() -> None:
    with pytest.raises(ZimError, match="a worker process was killed"), worker_processes(1) as pool:
        pool.submit(os._exit, 1).result()
