"""What every measurement here has in common: the machine, the clock, the table.

``zim bench`` and the scripts in ``benchmarks/`` use it, so that their results can be compared. No
torch is imported before something needs it. Memory is the subject of :mod:`zim.memory`.
"""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zim.processor import cpu_flags, cpuinfo

# The machine.


def hardware() -> dict[str, Any]:
    """Describe the machine and what computes on it; imports torch.

    Returns:
        ``cpu``, ``processors`` (those this process may use), ``memory_gib``, ``cpu_flags``,
        ``gpus`` (name and GiB each), ``system``, ``python``, ``torch``, ``torch_cpu`` (the vector
        extensions torch uses), ``threads`` (of torch, now).
    """
    import torch

    gpus: list[str] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            gpus.append(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    elif torch.backends.mps.is_available():
        gpus.append("Apple MPS")
    return {
        "cpu": cpuinfo("model name", "Model") or platform.processor() or platform.machine(),
        "processors": _processors(),
        "memory_gib": _memory_gib(),
        "cpu_flags": cpu_flags(),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torch_cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def hardware_line(found: dict[str, Any] | None = None) -> str:
    """Say in one line what :func:`hardware` found."""
    info = hardware() if found is None else found
    memory = "" if info["memory_gib"] is None else f", {info['memory_gib']:.0f} GiB"
    flags = " ".join(info["cpu_flags"]) or "no CPU flags known"
    return (
        f"{info['cpu']}, {info['processors']} processors{memory} ({flags}); "
        f"{'; '.join(info['gpus']) or 'no GPU'}; torch {info['torch']}, "
        f"{info['threads']} threads; Python {info['python']}, {info['system']}"
    )


def provenance() -> dict[str, str | None]:
    """Return ``commit`` (with ``-dirty``; None outside a checkout), ``date`` and ``command``."""
    program = Path(sys.argv[0]).name
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([program, *sys.argv[1:]]),
    }


def _commit() -> str | None:
    """Return the commit of the checkout this package runs from, None for an installed copy."""
    package = Path(__file__).resolve().parent
    root = package.parent
    if not (root / ".git").exists():  # a checkout of something else may lie further up
        return None
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


# The clock.


def sample_times(
    work: Callable[[], object], *, warmup: int = 1, repeats: int = 5, device: str = "cpu"
) -> list[float]:
    """Run something a few times without looking, then time it.

    Args:
        work: what to time.
        warmup: runs that do not count.
        repeats: runs that count, at least 1.
        device: where it computes. CUDA is timed with events on its stream, which covers what the
            CPU does in between; elsewhere the clock waits until the device has finished.

    Returns:
        Seconds of every counted run.
    """
    clock = _cuda_seconds if device.startswith("cuda") else _wall_seconds
    for _ in range(warmup):
        clock(work, device)
    return [clock(work, device) for _ in range(max(1, repeats))]


def median_time(
    work: Callable[[], object], warmup: int = 1, repeats: int = 5, device: str = "cpu"
) -> float:
    """Return the median of :func:`sample_times` in seconds."""
    return statistics.median(sample_times(work, warmup=warmup, repeats=repeats, device=device))


def _wall_seconds(work: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    work()
    if device.startswith("mps"):
        import torch

        torch.mps.synchronize()
    return time.perf_counter() - start


def _cuda_seconds(work: Callable[[], object], device: str) -> float:
    import torch

    with torch.cuda.device(torch.device(device)):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3


# The table.


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table; columns of numbers are set flush right.

    Args:
        headings: one per column.
        rows: cells as they are to be shown; None is an empty cell.
    """
    cells = [["" if cell is None else str(cell).replace("|", "\\|") for cell in r] for r in rows]
    columns = list(zip(headings, *cells, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]
    right = [all(_numeric(cell) for cell in column[1:]) for column in columns]

    def line(words: Sequence[str]) -> str:
        fitted = [
            w.rjust(n) if flush else w.ljust(n)
            for w, n, flush in zip(words, widths, right, strict=True)
        ]
        return f"| {' | '.join(fitted)} |"

    rule = ["-" * (n - 1) + (":" if flush else "-") for n, flush in zip(widths, right, strict=True)]
    return [line(headings), line(rule), *(line(row) for row in cells)]


def _numeric(cell: str) -> bool:
    try:
        float(cell.replace(",", "") or 0)
    except ValueError:
        return False
    return True
