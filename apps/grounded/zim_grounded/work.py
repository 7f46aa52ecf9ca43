"""What ``zim-grounded`` does: every picture to boxes, mattes and files; one failing stops none."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zim import __version__
from zim._progress import progress_on_stderr, track
from zim.commandline import Report, UsageError, apply_runtime, timed
from zim.commands.outputs import output_folder
from zim.errors import ZimError
from zim.folders import SUFFIXES, pictures_in
from zim.images import LoadedImage, load_image
from zim.items import failed_item
from zim.prompts import Prompt
from zim.protocols import Segmenter
from zim.segmenters import load_segmenter
from zim_grounded.boxes_file import BoxesFile
from zim_grounded.candidates import CandidateDetector, Found, Thresholds
from zim_grounded.cli import FORMATS
from zim_grounded.detectors import default_name, load_detector
from zim_grounded.files import Instance, Target, files_of, read_table, write_results
from zim_grounded.locate import Located, locate
from zim_grounded.mattes import distinct, mattes_of, take_away
from zim_grounded.phrases import listed, plain, split_phrases
from zim_grounded.scribbles import read_scribble

#: what is used without --image: a cut-out dog and an umbrella laid over a photograph
EXAMPLE = Path(__file__).with_name("dog.jpg")


def run(args: argparse.Namespace) -> Report:
    """Run the command; see ``zim-grounded --help``."""
    _check(args)
    phrases = split_phrases(args.phrases) if args.phrases else []
    without = split_phrases(args.without) if args.without else []
    work = Work(args, phrases, without)
    targets = [Target.of(picture, args.output) for picture in _pictures(args, work.report)]
    _no_collisions(targets)
    todo = [t for t in targets if work.has_something_to_write(t)]
    if todo:
        with timed(work.report.seconds, "start"):
            apply_runtime(args)
            work.start()
        with progress_on_stderr():
            for target in track(todo, "matting"):
                work.picture(target)
    return work.finished(targets)


def _check(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other, before anything is loaded."""
    for phrase in (*args.phrases, *(args.without or ())):
        if os.path.isfile(phrase):  # noqa: PTH113 (words may be too long for a Path)
            raise UsageError(f"{phrase} is a file; give pictures with --image")
        if os.sep in phrase and os.path.isdir(phrase):  # noqa: PTH112
            raise UsageError(f"{phrase} is a folder; give pictures with --image")
        if phrase.lower().endswith(SUFFIXES):
            raise UsageError(
                f"{phrase} is no file, and looks like the name of one; give pictures with --image"
            )
    if args.scribble and (args.phrases or args.without or args.boxes or args.detector):
        raise UsageError("--scribble takes the place of words and boxes; give one kind")
    if args.scribble and not args.image:
        raise UsageError("--scribble is about a picture of yours: add --image FILE")
    if args.scribble and args.boxes_only:
        raise UsageError("--boxes-only leaves nothing to do for a scribble; drop it")
    if args.detector == "boxes" and not args.boxes:
        raise UsageError("--detector boxes needs the file: --boxes FILE")
    if args.boxes and args.detector not in (None, "boxes"):
        raise UsageError(f"--boxes is for --detector boxes, not {args.detector}; drop one of them")
    if not args.phrases and not args.scribble and not args.boxes:
        raise UsageError('say what to find, such as "the dog\'s fur", or give --scribble FILE')
    for phrase in split_phrases(args.phrases) if args.phrases else ():
        if len(things := listed(phrase)) > 1:
            dotted = " . ".join(things)
            sys.stderr.write(
                f"zim-grounded: {phrase!r} is one phrase; several are divided by dots: {dotted!r}\n"
            )
    output_folder(args.output)


def _pictures(args: argparse.Namespace, report: Report) -> list[str]:
    """List the pictures, those of folders in the order of their names."""
    if not args.image:
        sys.stderr.write(
            f"zim-grounded: no --image, so this is the bundled picture {EXAMPLE.name} "
            "(a cut-out dog and an umbrella on a photograph)\n"
        )
        report.extra["bundled_picture"] = True
        return [str(EXAMPLE)]
    pictures: list[str] = []
    for name in args.image:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            pictures.append(name)
            continue
        inside = pictures_in(folder)
        if not inside:
            raise UsageError(f"{name} holds no pictures ({', '.join(SUFFIXES)})")
        pictures += [str(p) for p in inside]
    return list(dict.fromkeys(pictures))


