"""``zim-medical eval``: flags, what is missing, and the files of a run."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zim._progress import progress_on_stderr
from zim.commandline import Report, UsageError, apply_runtime, positive_int, timed
from zim.commands.outputs import output_folder
from zim.errors import ZimError
from zim.memory import share_arenas
from zim.name_flags import Names, add_models_flag
from zim.weights.names import weights_hash
from zim_medical.options import DATASETS, MODES, NOTICE, PRESETS, Protocol

if TYPE_CHECKING:
    from zim_medical.evaluate import Plan
    from zim_medical.layouts import Dataset

NAMES = (*DATASETS, "folder")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``zim-medical eval``."""
    parser.epilog = (
        "Without --output, results go to medical-eval; without --seed, the preset has its own. "
        + NOTICE
    )
    parser.set_defaults(seed=None)
    parser.add_argument("--root", metavar="DIR", help="folder with the datasets [ZIM_HOME/medical]")
    parser.add_argument("--demo", action="store_true", help="use a small generated phantom set")
    parser.add_argument(
        "--download",
        action="store_true",
        help="fetch the two MSD datasets (CC BY-SA 4.0) to --root",
    )
    parser.add_argument(
        "--datasets",
        action=Names,
        each=_dataset,
        metavar="NAME",
        help=f"of {', '.join(NAMES)} [all found]",
    )
    parser.add_argument(
        "--modes", type=_modes, default=MODES, metavar="1-5", help="1 point, 2 up to 3 points, "
        "3 box of the largest part, 4 up to 3 boxes, 5 box of everything [1-5]",
    )  # fmt: skip
    add_models_flag(
        parser,
        rivals=True,
        about="see zim models; the first is compared with the rest, e.g. zim_vit_b sam_vit_b",
    )
    parser.add_argument("--limit", type=positive_int, metavar="N", help="cases of a dataset [all]")
    parser.add_argument(
        "--overlays", type=int, default=3, metavar="K", help="pictures shown of a dataset [3]"
    )
    parser.add_argument("--plot", choices=("box", "violin"), default="box", help="of scores [box]")
    parser.add_argument("--oracle", action="store_true", help="also the best of three masks")
    parser.add_argument("--surface", action="store_true", help="also HD95 (mm) and NSD")
    parser.add_argument(
        "--nsd-tolerance", type=float, default=2.0, metavar="MM", help="for --surface [2]"
    )
    group = parser.add_argument_group("protocol (defaults come from the preset)")
    group.add_argument(
        "--preset", choices=tuple(PRESETS), default="zim",
        help="mazurowski: first of three masks, division by the maximum, random ties [zim]",
    )  # fmt: skip
    group.add_argument(
        "--mask-select", choices=("single", "first", "score"),
        help="which mask of a model is scored: its single answer, the first of its three, or the "
        "one of the three that it scores best itself",
    )  # fmt: skip
    group.add_argument(
        "--norm",
        metavar="NAME",
        help="auto, protocol, ct, mr, minmax or LO,HI: what becomes 8 bits",
    )
    group.add_argument("--tie", choices=("nearest", "random"), help="among equally deep pixels")
    group.add_argument(
        "--min-area", type=int, metavar="PX", help="smaller parts of a truth give no prompt"
    )
    group.add_argument(
        "--min-fg", type=positive_int, metavar="PX",
        help="slices and pictures whose truth has fewer pixels are left out",
    )  # fmt: skip
    group.add_argument(
        "--max-regions",
        type=positive_int,
        metavar="N",
        help="points or boxes at most in modes 2 and 4",
    )
    group.add_argument("--box-margin", type=int, metavar="PX", help="added to every side of boxes")
    group.add_argument(
        "--connectivity", type=int, choices=(4, 8),
        help="pixels are of one part that touch at a side (4), or at a corner too (8)",
    )  # fmt: skip
    group.add_argument(
        "--axis", type=_axis, metavar="NAME", help="axial, coronal, sagittal (or 2, 1, 0) or all"
    )
    group.add_argument(
        "--classes", choices=("auto", "merge", "each"), help="labels as one, or each"
    )
    group.add_argument("--threshold", type=float, metavar="A", help="mattes above it are object")


