"""``zim-grounded eval``: a set of expressions and true mattes to numbers and a table."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path
from typing import Any

from zim._progress import progress_on_stderr, track
from zim.commandline import Report, UsageError, apply_runtime, timed
from zim.errors import OutputError, ZimError
from zim.output import atomic_write
from zim.segmenters import load_segmenter
from zim_grounded.refmatte import METRICS, Entity, evaluate, read_entities, summary
from zim_grounded.work import chosen_detector


def run(args: argparse.Namespace) -> Report:
    """Run the command; see ``zim-grounded eval --help``."""
    if args.output == "-":
        raise UsageError("--output - is not possible here; give a folder for the table")
    root = Path(args.refmatte).expanduser()
    entities = read_entities(root, Path(args.index) if args.index else None)
    table = Path(args.output or ".").expanduser() / "refmatte.csv"
    report = Report(model=args.model, outputs={"csv": str(table)})
    if table.exists() and args.skip_existing:
        report.extra["skipped"] = True
        report.lines.append(f"{table} exists, left as it is")
        return report
    if table.exists() and not args.overwrite:
        raise OutputError(f"{table} exists; use --overwrite or --skip-existing")
    with timed(report.seconds, "start"):
        apply_runtime(args)
        detector = None if args.true_boxes else chosen_detector(args)
        segmenter = load_segmenter(args.model, device=args.device, dtype=args.dtype)
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    with timed(report.seconds, "score"), progress_on_stderr():
        for group in track(_by_image(entities), "scoring"):
            scored, bad = evaluate(group, segmenter, detector, args.focus)
            rows += scored
            left_out |= bad
    for key, why in left_out.items():
        sys.stderr.write(f"zim-grounded eval: left out {key}: {why}\n")
    if not rows:
        raise ZimError(f"{root}: none of {len(entities)} entities can be used")
    report.failed = bool(left_out)
    report.extra["left_out"] = left_out
    report.metrics = {
        group: {k: round(v, 5) for k, v in means.items()} for group, means in summary(rows).items()
    }
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    table.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(table, buffer.getvalue().encode())
    report.extra["detector"] = detector.name if detector else None
    for group, means in report.metrics.items():
        numbers = "  ".join(f"{name} {means[name]:.3f}" for name in METRICS)
        recall = f"  box recall {means['box_recall']:.3f}" if "box_recall" in means else ""
        report.lines.append(f"{group:26} n {means['samples']:.0f}  {numbers}{recall}")
    report.lines.append(str(table))
    return report


def _by_image(entities: list[Entity]) -> list[list[Entity]]:
    """Group entities by picture, so that every picture is encoded once."""
    groups: dict[Path, list[Entity]] = {}
    for entity in entities:
        groups.setdefault(entity.image, []).append(entity)
    return list(groups.values())
