"""``zim-train ablate``: train and score the rows of a table of the paper."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from zim.commandline import Report, UsageError, apply_runtime, timed
from zim_training.ablations import TABLES, layout
from zim_training.commands.common import COLLECTION, add_data_root, existing, run_folder


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--table", choices=tuple(TABLES), required=True, help="of the paper")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, minutes on a CPU")
    parser.add_argument("--data", metavar="DIR", help="shards or pictures (tables 4 and 8)")
    add_data_root(parser)
    parser.add_argument("--max-steps", type=int, default=0, metavar="N", help="steps of each row")
    parser.add_argument("--size", type=int, default=0, metavar="N", help="table 3: view side")
    parser.add_argument("--views", type=int, default=48, metavar="N", help="table 3: scored views")


def run(args: argparse.Namespace) -> Report:
    """Train row after row (a row that was cut off continues), then print one table."""
    out = run_folder(args, "ablate")
    kind, rows = TABLES[args.table]
    if kind == "matte" and not args.data:
        raise UsageError(f"--table {args.table} needs --data DIR (shards, or image/ and alpha/)")
    apply_runtime(args)
    from zim.output import atomic_write
    from zim_training.loop import Loop

    report, scores = Report(), {}
    for name, changes in rows.items():
        sys.stderr.write(f"table {args.table}: {name}\n")
        task, config = (_converter if kind == "converter" else _matte)(args, changes)
        with timed(report.seconds, name):
            loop = Loop(task, config, out / name.replace(" ", "_"), args.device)
            loop.fit()
            scores[name] = loop.last_scores or loop.evaluate()
            loop.close()
    lines = layout(scores)
    report.metrics, report.lines = scores, lines
    atomic_write(out / "table.md", ("\n".join(lines) + "\n").encode())
    atomic_write(out / "table.json", (json.dumps(scores, indent=1) + "\n").encode())
    report.outputs = {"table": str(out / "table.md"), "scores": str(out / "table.json")}
    return report


def _converter(args: argparse.Namespace, changes: dict):
    from zim_training.converter.config import PRESETS
    from zim_training.converter.samples import Pool
    from zim_training.converter.task import ConverterTask
    from zim_training.data.readers import find_sets

    changes = changes | ({"steps": args.max_steps} if args.max_steps else {})
    changes |= {"size": args.size} if args.size else {}
    base = PRESETS["test" if args.tiny else "default"]
    config = dataclasses.replace(base, **changes, seed=args.seed)
    config = dataclasses.replace(config, eval_every=max(config.steps, 1))
    root = existing(args.data_root, COLLECTION)
    found = find_sets(Path(args.data)) if args.data else []
    samples = [s for f in found for s in f.samples if s.split == "train"]
    mattes, labels = ([s for s in samples if s.kind == k] for k in ("matte", "label"))
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
