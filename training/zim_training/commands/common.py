"""What several subcommands do alike."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zim.commandline import Report, UsageError
from zim.pools import rank_and_world
from zim_training.options import describe

#: where the image collection is looked for
COLLECTION = "../shared/data"


def add_data_root(
    parser: argparse.ArgumentParser, use: str = "", default: str | None = None
) -> None:
    """Add ``--data-root``, the folder of the image collection."""
    parser.add_argument(
        "--data-root", default=default, metavar="DIR",
        help="folder of the image collection: index.csv with foregrounds/, photos/ and segments/ "
        f"(docs/nano.md){use} [{COLLECTION}]",
    )  # fmt: skip


def run_folder(args: argparse.Namespace, command: str) -> Path:
    """Return ``--output`` as the folder of a run.

    Raises:
        UsageError: it was not given.
    """
    if not args.output:
        raise UsageError(f"{command} needs a folder: --output DIR")
    return Path(args.output).expanduser()


def number(
    kind: type[int] | type[float], low: float, high: float = math.inf, *, above: bool = False
) -> Callable[[str], Any]:
    """Return a flag's type: a finite number from ``low`` (or ``above`` it) to ``high``."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high) or (above and value == low):
            least = f"more than {low:g}" if above else f"{low:g} or more"
            most = f", at most {high:g}" if high < math.inf else ""
            whole = "a whole number, " if kind is int else ""
            raise argparse.ArgumentTypeError(f"{text.strip()}: expected {whole}{least}{most}")
        return value

    return parse


def view_side(text: str) -> int:
    """Parse the side of the converter's view in pixels, a multiple of 32."""
    if not text.strip().isdecimal() or int(text) < 32 or int(text) % 32:
        raise argparse.ArgumentTypeError(f"{text.strip()}: expected a multiple of 32, such as 1024")
    return int(text)


def alone(command: str) -> None:
    """Refuse to run as one of several processes of torchrun or Accelerate.

    Raises:
        UsageError: ``WORLD_SIZE`` says that there are others, which would write the same files.
    """
    if (world := rank_and_world()[1]) > 1:
        raise UsageError(
            f"{command} runs as one process, not as one of {world}; leave out torchrun"
        )


def no_dtype(args: argparse.Namespace, instead: str) -> None:
    """Refuse ``--dtype`` where it does nothing; ``instead`` says what to do.

    Raises:
        UsageError: it was given.
    """
    if args.dtype != "auto":
        raise UsageError(f"--dtype {args.dtype} does not apply here; {instead}")


def printed(config: Any) -> Report:
    """Return the report of ``--print-config``."""
    from dataclasses import asdict

    return Report(extra={"config": asdict(config)}, lines=describe(config))


def existing(path: str | None, default: str) -> Path | None:
    """Return the image collection: as given, or the default where it is there."""
    if path:
        return Path(path)
    return Path(default) if (Path(default) / "index.csv").is_file() else None
