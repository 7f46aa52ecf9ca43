"""Ctrl+C and SIGTERM in training: the step is finished and saved, then the command ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stop:
    """Whether the process was told to end."""

    def __init__(self) -> None:
        """Begin untold."""
        #: of the signal, 0 as long as none came
        self.number = 0


@contextmanager
def stopping(say: bool = True) -> Generator[Stop]:
    """Keep the first Ctrl+C or SIGTERM in a :class:`Stop`; the next does what it did before.

    Args:
        say: whether to tell on stderr that the step is being finished.
    """
    stop, process = Stop(), os.getpid()

    def hear(number: int, _: FrameType | None) -> None:
        restore()
        if os.getpid() != process:  # forked: the parent decides
            return
        stop.number = number
        if say:
            sys.stderr.write("finishing the step and saving; once more ends at once\n")

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in _WORDS}
        # what is ignored stays so, as in the background of a shell
        before = {number: handler for number, handler in found.items() if callable(handler)}
    for number in before:
        signal.signal(number, hear)
    try:
        yield stop
    finally:
        restore()


def leave_it_to_the_parent(_: int = 0) -> None:
    """Let a worker process outlive the first signal, which may reach all processes of a run."""
    heard: list[int] = []

    def hear(number: int, _: FrameType | None) -> None:
        if heard:
            os._exit(0)  # in silence: the parent speaks
        heard.append(number)

    for number in _WORDS:
        signal.signal(number, hear)


def leave(number: int, step: int, how: str, say: bool = True) -> NoReturn:
    """End the command as one that a signal has ended.

    Args:
        number: of the signal.
        step: that was saved.
        how: what goes on from there.
        say: whether to tell so on stderr.

    Raises:
        SystemExit: always.
    """
    if say:
        word = _WORDS[signal.Signals(number)]
        sys.stderr.write(f"zim-train: {word} at step {step}, which is saved; {how} goes on\n")
    raise SystemExit(128 + number)
