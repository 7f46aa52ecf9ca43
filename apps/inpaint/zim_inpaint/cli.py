"""The ``zim-inpaint`` command: remove, fill or replace an object of a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from zim.commandline import Command, run_command
from zim_inpaint import eval_command, flags, work

COMMAND = Command(
    "zim-inpaint", "remove, fill or replace an object of a picture", flags.configure, work.run
)
EVAL = Command(
    "zim-inpaint eval",
    "score removals on COCO as the paper's Table 5 does",
    eval_command.configure,
    eval_command.run,
)
SUBCOMMANDS = {"eval": EVAL}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    A first argument equal to a subcommand's name is the subcommand.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in SUBCOMMANDS:
        command = SUBCOMMANDS[words[0]]
        return run_command(command.name, command, words[1:])
    return run_command("zim-inpaint", COMMAND, words)


if __name__ == "__main__":
    raise SystemExit(main())
