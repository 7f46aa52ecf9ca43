"""The ``zim-train`` command: train models and prepare training data."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from zim.commandline import Command, run_command

COMMAND = Command("zim-train", "train models and prepare training data")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command("zim-train", COMMAND, list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    raise SystemExit(main())