def _no_collisions(targets: Sequence[Target]) -> None:
    taken: dict[Path, str] = {}
    for target in targets:
        if target.table in taken:
            raise UsageError(
                f"{taken[target.table]} and {target.source} would both write {target.table}; "
                "run them into different folders"
            )
        taken[target.table] = target.source


@dataclass
class Work:
    """Everything one call does, and the report that grows on the way."""

    args: argparse.Namespace
    phrases: list[str]
    without: list[str]
    report: Report = field(default_factory=Report)
    items: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])
    detector: CandidateDetector | None = None
    segmenter: Segmenter | None = None

    @property
    def detector_name(self) -> str | None:
        """Return the detector's name, None for scribbles."""
        if self.args.scribble:
            return None
        return "boxes" if self.args.boxes else self.args.detector or default_name()

    def start(self) -> None:
        """Load the detector, then the model: the detector's weights are more likely missing."""
        args = self.args
        if self.detector_name is not None:
            self.detector = chosen_detector(args)
            limits = getattr(self.detector, "limits", None)
            if limits:
                sys.stderr.write(f"zim-grounded: {limits}\n")
        if not args.boxes_only:
            self.segmenter = load_segmenter(args.model, device=args.device, dtype=args.dtype)

    def has_something_to_write(self, target: Target) -> bool:
        """Look at existing results; a picture that is done or blocked becomes an item now."""
        if not target.table.exists() or self.args.overwrite:
            return True
        if self.args.skip_existing:
            table = read_table(target)
            if not table:
                return True  # cut short, or somebody else's: done again
            if not self.args.scribble and self.phrases and not self._same_phrases(table):
                text = f"{target.table} is about other phrases; use --overwrite or another --output"
                self._fail(target, ZimError(text), {})
                return False
            wanted = () if self.args.boxes_only else self.args.format or FORMATS
            if not all(file.is_file() for file in files_of(target, table, wanted)):
                return True  # boxes only, other kinds, or somebody has removed some
            outputs = {"json": str(target.table)}
            if not table.get("detections"):
                text = f"{target.table} says that nothing was found; use --overwrite to look again"
                self._fail(target, ZimError(text), outputs)
                return False
            skipped = {"outputs": outputs, "metrics": {}, "error": None, "skipped": True}
            self.items[target.source] = [{"input": target.source} | skipped]
        else:
            text = f"{target.table} exists; use --overwrite or --skip-existing"
            self._fail(target, ZimError(text), {})
        return False

    def _same_phrases(self, table: dict[str, Any]) -> bool:
        then = [plain(str(phrase)) for phrase in table.get("phrases") or ()]
        return then == [plain(phrase) for phrase in self.phrases]

    def picture(self, target: Target) -> None:
        """Do one picture; what goes wrong becomes its item."""
        seconds: dict[str, float] = {}
        try:
            with timed(seconds, "read"):
                loaded = load_image(target.source)
            if self.args.scribble:
                instances, table = self._by_scribble(loaded, seconds)
            else:
                instances, table = self._by_words(target, loaded, seconds)
            with timed(seconds, "write"):
                table |= {"seconds": {k: round(v, 3) for k, v in seconds.items()}}
                formats = [] if self.args.boxes_only else self.args.format
                outputs = write_results(
                    target,
                    loaded.rgb,
                    instances,
                    table,
                    formats,
                    overwrite=self.args.overwrite,
                    keep=self.args.skip_existing,
                )
            if not instances:
                raise NothingFound(self._nothing(table["best_scores"]), str(target.table))
            self.items[target.source] = [
                {"input": target.source, "object": i, "outputs": files, "error": None}
                | instance.row()
                for i, (instance, files) in enumerate(zip(instances, outputs, strict=True), 1)
            ]
        except BrokenPipeError:
            raise
        except NothingFound as error:
            self._fail(target, error, {"json": error.table})
        except (ZimError, OSError) as error:
            self._fail(target, error, {})
        finally:
            for stage, value in seconds.items():
                self.report.seconds[stage] = self.report.seconds.get(stage, 0.0) + value

    def _by_words(
        self, target: Target, loaded: LoadedImage, seconds: dict[str, float]
    ) -> tuple[list[Instance], dict[str, Any]]:
        detector, args = self.detector, self.args
        assert detector is not None
        phrases = self.phrases
        if isinstance(detector, BoxesFile):
            detector.open(target.source)
            phrases = phrases or detector.phrases()
        with timed(seconds, "detect"):
            located = self._locate(detector, loaded.rgb, phrases, top=args.top)
            away = Located([], {})
            if self.without:
                away = self._locate(detector, loaded.rgb, self.without, top=None)
        found = located.found
        # an owner in the place of a part would take the whole object out
        taken = [f for f in away.found if not f.fallback]
        if found:
            self._say_what_is_missing(target, located, detector.thresholds.box)
        for phrase in self.without:
            if all(f.phrase != phrase for f in taken):
                best = f"best score seen {away.best[phrase]:.2f}"
                self._say(
                    target, f"--not {phrase!r}: nothing found, so nothing is taken out ({best})"
                )
        table = self._table(loaded, phrases, located)
        if self.without:
            table["without"] = [
                {
                    "phrase": f.phrase,
                    "box": [round(v, 2) for v in f.box],
                    "score": round(f.score, 4),
                }
                for f in taken
            ]
        if args.boxes_only or not found:
            return [Instance(f, None, None) for f in found], table
        alphas, scores = self._mattes(loaded, [*found, *taken], seconds)
        others = alphas[len(found) :]
        keep = distinct(found, alphas[: len(found)])
        instances = [Instance(found[i], take_away(alphas[i], others), scores[i]) for i in keep]
        for instance in instances:
            if instance.found and instance.alpha is not None and not (instance.alpha > 0.5).any():
                self._say(target, f"{instance.found.phrase!r}: its matte is empty")
        return instances, table

    def _say_what_is_missing(self, target: Target, located: Located, threshold: float) -> None:
        """Say which phrases led to nothing, or to less than was asked for."""
        for phrase, best in located.best.items():
            mine = [f for f in located.found if f.phrase == phrase]
            if not mine and phrase in located.left_out:
                text = f"left out by --max-boxes {self.args.max_boxes}, best score {best:.2f}"
            elif not mine:
                text = f"nothing above {threshold:g}, best score seen {best:.2f}"
            elif any(f.fallback for f in mine):
                text = "no such part found, the box of its owner stands in"
            else:
                continue
            self._say(target, f"{phrase!r}: {text}")

    def _say(self, target: Target, text: str) -> None:
        sys.stderr.write(f"zim-grounded: {Path(target.source).name}: {text}\n")

    def _locate(
        self,
        detector: CandidateDetector,
        rgb: NDArray[np.uint8],
        phrases: Sequence[str],
        *,
        top: int | None,
    ) -> Located:
        args, limits = self.args, detector.thresholds
        parts = not args.whole and not isinstance(detector, BoxesFile)
        located = locate(detector, rgb, phrases, limits, focus=args.focus, parts=parts, top=top)
        shown = [
            replace(f, tokens=tuple(t for t in f.tokens if t[1] >= limits.text))
            for f in located.found
        ]
        return replace(located, found=shown)

    def _mattes(
        self, loaded: LoadedImage, found: Sequence[Found], seconds: dict[str, float]
    ) -> tuple[list[NDArray[np.float32]], list[float]]:
        size = (loaded.rgb.shape[0], loaded.rgb.shape[1])
        prompts = [Prompt.create(size, box=f.box) for f in found]
        return self._answer(loaded, prompts, seconds)

    def _answer(
        self,
        loaded: LoadedImage,
        prompts: Sequence[Prompt],
        seconds: dict[str, float],
    ) -> tuple[list[NDArray[np.float32]], list[float]]:
        assert self.segmenter is not None
        with timed(seconds, "encode"):
            self.segmenter.set_image(loaded.rgb)
        with timed(seconds, "decode"):
            alphas, scores = mattes_of(self.segmenter, loaded.rgb, prompts)
        if loaded.alpha is not None:  # what was cut away before stays away
            alphas = [alpha * loaded.alpha for alpha in alphas]
        return alphas, scores

    def _by_scribble(
        self, loaded: LoadedImage, seconds: dict[str, float]
    ) -> tuple[list[Instance], dict[str, Any]]:
        size = (loaded.rgb.shape[0], loaded.rgb.shape[1])
        prompt = read_scribble(self.args.scribble, size)
        table = self._table(loaded, [], Located([], {})) | {
            "scribble": self.args.scribble,
            "points": [
                [*p, k] for p, k in zip(prompt.points.tolist(), prompt.labels.tolist(), strict=True)
            ],
        }
        alphas, scores = self._answer(loaded, [prompt], seconds)
        return [Instance(None, alphas[0], scores[0], prompt)], table

    def _table(
        self, loaded: LoadedImage, phrases: Sequence[str], located: Located
    ) -> dict[str, Any]:
        height, width = loaded.rgb.shape[:2]
        table: dict[str, Any] = {
            "image": loaded.name,
            "width": width,
            "height": height,
            "phrases": list(phrases),
            "best_scores": {p: round(s, 4) for p, s in located.best.items()},
            "model": None if self.args.boxes_only else self.args.model,
            "detector": self.detector_name,
            "version": __version__,
        }
        if self.detector is not None:
            t = self.detector.thresholds
            table["thresholds"] = {"box": t.box, "text": t.text, "nms": t.nms, "most": t.most}
        return table

    def _nothing(self, best: dict[str, float]) -> str:
        assert self.detector is not None
        unknown = getattr(self.detector, "unknown", lambda _: [])(list(best))
        said = ", ".join(
            f"{phrase!r} {score:.2f}" + (" (no such name here)" if phrase in unknown else "")
            for phrase, score in best.items()
        )
        text = (
            f"nothing found above the threshold {self.detector.thresholds.box:g} by "
            f"{self.detector.name}; best scores seen: {said}"
        )
        lower = ["lower --threshold"] if self.detector.thresholds.box > 0 else []
        other = ["name another --detector"] if self.detector.name == "mini" else []
        return "; ".join([text, *([" or ".join([*lower, *other])] if lower or other else [])])

    def _fail(self, target: Target, error: BaseException, outputs: dict[str, str]) -> None:
        item = failed_item("zim-grounded", target.source, error, debug=self.args.debug)
        self.items[target.source] = [item | {"outputs": outputs}]
        self.report.failed = True

    def finished(self, targets: Sequence[Target]) -> Report:
        """Put the items in the order of the pictures; a single one is the report itself."""
        report = self.report
        report.model = self.args.model
        report.items = [item for t in targets for item in self.items[t.source]]
        report.extra["detector"] = self.detector_name
        report.lines = list(
            dict.fromkeys(path for item in report.items for path in item["outputs"].values())
        )
        if len(report.items) == 1:
            report.outputs = report.items[0]["outputs"]
            report.metrics = report.items[0]["metrics"]
        elif len(targets) == 1:  # what all things of the one picture share
            every = [set(item["outputs"].items()) for item in report.items]
            shared = set.intersection(*every)
            report.outputs = {
                k: v for k, v in report.items[0]["outputs"].items() if (k, v) in shared
            }
        if report.failed:
            failed = [item["error"] for item in report.items if item["error"]]
            single = len(targets) == 1
            report.extra["error"] = (
                failed[0] if single else f"{len(failed)} of {len(targets)} images failed"
            )
        return report


def chosen_detector(args: argparse.Namespace) -> CandidateDetector:
    """Load the detector that the flags of ``add_detector_flags`` ask for.

    Raises:
        ZimError: there is none, or its weights are missing.
    """
    name = f"boxes:{args.boxes}" if args.boxes else args.detector
    detector = load_detector(name, args.device)
    box = detector.thresholds.box if args.threshold is None else args.threshold
    detector.thresholds = Thresholds(
        box=box, text=args.text_threshold, nms=args.nms, most=args.max_boxes
    )
    if hasattr(detector, "separate"):
        detector.separate = args.separate  # pyright: ignore[reportAttributeAccessIssue]
    return detector


class NothingFound(ZimError):
    """No box is above the threshold; the table with the scores was written."""

    def __init__(self, message: str, table: str) -> None:
        """Remember where the table is."""
        super().__init__(message)
        self.table = table
