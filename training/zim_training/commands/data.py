"""``zim-train data``: look at data sets, make training packs, show the splits."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from zim._progress import progress_on_stderr
from zim.commandline import Report, UsageError, fraction, positive_int, timed
from zim_training.commands.common import COLLECTION, add_data_root, number


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "action", choices=("check", "synth", "splits", "outlines", "reduce"), help="what to do"
    )
    parser.add_argument(
        "folder",
        nargs="?",
        metavar="DIR",
        help="sets to check, or where packs (synth), pictures to score (outlines) or a smaller "
        "collection (reduce) go",
    )
    add_data_root(parser, "; for all actions but check", COLLECTION)
    parser.add_argument(
        "--scenes",
        type=number(int, 0),
        default=9600,
        metavar="N",
        help="synth: training scenes [9600]",
    )
    parser.add_argument(
        "--dev-scenes",
        type=number(int, 0),
        default=288,
        metavar="N",
        help="synth: dev scenes [288]",
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=1,
        metavar="N",
        help="synth: processes that draw scenes [1]",
    )
    parser.add_argument(
        "--outlined",
        type=fraction,
        default=0.3,
        metavar="SHARE",
        help="synth: of the photographs, those from outlines.json (one large object) [0.3]",
    )
    parser.add_argument(
        "--natural",
        type=fraction,
        default=0.45,
        metavar="SHARE",
        help="synth: of the training scenes, photographs with labelled regions; 1 where composites "
        "are rendered in training [0.45]",
    )
    parser.add_argument(
        "--layers",
        type=number(int, 0),
        default=0,
        metavar="N",
        help="synth: first write N objects and N backgrounds, for zim-train matte --render [0]",
    )
    parser.add_argument(
        "--most",
        type=number(int, 0),
        default=0,
        metavar="N",
        help="check: open only about N samples a set",
    )


def run(args: argparse.Namespace) -> Report:
    """Do the chosen action."""
    actions = {
        "check": _check,
        "synth": _synth,
        "splits": _splits,
        "outlines": _outlines,
        "reduce": _reduce,
    }
    return actions[args.action](args)


def _check(args: argparse.Namespace) -> Report:
    if not args.folder:
        raise UsageError("data check needs a folder or a manifest: zim-train data check ROOT")
    from zim_training.data.readers import examine, find_sets

    report = Report(items=[])
    with timed(report.seconds, "check"):
        for found in find_sets(Path(args.folder)):
            bad = examine(found, args.most)
            counts = found.counts()
            listed = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())) or "nothing"
            report.lines.append(f"{found.name}: {listed}; {len(bad)} malformed")
            report.lines += [f"  {line}" for line in bad]
            item = {"input": found.name, "outputs": {}, "metrics": counts, "malformed": bad}
            item["error"] = f"{len(bad)} malformed" if bad else None
            assert report.items is not None
            report.items.append(item)
            report.failed |= bool(bad)
    return report


def _target(args: argparse.Namespace) -> Path:
    """Return the folder to write to."""
    target = args.folder or args.output
    if not target:
        raise UsageError(f"data {args.action} needs a folder: zim-train data {args.action} OUT")
    return Path(target)


def _splits(args: argparse.Namespace) -> Report:
    from zim_training.data.sources import split_table

    table = split_table(Path(args.data_root))
    return Report(extra={"splits": table}, lines=[json.dumps(table, indent=1)])


def _outlines(args: argparse.Namespace) -> Report:
    from zim_training.data.outlines import write_outlined

    out = _target(args)
    report = Report()
    with timed(report.seconds, "outlines"):
        files = list(write_outlined(Path(args.data_root), out))
    report.metrics["pictures"] = len(files)
    report.outputs["set"] = str(out)
    report.lines.append(f"{out}: {len(files)} photographs with outlines")
    return report


def _reduce(args: argparse.Namespace) -> Report:
    from zim_training.data.reduced import write_reduced

    out = _target(args)
    report = Report()
    with timed(report.seconds, "reduce"):
        sizes = list(write_reduced(Path(args.data_root), out))
    report.metrics |= {"pictures": len(sizes), "megabytes": round(sum(sizes) / 1e6, 1)}
    report.outputs["collection"] = str(out)
    report.lines.append(f"{out}: {len(sizes)} pictures, {sum(sizes) / 1e6:.1f} MB")
    return report


def _synth(args: argparse.Namespace) -> Report:
    from zim_training.data.pack import write_pack
    from zim_training.render.layers import write_layers

    root, report = Path(args.data_root), Report()
    out = _target(args)
    shared = {"seed": args.seed, "workers": args.workers}
    packs = {"outlined": args.outlined} | shared
    train = {"natural": args.natural} | packs
    parts = {
        "dev": (write_pack, args.dev_scenes, packs),
        "layers": (write_layers, args.layers, shared),
        "train": (write_pack, args.scenes, train),
    }
    with progress_on_stderr(), timed(report.seconds, "synth"):
        for name, (write, count, options) in parts.items():
            split = "dev" if name == "dev" else "train"
            for _ in write(root, out / name, split, count, **options) if count else ():
                pass
    report.outputs["pack"] = str(out)
    report.lines.append(str(out))
    return report
