"""The evaluation loop: picture by picture, model by model, resumable; and its bookkeeping."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zim._progress import track
from zim.errors import OutputError
from zim.memory import tidied
from zim.output import atomic_write
from zim.protocols import Segmenter
from zim_medical.answers import ask, joined, joined_alternatives
from zim_medical.datasets import pictures
from zim_medical.layouts import Dataset
from zim_medical.options import Protocol, threshold_of
from zim_medical.prompts import ModePrompt, mode_prompts
from zim_medical.records import Counts, Exclusion, Pair, Picture
from zim_medical.scoring import overlap, surface
from zim_medical.table import COLUMNS, END, ORACLE, SURFACE, CaseTable


@dataclass(frozen=True)
class Plan:
    """What a run evaluates.

    Attributes:
        protocol: the rules.
        modes: of 1 to 5.
        models: names, in the order of the report.
        oracle: also score the best of three masks, in a column of its own.
        surface_mm: also compute HD95 and NSD with this tolerance in mm.
        limit: at most so many cases of a dataset.
    """

    protocol: Protocol
    modes: tuple[int, ...]
    models: tuple[str, ...]
    oracle: bool = False
    surface_mm: float | None = None
    limit: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table of cases."""
        more = (*(ORACLE if self.oracle else ()), *(SURFACE if self.surface_mm is not None else ()))
        return (*COLUMNS, *more, END)

    def threshold(self, model: str) -> float:
        """Return where a model's output is cut."""
        return threshold_of(model, self.protocol.threshold)

    def cases(self, dataset: Dataset, folder: Path) -> list[Pair]:
        """Return the cases of a dataset that the run looks at."""
        return dataset.pairs(folder)[: self.limit]

    def to_dict(self) -> dict[str, Any]:
        """Return everything results depend on, to recognise a run that can be resumed."""
        return {
            "protocol": self.protocol.to_dict(),
            "deviations": self.protocol.deviations(),
            "modes": list(self.modes),
            "models": list(self.models),
            "thresholds": {model: self.threshold(model) for model in self.models},
            "oracle": self.oracle,
            "surface_mm": self.surface_mm,
            "limit": self.limit,
        }


@dataclass
class Progress:
    """What happened while evaluating.

    Attributes:
        counts: by dataset.
        exclusions: cases that could not be used.
        seconds: by stage: ``model``, ``read``, ``prompts``, ``score``, ``write``.
        scored: pictures scored by this process (others were in the table already).
    """

    counts: dict[str, Counts] = field(default_factory=dict[str, Counts])
    exclusions: list[Exclusion] = field(default_factory=list[Exclusion])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    scored: int = 0

    def add(self, stage: str, since: float) -> float:
        """Book the time since ``since`` under a stage and return now."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now


def open_run(
    folder: Path,
    plan: Plan,
    roots: Mapping[str, tuple[Dataset, Path]],
    overwrite: bool,
    weights: Mapping[str, str] | None = None,
) -> CaseTable:
    """Start a run in a folder, or take up the same run where it stopped.

    Args:
        folder: of the results.
        plan: what is asked.
        roots: dataset and its folder, by name.
        overwrite: throw away what is there.
        weights: hash of every model's files; a model that has been replaced is another run.

    Raises:
        OutputError: the folder holds the results of another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {
        "plan": plan.to_dict(),
        "data": {name: str(root) for name, (_, root) in roots.items()},
        "files": {name: _stamp(plan.cases(*where)) for name, where in roots.items()},
        "weights": dict(weights or {}),
    }
    state = json.loads(json.dumps(state))
    path, table = folder / "run.json", folder / "cases.csv"
    if path.exists() and not overwrite:
        try:
            other = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            other = None
        if _differences(other, state):
            raise OutputError(
                f"{folder} holds a run with other {_differences(other, state)}; "
                "give another --output, or --overwrite"
            )
    elif table.exists() and not overwrite:
        raise OutputError(f"{table} exists; give another --output, or --overwrite")
    if overwrite:
        for old in (table, *folder.glob("overlay_*.jpg")):
            old.unlink(missing_ok=True)
    atomic_write(path, (json.dumps(state, indent=2) + "\n").encode())
    return CaseTable(table, plan.columns)


def _stamp(pairs: Sequence[Pair]) -> str:
    """Tell whether cases or their files changed: by names, sizes and times."""
    parts: list[Any] = []
    for pair in pairs:
        for path in (pair.image, pair.mask):
            found = path.stat() if path is not None and path.is_file() else None
            parts.append([str(path), found and [found.st_size, found.st_mtime_ns]])
    return f"{zlib.crc32(json.dumps(parts).encode()):08x}"


