"""``--model`` and ``--models``, and other flags that take several names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zim.errors import CheckpointError
from zim.weights.names import check_name

#: argparse's own container of flags: a parser or a group of one
Flags = argparse._ActionsContainer


class Names(argparse.Action):
    """One or more names with commas or spaces between, kept once each, as a tuple.

    A name that is a file here may have commas in it. ``each`` turns a name into a value or raises
    ``argparse.ArgumentTypeError``.
    """

    def __init__(
        self,
        option_strings: Sequence[str],
        dest: str,
        *,
        each: Callable[[str], Any] = str,
        **rest: Any,
    ) -> None:
        """Take any number of words; everything else is as argparse has it."""
        super().__init__(option_strings, dest, nargs="+", **rest)
        self.each = each

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Split, check and store."""
        words = [w for v in values for w in ([v] if Path(v).exists() else v.split(","))]
        names = dict.fromkeys(word.strip() for word in words if word.strip())
        if not names:
            raise argparse.ArgumentError(
                self, "an empty list; give names with commas or spaces between"
            )
        try:
            setattr(namespace, self.dest, tuple(dict.fromkeys(map(self.each, names))))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from error


def one_of(known: Sequence[str]) -> Callable[[str], str]:
    """Return a flag's type that takes these words only."""

    def word(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text!r} is unknown; expected {', '.join(known)}")
        return text

    return word


def model_name(*, rivals: bool = False, also: Sequence[str] = ()) -> Callable[[str], str]:
    """Return a flag's type that refuses names which no model has, before anything is loaded.

    Args:
        rivals: other people's systems count too.
        also: names that only this command knows.
    """

    def known(text: str) -> str:
        try:
            check_name(text, rivals=rivals, also=also)
        except CheckpointError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text

    return known


def add_model_flag(
    flags: Flags, *, rivals: bool = False, also: Sequence[str] = (), about: str = "see zim models"
) -> None:
    """Add ``--model``, one name; see :func:`model_name` for the arguments."""
    flags.add_argument(
        "--model",
        type=model_name(rivals=rivals, also=also),
        default="nano",
        metavar="NAME",
        help=f"{about} [nano]",
    )


def add_models_flag(
    flags: Flags,
    *,
    rivals: bool = False,
    also: Sequence[str] = (),
    default: tuple[str, ...] | None = ("nano",),
    about: str = "see zim models",
) -> None:
    """Add ``--models``, several names; see :func:`model_name` for the arguments."""
    flags.add_argument(
        "--models",
        action=Names,
        each=model_name(rivals=rivals, also=also),
        default=default,
        metavar="NAME",
        help=about + (f" [{' '.join(default)}]" if default else ""),
    )
