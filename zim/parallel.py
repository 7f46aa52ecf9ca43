"""Work spread over processors, every part with its own share of torch's threads.

Two threads that compute half of the pictures each are faster than two threads that share every
convolution of a small network: nothing waits for the other half of a layer, and what numpy and
OpenCV do with one processor happens while another is in torch.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

#: threads started for one call: each has maps of its own in memory
MOST = 4

_own = threading.local()

_opencv = threading.Lock()
_opencv_users = 0
_opencv_threads = 0  # what OpenCV had before the first of them


def processors() -> int:
    """Return how many processors the calling thread may keep busy, at most :data:`MOST`."""
    return min(getattr(_own, "share", None) or os.cpu_count() or 1, MOST)


def workers() -> int:
    """Return how many threads :func:`spread` starts at most: no more than torch has here."""
    import torch

    # other builds of torch have one number of threads for the whole process
    openmp = "parallel backend: OpenMP" in torch.__config__.parallel_info()
    return min(processors(), torch.get_num_threads()) if openmp else 1


def each(work: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
    """Return ``work`` of every job, done side by side by numpy and OpenCV.

    It happens in threads of ours, no more than OpenCV may use, so that the caller's OpenCV random
    generator stays as it was; called in one that has no share to give away, it happens right there.
    """
    share = getattr(_own, "share", None)
    if share == 1:
        return [work(job) for job in jobs]
    import cv2

    # inside of :func:`spread` OpenCV has one thread, and the share says what may be kept busy
    count = share or min(processors(), max(1, cv2.getNumThreads()))

    def begin() -> None:
        _own.share = 1  # work that spreads its own parts finds all processors taken

    with ThreadPoolExecutor(max(1, min(len(jobs), count)), "zim-each", begin) as pool:
        return list(pool.map(work, jobs))


@contextlib.contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Keep OpenCV, which has one number of threads for everyone, from splitting parts again."""
    import cv2

    global _opencv_users, _opencv_threads
    with _opencv:
        if not _opencv_users:
            _opencv_threads = cv2.getNumThreads()
            cv2.setNumThreads(1)
        _opencv_users += 1
    try:
        yield
    finally:
        with _opencv:
            _opencv_users -= 1
            if not _opencv_users:
                cv2.setNumThreads(_opencv_threads)


def spread(work: Callable[[Job], object], jobs: Sequence[Job], most: int | None = None) -> None:
    """Call ``work`` for every job, side by side where torch has several threads.

    Each worker has an equal share of the caller's torch threads, sees the caller's context
    variables and is in the caller's modes of torch (gradients, inference, autocast). OpenCV has one
    thread meanwhile, in the whole process. The first error is raised here, and jobs that have not
    begun are dropped.

    Args:
        work: what to do.
        jobs: with what.
        most: threads; as many as :func:`workers` says when not given.
    """
    count = min(workers(), len(jobs), most or len(jobs))
    if count <= 1:
        for job in jobs:
            work(job)
        return
    import torch

    mine, share = torch.get_num_threads(), max(1, processors() // count)
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    mixed, kind = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def run(job: Job) -> None:
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(gradients),
            torch.autocast("cpu", kind, enabled=mixed),
        ):
            work(job)

    started = threading.Barrier(count + 1)

    def begin() -> None:
        _own.share = share
        torch.get_num_threads()  # a thread takes over the number set last when it first asks
        torch.set_num_threads(mine // count)
        # Broken: all is done or lost before this thread came round; it must not fail in here, where
        # the pool would wait for it for ever.
        with contextlib.suppress(threading.BrokenBarrierError):
            started.wait()

    pool = ThreadPoolExecutor(count, "zim-spread", begin)
    with _one_opencv_thread():
        try:
            try:
                futures = [pool.submit(copy_context().run, run, jobs[0])]
            except RuntimeError:  # the interpreter is ending and starts no threads any more
                for job in jobs:
                    run(job)
                return
            futures += [pool.submit(copy_context().run, run, job) for job in jobs[1:]]
            started.wait()
            # Changes nothing here, but threads that meet torch from now on take the latest number.
            torch.set_num_threads(mine)
            for future in futures:
                future.result()
        finally:
            started.abort()  # nobody waits for a thread that could not be started
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(mine)
