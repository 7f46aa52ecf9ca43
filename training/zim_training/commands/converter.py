"""``zim-train converter`` and ``zim-train eval-converter``."""

from __future__ import annotations

import argparse
from pathlib import Path

from zim._progress import progress_on_stderr
from zim.commandline import Report, UsageError, apply_runtime, positive_int, timed
from zim_training.commands.common import (
    COLLECTION,
    add_data_root,
    existing,
    no_dtype,
    printed,
    run_folder,
    view_side,
)
from zim_training.converter.config import PRESETS, TRUNKS, ConverterConfig
from zim_training.options import add_config_flags, add_flags, chosen


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of training."""
    add_config_flags(parser, PRESETS, "default")
    parser.add_argument(
        "--data", action="append", default=[], metavar="DIR",
        help="matting sets (or a folder of them, or a manifest); none trains on procedural mattes",
    )  # fmt: skip
    add_data_root(parser, "; gives backgrounds, objects and rigid labels")
    parser.add_argument(
        "--init", default="none", metavar="SOURCE",
        help="SAM 2.1 weights of the trunk: hub, a folder, or none [none]",
    )  # fmt: skip
    add_flags(parser, PRESETS, "default", skip=("seed",))


def run(args: argparse.Namespace) -> Report:
    """Train, or continue a run that was cut off."""
    config = chosen(args, ConverterConfig, PRESETS[args.preset])
    if args.print_config:
        return printed(config)
    run_dir = run_folder(args, "converter")
    no_dtype(args, "training takes --precision")
    if config.trunk not in TRUNKS:
        raise UsageError(f"--trunk {config.trunk!r}: expected one of {', '.join(TRUNKS)}")
    apply_runtime(args)
    from zim_training.converter.samples import Pool, training_samples
    from zim_training.converter.task import ConverterTask
    from zim_training.loop import Loop

    root = existing(args.data_root, COLLECTION)
    mattes, labels = training_samples([Path(path) for path in args.data], config.test_splits)
    pool = Pool(mattes, labels, root)
    task = ConverterTask(config, pool, Pool(collection=root, split="dev"))
    if args.init != "none":
        source = TRUNKS[config.trunk].hub if args.init == "hub" else args.init
        if not source:
            raise UsageError(f"--init hub: no weights are published for the trunk {config.trunk}")
        task.model.load_trunk(source)  # pyright: ignore[reportCallIssue]
    report = Report(model=f"converter {config.trunk}")
    loop = Loop(task, config, run_dir, args.device, args.overwrite)
    with progress_on_stderr(), timed(report.seconds, "train"):
        if loop.step == 0 and config.keep_best:  # the start may turn out to be the best
            loop.evaluate()
        loop.fit()
    report.metrics = loop.last_scores | {"steps": loop.step, "mattes": len(mattes)}
    report.outputs = {"model": str(run_dir / "export"), "run": str(run_dir)}
    report.lines.append(str(run_dir / "export"))
    report.stdout_taken = not loop.main  # one process reports
    loop.close()
    return report


def configure_eval(parser: argparse.ArgumentParser) -> None:
    """Add the flags of scoring."""
    parser.add_argument("converter", metavar="CONVERTER", help="a run or its export folder")
    parser.add_argument(
        "--data", metavar="DIR",
        help="a test set in MicroMat's layout (seg to matte), or any matting set; none: procedural",
    )  # fmt: skip
    add_data_root(parser)
    parser.add_argument(
        "--size", type=view_side, default=1024, metavar="N", help="view side [1024]"
    )
    parser.add_argument(
        "--views", type=positive_int, default=48, metavar="N", help="procedural views [48]"
    )


def run_eval(args: argparse.Namespace) -> Report:
    """Score seg to matte (Table 3): the converter's answer beside the label itself."""
    no_dtype(args, "a converter computes in float32")
    apply_runtime(args)
    from zim.commandline import write_report
    from zim_training.converter.evaluate import evaluate_set, table
    from zim_training.converter.model import Converter
    from zim_training.converter.samples import Pool
    from zim_training.converter.task import convert_views, held_out_views, score_views

    model = Converter.from_pretrained(args.converter)
    if args.device != "cpu":
        from zim.api import choose_device

        model = model.to(choose_device(args.device))
    report = Report(model=str(args.converter))
    with timed(report.seconds, "score"):
        if args.data:
            scores = evaluate_set(model, Path(args.data), args.size)
        else:
            pool = Pool(collection=existing(args.data_root, COLLECTION), split="dev")
            views = held_out_views(pool, args.size, args.views)
            scores = {
                kind: score_views(some, convert_views(model, [(v[0], v[1]) for v in some]))
                for kind, some in views.items()
            }
    report.metrics = scores
    report.lines = table(scores)
    write_report(report, args)
    return report
