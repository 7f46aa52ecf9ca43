"""Score models on samples: a JSON line per answer, resumable, shared between ranks.

``<output>/results.<rank>.jsonl`` grows by whole lines; a line that was torn by a crash is ignored
and its answer computed again. Pictures are read ahead in threads and metrics run in worker
processes, both while the model goes on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zim._arrays import as_numpy, to_unit
from zim._progress import track
from zim.errors import ConfigError, ImageError, ZimError, one_line
from zim.evaluation.result_log import appending, check_settings, rows_of
from zim.evaluation.samples import KINDS, Loaded, Sample, load_sample
from zim.memory import tidied
from zim.pools import Workers, rank_and_world, worker_processes
from zim.protocols import Segmenter

#: by so much may a model's alpha leave [0, 1], as interpolation makes it
_SLACK = 0.05
METRICS = ("sad", "mse", "mae", "grad", "conn")
#: threads that read pictures ahead, at most
READERS = 4
#: tells whether a row of results belongs to the data and weights of now
Fits = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on besides models and data."""

    dataset: str
    prompts: tuple[str, ...]
    seed: int = 0
    max_side: int | None = None
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Refuse prompts that samples do not have."""
        if not isinstance(self.prompts, tuple | list) or not set(self.prompts) <= set(KINDS):
            raise ConfigError(f"prompts are {self.prompts!r}; expected a tuple of some of {KINDS}")


def evaluate(
    models: dict[str, Callable[[], Segmenter]],
    samples: Sequence[Sample],
    settings: Settings,
    output: Path,
    *,
    workers: int = 0,
    weights: dict[str, str] | None = None,
) -> dict[str, str]:
    """Score every model on this rank's share of the samples.

    Args:
        models: loaders by name; each is called once, when its turn comes.
        samples: of the whole data set.
        settings: what else the numbers depend on.
        output: folder; results of an earlier, interrupted run there are kept.
        workers: processes that compute metrics; 0 computes them here.
        weights: hash by model; answers of other weights, and of files that changed since, are
            computed again.

    Returns:
        For each model that could not be loaded, why.

    Raises:
        OutputError: the folder holds results of other settings.
    """
    rank, world = rank_and_world()
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    wanted = asdict(settings) | {"samples": len(samples)}
    if settings.max_side is not None and any(s.prompt is not None for s in samples):
        wanted["scaled_prompts"] = "pixel centres"  # earlier versions scaled corners
    del wanted["prompts"]  # further prompts may join
    check_settings(output, wanted, write=rank == 0)
    mine = list(samples)[rank::world]
    stamps = {sample.key: sample.stamp() for sample in mine}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        pool = None
        if workers:
            pool = stack.enter_context(worker_processes(workers))
        add = stack.enter_context(appending(output / f"results.{rank}.jsonl"))
        hashes = weights or {}
        done = {
            (r["model"], r["prompt"], r["key"])
            for r in read_results(output, fitting(samples, hashes))
            if "excluded" not in r  # what was left out is looked at again: it may be repaired
        }
        for name, load in models.items():
            todo = [s for s in mine if any((name, p, s.key) not in done for p in settings.prompts)]
            if not todo:
                continue
            try:
                model = load()
            except ZimError as error:
                missing[name] = one_line(error).removeprefix(f"{name}: ")
                continue
            for row in _score(name, model, todo, settings, pool, workers):
                row["weights"] = hashes.get(name, "")
                row["files"] = stamps[row["key"]]
                add(row)
    return missing


def fitting(samples: Sequence[Sample], weights: dict[str, str]) -> Fits:
    """Return what tells whether a row was scored with these files and weights."""
    stamps = {sample.key: sample.stamp() for sample in samples}

    def fits(row: dict[str, Any]) -> bool:
        same = row.get("weights", "") == weights.get(row["model"], "")
        return same and row["key"] in stamps and row.get("files") == stamps[row["key"]]

    return fits


def read_results(output: Path, fits: Fits = lambda row: True) -> list[dict[str, Any]]:
    """Read what all ranks have written so far, each answer once, in a fixed order.

    Args:
        output: folder of a run.
        fits: which rows count, see :func:`fitting`.
    """
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows_of(sorted(output.glob("results.*.jsonl"))):
        try:
            key = (row["model"], row["prompt"], row["key"])
            if fits(row) and ("excluded" not in row or "mse" not in rows.get(key, {})):
                rows[key] = row
        except (KeyError, TypeError):
            continue  # torn by a crash
    return [rows[key] for key in sorted(rows)]


def _score(
    name: str,
    model: Segmenter,
    samples: Sequence[Sample],
    settings: Settings,
    pool: Workers | None,
    workers: int,
) -> Iterator[dict[str, Any]]:
    waiting: deque[tuple[dict[str, Any], Future[dict[str, float]]]] = deque()
    shown: Path | None = None
    ahead = _prefetch(samples, settings, max(1, min(READERS, workers)))
    for sample, loaded in tidied(track(ahead, name, len(samples))):
        base = {"model": name, "key": sample.key, "group": sample.group}
        if isinstance(loaded, str):
            for kind in settings.prompts:
                yield {**base, "prompt": kind, "excluded": loaded}
            continue
        for kind in settings.prompts:
            if kind in loaded.problems:
                yield {**base, "prompt": kind, "excluded": loaded.problems[kind]}
                continue
            row: dict[str, Any] = {**base, "prompt": kind, "asked": _asked(loaded, kind)}
            try:
                start = time.perf_counter()
                if shown != sample.image:
                    shown = None
                    model.set_image(loaded.rgb)
                    shown = sample.image
                matte = answer(model, loaded, kind)
                row["seconds"] = round(time.perf_counter() - start, 4)
            except Exception as error:  # a model of any library, out of memory, a broken picture
                yield {**row, "excluded": f"the model failed: {_why(error)}"}
                continue
            if not np.isfinite(matte).all():
                yield {**row, "excluded": "the model's answer holds NaN or infinity"}
                continue
            if pool is None:
                yield row | _measure(matte, loaded.alpha)
                continue
            waiting.append((row, pool.submit(_measure, matte, loaded.alpha)))
            while len(waiting) > 2 * workers or (waiting and waiting[0][1].done()):
                first, future = waiting.popleft()
                yield first | future.result()
    for row, future in waiting:
        yield row | future.result()


def answer(model: Segmenter, loaded: Loaded, kind: str) -> np.ndarray:
    """Ask a model, whose picture is set, one prompt; the single-answer token as in the paper.

    Returns:
        H x W float32 in [0, 1]; masks of 8 or 16 bits and boolean ones are brought there.

    Raises:
        ImageError: the answer has another size than the picture.
    """
    prompt = loaded.prompts[kind]
    points = len(prompt.points) > 0
    mattes, _, _ = model.predict(
        point_coords=prompt.points if points else None,
        point_labels=prompt.labels if points else None,
        box=prompt.box,
        multimask_output=False,
    )
    matte = as_numpy(mattes[0])
    if matte.shape != loaded.alpha.shape:
        raise ImageError(f"it answers with shape {matte.shape}; expected {loaded.alpha.shape}")
    unit = to_unit(matte)
    if unit is None:
        raise ImageError(f"it answers with {matte.dtype} out of range; expected alpha")
    if np.isfinite(unit).all() and not (unit.min() >= -_SLACK and unit.max() <= 1 + _SLACK):
        raise ImageError(
            f"it answers with values from {unit.min():g} to {unit.max():g}; expected 0 to 1"
        )
    return np.clip(unit, 0, 1)


def _asked(loaded: Loaded, kind: str) -> list[Any]:
    """Return a prompt as it is asked, in pixels of the scored picture, for JSON."""
    prompt = loaded.prompts[kind]
    if kind == "box":
        assert prompt.box is not None
        return [float(v) for v in prompt.box]
    rows = zip(prompt.points, prompt.labels, strict=True)
    return [[float(x), float(y), int(label)] for (x, y), label in rows]


def _why(error: Exception) -> str:
    text = one_line(error)
    return text if isinstance(error, ZimError) else f"{type(error).__name__}: {text}"


def _prefetch(
    samples: Sequence[Sample], settings: Settings, readers: int
) -> Iterable[tuple[Sample, Loaded | str]]:
    """Read ahead in threads, in order; what cannot be used comes as the reason."""

    def read(sample: Sample) -> Loaded | str:
        try:
            return load_sample(sample, settings.prompts, settings.seed, settings.max_side)
        except Exception as error:  # a broken file can break a decoder in any way
            return _why(error)

    with ThreadPoolExecutor(readers) as threads:
        ahead: deque[tuple[Sample, Future[Loaded | str]]] = deque()
        for sample in samples:
            ahead.append((sample, threads.submit(read, sample)))
            if len(ahead) > 2 * readers:
                first, future = ahead.popleft()
                yield first, future.result()
        for first, future in ahead:
            yield first, future.result()


def _measure(matte: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Runs in a worker process, which imports no torch."""
    import cv2

    from zim import metrics

    cv2.setNumThreads(1)
    return {**metrics.evaluate(matte, truth), "size": metrics.size_bucket(truth)}
