"""The work of ``zim-inpaint``: picture after picture, one model and one filler for all of them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zim._progress import progress_on_stderr, track
from zim.commandline import Report, apply_runtime, timed
from zim.commands.outputs import FILE_SUFFIXES, Inputs, Plan, Result, pending, plan_outputs
from zim.errors import PromptError, ZimError
from zim.items import failed_item, report_items
from zim_inpaint.flags import check
from zim_inpaint.jobs import Job, jobs

if TYPE_CHECKING:
    from zim_inpaint.api import InpaintResult
    from zim_inpaint.backends import Filler
    from zim_inpaint.finder import Finder
    from zim_inpaint.picture import Picture

_DEFAULT = ("result", "alpha", "mask")


def run(args: argparse.Namespace) -> Report:
    """Repair every picture; a bad one never stops the others."""
    check(args)
    todo = jobs(args)
    plan = _plan(args, todo)
    work = _Work(args, plan, _inputs(args, todo))
    ready = [job for job in todo if work.has_something_to_write(job)]
    if ready:
        with timed(work.report.seconds, "start"):
            work.load()
        with progress_on_stderr():
            for job in track(ready, "repairing"):
                work.repair(job)
    return work.finished([job.image for job in todo])


def _plan(args: argparse.Namespace, todo: list[Job]) -> Plan:
    formats = args.format
    if formats is None:
        output = args.output or ""
        single = Path(output).suffix.lower() in FILE_SUFFIXES and not Path(output).is_dir()
        formats = ("result",) if single else _DEFAULT
    return plan_outputs(args.output, [job.result for job in todo if not job.error], formats, None)


def _inputs(args: argparse.Namespace, todo: list[Job]) -> Inputs:
    read = [args.manifest, args.matte, args.scribble, args.mask, args.prompts, args.background]
    return Inputs([*read, *(name for job in todo for name in (job.image, job.matte))])


@dataclass
class _Work:
    args: argparse.Namespace
    plan: Plan
    inputs: Inputs
    report: Report = field(default_factory=Report)
    items: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    left: dict[Result, dict[str, Path]] = field(default_factory=dict[Result, dict[str, Path]])

    def load(self) -> None:
        """Load what all pictures share; the segmenter waits until a prompt needs it."""
        from zim_inpaint.backends import get_filler
        from zim_inpaint.finder import Finder

        args = self.args
        apply_runtime(args)
        self.finder: Finder = Finder(
            args.model,
            detector=args.detector,
            device=args.device,
            dtype=args.dtype,
            refine=args.refine,
            ends=args.ends and args.mode != "replace",
            shadow=args.shadow and args.mode != "replace",
        )
        self.filler: Filler | None = None
        if not (args.mode == "replace" and args.background):
            names = ("lama", "device", "dtype", "steps", "guidance", "strength", "offload")
            options = {name: getattr(args, name) for name in (*names, "offline")}
            self.filler = get_filler(args.backend, model=args.pipeline, **options)

    def has_something_to_write(self, job: Job) -> bool:
        """Look at existing files; a picture that is done or blocked becomes an item right away."""
        try:
            if job.error:
                raise PromptError(job.error)
            paths = self.plan.paths[job.result]
            self.left[job.result] = pending(
                paths,
                overwrite=self.args.overwrite,
                skip_existing=self.args.skip_existing,
                inputs=self.inputs,
            )
        except ZimError as error:
            self.add_error(job.image, error)
            return False
        if self.left[job.result]:
            return True
        self.add_item(job, {}, skipped=True)
        return False

    def repair(self, job: Job) -> None:
        """Read, find, repaint, write."""
        from zim_inpaint.finder import read_matte
        from zim_inpaint.picture import read_picture

        seconds = self.report.seconds
        try:
            with timed(seconds, "read"):
                picture = read_picture(job.image)
            metrics: dict[str, Any] = {}
            with timed(seconds, "matte"):
                if job.matte:
                    size = (picture.rgb.shape[0], picture.rgb.shape[1])
                    alpha = read_matte(job.matte, size, resize=self.args.resize_matte)
                else:
                    alpha, count, score = self.finder.find(picture.srgb, job.prompts, job.words)
                    metrics = {"objects": count, "score": round(score, 4)}
            with timed(seconds, "repaint"):
                result, like = self.repaint(picture, alpha, job)
            with timed(seconds, "write"):
                self.write(job, like, alpha, result)
        except BrokenPipeError:
            raise
        except Exception as error:  # libraries raise whatever a strange file makes them run into
            self.add_error(job.image, error)
            return
        for note in (*result.notes, *([picture.note] if picture.note else ())):
            sys.stderr.write(f"zim-inpaint: {job.image}: {note}\n")
        metrics["hole_share"] = result.meta["hole_share"]
        self.add_item(job, metrics, settings=result.meta)

    def repaint(self, picture: Picture, alpha: Any, job: Job) -> tuple[InpaintResult, Picture]:
        """Call the library with what the flags say; the picture is what the result is like."""
        import numpy as np

        from zim_inpaint.api import inpaint
        from zim_inpaint.transparency import behind, repaired, seen

        args = self.args
        if args.mode == "replace":
            picture, alpha = behind(picture, alpha)
        shown = seen(picture)
        result = inpaint(
            shown.rgb,
            alpha,
            args.mode,
            self.filler or "auto",
            text=job.text,
            # a diffusion model that is told the object's name draws it again
            negative=args.negative or (job.words if args.mode == "remove" else None),
            background=args.background,
            cover=args.cover,
            grow=args.grow,
            feather=args.feather,
            context=args.context,
            work_size=args.work_size,
            seed=args.seed,
        )
        if shown is not picture:  # what is not touched keeps its hidden colours
            image = np.where(result.weight[..., None] > 0, result.image, picture.rgb)
            result = replace(result, image=image)
        removed = args.mode == "remove"
        return result, repaired(picture, result.mask, result.weight, removed=removed)

    def write(self, job: Job, picture: Picture, alpha: Any, result: InpaintResult) -> None:
        """Write what is left to write: all of it, or nothing."""
        from zim.images import atomic_write, encode_alpha, encode_rgb
        from zim.viz import overlay
        from zim_inpaint.picture import encode_picture

        files: dict[Path, bytes] = {}
        for kind, path in self.left[job.result].items():
            if kind == "result":
                files[path] = encode_picture(result.image, picture, path.suffix)
            elif kind == "alpha":
                files[path] = encode_alpha(alpha, 8, path.suffix)
            elif kind == "mask":
                files[path] = encode_alpha(result.mask.astype("float32"), 8, path.suffix)
            else:
                points = [point for prompt in job.prompts for point in prompt.points]
                boxes = [prompt.box for prompt in job.prompts if prompt.box]
                shown = overlay(picture.srgb, alpha, points=points or None, boxes=boxes or None)
                files[path] = encode_rgb(shown, path.suffix)
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, data)

    def add_item(
        self,
        job: Job,
        metrics: dict[str, Any],
        *,
        settings: dict[str, Any] | None = None,
        skipped: bool = False,
    ) -> None:
        """Report one picture."""
        paths = self.plan.paths[job.result]
        item: dict[str, Any] = {
            "input": job.image,
            "outputs": {kind: str(path) for kind, path in paths.items()},
            "metrics": metrics,
            "error": None,
        }
        if settings is not None:
            item["settings"] = settings
        if skipped:
            item["skipped"] = True
        self.items.append(item)

    def add_error(self, image: str, error: BaseException) -> None:
        """Report a picture that failed, on stderr right away."""
        self.items.append(failed_item("zim-inpaint", image, error, debug=self.args.debug))
        self.report.failed = True

    def finished(self, images: list[str]) -> Report:
        """Make the report."""
        report_items(self.report, self.items, images)
        self.report.model = self.args.model
        items = self.report.items or []
        self.report.lines = [path for item in items for path in item["outputs"].values()]
        return self.report
