"""The ``zim-train`` command: prepare training data and train models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zim.commandline import Command, Report, UsageError, run_program
from zim.errors import OutputError
from zim_training.commands import ablate, convert, converter, data, detector, matte, testset


def _configure_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="RUN",
        help="folder of a run (its best average where it keeps one, else the last), one of its "
        "checkpoints, or a state",
    )  # fmt: skip
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="FACTOR",
        help="factor of the mattes' logits, below 1 for a network that is too sure [1]",
    )  # fmt: skip
    parser.add_argument(
        "--state", metavar="DIR", help="also write what another machine needs to go on (--init DIR)"
    )


def _bundle(args: argparse.Namespace) -> Report:
    if not args.output and not args.state:
        raise UsageError("bundle needs a folder for the files: --output DIR, or --state DIR")
    from zim_training.checkpoint import bundle
    from zim_training.state import is_state, save_state

    outputs: dict[str, str] = {}
    if args.state and is_state(args.state) and not args.overwrite:
        raise OutputError(f"{args.state} holds a state; use --overwrite or another --state")
    if args.output:
        model, config = bundle(Path(args.run), Path(args.output), args.scale, args.overwrite)
        outputs |= {"model": str(model), "config": str(config)}
    if args.state:
        outputs |= {path.stem: str(path) for path in save_state(Path(args.run), Path(args.state))}
    return Report(outputs=outputs, lines=list(outputs.values()))


COMMANDS = (
    Command("data", "check data sets, make training packs, show splits", data.configure, data.run),
    Command("converter", "train the label converter", converter.configure, converter.run),
    Command("convert", "turn SA-1B's labels into mattes", convert.configure, convert.run),
    Command("matte", "train or fine-tune a matting model", matte.configure, matte.run),
    Command("bundle", "write a run's weights as one small file", _configure_bundle, _bundle),
    Command("detector", "train zim-grounded's mini detector", detector.configure, detector.run),
    Command("testset", "make a test set of any pictures", testset.configure, testset.run),
    Command("eval-converter", "score a converter", converter.configure_eval, converter.run_eval),
    Command("ablate", "train and score the rows of an ablation", ablate.configure, ablate.run),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    about = "Prepare training data, train models and the label converter, and score them."
    return run_program("zim-train", about, COMMANDS, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
