"""``zim eval``: score models on a data set, with the paper's numbers beside."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zim._progress import progress_on_stderr
from zim.commandline import Report, UsageError, apply_runtime, positive_int, timed
from zim.commands.outputs import output_folder
from zim.errors import reason
from zim.memory import share_arenas
from zim.name_flags import Names, add_models_flag, one_of

if TYPE_CHECKING:
    from zim.evaluation.samples import Sample

DATASETS = ("micromat3k", "am2k", "aim500", "p3m", "refmatte_rw100", "folder", "manifest")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``zim eval``."""
    parser.add_argument("--dataset", required=True, choices=DATASETS, help="its layout")
    parser.add_argument("--root", required=True, metavar="DIR", help="its folder, or the manifest")
    add_models_flag(parser, rivals=True)
    parser.add_argument(
        "--prompts",
        action=Names,
        each=one_of(("point", "box")),
        default=("point", "box"),
        metavar="KIND",
        help="point, box or both [point box]",
    )
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first samples")
    parser.add_argument(
        "--max-side", type=positive_int, metavar="N", help="scale larger pictures down [never]"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes for metrics, 0: none [one core less than there are, 8 at most]",
    )
    parser.add_argument(
        "--latency", metavar="FILE", help="report of zim bench --json, for Table 7's column"
    )
    parser.add_argument("--plots", action="store_true", help="write errors.png (extra eval)")
    parser.add_argument("--sheet", action="store_true", help="write sheet.jpg: best to worst")


def run(args: argparse.Namespace) -> Report:
    """Score, merge what all ranks have, write tables."""
    models, prompts = list(args.models), args.prompts
    workers = args.workers
    if workers is None:
        workers = min(8, max(1, (os.cpu_count() or 1) - 1))
    elif workers < 0:
        raise UsageError(f"--workers {workers}: expected 0 or more")
    latency = _latency(args.latency)
    output = output_folder(args.output, "zim-eval")
    report = Report(model=",".join(models), outputs={"folder": str(output)})
    with timed(report.seconds, "start"):
        apply_runtime(args)
        from zim.evaluation import runner
        from zim.evaluation.datasets import read_dataset
        from zim.pools import rank_and_world
        from zim.segmenters import load_segmenter
        from zim.weights.names import weights_hash

        samples = read_dataset(args.dataset, Path(args.root).expanduser())[: args.limit]
        _, world = rank_and_world()
        share_arenas()
    if args.overwrite:
        if world > 1:
            raise UsageError(
                "--overwrite: several ranks would delete each other's results; remove "
                f"{output} first"
            )
        earlier = ("settings.json", "errors.png", "sheet.jpg", *(f"table{n}.*" for n in (1, 2, 7)))
        for old in (p for name in ("results.*.jsonl", *earlier) for p in output.glob(name)):
            old.unlink(missing_ok=True)
    settings = runner.Settings(args.dataset, prompts, args.seed, args.max_side, args.dtype)
    loaders = {
        name: functools.partial(load_segmenter, name, device=args.device, dtype=args.dtype)
        for name in models
    }
    with timed(report.seconds, "score"), progress_on_stderr():
        hashes = {name: weights_hash(name) for name in models}
        missing = runner.evaluate(
            loaders, samples, settings, output, workers=workers, weights=hashes
        )
    for name, why in missing.items():
        sys.stderr.write(f"zim eval: {name}: {why}\n")
    with timed(report.seconds, "write"):
        fits = runner.fitting(samples, hashes)
        _write(args, report, output, samples, missing, latency, settings, loaders, models, fits)
    return report


