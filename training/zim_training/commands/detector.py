"""``zim-train detector``: train the mini detector of ``zim-grounded``."""

from __future__ import annotations

import argparse
from pathlib import Path

from zim.commandline import Report, apply_runtime, positive_int, timed
from zim_training.commands.common import COLLECTION, add_data_root, alone, number, run_folder


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_data_root(parser, default=COLLECTION)
    parser.add_argument(
        "--minutes",
        type=number(float, 0, above=True),
        default=34.0,
        help="length of the schedule [34]",
    )
    parser.add_argument("--batch", type=positive_int, default=16, help="composites per step [16]")
    parser.add_argument(
        "--rate", type=number(float, 0), default=2e-3, help="peak learning rate [2e-3]"
    )
    parser.add_argument(
        "--width", type=positive_int, default=64, help="channels of the network [64]"
    )
    parser.add_argument(
        "--side", type=positive_int, default=192, help="of the composites in pixels [192]"
    )


def run(args: argparse.Namespace) -> Report:
    """Train; the run folder then holds what ``zim-grounded --detector FILE`` takes."""
    folder = run_folder(args, "detector")
    alone("detector")
    apply_runtime(args)
    from zim_training.detector.train import DetectorConfig, DetectorTrainer

    config = DetectorConfig(
        minutes=args.minutes,
        batch=args.batch,
        rate=args.rate,
        seed=args.seed,
        side=args.side,
        width=args.width,
    )
    report = Report(model="mini")
    trainer = DetectorTrainer(config, Path(args.data_root), folder)
    with timed(report.seconds, "train"):
        trainer.fit()
    report.outputs["model"] = str(folder / "model.safetensors")
    report.metrics["steps"] = trainer.step
    report.lines.append(report.outputs["model"])
    return report
