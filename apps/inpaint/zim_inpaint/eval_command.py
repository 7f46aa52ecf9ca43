"""``zim-inpaint eval``: flags and report of the COCO benchmark (paper, section 7.2, Table 5)."""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zim._progress import progress_on_stderr
from zim.commandline import Report, UsageError, apply_runtime, positive_int, timed
from zim.commands.outputs import output_folder
from zim.errors import OutputError
from zim.name_flags import add_models_flag
from zim_inpaint.flags import BACKENDS, amount, pixels_or_auto

if TYPE_CHECKING:
    from collections import Counter

    from zim_inpaint.coco import Target
    from zim_inpaint.evaluate import Failures, Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``zim-inpaint eval``."""
    parser.epilog = "Without --output, results go to zim-inpaint-eval."
    parser.add_argument(
        "--coco", required=True, metavar="DIR", help="with annotations/ and val2017/ in it"
    )
    add_models_flag(
        parser,
        rivals=True,
        also=("coco",),
        default=("coco", "nano"),
        about="coco is its own masks, others see zim models",
    )
    parser.add_argument("--limit", type=positive_int, metavar="N", help="so many objects, drawn")
    parser.add_argument(
        "--sheet", type=int, default=0, metavar="N", help="sheet.jpg of the first N objects [0]"
    )
    group = parser.add_argument_group("choices that the paper leaves open; the report states them")
    group.add_argument(
        "--points", type=positive_int, default=10, metavar="N", help="clicks per object [10]"
    )
    group.add_argument(
        "--min-side", type=amount, default=32, metavar="PX", help="of an object's box [32]"
    )
    group.add_argument(
        "--min-area", type=amount, default=1024, metavar="PX", help="of an object's mask [1024]"
    )
    group.add_argument(
        "--max-box", type=amount, default=0.9, metavar="S", help="box's share of the picture [0.9]"
    )
    group.add_argument("--all", action="store_true", help="every object that is no crowd")
    group.add_argument(
        "--answer",
        choices=("best", "single"),
        default="best",
        help="best of several by the model's own score, or its single answer [best]",
    )
    group.add_argument(
        "--threshold",
        type=float,
        default=0.02,
        metavar="A",
        help="repaint where a model's matte is above A; COCO's masks have no grey [0.02]",
    )
    group.add_argument(
        "--grow", type=pixels_or_auto, default=0, metavar="PX", help="every mask; or auto [0]"
    )
    group.add_argument("--feather", type=amount, default=0.0, metavar="PX", help="ramp [0]")
    group.add_argument("--context", type=amount, default=0.5, metavar="S", help="seen around [0.5]")
    group.add_argument("--work-size", type=positive_int, metavar="PX", help="longest side [512]")
    group.add_argument(
        "--backend",
        choices=tuple(name for name in BACKENDS if name != "diffusers"),
        default="auto",
        help="auto: lama if its file is there, else patchmatch, else telea",
    )
    group.add_argument("--lama", metavar="FILE", help="big-lama.pt [ZIM_HOME/models/big-lama.pt]")
    group.add_argument(
        "--clip-model",
        default="ViT-B-32-quickgelu",
        metavar="NAME",
        help="of open_clip [ViT-B-32-quickgelu]",
    )
    group.add_argument(
        "--clip-pretrained", default="openai", metavar="NAME|FILE", help="its weights [openai]"
    )
    group.add_argument(
        "--clip-distance",
        choices=("l2", "cosine"),
        default="l2",
        help="in the first table; both are measured [l2]",
    )
    group.add_argument(
        "--clip-rule",
        choices=("source", "truth"),
        default="source",
        help="the class that must go: CLIP's choice on the source, or COCO's; likewise [source]",
    )
    group.add_argument(
        "--region", choices=("box", "wide", "image"), default="box", help="CLIP looks at [box]"
    )
    group.add_argument(
        "--square",
        choices=("pad", "squash", "clip"),
        default="pad",
        help="black bars, stretched, or CLIP's own middle cut [pad]",
    )
    group.add_argument(
        "--template", default="a photo of a {}", help="words for a class [a photo of a {}]"
    )


def run(args: argparse.Namespace) -> Report:
    """Remove, score, write tables."""
    models = list(args.models)
    _check(args)
    output = output_folder(args.output, "zim-inpaint-eval")
    report = Report(model=",".join(models), outputs={"folder": str(output)})
    with timed(report.seconds, "start"):
        apply_runtime(args)
        from zim.api import choose_device
        from zim.evaluation.result_log import SETTINGS
        from zim.weights.names import weights_hash
        from zim_inpaint.backends import get_filler
        from zim_inpaint.clip_metrics import Clip
        from zim_inpaint.coco import Filter, read_coco
        from zim_inpaint.evaluate import RESULTS, TRUTH, Settings, evaluate
        from zim_inpaint.finder import load_soft

        which = Filter(0, 0, 1) if args.all else Filter(args.min_side, args.min_area, args.max_box)
        root = Path(args.coco).expanduser()
        targets, names, skipped = read_coco(root, which, limit=args.limit, seed=args.seed)
        if not targets:
            raise OutputError(f"{root}: no object is left to score; {_skipped(skipped)}")
        filler = get_filler(args.backend, lama=args.lama, device=args.device)
        device = str(choose_device(args.device))
        clip = Clip(
            args.clip_model, args.clip_pretrained, names, template=args.template, device=device
        )
        same = ("points", "seed", "limit", "answer", "threshold", "grow", "feather", "context")
        same += ("work_size", "clip_model", "clip_pretrained", "region", "square", "template")
        settings = Settings(
            **{key: getattr(args, key) for key in same}, **asdict(which), backend=filler.name
        )
    if args.overwrite:
        for old in (output / RESULTS, output / SETTINGS):
            old.unlink(missing_ok=True)
    loaders = {
        name: None
        if name == TRUTH
        else functools.partial(load_soft, name, device=args.device, dtype=args.dtype)
        for name in models
    }
    with timed(report.seconds, "score"), progress_on_stderr():
        hashes = {name: "" if name == TRUTH else weights_hash(name) for name in models}
        failures = evaluate(
            loaders,
            targets,
            names,
            settings,
            filler,
            clip,
            output,
            pictures=args.sheet,
            weights=hashes,
        )
    if failures.empty:
        skipped["mask without a pixel"] = len(failures.empty)
    with timed(report.seconds, "write"):
        _write(args, report, output, targets, hashes, settings, skipped, failures)
    return report


def _check(args: argparse.Namespace) -> None:
    if not 0 <= args.threshold < 1:
        raise UsageError(f"--threshold {args.threshold:g}: expected at least 0 and less than 1")
    if not args.clip_pretrained.strip():
        raise UsageError("--clip-pretrained is empty; without weights every number is chance")
    if "{}" not in args.template:
        raise UsageError(f"--template {args.template!r}: expected {{}} where the class goes")
    if args.sheet < 0:
        raise UsageError(f"--sheet {args.sheet}: expected 0 or more")


def _write(
    args: argparse.Namespace,
    report: Report,
    output: Path,
    targets: list[Target],
    hashes: dict[str, str],
    settings: Settings,
    skipped: Counter[str],
    failures: Failures,
) -> None:
    from zim.images import atomic_write, save_rgb
    from zim_inpaint.eval_tables import sheet, tables
    from zim_inpaint.evaluate import read_results

    models = list(hashes)
    rows = [r for r in read_results(output) if r.get("weights", "") == hashes.get(r["model"])]
    made, means = tables(rows, models, args.clip_distance, args.clip_rule)
    lines = [table.markdown() for table in made]
    lines.append(_protocol(args, settings, skipped))
    problems = [f"- {name}: not run, {why}" for name, why in failures.models.items()]
    problems += [f"- object {key}: not scored, {why}" for key, why in failures.objects.items()]
    text = "\n".join([*lines, *problems]) + "\n"
    atomic_write(output / "tables.md", text.encode())
    report.outputs["report"] = str(output / "tables.md")
    for table in made:
        atomic_write(output / f"{table.name}.csv", table.csv().encode())
        report.outputs[f"{table.name}_csv"] = str(output / f"{table.name}.csv")
    if args.sheet:
        picture = sheet(output, targets[: args.sheet], models)
        if picture is not None:
            save_rgb(output / "sheet.jpg", picture)
            report.outputs["sheet"] = str(output / "sheet.jpg")
    report.metrics = means
    report.extra["settings"] = asdict(settings)
    report.extra["left_out"] = dict(skipped)
    report.extra["missing"] = failures.models
    report.items = [
        {"input": key, "outputs": {}, "metrics": {}, "error": why}
        for key, why in failures.objects.items()
    ]
    report.failed = bool(failures.models or failures.objects) or not rows
    if report.failed:
        report.extra["error"] = (
            f"{len(failures.models)} models not run, {len(failures.objects)} objects not scored"
        )
        for problem in problems:
            sys.stderr.write(f"zim-inpaint eval: {problem[2:]}\n")
    report.lines += [text, f"written to {output}"]


def _protocol(args: argparse.Namespace, settings: Settings, skipped: Counter[str]) -> str:
    choices: dict[str, Any] = asdict(settings)
    unset = {"limit": "none", "work_size": "the backend's own"}
    stated = ", ".join(
        f"{key} {unset[key] if value is None else value}" for key, value in choices.items()
    )
    return (
        f"Distances are x 100; first table: {args.clip_distance}, reference class: "
        f"{args.clip_rule}. `truth_seen`: only objects whose class CLIP sees in the source. "
        "A larger mask tends to raise every measure, so mask area stands beside. "
        "`refused`: no usable mask, scored as an unchanged picture. "
        f"An object of fewer than {settings.points} pixels is clicked on each of them. "
        "One object is removed at a time.\n\n"
        f"Choices: {stated}. {_skipped(skipped)}\n"
    )


def _skipped(skipped: Counter[str]) -> str:
    parts = ", ".join(f"{count} {why}" for why, count in sorted(skipped.items()))
    return f"Left out: {parts or 'none'}."
