"""The ``zim-sa3d`` command: segment an object in a 3D scene from prompts in one view."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from zim.commandline import Command, run_command

COMMAND = Command("zim-sa3d", "segment an object in a 3D scene from prompts in one view")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command("zim-sa3d", COMMAND, list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    raise SystemExit(main())
