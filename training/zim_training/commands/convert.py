"""``zim-train convert``: SA-1B tars to SA1B-Matte shards."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zim.commandline import Report, UsageError, apply_runtime, positive_int, timed
from zim.errors import ZimError
from zim.pools import rank_and_world
from zim_training.commands.common import no_dtype, number, printed, run_folder
from zim_training.convert.config import ConvertConfig
from zim_training.options import add_config_flags, add_flags, chosen

PRESETS = {
    "full": ConvertConfig(),
    "paper": ConvertConfig(fraction=0.01, masks_per_image=20),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("tars", nargs="*", metavar="TAR", help="tars of SA-1B, or their folder")
    parser.add_argument("--converter", metavar="DIR", help="a converter's run or export folder")
    parser.add_argument(
        "--engine", choices=("local", "torchrun", "ray"), default="local",
        help="one process, this rank's share of the tars, or a pool of Ray actors [local]",
    )  # fmt: skip
    parser.add_argument(
        "--actors", type=positive_int, default=2, metavar="N", help="Ray actors [2]"
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="estimate the work for the tars given, else for all of SA-1B, and stop",
    )
    parser.add_argument(
        "--rate", type=number(float, 0), default=0.0, metavar="X", help="plan: mattes/s a GPU"
    )
    parser.add_argument("--gpus", type=positive_int, default=8, metavar="N", help="plan: GPUs [8]")
    parser.add_argument(
        "--matte-bytes",
        type=number(float, 0),
        default=0.0,
        metavar="X",
        help="plan: bytes of a matte",
    )
    parser.add_argument("--verify", action="store_true", help="hash finished shards and stop")
    add_config_flags(parser, PRESETS, "full")
    add_flags(parser, PRESETS, "full", skip=("seed",))


def run(args: argparse.Namespace) -> Report:
    """Convert what is not done yet."""
    config = chosen(args, ConvertConfig, PRESETS[args.preset])
    if args.print_config:
        return printed(config)
    if args.plan:
        return _plan(args, config)
    out = run_folder(args, "convert")
    if args.verify:
        return _verify(out)
    sources = _sources(args.tars)
    if not args.converter:
        raise UsageError("convert needs a converter: --converter RUN (see zim-train converter)")
    no_dtype(args, "a conversion computes in float32")
    launched = rank_and_world()[1] > 1
    if launched and args.engine != "torchrun":
        raise UsageError("one of several processes of torchrun; add --engine torchrun to share")
    if args.engine == "torchrun" and "RANK" not in os.environ:
        raise UsageError(
            "--engine torchrun is for processes that torchrun starts: torchrun --nproc-per-node N "
            "-m zim_training.cli convert ..."
        )
    apply_runtime(args)
    from zim_training.convert import engines

    report, again = Report(model=str(args.converter), items=[]), args.overwrite
    with timed(report.seconds, "convert"):
        if args.engine == "ray":
            place = str(Path(args.converter).resolve()), str(out.resolve())
            absolute = [str(Path(s).resolve()) for s in sources]
            done = engines.run_ray(*place, config, absolute, args.actors, args.device, again)
            for row in done:
                _say(row)
        else:
            mine = engines.share_of_rank(sources) if args.engine == "torchrun" else sources
            worker = engines.Worker(args.converter, str(out), config, args.device, again)
            done = engines.run_local(worker, mine, _say)
    _summarise(report, done, out)
    return report


def _sources(paths: list[str]) -> list[str]:
    found: list[str] = []
    for path in map(Path, paths):
        found += sorted(str(p) for p in path.glob("*.tar")) if path.is_dir() else [str(path)]
    if not found:
        raise UsageError("convert needs tars of SA-1B: zim-train convert sa_000000.tar ...")
    stems = [Path(s).stem for s in found]
    if twice := sorted({s for s in stems if stems.count(s) > 1}):
        raise UsageError(f"two tars are called {twice[0]}; their shards would be one file")
    return found


def _useless(row: dict[str, Any]) -> str | None:
    """Say so where nothing of a tar could be used."""
    if row["images"] or not row["quarantined"]:
        return None
    stem, why = row["quarantine"][0]
    return f"no picture could be used ({row['quarantined']} set aside); {stem}: {why}"


def _say(row: dict[str, Any]) -> None:
    if wrong := row.get("error") or _useless(row):
        sys.stderr.write(f"{row['source']}: {wrong}\n")
    elif row["skipped"]:
        sys.stderr.write(f"{row['source']}: already done\n")
    else:
        pace = row["mattes"] / max(row["seconds"], 1e-9)
        sys.stderr.write(
            f"{row['source']}: {row['images']} pictures, {row['mattes']} mattes, "
            f"{row['quarantined']} set aside, {pace:.1f} mattes/s\n"
        )


def _summarise(report: Report, done: list[dict[str, Any]], out: Path) -> None:
    good = [row for row in done if "error" not in row]
    keys = ("images", "mattes", "quarantined", "fallbacks")
    report.metrics = {k: sum(row[k] for row in good) for k in keys}
    report.metrics |= {"shards": len(good), "skipped": sum(row["skipped"] for row in good)}
    fresh = [row for row in good if not row["skipped"]]
    if fresh:
        spent = sum(row["seconds"] for row in fresh)
        report.metrics["mattes_per_s"] = round(
            sum(r["mattes"] for r in fresh) / max(spent, 1e-9), 3
        )
    report.outputs["shards"] = str(out)
    report.items = [
        {
            "input": row["source"],
            "outputs": {} if "error" in row else {"shard": str(out / row["source"])},
            "metrics": {k: row[k] for k in keys} if "error" not in row else {},
            "quarantine": row.get("quarantine", []),
            "error": row.get("error") or _useless(row),
        }
        for row in sorted(done, key=lambda r: r["source"])
    ]
    report.failed = any(item["error"] for item in report.items)
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    counts = ", ".join(f"{report.metrics[k]} {k}" for k in ("shards", "skipped", *keys))
    report.lines.append(f"{rank}{out}: {counts}")


def _plan(args: argparse.Namespace, config: ConvertConfig) -> Report:
    from zim_training.convert.plan import SA1B_TARS, plan

    sources = _sources(args.tars) if args.tars else []
    if missing := [source for source in sources if not Path(source).is_file()]:
        raise ZimError(f"{missing[0]} does not exist; check the path")
    if args.rate <= 0 or args.matte_bytes <= 0:
        raise UsageError(
            "--plan needs a measured --rate (mattes/s of one GPU, printed by a conversion) and "
            "--matte-bytes (mean size of a PNG)"
        )
    tars = len(sources) or SA1B_TARS
    numbers = plan(config, args.rate, args.matte_bytes, args.gpus, tars)
    lines = [f"{name.replace('_', ' '):18} {value}" for name, value in numbers.items()]
    return Report(metrics=numbers, lines=lines, extra={"config": asdict(config)})


def _verify(out: Path) -> Report:
    from zim_training.convert.shard import verify

    bad = verify(out)
    lines = [f"{name}: differs from its marker; convert it again with --overwrite" for name in bad]
    return Report(lines=lines or ["all finished shards are as written"], failed=bool(bad))
