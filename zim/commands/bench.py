"""``zim bench``: how fast models are on this machine, and how much memory they take."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from zim._progress import progress_on_stderr
from zim.commandline import (
    DEVICES,
    DTYPES,
    Report,
    UsageError,
    apply_runtime,
    positive_int,
    timed,
    whole_number,
    write_report,
)
from zim.config import PRESETS
from zim.errors import OutputError, ZimError
from zim.name_flags import Names, add_models_flag, one_of

#: of pictures: below, no box fits; above, zim.images would not read them either
SMALLEST_SIDE, MOST_PIXELS = 16, 300_000_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``zim bench``."""
    group = parser.add_argument_group("cases; every combination is measured in its own process")
    add_models_flag(
        group,
        also=tuple(PRESETS),
        about="see zim models; names without weights, as vit_b, get random ones",
    )
    group.add_argument(
        "--devices", action=Names, metavar="NAME", help=f"{DEVICES} [what --device says]"
    )
    group.add_argument(
        "--dtypes",
        action=Names,
        each=one_of(DTYPES),
        metavar="NAME",
        help="types [what --dtype says]",
    )
    group.add_argument(
        "--batches",
        nargs="+",
        type=positive_int,
        default=[1],
        metavar="N",
        help="pictures at once [1]",
    )
    group = parser.add_argument_group("measuring")
    group.add_argument(
        "--prompts",
        nargs="+",
        type=positive_int,
        default=[1, 8, 64],
        metavar="N",
        help="boxes per picture to decode at once [1 8 64]",
    )
    group.add_argument(
        "--size",
        type=picture_size,
        default=(1024, 768),
        metavar="WxH",
        help="width and height of the pictures [1024x768]",
    )
    group.add_argument(
        "--stages",
        action=Names,
        each=stage_name,
        metavar="STAGE",
        help="some of import, preprocess, encode, decode, enlarge, matte [all]",
    )
    group.add_argument(
        "--repeats", type=positive_int, default=5, metavar="N", help="runs that count [5]"
    )
    group.add_argument(
        "--warmup", type=whole_number, default=1, metavar="N", help="runs before them [1]"
    )
    group.add_argument("--compile", action="store_true", help="compile the image encoder first")


def run(args: argparse.Namespace) -> Report:
    """Measure and print a table; what fails is said on stderr and does not stop the rest."""
    from zim import benchmark

    if args.devices and args.device != "auto":
        raise UsageError("--device and --devices were given; use one of them")
    if args.dtypes and args.dtype != "auto":
        raise UsageError("--dtype and --dtypes were given; use one of them")
    if _done_before(args):
        report = Report(extra={"skipped": True})
        report.lines.append(f"{args.output} exists, left as it is")
        return report
    for name in args.models:
        benchmark.check_model(name)

    report = Report(model=args.models[0] if len(set(args.models)) == 1 else None)
    with timed(report.seconds, "start"):
        from zim.api import choose_device
        from zim.benchmarking import hardware, hardware_line, provenance

        apply_runtime(args)
        devices = args.devices or [args.device]
        for device in devices:
            choose_device(device)
        machine = hardware()
    stages = args.stages or benchmark.STAGES
    cases = benchmark.plan(
        args.models,
        devices,
        args.dtypes or [args.dtype],
        args.batches,
        prompts=tuple(dict.fromkeys(args.prompts)),
        size=args.size,
        stages=tuple(stage for stage in benchmark.UNITS if stage in stages),
        repeats=args.repeats,
        warmup=args.warmup,
        threads=machine["threads"],
        seed=args.seed,
        compile=args.compile,
    )
    with timed(report.seconds, "measure"), progress_on_stderr():
        rows = []
        if benchmark.IMPORT in stages:
            rows += benchmark.import_rows(args.warmup, args.repeats, machine["threads"])
        rows += benchmark.run(cases)

    failures = [_failure(row) for row in rows if row["error"] is not None]
    if failures and len(failures) == len(rows):
        raise ZimError(failures[0])
    for line in failures:
        sys.stderr.write(f"zim bench: {line}\n")
    if failures:
        report.failed = True
        report.extra["error"] = f"{len(failures)} of {len(rows)} measurements failed"
    source = provenance()
    report.extra |= {
        "hardware_line": hardware_line(machine),
        "hardware": machine,
        "size": list(args.size),
        "warmup": args.warmup,
        **source,
        "rows": rows,
    }
    report.lines += [
        f"Machine: {report.extra['hardware_line']}",
        f"Commit {source['commit'] or 'unknown'}, {source['date']}; pictures of "
        f"{args.size[0]} x {args.size[1]}; medians of {args.repeats} runs after {args.warmup}",
        "",
        *benchmark.table(rows),
    ]
    untrained = dict.fromkeys(r["model"] for r in rows if r["weights"] == "random weights")
    if untrained:
        report.lines += [
            "",
            f"Random weights: {', '.join(untrained)}. Speed and memory are the network's; "
            "there are no trained weights here.",
        ]
    write_report(report, args)
    return report


def picture_size(text: str) -> tuple[int, int]:
    """Parse ``1024x768``: width and height."""
    found = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, for example 1024x768")
    width, height = int(found[1]), int(found[2])
    if min(width, height) < SMALLEST_SIDE or width * height > MOST_PIXELS:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected sides of at least {SMALLEST_SIDE} and at most "
            f"{MOST_PIXELS // 1_000_000} million pixels"
        )
    return width, height


def stage_name(text: str) -> str:
    """Parse the name of a stage."""
    from zim.benchmark import STAGES  # here, so that other commands' help does not wait for it

    if text not in STAGES:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(STAGES)}")
    return text


def _done_before(args: argparse.Namespace) -> bool:
    """Look at ``--output`` before the work; True where ``--skip-existing`` finds it done."""
    if args.output in (None, "-"):
        return False
    path = Path(args.output).expanduser()
    if path.is_dir():
        path = path / "report.json"
    if not path.exists() or args.overwrite:
        return False
    if not args.skip_existing:
        raise OutputError(f"{path} exists; use --overwrite or --skip-existing")
    return True


def _failure(row: dict[str, object]) -> str:
    words = [row[key] for key in ("model", "device", "dtype")]
    where = " ".join(str(word) for word in words if word is not None)
    count = f" {row['prompts']}" if row["stage"] == "decode" else ""
    return f"{where} batch {row['batch']}, {row['stage']}{count}: {row['error']}"
