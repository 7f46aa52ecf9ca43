"""A thread that owns one model: a bounded queue in front, prompts of one picture in one batch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from zim.memory import give_memory_back
from zim.serve.problems import Problem

#: prompts decoded together
BATCH = 16
#: batches after which freed memory is handed back: short-lived threads scatter what they allocate,
#: and the allocator would keep it (779 MB after 500 prompts, 859 after 2,000 without). It takes as
#: long as a few prompts, so it waits for a pause of so many seconds, and only so many batches long.
TIDY, PAUSE, LATEST = 10, 0.25, 100


@dataclass(eq=False)
class Job:
    """Work for a thread.

    Attributes:
        run: called with the payloads of all jobs of one batch; returns a result for each.
        payload: this job's share.
        group: jobs with equal groups may run together; None runs alone.
        place: whether it takes a place in the queue; of the jobs of one request one does.
        future: the answer; cancelled when nobody waits any more.
    """

    run: Callable[[Sequence[Any]], Sequence[Any]]
    payload: Any
    group: Any = None
    place: bool = True
    future: Future[Any] = field(default_factory=Future[Any])


class Lane:
    """One thread and its bounded queue."""

    def __init__(self, name: str, limit: int) -> None:
        """Start the thread; it ends with the process, or with :meth:`close`."""
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._limit, self._waiting = limit, 0
        self._lock = threading.Lock()
        self.batched = 0
        #: taken from the queue to look for company, not begun yet; the thread's own
        self._held: list[Job | None] = []
        self._untidied = 0
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return the number of requests that are not begun yet."""
        return self._waiting

    def submit(self, *jobs: Job) -> Future[Any]:
        """Queue the jobs of one request, which take one place together; return the first's answer.

        Raises:
            Problem: 429, the queue is full; none of them is queued.
        """
        with self._lock:
            if self._waiting >= self._limit:
                raise Problem(429, "the service is busy; try again shortly", {"Retry-After": "1"})
            self._waiting += 1
            for job in jobs:
                job.place = job is jobs[0]
                self._jobs.put(job)
        return jobs[0].future

    def close(self, seconds: float = 10) -> None:
        """Let the thread end after the work it has, and wait for that so many seconds."""
        self._jobs.put(None)
        self._thread.join(seconds)

    def _loop(self) -> None:
        while True:
            job = self._next()
            if job is None:
                return
            batch = [job]
            if job.group is not None:
                self._drain()
                same = [j for j in self._held if j is not None and j.group == job.group]
                same = same[: BATCH - 1]
                self._held = [j for j in self._held if j not in same]
                batch += same
            with self._lock:
                self._waiting -= sum(j.place for j in batch)
            self._run([j for j in batch if j.future.set_running_or_notify_cancel()])
            del job, batch  # a picture must not live on in an idle thread
            self._untidied += 1
            if self._untidied >= LATEST:
                self._tidy()

    def _next(self) -> Job | None:
        if self._held:
            return self._held.pop(0)
        if self._untidied >= TIDY:
            try:
                return self._jobs.get(timeout=PAUSE)
            except queue.Empty:
                self._tidy()
        return self._jobs.get()

    def _tidy(self) -> None:
        give_memory_back()
        self._untidied = 0

    def _drain(self) -> None:
        while True:
            try:
                self._held.append(self._jobs.get_nowait())
            except queue.Empty:
                return

    def _run(self, batch: list[Job]) -> None:
        if not batch:
            return
        self.batched += len(batch) > 1
        try:
            results = batch[0].run([job.payload for job in batch])
        except Exception as error:
            if len(batch) > 1:  # one bad prompt must not cost the others their answers
                for job in batch:
                    self._alone(job)
                return
            batch[0].future.set_exception(error)
            return
        for job, result in zip(batch, results, strict=True):
            job.future.set_result(result)

    def _alone(self, job: Job) -> None:
        try:
            job.future.set_result(job.run([job.payload])[0])
        except Exception as error:
            job.future.set_exception(error)
