"""``zim-train ablate``: train and score the rows of a table of the paper."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from zim._progress import progress_on_stderr
from zim.commandline import Report, UsageError, apply_runtime, timed
from zim_training.ablations import TABLES, layout
from zim_training.commands.common import (
    COLLECTION,
    add_data_root,
    existing,
    no_dtype,
    number,
    run_folder,
    view_side,
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--table", choices=tuple(TABLES), required=True, help="of the paper")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, minutes on a CPU")
    parser.add_argument("--data", metavar="DIR", help="shards or pictures (tables 4 and 8)")
    add_data_root(parser)
    parser.add_argument(
        "--max-steps", type=number(int, 1), default=0, metavar="N", help="steps of each row"
    )
    parser.add_argument("--size", type=view_side, default=0, metavar="N", help="table 3: view side")
    parser.add_argument(
        "--views", type=number(int, 1), default=48, metavar="N", help="table 3: scored views"
    )


def run(args: argparse.Namespace) -> Report:
    """Train row after row (a row that was cut off continues), then print one table."""
    out = run_folder(args, "ablate")
    kind, rows = TABLES[args.table]
    if kind == "matte" and not args.data:
        raise UsageError(f"--table {args.table} needs --data DIR (shards, or image/ and alpha/)")
    no_dtype(args, "training takes --precision")
    apply_runtime(args)
    from zim.output import atomic_write
    from zim_training.loop import Loop

    report, scores, main = Report(), {}, True
    for name, changes in rows.items():
        sys.stderr.write(f"table {args.table}: {name}\n")
        task, config = (_converter if kind == "converter" else _matte)(args, changes)
        with progress_on_stderr(), timed(report.seconds, name):
            run = out / name.replace(" ", "_")
            loop = Loop(task, config, run, args.device, args.overwrite)
            loop.fit()
            scores[name] = loop.last_scores or loop.evaluate()
            main = loop.main
            loop.close()
    if not main:  # of several processes one reports
        return Report(stdout_taken=True)
    lines = layout(scores)
    report.metrics, report.lines = scores, lines
    atomic_write(out / "table.md", ("\n".join(lines) + "\n").encode())
    atomic_write(out / "table.json", (json.dumps(scores, indent=1) + "\n").encode())
    report.outputs = {"table": str(out / "table.md"), "scores": str(out / "table.json")}
    return report


def _converter(args: argparse.Namespace, changes: dict):
    from zim_training.converter.config import PRESETS
    from zim_training.converter.samples import Pool, training_samples
    from zim_training.converter.task import ConverterTask

    changes = changes | ({"steps": args.max_steps} if args.max_steps else {})
    changes |= {"size": args.size} if args.size else {}
    base = PRESETS["test" if args.tiny else "default"]
    config = dataclasses.replace(base, **changes, seed=args.seed)
    config = dataclasses.replace(config, eval_every=max(config.steps, 1))
    root = existing(args.data_root, COLLECTION)
    mattes, labels = training_samples([Path(args.data)] if args.data else [])
    held_out = Pool(collection=root, split="dev")
    return ConverterTask(config, Pool(mattes, labels, root), held_out, args.views), config


def _matte(args: argparse.Namespace, changes: dict):
    from zim_training.matting.config import PRESETS
    from zim_training.matting.source import open_source
    from zim_training.matting.task import MatteTask

    changes = changes | ({"steps": args.max_steps} if args.max_steps else {})
    if args.tiny:  # with the paper's loss alone, a network from random weights answers "nothing"
        changes = {"gradient": 2.0, "entropy": 1.0, "overlap": 1.0} | changes
    config = dataclasses.replace(
        PRESETS["test" if args.tiny else "default"], **changes, seed=args.seed
    )
    config = dataclasses.replace(config, eval_every=max(config.steps, 1))
    return MatteTask(config, open_source(Path(args.data), config.held_out)), config
