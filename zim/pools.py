"""Worker processes that end, and tidy up, when the process that started them is told to end.

``ProcessPoolExecutor`` finishes everything that was handed in before it lets an error through, and
a signal to the parent reaches none of its children.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from types import FrameType
from typing import Any, NoReturn, TypeVar

from zim.errors import ZimError

Result = TypeVar("Result")

#: in a worker: whether it was told to end
_ended = False


def rank_and_world() -> tuple[int, int]:
    """Return this process's place under torchrun (``RANK``, ``WORLD_SIZE``); 0 of 1 without."""
    return int(os.environ.get("RANK") or "0"), int(os.environ.get("WORLD_SIZE") or "1")


class Workers:
    """Processes that take jobs; see :func:`worker_processes`."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        """Wrap an executor whose processes were begun with :func:`_begin`."""
        self._pool = pool

    def submit(self, work: Callable[..., Result], *args: Any) -> Future[Result]:
        """Hand in a job; function and arguments are pickled."""
        return self._pool.submit(_do, work, *args)


@contextmanager
def worker_processes(
    count: int, begin: Callable[..., object] | None = None, *args: Any
) -> Generator[Workers]:
    """Start processes, spawned and not forked: threads of libraries do not survive a fork.

    Where the block ends with an error (Ctrl+C and SIGTERM among them) jobs that have not begun are
    dropped, and those that have are interrupted, so that they remove what is half written.

    Args:
        count: processes.
        begin: called in each first.
        *args: of ``begin``.
    """
    pool = ProcessPoolExecutor(count, get_context("spawn"), _begin, (begin, args))
    try:
        yield Workers(pool)
    except BaseException as error:
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise ZimError(
                "a worker process was killed, as happens where memory is short; use fewer of them"
            ) from error
        raise
    pool.shutdown()


def _begin(begin: Callable[..., object] | None, args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches all; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin is not None:
        begin(*args)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is None:
        return
    parent.join()
    for _ in range(5):  # the first interrupts the job, the next the wait for another
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    os._exit(128 + signal.SIGTERM)


def _end(number: int, _: FrameType | None) -> NoReturn:
    global _ended
    _ended = True
    raise SystemExit(128 + number)


def _do(work: Callable[..., Result], *args: Any) -> Result:
    if _ended:  # a job that was fetched before the one at work was interrupted
        raise SystemExit(128 + signal.SIGTERM)
    return work(*args)
