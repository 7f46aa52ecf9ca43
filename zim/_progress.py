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

    token = _tracker.set(tracker)
    try:
        yield
    finally:
        _tracker.reset(token)
