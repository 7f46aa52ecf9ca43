"""``zim-train testset``: candidates and a review page, then a test set in MicroMat's layout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zim.commandline import Report, UsageError, apply_runtime, timed
from zim.name_flags import add_model_flag
from zim_training.commands.common import number, run_folder, view_side


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="pictures, or their folder")
    parser.add_argument("--converter", metavar="DIR", help="a converter's run or export folder")
    add_model_flag(parser, about="finds the masks")
    parser.add_argument(
        "--size", type=view_side, default=1024, metavar="N", help="converter view [1024]"
    )
    parser.add_argument(
        "--most", type=number(int, 1), default=20, metavar="N", help="mattes a picture [20]"
    )
    parser.add_argument(
        "--points-per-side",
        type=number(int, 1),
        metavar="N",
        help="clicks a side of the mask generator",
    )
    parser.add_argument("--review", metavar="FILE", help="review.json of the page: build the set")
    parser.add_argument(
        "--accept-all", action="store_true", help="build the set from all candidates, unreviewed"
    )


def run(args: argparse.Namespace) -> Report:
    """Propose candidates, or build the reviewed set."""
    out, report = run_folder(args, "testset"), Report(model=args.model)
    apply_runtime(args)
    if not args.review and not args.images and not args.accept_all:
        raise UsageError("testset needs pictures, or --review review.json for a finished review")
    if args.images:
        _propose(args, out, report)
    if args.review or args.accept_all:
        from zim_training.testset.candidates import read_candidates
        from zim_training.testset.layout import build, read_review

        if args.review:
            decisions = read_review(Path(args.review))
        else:
            decisions = {r["key"]: {"level": r["level"]} for r in read_candidates(out)}
        with timed(report.seconds, "build"):
            counts = build(out, decisions, args.seed)
        report.metrics |= counts
        report.outputs["list"] = str(out / "data_list.txt")
        report.lines.append(f"{out}: {counts['fine']} fine, {counts['coarse']} coarse mattes")
    return report


def _propose(args: argparse.Namespace, out: Path, report: Report) -> None:
    if not args.converter:
        raise UsageError("testset needs a converter: --converter RUN (see zim-train converter)")
    from zim.api import choose_device, load
    from zim.automatic import ZimAutomaticMaskGenerator
    from zim.folders import pictures_in
    from zim_training.convert.config import ConvertConfig
    from zim_training.converter.model import Converter
    from zim_training.testset.candidates import FOLDER, propose
    from zim_training.testset.layout import PARTS
    from zim_training.testset.page import write_page

    images: list[Path] = []
    for path in map(Path, args.images):
        if path.is_dir():
            images += pictures_in(path)
        else:
            images.append(path)
    written = [(out / part).resolve() for part in (FOLDER, *PARTS)]
    for image in images:
        if any(image.resolve().is_relative_to(folder) for folder in written):
            raise UsageError(f"{image} lies where testset writes; choose another --output")
    device = choose_device(args.device)
    converter = Converter.from_pretrained(args.converter).to(device)
    model = load(args.model, device=args.device, dtype=args.dtype)
    finder = ZimAutomaticMaskGenerator(model, points_per_side=args.points_per_side)
    config = ConvertConfig(size=args.size)
    report.items = []
    with timed(report.seconds, "propose"):
        for name, count, wrong in propose(images, out, finder, converter, config, args.most):
            sys.stderr.write(f"{name}: {wrong or f'{count} candidates'}\n")
            item = {"input": name, "outputs": {}, "metrics": {"candidates": count}, "error": wrong}
            report.items.append(item)
            report.failed |= wrong is not None
    report.outputs["page"] = str(write_page(out))
    report.lines.append(str(out / "review.html"))
