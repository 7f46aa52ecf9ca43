"""The ``zim-train`` command: prepare training data and train models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zim.commandline import Command, Report, UsageError, apply_runtime, run_program, timed
from zim_training.commands import convert, converter, data


def _configure_matte(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="nano", help="model configuration [nano]")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of data synth")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the schedule [60]")
    parser.add_argument("--steps", type=int, default=0, help="schedule by steps instead of minutes")
    parser.add_argument("--scenes", type=int, default=6, help="scenes per step [6]")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate [1e-3]")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")


def _matte(args: argparse.Namespace) -> Report:
    if not args.output:
        raise UsageError("matte needs a run folder: --output RUN")
    apply_runtime(args)
    from zim_training.matte import MatteConfig, MatteTrainer

    config = MatteConfig(
        preset=args.preset,
        minutes=args.minutes,
        steps=args.steps,
        scenes=args.scenes,
        rate=args.rate,
        seed=args.seed,
    )
    run, report = Path(args.output), Report(model=args.preset)
    trainer = MatteTrainer(config, Path(args.data), run, args.resume)
    with timed(report.seconds, "train"):
        trainer.fit()
    model = trainer.ema.model
    model.save_pretrained(run / "export", half=True)  # pyright: ignore[reportCallIssue]
    report.outputs |= {"checkpoint": str(run / "last.pt"), "model": str(run / "export")}
    report.metrics["steps"] = trainer.step
    report.lines.append(str(run / "export"))
    return report


def _configure_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run, finished or not")


def _bundle(args: argparse.Namespace) -> Report:
    if not args.output:
        raise UsageError("bundle needs a folder for the files: --output DIR")
    from zim_training.checkpoint import bundle

    model, config = bundle(Path(args.run), Path(args.output))
    outputs = {"model": str(model), "config": str(config)}
    return Report(outputs=outputs, lines=list(outputs.values()))


COMMANDS = (
    Command("data", "check data sets, make training packs, show splits", data.configure, data.run),
    Command("converter", "train the label converter", converter.configure, converter.run),
    Command("convert", "turn SA-1B's labels into mattes", convert.configure, convert.run),
    Command("matte", "train a small matting model on packs", _configure_matte, _matte),
    Command("bundle", "write a run's weights as one small file", _configure_bundle, _bundle),
    Command("testset", "make a test set"),
    Command("eval-converter", "score a converter", converter.configure_eval, converter.run_eval),
    Command("ablate", "train and score the rows of an ablation"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_program("zim-train", __doc__ or "", COMMANDS, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