def _write(
    args: argparse.Namespace,
    report: Report,
    output: Path,
    samples: list[Sample],
    missing: dict[str, str],
    latency: dict[str, float],
    settings: Any,
    loaders: dict[str, Any],
    models: list[str],
    fits: Any,
) -> None:
    from zim.evaluation import runner
    from zim.evaluation.tables import scored, tables
    from zim.images import atomic_write, save_rgb

    results = [
        row
        for row in runner.read_results(output, fits)
        if row["model"] in models and row["prompt"] in settings.prompts
    ]
    excluded: dict[tuple[str, str], list[str]] = {}
    for row in results:
        if "excluded" in row:
            kinds = excluded.setdefault((row["key"], row["excluded"]), [])
            kinds += [row["prompt"]] if row["prompt"] not in kinds else []
    rows = scored(results)
    expected = len(samples) * len(settings.prompts) * (len(models) - len(missing))
    report.metrics = {
        "samples": len(samples),
        "scored": len(rows),
        "excluded": len({key for key, _ in excluded}),
        "still_to_do": expected - sum(1 for r in results if r["model"] not in missing),
    }
    made = tables(args.dataset, results, models, missing, latency)
    lines = [table.markdown() for table in made]
    lines.append(_protocol(settings))
    if excluded:
        lines.append(f"Excluded, never scored ({len(excluded)}):\n")
        for (key, why), kinds in excluded.items():
            part = "" if len(kinds) == len(settings.prompts) else f" ({kinds[0]} only)"
            lines.append(f"- {key}: {why}{part}")
    text = "\n".join(lines) + "\n"
    atomic_write(output / "tables.md", text.encode())
    report.outputs["report"] = str(output / "tables.md")
    for table in made:
        atomic_write(output / f"{table.name}.csv", table.csv().encode())
        atomic_write(output / f"{table.name}.tex", table.latex().encode())
        report.outputs[f"{table.name}_csv"] = str(output / f"{table.name}.csv")
        report.outputs[f"{table.name}_latex"] = str(output / f"{table.name}.tex")
    atomic_write(output / "prompts.jsonl", _prompts(results).encode())
    report.outputs["prompts"] = str(output / "prompts.jsonl")
    if args.plots:
        from zim.evaluation.pictures import error_plot

        atomic_write(output / "errors.png", error_plot(results, models))
        report.outputs["plot"] = str(output / "errors.png")
    if args.sheet and rows:
        from zim.evaluation.pictures import sheet

        save_rgb(output / "sheet.jpg", sheet(results, samples, loaders, settings))
        report.outputs["sheet"] = str(output / "sheet.jpg")
    report.extra["excluded"] = [{"input": key, "error": why} for key, why in excluded]
    report.extra["missing"] = missing
    report.failed = bool(missing) or not rows
    if missing:
        report.extra["error"] = f"not run: {', '.join(missing)}"
    elif not rows:
        report.extra["error"] = "nothing was scored; tables.md says what was excluded and why"
    report.lines += [text, f"written to {output}"]
    if excluded:
        sys.stderr.write(
            f"zim eval: {report.metrics['excluded']} samples excluded, in whole or for one prompt; "
            "see tables.md\n"
        )


def _protocol(settings: Any) -> str:
    where = "MicroMat-3K's own" if settings.dataset == "micromat3k" else "prompts.jsonl"
    scale = "" if settings.max_side is None else f", longest side at most {settings.max_side}"
    return (
        f"Prompts: {where}; drawn ones (seed {settings.seed}) are a tight box of alpha > 0.1 and "
        "one click well inside alpha > 0.9. One answer per prompt (multimask_output=False)"
        f"{scale}. "
        "SAD and Conn / 1000; MSE, MAE and Grad x 1000.\n"
    )


def _prompts(results: list[dict[str, Any]]) -> str:
    """Return the prompts as asked, in pixels of the scored picture, a JSON line per sample."""
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        row = rows.setdefault(result["key"], {"key": result["key"]})
        if "asked" in result:
            row["bbox" if result["prompt"] == "box" else "point"] = result["asked"]
        elif "excluded" in result:
            row["excluded"] = result["excluded"]
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows.values())


def _latency(file: str | None) -> dict[str, float]:
    """Read milliseconds per model (stage ``matte``, one prompt) from a report of ``zim bench``."""
    if file is None:
        return {}
    try:
        rows = json.loads(Path(file).read_text(encoding="utf-8"))["rows"]
        return {
            row["model"]: 1e3 * row["median_s"]
            for row in rows
            if row["stage"] == "matte" and row["median_s"] is not None
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--latency {file}: expected what zim bench --json printed ({reason(error)})"
        ) from error
