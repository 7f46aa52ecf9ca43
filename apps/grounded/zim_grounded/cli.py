"""The ``zim-grounded`` command: mattes from words."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from zim.commandline import Command, run_command

COMMAND = Command("zim-grounded", "mattes from words")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command("zim-grounded", COMMAND, list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    raise SystemExit(main())
