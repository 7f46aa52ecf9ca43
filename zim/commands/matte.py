"""``zim matte``: cut objects out of images and write cut-outs, mattes, composites, overlays."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zim._progress import progress_on_stderr, track
from zim.commandline import Report, UsageError, apply_runtime, timed
from zim.commands.outputs import FORMATS, Inputs, Plan, Result, pending, plan_outputs
from zim.commands.prompt_flags import add_prompt_flags, object_prompts
from zim.errors import ImageError, ZimError
from zim.items import failed_item, report_items
from zim.name_flags import Names, add_model_flag, one_of
from zim.prompt_json import ObjectPrompt

if TYPE_CHECKING:
    from zim.commands.session import Answer, Look, Session

CANDIDATES = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``zim matte``."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures, - is stdin")
    add_prompt_flags(parser)
    group = parser.add_argument_group("results")
    add_model_flag(group, rivals=True)
    group.add_argument(
        "--format",
        action=Names,
        each=one_of(FORMATS),
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
    group.add_argument(
        "--refine",
        action="store_true",
        help="sharpen hair and other soft parts with the picture at full resolution",
    )
    group.add_argument(
        "--multimask", action="store_true", help=f"write {CANDIDATES} candidates, best score first"
    )


def run(args: argparse.Namespace) -> Report:
    """Cut out every object of every image; a bad image or object never stops the others."""
    _check(args)
    prompts = object_prompts(args)
    images = [_Image(name, len(prompts), args.multimask) for name in args.images]
    results = [r for i in images for r in i.results()]
    plan = plan_outputs(args.output, results, args.format, args.background, args.bits)
    read = (*args.images, args.scribble, args.mask, args.prompts, args.background)
    work = _Work(args, plan, prompts, Inputs(read))
    todo = [image for image in images if work.has_something_to_write(image)]
    if todo:
        with timed(work.report.seconds, "start"):
            from zim.commands.session import Look, Session

            apply_runtime(args)
            look = Look(args.bits, args.foreground, args.background or "white")
            look.check()
            session = Session(args.model, args.device, args.dtype)
            session.check(candidates=CANDIDATES if args.multimask else 1, refine=args.refine)
        with progress_on_stderr():
            for image in track(todo, "matting"):
                work.cut(image, session, look)
    return work.finished()


def _check(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other, before anything is loaded."""
    if args.output == "-" and args.json:
        raise UsageError("--json and --output - both want stdout; write the picture to a file")
    if args.output == "-" and sys.stdout.isatty():
        raise UsageError("--output - would print a picture on the terminal; redirect or pipe it")
    if args.images.count("-") > 1:
        raise UsageError("stdin (-) can be one image only")


def _check_source(source: str) -> None:
    """Refuse what is no file, before anything is loaded for it."""
    if source == "-":
        return
    path = os.path.expanduser(source)  # noqa: PTH111 (a home of nobody is a name as any)
    if os.path.isdir(path):  # noqa: PTH112 (and a name may be too long)
        raise ImageError(
            f"{source} is a folder; give its pictures ({source.rstrip('/')}/*.jpg), or the folder "
            "to zim batch or zim auto"
        )
    try:
        os.stat(path)  # noqa: PTH116
    except FileNotFoundError as error:
        hint = "a URL; download it first" if "://" in source else "check the path"
        raise ImageError(f"{source} does not exist; {hint}") from error
    except (OSError, ValueError):
        return  # told when it is opened


class _Image:
    """One input and the names of everything that will be made of it."""

    def __init__(self, source: str, objects: int, multimask: bool) -> None:
        numbers = [None] if objects == 1 else list(range(1, objects + 1))
        candidates = list(range(1, CANDIDATES + 1)) if multimask else [None]
        self.source = source
        #: per object, per candidate
        self.groups = [[Result(source, n, c) for c in candidates] for n in numbers]

    def results(self) -> list[Result]:
        return [result for group in self.groups for result in group]


@dataclass
class _Work:
    """Everything one call does, and the report that grows on the way."""

    args: argparse.Namespace
    plan: Plan
    prompts: Sequence[ObjectPrompt]
    inputs: Inputs
    report: Report = field(default_factory=Report)
    items: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    #: what is still to be written, per result
    left: dict[Result, dict[str, Path]] = field(default_factory=dict[Result, dict[str, Path]])

    def has_something_to_write(self, image: _Image) -> bool:
        """Look at existing files; an image that is done or blocked becomes an item right away."""
        results = image.results()
        try:
            _check_source(image.source)
            for result in results:
                self.left[result] = pending(
                    self.plan.paths[result],
                    overwrite=self.args.overwrite,
                    skip_existing=self.args.skip_existing,
                    inputs=self.inputs,
                )
        except ZimError as error:
            self.add_error(image.source, error)
            return False
        if self.plan.to_stdout or any(self.left[result] for result in results):
            return True
        for result in results:
            self.add_item(result, skipped=True)
        return False

    def cut(self, image: _Image, session: Session, look: Look) -> None:
        """Read one image, cut out its objects, write the results."""
        seconds = self.report.seconds
        try:
            with timed(seconds, "read"):
                session.read(image.source)
            with timed(seconds, "encode"):
                session.encode()
        except (ZimError, OSError) as error:
            self.add_error(image.source, error)
            return
        for prompt, group in zip(self.prompts, image.groups, strict=True):
            try:
                with timed(seconds, "decode"):
                    answers = session.cut(prompt, candidates=len(group), refine=self.args.refine)
                for result, answer in zip(group, answers, strict=True):
                    with timed(seconds, "write"):
                        self.write(result, answer, look)
                    self.add_item(result, score=answer.matte.score)
            except BrokenPipeError:
                raise
            except (ZimError, OSError) as error:
                self.add_error(image.source, error, group[0].object)

    def write(self, result: Result, answer: Answer, look: Look) -> None:
        """Write what is left to write of one result; all of it is encoded before any is written."""
        if self.plan.to_stdout:
            data = answer.encoded(self.plan.formats[0], look)
            self.report.stdout_taken = True
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        from zim.output import atomic_write

        paths = self.left[result]
        files = {path: answer.encoded(kind, look, path.suffix) for kind, path in paths.items()}
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, data)

    def add_item(
        self, result: Result, *, score: float | None = None, skipped: bool = False
    ) -> None:
        """Report one result."""
        item: dict[str, Any] = {
            "input": result.source,
            "outputs": {kind: str(path) for kind, path in self.plan.paths[result].items()},
            "metrics": {} if score is None else {"score": round(score, 4)},
            "error": None,
        }
        if result.object is not None:
            item["object"] = result.object
        if result.candidate is not None:
            item["candidate"] = result.candidate
        if skipped:
            item["skipped"] = True
        self.items.append(item)

    def add_error(self, source: str, error: BaseException, number: int | None = None) -> None:
        """Report an image that failed, or one of its objects, on stderr right away."""
        part = "" if number is None else f", object {number}"
        item = failed_item("zim matte", source, error, debug=self.args.debug, part=part)
        if number is not None:
            item["object"] = number
        self.items.append(item)
        self.report.failed = True

    def finished(self) -> Report:
        """Make the report."""
        report, images = self.report, self.args.images
        report_items(report, self.items, images)
        report.model = self.args.model
        report.lines = [p for item in report.items or () for p in item["outputs"].values()]
        if report.failed and len(images) == 1 < len(self.items):
            failed = sum(1 for item in self.items if item["error"])
            report.extra["error"] = f"{failed} of {len(self.prompts)} objects failed"
        return report
