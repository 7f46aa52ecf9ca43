"""Batches of the coming steps, prepared in threads while the present one is trained on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Lookahead(Generic[T]):
    """Calls ``make(step)`` ahead of time; what a step gets is what it would get without."""

    def __init__(self, make: Callable[[int], T], workers: int) -> None:
        """Remember how a step's batch is made; 0 workers make it when it is asked for."""
        self._make, self._ahead = make, 2 * workers
        self._pool = ThreadPoolExecutor(workers, "prefetch") if workers else None
        self._coming: dict[int, Future[T]] = {}

    def get(self, step: int) -> T:
        """Return the batch of a step and start on those that follow it."""
        if self._pool is None:
            return self._make(step)
        for coming in range(step, step + self._ahead + 1):
            if coming not in self._coming:
                self._coming[coming] = self._pool.submit(self._make, coming)
        for old in [known for known in self._coming if known < step]:
            self._coming.pop(old).cancel()
        return self._coming.pop(step).result()

    def close(self) -> None:
        """Stop the threads; batches on the way are dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
