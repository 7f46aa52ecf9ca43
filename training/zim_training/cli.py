"""The ``zim-train`` command: prepare training data and train models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zim.commandline import Command, Report, UsageError, apply_runtime, run_program, timed


def _configure_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("synth", "splits"), help="what to make")
    parser.add_argument("folder", nargs="?", metavar="OUT", help="folder for the packs")
    parser.add_argument(
        "--data-root", default="../shared/data", metavar="DIR", help="image collection"
    )
    parser.add_argument("--scenes", type=int, default=9600, metavar="N", help="training scenes")
    parser.add_argument("--dev-scenes", type=int, default=288, metavar="N", help="dev scenes")


def _data(args: argparse.Namespace) -> Report:
    import json

    from zim_training.data.pack import write_pack
    from zim_training.data.sources import split_table

    root, report = Path(args.data_root), Report()
    if args.action == "splits":
        table = split_table(root)
        report.extra["splits"] = table
        report.lines.append(json.dumps(table, indent=1))
        return report
    target = args.folder or args.output
    if not target:
        raise UsageError("data synth needs a folder: zim-train data synth OUT")
    out = Path(target)
    with timed(report.seconds, "synth"):
        for done in write_pack(root, out / "dev", "dev", args.dev_scenes, args.seed):
            sys.stderr.write(f"\rdev: {done} shards")
        for done in write_pack(root, out / "train", "train", args.scenes, args.seed):
            sys.stderr.write(f"\rtrain: {done} shards")
    sys.stderr.write("\n")
    report.outputs["pack"] = str(out)
    report.lines.append(str(out))
    return report


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
    Command("data", "make training packs: synth, or show the splits", _configure_data, _data),
    Command("matte", "train a small matting model on packs", _configure_matte, _matte),
    Command("bundle", "write a run's weights as one small file", _configure_bundle, _bundle),
    Command("converter", "train the label converter"),
    Command("convert", "turn segmentation labels into mattes"),
    Command("testset", "make a test set"),
    Command("eval-converter", "score a label converter"),
    Command("ablate", "train and score the rows of an ablation"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_program("zim-train", __doc__ or "", COMMANDS, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
