"""``zim matte``: cut objects out of images and write cut-outs, mattes, composites, overlays."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zim._progress import progress_on_stderr, track
from zim.commandline import Report, UsageError, apply_runtime, error_line, not_built_error, timed
from zim.commands.outputs import FORMATS, Plan, Result, pending, plan_outputs
from zim.commands.prompt_flags import ObjectPrompt, add_prompt_flags, object_prompts
from zim.errors import ZimError

if TYPE_CHECKING:
    from zim.commands.session import Session

CANDIDATES = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``zim matte``."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures, - is stdin")
    add_prompt_flags(parser)
    group = parser.add_argument_group("results")
    group.add_argument("--model", default="nano", metavar="NAME", help="see zim models [nano]")
    group.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        metavar="KIND",
        help=f"any of {', '.join(FORMATS)} [rgba alpha]; files are <stem>.<kind>.png",
    )
    group.add_argument(
        "--background",
        metavar="COLOUR|FILE",
        help="what a composite is put on: a colour name, #rrggbb or a picture [white]",
    )
    group.add_argument(
        "--bits", type=int, choices=(8, 16), default=8, help="depth of rgba and alpha [8]"
    )
    group.add_argument(
        "--foreground",
        choices=("ml", "none"),
        default="ml",
        help="estimate the object's own colours at soft edges, so that no rim of the old "
        "background stays, or keep the picture's [ml]",
    )
    group.add_argument("--refine", action="store_true", help="look again closely (not built yet)")
    group.add_argument(
        "--multimask", action="store_true", help=f"write {CANDIDATES} candidates, best score first"
    )


def run(args: argparse.Namespace) -> Report:
    """Cut out every object of every image; a bad image never stops the others."""
    if args.refine:
        raise not_built_error("zim matte --refine")
    if args.json and args.output == "-":
        raise UsageError("--json and --output - both want stdout; write the picture to a file")
    if args.output == "-" and sys.stdout.isatty():
        raise UsageError("--output - would print a picture on the terminal; redirect or pipe it")
    if args.images.count("-") > 1:
        raise UsageError("stdin (-) can be one image only")
    prompts = object_prompts(args)
    results = _results(args.images, len(prompts), args.multimask)
    flat = [result for row in results for group in row for result in group]
    plan = plan_outputs(args.output, flat, args.format, args.background)

    report = Report(model=args.model, items=[])
    todo = _still_to_do(args, results, plan, report)
    if any(todo):
        from zim.commands.session import Session

        with timed(report.seconds, "start"):
            apply_runtime(args)
            session = Session(args.model, args.device, args.dtype)
        with progress_on_stderr():
            for row in track([row for row in results if row[0][0].source in todo], "matting"):
                _one_image(args, session, prompts, row, plan, todo, report)
    _finish(report, args.images)
    return report


def _results(images: Sequence[str], objects: int, multimask: bool) -> list[list[list[Result]]]:
    """Name everything that will be made: per image, per object, per candidate."""
    numbers = [None] if objects == 1 else list(range(1, objects + 1))
    candidates = list(range(1, CANDIDATES + 1)) if multimask else [None]
    return [[[Result(image, n, c) for c in candidates] for n in numbers] for image in images]


def _still_to_do(
    args: argparse.Namespace,
    results: list[list[list[Result]]],
    plan: Plan,
    report: Report,
) -> dict[str, dict[Result, dict[str, Any]]]:
    """Return per image what to write; images with nothing to write become items right away."""
    todo: dict[str, dict[Result, dict[str, Any]]] = {}
    for row in results:
        source = row[0][0].source
        flat = [result for group in row for result in group]
        try:
            left = {
                result: pending(
                    plan.paths[result],
                    overwrite=args.overwrite,
                    skip_existing=args.skip_existing,
                )
                for result in flat
            }
        except ZimError as error:
            _add_error(report, source, error)
            continue
        if plan.to_stdout or any(left.values()):
            todo[source] = left
        else:
            for result in flat:
                _add_item(report, result, plan, skipped=True)
    return todo


def _one_image(
    args: argparse.Namespace,
    session: Session,
    prompts: Sequence[ObjectPrompt],
    row: list[list[Result]],
    plan: Plan,
    todo: dict[str, dict[Result, dict[str, Any]]],
    report: Report,
) -> None:
    source = row[0][0].source
    seconds: dict[str, float] = {}
    try:
        with timed(seconds, "read"):
            session.read(source)
        with timed(seconds, "encode"):
            session.encode()
        for prompt, group in zip(prompts, row, strict=True):
            with timed(seconds, "decode"):
                mattes = session.cut(prompt, candidates=len(group))
            for result, matte in zip(group, mattes, strict=True):
                if plan.to_stdout:
                    with timed(seconds, "write"):
                        data = _encoded(args, matte, plan.formats[0])
                        sys.stdout.buffer.write(data)
                        sys.stdout.buffer.flush()
                    report.stdout_taken = True
                for kind, path in todo[source][result].items():
                    with timed(seconds, "write"):
                        _save(args, matte, kind, path)
                _add_item(report, result, plan, score=matte.score)
    except (ZimError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        if args.debug:
            import traceback

            traceback.print_exception(error, file=sys.stderr)
        _add_error(report, source, error)
    for stage, value in seconds.items():
        report.seconds[stage] = report.seconds.get(stage, 0.0) + value


def _add_item(
    report: Report, result: Result, plan: Plan, *, score: float | None = None, skipped: bool = False
) -> None:
    outputs = {kind: str(path) for kind, path in plan.paths[result].items()}
    item: dict[str, Any] = {
        "input": result.source,
        "outputs": outputs,
        "metrics": {} if score is None else {"score": round(float(score), 4)},
        "error": None,
    }
    if result.object is not None:
        item["object"] = result.object
    if result.candidate is not None:
        item["candidate"] = result.candidate
    if skipped:
        item["skipped"] = True
    assert report.items is not None
    report.items.append(item)
    report.lines += outputs.values()


def _add_error(report: Report, source: str, error: BaseException) -> None:
    line = error_line(error)
    sys.stderr.write(f"zim matte: {line if source in line else f'{source}: {line}'}\n")
    assert report.items is not None
    report.items.append({"input": source, "outputs": {}, "metrics": {}, "error": line})
    report.failed = True


def _finish(report: Report, images: Sequence[str]) -> None:
    """Put items in the order of the inputs; a single one is the report itself."""
    items = report.items or []
    items.sort(key=lambda item: images.index(item["input"]))
    if len(items) == 1:
        report.outputs = items[0]["outputs"]
        report.metrics = items[0]["metrics"]
        if items[0]["error"]:
            report.extra["error"] = items[0]["error"]
    elif report.failed:
        bad = sum(1 for item in items if item["error"])
        report.extra["error"] = f"{bad} of {len(images)} images failed"
