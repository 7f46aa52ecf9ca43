"""What this process holds in memory, in bytes, and how to keep it from holding more and more.

Work that makes short-lived threads (torch, OpenCV, thread pools) scatters what it allocates over
many arenas of the C library, which keeps what is freed there: the process grows though nothing is
in use. Programs that run for hours call :func:`share_arenas` once at their start and
:func:`give_memory_back` now and then, or go through their work with :func:`tidied`.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def resident() -> int | None:
    """Return what the process holds in memory now; None where Linux is not."""
    return _status("VmRSS")


def peak_resident() -> int | None:
    """Return the most it held since the start or :func:`reset_peak`; None on Windows."""
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> bool:
    """Let the peak start over from what is held now; False where the system has no such thing."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def give_memory_back(*, collect: bool = True) -> None:
    """Return freed memory to the system, so that it is not counted as held.

    Args:
        collect: first free what only refers to itself; with torch loaded that takes some hundred
            milliseconds, the rest a few.
    """
    if collect:
        gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)


def share_arenas(count: int = 2) -> None:
    """Let all threads of this process allocate from few arenas (glibc), so that less is scattered.

    For long-lived processes; call it before threads start.
    """
    if sys.platform == "linux":
        options = getattr(ctypes.CDLL(None), "mallopt", None)
        if options is not None:
            options(-8, count)  # M_ARENA_MAX


def tidied(items: Iterable[T], every: int = 25) -> Iterator[T]:
    """Yield the items, and give freed memory back after so many of them.

    Args:
        items: work, one piece at a time.
        every: how many pieces lie between; giving back takes a few milliseconds.
    """
    for number, item in enumerate(items, 1):
        yield item
        del item
        if number % every == 0:
            give_memory_back(collect=False)


def _status(key: str) -> int | None:
    try:
        text = _STATUS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None
