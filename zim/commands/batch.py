"""``zim batch``: mattes for a long list of pictures, resumable after any interruption."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zim._progress import progress_on_stderr
from zim.commandline import (
    OneLineParser,
    Report,
    UsageError,
    apply_runtime,
    positive_int,
    timed,
)
from zim.commands.outputs import FORMATS, Inputs, output_folder
from zim.name_flags import Names, add_model_flag, one_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``zim batch``."""
    if isinstance(parser, OneLineParser):
        prompts = ("--points", "--point", "--box", "--bbox", "--scribble", "--mask", "--prompts")
        parser.elsewhere = dict.fromkeys(prompts, "prompts of a batch stand in a manifest, by line")
    parser.add_argument(
        "source",
        metavar="MANIFEST.jsonl|DIR",
        help='a folder of pictures, or lines {"image": path, "point": [[x,y,label]], "bbox": '
        '[x0,y0,x1,y1], "scribble": strokes or file, "mask": file, "text": words}, each prompt if '
        "wanted; paths are relative to the manifest",
    )
    add_model_flag(parser, rivals=True)
    parser.add_argument(
        "--format",
        action=Names,
        each=one_of(FORMATS[:3]),
        metavar="KIND",
        help=f"any of {', '.join(FORMATS[:3])} [alpha]; files are <name>.<kind>.png",
    )
    parser.add_argument(
        "--background",
        metavar="COLOUR|FILE",
        help="what a composite is put on; given alone it adds one [white]",
    )
    parser.add_argument("--bits", type=int, choices=(8, 16), default=8, help="depth [8]")
    parser.add_argument(
        "--foreground", choices=("ml", "none"), default="ml", help="as in zim matte [ml]"
    )
    group = parser.add_argument_group("work; --threads is per process and 1 by default")
    group.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="who does the shards [local]"
    )
    group.add_argument(
        "--processes", type=positive_int, default=1, metavar="N", help="or Ray's actors [1]"
    )
    group.add_argument(
        "--shard-size", type=positive_int, default=64, metavar="N", help="rows per shard [64]"
    )
    group.add_argument("--retry-failed", action="store_true", help="do shards with failures again")


def run(args: argparse.Namespace) -> Report:
    """Do what is not done yet; exit 1 if anything failed."""
    if args.output in (None, "-"):
        raise UsageError("--output DIR is needed: mattes and the state of the work go there")
    if args.skip_existing:
        raise UsageError("--skip-existing: finished shards are always kept; leave it out")
    if args.background is not None and args.format and "composite" not in args.format:
        raise UsageError("--background is for --format composite; add it or leave out --format")
    usual = ("alpha",) if args.background is None else ("alpha", "composite")
    formats, background = args.format or usual, args.background or "white"
    output = output_folder(args.output)
    report = Report(model=args.model, outputs={"folder": str(output)})
    args.threads = args.threads or 1
    with timed(report.seconds, "start"):
        apply_runtime(args)
        from zim import batch
        from zim.commands.session import Look
        from zim.pools import rank_and_world
        from zim.weights.names import weights_hash

        source = Path(args.source).expanduser()
        if source.is_dir() and output.resolve() == source.resolve():
            raise UsageError(
                f"--output {args.output} is the folder of the pictures, where mattes would be "
                "taken for pictures the next time; give another, or one inside it"
            )
        rows = batch.read_rows(source)
        Look(args.bits, args.foreground, background).check()
        recipe = batch.Recipe(
            model=args.model,
            weights=weights_hash(args.model),
            formats=formats,
            bits=args.bits,
            foreground=args.foreground,
            background=background,
            shard_size=args.shard_size,
            device=args.device,
            dtype=args.dtype,
            threads=args.threads,
            detector=batch.detector_of(rows),
        )
        if args.overwrite and rank_and_world()[1] > 1:
            raise UsageError(
                f"--overwrite: several ranks would delete each other's work; remove {output} first"
            )
        if output.exists():  # else there is nothing to write over
            inputs = Inputs(dict.fromkeys(name for row in rows for name in row.reads()))
            for stem in (stem for row in rows for stem in row.stems()):
                for kind in recipe.formats:
                    inputs.spare(output / f"{stem}.{kind}.png")
        batch.prepare(output, recipe, overwrite=args.overwrite)
    with timed(report.seconds, "matte"), progress_on_stderr():
        done = batch.run(
            rows,
            output,
            recipe,
            engine=args.engine,
            processes=args.processes,
            retry_failed=args.retry_failed,
        )
    failures = done.pop("failures")
    report.metrics = done
    report.outputs["failed"] = str(output / "failed.jsonl")
    report.extra["failures"] = failures
    good = done["rows"] - done["failed"]
    report.lines.append(f"{good} of {done['rows']} pictures are in {output}")
    if failures:
        report.failed = True
        report.extra["error"] = f"{len(failures)} of {done['rows']} pictures failed"
        first = failures[0]
        sys.stderr.write(
            f"zim batch: {len(failures)} failed, see {output / 'failed.jsonl'}; "
            f"the first: {first['image']}: {first['error']}\n"
        )
    return report
