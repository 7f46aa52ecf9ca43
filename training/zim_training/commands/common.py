"""What several subcommands do alike."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from zim.commandline import Report, UsageError
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


def printed(config: Any) -> Report:
    """Return the report of ``--print-config``."""
    from dataclasses import asdict

    return Report(extra={"config": asdict(config)}, lines=describe(config))


def existing(path: str | None, default: str) -> Path | None:
    """Return the image collection: as given, or the default where it is there."""
    if path:
        return Path(path)
    return Path(default) if (Path(default) / "index.csv").is_file() else None