def run(args: argparse.Namespace) -> Report:
    """Evaluate models on the datasets that are there and write the report."""
    output = output_folder(args.output, "medical-eval")
    if args.demo and args.root:
        raise UsageError("--demo makes its own data; leave --root out")
    if args.overlays < 0 or not 0 <= args.nsd_tolerance < math.inf:
        raise UsageError("--overlays and --nsd-tolerance: expected 0 or more")
    protocol = protocol_of(args)
    report = Report(model=args.models[0])
    with timed(report.seconds, "start"):
        share_arenas()
        apply_runtime(args)
        from zim_medical.evaluate import Plan

        root = _root(args, output)
        found, missing = _find(args, root)
        plan = Plan(
            protocol,
            args.modes,
            args.models,
            args.oracle,
            args.nsd_tolerance if args.surface else None,
            args.limit,
        )
        from zim.segmenters import load_segmenter

        segmenters = {
            name: load_segmenter(name, device=args.device, dtype=args.dtype) for name in args.models
        }
    sys.stderr.write(f"zim-medical eval: {NOTICE} {protocol.describe()}\n")
    _evaluate(args, output, plan, found, missing, segmenters, report)
    return report


def protocol_of(args: argparse.Namespace) -> Protocol:
    """Return the preset with what the flags change."""
    names = {"tie": "ties"}
    changes = {
        names.get(flag, flag): value
        for flag in (
            "mask_select",
            "norm",
            "tie",
            "min_area",
            "min_fg",
            "max_regions",
            "box_margin",
            "connectivity",
            "axis",
            "classes",
            "threshold",
        )
        if (value := getattr(args, flag)) is not None
    }
    if args.seed is not None:
        changes["seed"] = args.seed
    protocol = replace(PRESETS[args.preset], **changes)
    if not 0 <= protocol.threshold < 1:
        raise UsageError(f"--threshold {protocol.threshold}; expected 0 <= A < 1")
    if protocol.min_area < 0 or protocol.box_margin < 0:
        raise UsageError("--min-area and --box-margin cannot be negative")
    if protocol.norm != "auto":
        from zim_medical.intensity import parse_norm

        parse_norm(protocol.norm)
    return protocol


def _root(args: argparse.Namespace, output: Path) -> Path:
    if args.demo:
        from zim_medical.demo import make_demo

        folder = output / "demo-data"
        folder.mkdir(parents=True, exist_ok=True)
        return make_demo(folder)
    from zim.weights.registry import zim_home

    root = Path(args.root).expanduser() if args.root else zim_home() / "medical"
    if args.download:
        from zim_medical.download import TASKS, download

        for name in args.datasets or TASKS:
            if name in TASKS:
                download(name, root)
    elif args.root and not root.is_dir():
        raise ZimError(f"--root {root} is no folder; check the path")
    return root


def _find(
    args: argparse.Namespace, root: Path
) -> tuple[dict[str, tuple[Dataset, Path]], list[str]]:
    """Return the datasets below the root, and the names of those that are not there."""
    from zim_medical.layouts import REGISTRY, locate

    wanted = args.datasets or NAMES
    folders = {name: locate(REGISTRY[name], root) for name in wanted}
    found = {name: (REGISTRY[name], folder) for name, folder in folders.items() if folder}
    missing = [name for name in wanted if name not in found and name != "folder"]
    absent = [name for name in wanted if name not in found]
    if (args.datasets and absent) or not found:
        for name in absent:
            sys.stderr.write(f"zim-medical eval: {REGISTRY[name].how_to_get()}\n")
        raise ZimError(
            f"no data for {', '.join(absent)} below {root} (--root); get what is listed above, or "
            "try the evaluation without data: zim-medical eval --demo"
        )
    if missing:
        sys.stderr.write(f"zim-medical eval: not below {root}: {', '.join(missing)}\n")
    return found, missing


