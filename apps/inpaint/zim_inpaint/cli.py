"""The ``zim-inpaint`` command: remove, fill or replace an object of a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from zim.commandline import Command, run_command

COMMAND = Command("zim-inpaint", "remove, fill or replace an object of a picture")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command("zim-inpaint", COMMAND, list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    raise SystemExit(main())
