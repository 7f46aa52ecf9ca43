"""The ``zim-medical`` command: evaluation and prompted segmentation of medical images."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from zim.commandline import Command, run_program
from zim_medical import eval_command, predict_command
from zim_medical.options import NOTICE

COMMANDS = (
    Command(
        "eval",
        "score models on five medical datasets with five kinds of prompts",
        eval_command.configure,
        eval_command.run,
    ),
    Command(
        "predict",
        "segment a NIfTI volume, DICOM series or picture from clicks or a box",
        predict_command.configure,
        predict_command.run,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    about = f"Prompted segmentation of medical images and volumes. {NOTICE}"
    words = list(sys.argv[1:] if argv is None else argv)
    return run_program("zim-medical", about, COMMANDS, words)


if __name__ == "__main__":
    raise SystemExit(main())