def _differences(other: Any, state: dict[str, Any]) -> str:
    """Say what is not as it was; what an earlier version has not noted cannot be told."""
    words = {"plan": "settings", "data": "folders", "files": "data", "weights": "weights"}
    if not isinstance(other, dict):
        return "settings"
    optional = ("files", "weights")
    found: dict[str, Any] = other
    changed = [k for k in state if found.get(k) != state[k] and (k in found or k not in optional)]
    return " and ".join(words[key] for key in changed)


def evaluate(
    plan: Plan,
    roots: Mapping[str, tuple[Dataset, Path]],
    segmenters: Mapping[str, Segmenter],
    table: CaseTable,
) -> Progress:
    """Score every picture that the table does not hold yet.

    Args:
        plan: what to do.
        roots: dataset and its folder, by name.
        segmenters: models by name, in the order of the plan.
        table: rows are appended to it.
    """
    progress = Progress()
    for name, (dataset, folder) in roots.items():
        counts = progress.counts[name] = Counts()
        stream = pictures(
            dataset, plan.cases(dataset, folder), plan.protocol, counts, progress.exclusions.append
        )
        for picture in tidied(track(_clocked(stream, progress), name)):
            if table.has(name, picture.pair.case_id, picture.axis, picture.index):
                continue
            rows = score_picture(plan, name, picture, segmenters, progress)
            start = time.perf_counter()
            table.add(rows)
            progress.scored += 1
            progress.add("write", start)
    return progress


def _clocked(stream: Iterator[Picture], progress: Progress) -> Iterator[Picture]:
    while True:
        start = time.perf_counter()
        picture = next(stream, None)
        progress.add("read", start)
        if picture is None:
            return
        yield picture


def prompts_of(plan: Plan, dataset: str, picture: Picture) -> dict[str, dict[int, ModePrompt]]:
    """Return the prompts of every class and mode of a picture."""
    out: dict[str, dict[int, ModePrompt]] = {}
    for name, mask in picture.masks.items():
        where = zlib.crc32(f"{dataset}/{picture.key}/{name}".encode())
        rng = np.random.default_rng([plan.protocol.seed, where])
        out[name] = mode_prompts(mask, plan.protocol, plan.modes, rng)
    return out


def score_picture(
    plan: Plan,
    dataset: str,
    picture: Picture,
    segmenters: Mapping[str, Segmenter],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return the rows of one picture: every class, model and mode."""
    start = time.perf_counter()
    prompts = prompts_of(plan, dataset, picture)
    queries = [q for modes in prompts.values() for mode in modes.values() for q in mode.queries]
    start = progress.add("prompts", start)
    rows: list[dict[str, Any]] = []
    settings = plan.protocol.describe().removeprefix("preset ")
    for model, segmenter in segmenters.items():
        segmenter.set_image(picture.image)
        answers = ask(segmenter, queries, plan.protocol.mask_select, plan.oracle)
        start = progress.add("model", start)
        threshold = plan.threshold(model)
        for name, modes in prompts.items():
            truth = picture.masks[name]
            for mode, prompt in modes.items():
                predicted = joined(prompt, answers, threshold)
                iou, dice = overlap(predicted, truth)
                row = _describe(dataset, picture, name, mode, prompt) | {
                    "preset": settings,
                    "model": model,
                    "threshold": f"{threshold:g}",
                    "mask_select": plan.protocol.mask_select,
                    "iou": iou,
                    "dice": dice,
                    "pred_area": int(predicted.sum()),
                    "empty_pred": not predicted.any(),
                }
                if plan.oracle:
                    masks = joined_alternatives(prompt, answers, threshold)
                    row["iou_oracle"] = max(overlap(mask, truth)[0] for mask in masks)
                if plan.surface_mm is not None:
                    row["hd95_mm"], row["nsd"] = surface(
                        predicted, truth, picture.spacing, plan.surface_mm
                    )
                rows.append(row)
        start = progress.add("score", start)
    return rows


def _describe(
    dataset: str, picture: Picture, name: str, mode: int, prompt: ModePrompt
) -> dict[str, Any]:
    height, width = picture.image.shape[:2]
    return {
        "dataset": dataset,
        "case_id": picture.pair.case_id,
        "patient_id": picture.pair.patient_id,
        "axis": picture.axis,
        "slice": picture.index,
        "class": name,
        "mode": mode,
        "n_regions": prompt.n_regions,
        "prompt": json.dumps(prompt.to_json(), separators=(",", ":")),
        "gt_area": int(picture.masks[name].sum()),
        "height": height,
        "width": width,
    }


def exclusion_rows(exclusions: Sequence[Exclusion]) -> str:
    """Return ``excluded.csv``."""
    import csv
    import io

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("dataset", "case_id", "reason"))
    writer.writerows((e.dataset, e.case_id, e.reason) for e in exclusions)
    return buffer.getvalue()
