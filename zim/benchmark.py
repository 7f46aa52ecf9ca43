"""What ``zim bench`` measures, and the processes it measures in; imports no torch.

Every combination of model, device, type and batch is a case, and every case runs in a process of
its own (:mod:`zim.benchmark_worker`), so that no case inherits another's memory. Inside a case the
peak is started over before each stage; where the system cannot do that, every stage gets its own
process.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zim._progress import track
from zim.benchmarking import markdown_table
from zim.config import PRESETS
from zim.errors import CheckpointError, ZimError
from zim.memory import reset_peak
from zim.weights.names import check_name
from zim.weights.registry import REGISTRY

MIB = 2**20

#: stages of a case, in the order in which they run, and what comes out of them
UNITS = {
    "preprocess": "images",
    "encode": "images",
    "decode": "prompts",
    "enlarge": "mattes",
    "matte": "mattes",
}
IMPORT = "import"
STAGES = (IMPORT, *UNITS)

#: rows of the stage ``import``: what is timed; None is a whole process
IMPORTS: tuple[tuple[str, str | None], ...] = (
    ("import zim", "import zim"),
    ("import torch", "import torch"),
    ("zim --help", None),
)

#: keys of every row; rows of an import have None for what they do not have
COLUMNS = (
    "stage",
    "model",
    "weights",
    "device",
    "dtype",
    "batch",
    "prompts",
    "median_s",
    "min_s",
    "max_s",
    "repeats",
    "count",
    "unit",
    "per_second",
    "peak_rss_mib",
    "held_rss_mib",
    "peak_cuda_mib",
    "peak_of",
    "error",
)

_TIMED_IMPORT = """
import sys, time
start = time.perf_counter()
{statement}
seconds = time.perf_counter() - start
from zim.memory import peak_resident
sys.stderr.write(f"\\n{{seconds}} {{peak_resident()}}\\n")
"""
_HELP = "from zim.cli import main\nmain(['--help'])\n"


class BenchError(ZimError, RuntimeError):
    """A measuring process could not do its work."""


@dataclass(frozen=True)
class Case:
    """One process: a model in one type on one device, with so many pictures at once.

    Attributes:
        model: name, path or hub id.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        dtype: ``auto`` or a type's name.
        batch: pictures at once.
        prompts: numbers of prompts per picture to decode.
        size: width and height of the pictures in pixels.
        stages: of :data:`STAGES`, those to measure.
        repeats: runs that count.
        warmup: runs before them.
        threads: of the CPU.
        seed: of random weights, pictures and boxes.
        compile: compile the image encoder first.
    """

    model: str
    device: str
    dtype: str
    batch: int
    prompts: tuple[int, ...]
    size: tuple[int, int]
    stages: tuple[str, ...]
    repeats: int
    warmup: int
    threads: int
    seed: int = 0
    compile: bool = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Case:
        """Undo ``dataclasses.asdict`` after a way through JSON."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**values)

    def steps(self) -> list[tuple[str, int | None]]:
        """Return the stages to run, in order, with the number of prompts where there is one."""
        steps: list[tuple[str, int | None]] = []
        for stage in UNITS:
            if stage not in self.stages:
                continue
            if stage == "decode":
                steps += [(stage, count) for count in self.prompts]
            else:
                steps.append((stage, 1 if UNITS[stage] == "mattes" else None))
        return steps

    def split(self) -> list[Case]:
        """Return one case per step."""
        return [
            dataclasses.replace(
                self, stages=(stage,), prompts=(count or 1,) if stage == "decode" else self.prompts
            )
            for stage, count in self.steps()
        ]

    def __str__(self) -> str:
        """Name it in a few words."""
        return f"{self.model} {self.device} {self.dtype} batch {self.batch}"


def plan(
    models: Sequence[str],
    devices: Sequence[str],
    dtypes: Sequence[str],
    batches: Sequence[int],
    **same: Any,
) -> list[Case]:
    """Return every combination as a case, each once, the first word varying slowest."""
    chosen = dict.fromkeys(itertools.product(models, devices, dtypes, batches))
    return [Case(model, device, dtype, n, **same) for model, device, dtype, n in chosen]