def _evaluate(
    args: argparse.Namespace,
    output: Path,
    plan: Plan,
    found: dict[str, tuple[Dataset, Path]],
    missing: list[str],
    segmenters: dict[str, Any],
    report: Report,
) -> None:
    from zim.output import atomic_write, encode_rgb
    from zim_medical.evaluate import evaluate, exclusion_rows, open_run
    from zim_medical.figures import distributions
    from zim_medical.overlays import choose, sheet
    from zim_medical.report import html_report
    from zim_medical.summary import Scores, markdown, summarise

    hashes = {name: weights_hash(name) for name in args.models}
    table = open_run(output, plan, found, args.overwrite, hashes)
    with progress_on_stderr():
        progress = evaluate(plan, found, segmenters, table)
    report.seconds |= progress.seconds
    written: dict[str, tuple[str, bytes]] = {}
    with timed(report.seconds, "report"):
        scores = Scores(table.rows())
        if not scores.groups:
            reasons = "; ".join(f"{e.case_id}: {e.reason}" for e in progress.exclusions[:5])
            raise ZimError(f"nothing could be scored below {output}: {reasons or 'no truth'}")
        summary = summarise(plan, scores, progress)
        sheets: dict[str, bytes] = {}
        mode = max(m for m in plan.modes)
        for name, (dataset, folder) in found.items():
            rows = choose(table, name, plan.models[0], mode, args.overlays)
            if rows:
                picture = sheet(plan, dataset, folder, rows, segmenters)
                sheets[name] = encode_rgb(picture, ".jpg")
                written[f"overlay_{name}"] = (f"overlay_{name}.jpg", sheets[name])
        plots = distributions(scores, plan.modes, plan.models, plan.protocol.describe(), args.plot)
        page = html_report(
            summary,
            plots["png"],
            sheets,
            command=_command(),
            demo=args.demo,
            plot_kind=args.plot,
            missing=missing,
        )
    written |= {
        "plot": ("distribution.png", plots["png"]),
        "plot_pdf": ("distribution.pdf", plots["pdf"]),
        "summary": ("summary.json", (json.dumps(summary, indent=2) + "\n").encode()),
        "summary_md": ("summary.md", markdown(summary).encode()),
        "excluded": ("excluded.csv", exclusion_rows(progress.exclusions).encode()),
        "report": ("report.html", page.encode()),
    }
    for kind, (name, data) in written.items():
        atomic_write(output / name, data)
        report.outputs[kind] = str(output / name)
    report.outputs["csv"] = str(table.path)
    report.metrics = {
        "iou": {
            f"{r['dataset']}/{r['model']}/{r['mode']}": round(r["mean"], 6)
            for r in summary["scores"]
            if r["class"] == "all classes"
        },
        "scored": progress.scored,
        "excluded": len(progress.exclusions),
        "counts": summary["counts"],
    }
    report.extra = {"preset": plan.protocol.describe(), "notice": NOTICE, "missing": missing}
    macro = [f"{m['model']} mode {m['mode']}: {m['mean']:.3f}" for m in summary["macro"]]
    report.lines = [
        f"mean IoU over {len(scores.datasets())} datasets: {', '.join(macro)}",
        *(f"excluded {e.dataset} {e.case_id}: {e.reason}" for e in progress.exclusions),
        str(table.path),
        str(output / "summary.md"),
        str(output / "report.html"),
    ]


def _command() -> str:
    return shlex.join(["zim-medical", *sys.argv[1:]]) if "eval" in sys.argv else "zim-medical eval"


def _dataset(text: str) -> str:
    name = text.replace("-", "_")
    if name not in NAMES:
        raise argparse.ArgumentTypeError(f"unknown dataset {text!r}; expected {', '.join(NAMES)}")
    return name


def _axis(text: str) -> str:
    number = {"sagittal": "0", "coronal": "1", "axial": "2"}.get(text, text)
    if number not in ("0", "1", "2", "all"):
        raise argparse.ArgumentTypeError(f"{text!r}; expected axial, coronal, sagittal or all")
    return number


def _modes(text: str) -> tuple[int, ...]:
    modes: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            raise argparse.ArgumentTypeError(f"{text!r} is not like 1-5 or 1,3")
        if not {int(first), int(last or first)} <= set(MODES):
            raise argparse.ArgumentTypeError(f"{text!r}: modes are 1 to 5")
        modes |= set(range(int(first), int(last or first) + 1))
    if not modes:
        raise argparse.ArgumentTypeError(f"{text!r}: the first mode is above the last")
    return tuple(sorted(modes))
