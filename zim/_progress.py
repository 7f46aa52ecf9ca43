"""Progress that the library offers and only a watched terminal shows.

Library code wraps a loop in :func:`track`; nothing happens unless a program asked for bars with
:func:`progress_on_stderr`, which does so only when a person watches stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
Tracker = Callable[[Iterable[Any], str, "int | None"], Iterator[Any]]

_tracker: ContextVar[Tracker | None] = ContextVar("zim_progress_tracker", default=None)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, showing progress if a program asked for it.

    Args:
        items: what to go through.
        description: a few words for the person who waits.
        total: how many items there are; their ``len`` if not given.
    """
    tracker = _tracker.get()
    yield from items if tracker is None else tracker(items, description, total)


class Abandoned(Exception):
    """Nobody waits any more for what was being done."""


@contextmanager
def abandoned_when(gone: Callable[[], bool]) -> Generator[None]:
    """End the library's loops inside the block by :class:`Abandoned` once ``gone()`` is true."""

    def tracker(items: Iterable[Any], _: str, __: int | None) -> Iterator[Any]:
        for item in items:
            if gone():
                raise Abandoned
            yield item

    with _tracked(tracker):
        yield


@contextmanager
def progress_on_stderr() -> Generator[None]:
    """Show the library's progress on stderr inside the block, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(stderr=True)

    def tracker(items: Iterable[Any], description: str, total: int | None) -> Iterator[Any]:
        yield from rich_track(
            items, description=description, total=total, console=console, transient=True
        )

    with _tracked(tracker):
        yield


@contextmanager
def _tracked(tracker: Tracker) -> Generator[None]:
    token = _tracker.set(tracker)
    try:
        yield
    finally:
        _tracker.reset(token)