def run(cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Measure cases one after the other and yield their rows.

    A case that fails is a row with ``error``; the others still run.
    """
    if not reset_peak():
        cases = [part for case in cases for part in case.split()]
    for case in track(cases, "measuring", len(cases)):
        if not case.steps():
            continue
        try:
            rows = run_case(case)
        except BenchError as error:
            named = {k: getattr(case, k) for k in ("model", "device", "dtype", "batch")}
            rows = [named | {"stage": "start", "error": str(error)}]
        for row in rows:
            yield dict.fromkeys(COLUMNS) | row


def run_case(case: Case) -> list[dict[str, Any]]:
    """Measure one case in a process of its own.

    Raises:
        BenchError: the process could not start its work, or was ended by the system.
    """
    done = _python(
        ["-m", "zim.benchmark_worker"], case.threads, text=json.dumps(dataclasses.asdict(case))
    )
    if done.returncode:
        raise BenchError(_why(done))
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise BenchError(answer["error"])
    return answer["rows"]


def import_rows(warmup: int, repeats: int, threads: int) -> Iterator[dict[str, Any]]:
    """Time imports in fresh interpreters, and ``zim --help`` from its start to its end.

    Raises:
        BenchError: something cannot be imported.
    """
    for name, statement in track(IMPORTS, "importing", len(IMPORTS)):
        measure = _whole_process if statement is None else _inside
        for _ in range(warmup):
            measure(statement, threads)
        runs = [measure(statement, threads) for _ in range(repeats)]
        seconds = [run[0] for run in runs]
        peak = max((run[1] for run in runs if run[1] is not None), default=None)
        yield dict.fromkeys(COLUMNS) | {
            "stage": name,
            "median_s": statistics.median(seconds),
            "min_s": min(seconds),
            "max_s": max(seconds),
            "repeats": repeats,
            "peak_rss_mib": None if peak is None else round(peak / MIB, 1),
            "peak_of": "process",
        }


def _inside(statement: str | None, threads: int) -> tuple[float, int | None]:
    """Run a statement in a fresh interpreter; return its seconds and the peak in bytes."""
    done = _python(["-c", _TIMED_IMPORT.format(statement=statement)], threads)
    if done.returncode:
        raise BenchError(_why(done))
    seconds, peak = done.stderr.split()[-2:]
    return float(seconds), None if peak == "None" else int(peak)


def _whole_process(_: str | None, threads: int) -> tuple[float, int | None]:
    """Run ``zim --help``; its memory is asked for in a second run, which is not timed."""
    start = time.perf_counter()
    done = _python(["-c", _HELP], threads)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise BenchError(_why(done))
    return seconds, _inside(_HELP, threads)[1]


def _python(
    words: Sequence[str], threads: int, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run this Python with this package and nothing from the current folder."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
    return subprocess.run(
        [sys.executable, "-P", *words],
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )


def _why(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        memory = "; it probably ran out of memory" if done.returncode == -9 else ""
        return f"the measuring process was ended by signal {-done.returncode}{memory}"
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"the measuring process ended with code {done.returncode}"


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the measured rows as the lines of a Markdown table."""
    cuda = any(row["peak_cuda_mib"] is not None for row in rows)
    headings = ["stage", "model", "device", "dtype", "batch", "prompts"]
    headings += ["median ms", "min ms", "max ms", "per second", "peak MiB", "held before"]
    cells: list[list[object]] = []
    for row in rows:
        if row["error"] is not None:
            continue
        model = row["model"]
        if row["weights"] == "random weights":
            model = f"{model} (random weights)"
        rate = row["per_second"]
        line = [row["stage"], model, row["device"], row["dtype"], row["batch"], row["prompts"]]
        line += [_milliseconds(row[key]) for key in ("median_s", "min_s", "max_s")]
        line.append(None if rate is None else f"{rate:,.{2 if rate < 100 else 0}f} {row['unit']}")
        line += [_whole(row["peak_rss_mib"]), _whole(row["held_rss_mib"])]
        cells.append([*line, _whole(row["peak_cuda_mib"])] if cuda else line)
    return markdown_table([*headings, "peak CUDA MiB"] if cuda else headings, cells)


def _milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _whole(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f}"


def check_model(name: str) -> None:
    """Find out before anything is measured whether a model can be.

    Raises:
        CheckpointError: nobody knows it, or it cannot run without files that are not here.
    """
    row = REGISTRY.get(name)
    check_name(name, also=tuple(PRESETS))
    if name in PRESETS or Path(name).exists():
        return
    if row is not None and not (row.loadable and row.installed()):
        reason = f"no weights at {row.path()}" if row.loadable else "it cannot be run"
        raise CheckpointError(f"{name} ({row.about}): {reason}; see `zim models` for what is here")
