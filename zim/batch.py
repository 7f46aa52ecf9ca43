"""Mattes for a long list of pictures: shards with done-markers, any number of processes or Ray.

A shard is ``shard_size`` rows. Its files are written one by one, each in one step, and then its
marker ``.shards/<number>.json``, which also lists what failed. A killed run leaves shards without
markers, which the next run does again; output is a pure function of rows, weights and settings, so
that local processes, ranks of torchrun and Ray write the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from zim import plugins
from zim._extras import require
from zim._progress import track
from zim.errors import (
    ConfigError,
    ImageError,
    OutputError,
    PromptError,
    ZimError,
    install_advice,
    one_line,
)
from zim.folders import is_picture, pictures_in
from zim.output import atomic_write, make_folder
from zim.pools import rank_and_world, worker_processes
from zim.prompt_json import with_usual_names

if TYPE_CHECKING:
    import numpy as np

    from zim.images import LoadedImage
    from zim.protocols import Detector

SHARDS = ".shards"
#: in every folder we write to: which settings its files come from
RECIPE = f"{SHARDS}/recipe.json"
#: what a manifest's line or object may ask with, and which of these may name a file
_FILES = ("scribble", "mask")
_PROMPTS = ("point", "bbox", *_FILES, "text")
#: near misses that would otherwise be passed over as notes, and the whole picture matted
_NEARLY = {"boxes", "bboxes", "prompt", "prompts", "clicks", "label", "labels"}
_NEARLY |= {"scribbles", "masks", "object", "texts", "words"}


@dataclass(frozen=True)
class Recipe:
    """What the bytes depend on besides the rows.

    Attributes:
        model: name or path, for :func:`zim.segmenters.load_segmenter`.
        weights: hash of its files, empty where there are none here.
        formats: kinds of result, each ``<name>.<kind>.png``.
        bits: depth of rgba and alpha.
        foreground: ``ml`` or ``none``.
        background: of composites.
        shard_size: rows per shard.
        device: as for :func:`zim.load`.
        dtype: as for :func:`zim.load`.
        threads: of each process; sums depend on it in their last digit.
        detector: entry point that finds the boxes of words; empty where no row asks with words.
    """

    model: str = "nano"
    weights: str = ""
    formats: tuple[str, ...] = ("alpha",)
    bits: int = 8
    foreground: str = "ml"
    background: str = "white"
    shard_size: int = 64
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 1
    detector: str = ""


@dataclass(frozen=True)
class Row:
    """One picture and what is asked about it.

    Attributes:
        name: of its files, relative to the output folder, without a suffix.
        image: file.
        objects: prompts, each as for :func:`zim.prompt_json.read_entry`, or with ``text``; empty
            for the whole picture.
        error: why the line of the manifest cannot be used.
    """

    name: str
    image: str
    objects: tuple[dict[str, Any], ...] = field(default=())
    error: str | None = None

    def stems(self) -> list[str]:
        """Return what its files are called, without kind and suffix."""
        count = len(self.objects)
        return [self.name] if count < 2 else [f"{self.name}.{k}" for k in range(1, count + 1)]

    def reads(self) -> list[str]:
        """Return the files that are read for it: the picture, masks and scribbles."""
        named = [one.get(kind) for one in self.objects for kind in _FILES]
        return [self.image, *(name for name in named if isinstance(name, str))]


def read_rows(source: Path) -> list[Row]:
    """List a folder's pictures (with those in subfolders), or read a manifest.

    A manifest's line is ``{"image": path}`` with, if wanted, ``name`` and a prompt: ``point``,
    ``bbox``, ``scribble`` (strokes, or a file), ``mask`` (a file) or ``text``, or several of these
    in ``objects``. Paths are relative to the manifest. A line that cannot be used, or would write
    the files of an earlier one, becomes a row with an error. In a folder, pictures that differ in
    nothing but their suffix keep it in their name, and folders of earlier results are left out.

    Raises:
        ImageError: nothing is there, a single picture, or a folder of results.
    """
    if is_picture(source) and source.is_file():
        raise ImageError(
            f"{source} is a picture; give its folder or a .jsonl manifest, or use zim matte"
        )
    if source.is_dir():
        results = tuple(p.parents[1] for p in source.rglob(RECIPE))
        if source in results:
            raise ImageError(
                f"{source} holds mattes of zim batch, which would be taken for pictures; give the "
                "folder of the pictures themselves"
            )
        files = [p for p in pictures_in(source, deep=True) if not set(results) & set(p.parents)]
        count = Counter(p.with_suffix("") for p in files)
        rows = [
            Row((p if count[q] > 1 else q).relative_to(source).as_posix(), str(p))
            for p in files
            for q in [p.with_suffix("")]
        ]
    elif source.is_file():
        lines = source.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        rows = [_row(line, number, source) for number, line in enumerate(lines, 1) if line.strip()]
    else:
        raise ImageError(f"{source} does not exist; give a folder of pictures or a .jsonl manifest")
    if not rows:
        raise ImageError(f"{source} holds no pictures")
    taken: dict[str, str] = {}
    for number, row in enumerate(rows):
        clash = next((stem for stem in row.stems() if stem in taken), None)
        if clash is None:
            taken |= dict.fromkeys(row.stems(), row.image)
        elif row.error is None:
            why = f"{taken[clash]} writes {clash} already; give it another name"
            rows[number] = replace(row, name=f"line-{number + 1}", objects=(), error=why)
    return rows


def _row(line: str, number: int, manifest: Path) -> Row:
    fallback = f"line-{number}"
    try:
        data = json.loads(line)
        if not isinstance(data, dict):
            raise TypeError("it is not a JSON object")
        data = with_usual_names(data, f"line {number}")
        image = data.get("image")
        if not isinstance(image, str) or not image:
            raise TypeError("it has no image, the name of a file")
        name = str(data.get("name") or PurePosixPath(image).stem)
        if unknown := sorted(set(data) & _NEARLY):
            raise TypeError(f"{unknown[0]} is unknown; expected {', '.join(_PROMPTS)} or objects")
        objects = data.get("objects")
        one = {k: data[k] for k in _PROMPTS if data.get(k) is not None}
        if objects is None:
            objects = [one] if one else []
        elif one:
            raise TypeError("objects and a prompt beside them; put it into objects")
        if not isinstance(objects, list) or not all(isinstance(o, dict) for o in objects):
            raise TypeError("objects are not a list of JSON objects")
        if data.get("objects") == []:
            raise TypeError("objects is empty; leave it out for the whole picture")
        if any(all(value in (None, [], "") for value in one.values()) for one in objects):
            raise TypeError("a prompt is empty; leave it out for the whole picture")
    except PromptError as error:
        return Row(fallback, f"{manifest.name}:{number}", error=str(error))
    except (ValueError, TypeError, RecursionError) as error:
        reason = error if isinstance(error, TypeError) else f"it is no JSON ({error})"
        why = f'line {number}: {reason}; expected {{"image": FILE, ...}}'
        return Row(fallback, f"{manifest.name}:{number}", error=why)
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or not path.name
    if "\0" in name:
        why = f"line {number}: name {name!r} holds a zero byte; give another name"
        return Row(fallback, image, error=why)
    if outside or path.parts[0] == SHARDS:
        return Row(fallback, image, error=f"line {number}: name {name!r} leaves the output folder")
    beside = [
        asked | {k: str(manifest.parent / v) for k in _FILES if isinstance(v := asked.get(k), str)}
        for asked in objects
    ]
    return Row(path.as_posix(), str(manifest.parent / image), tuple(beside))


def detector_of(rows: Sequence[Row]) -> str:
    """Return the detector that rows with words need, or nothing.

    Raises:
        ZimError: they do, and none is installed.
    """
    if not any("text" in asked for row in rows for asked in row.objects):
        return ""
    known = plugins.names("zim.detectors")
    if not known:
        raise ZimError(
            "rows with text need a detector, and none is installed; install the extra: "
            + install_advice("grounded")
        )
    return known[0]


class Worker:
    """One process's model, and shard after shard."""

    def __init__(self, recipe: Recipe, output: str) -> None:
        """Load the model.

        Raises:
            ZimError: it is unknown or its weights are missing.
        """
        import cv2
        import torch

        from zim.segmenters import load_segmenter

        torch.set_num_threads(recipe.threads)
        cv2.setNumThreads(recipe.threads)
        self.recipe, self.output = recipe, Path(output)
        self._detector: Detector | None = None
        self.model = load_segmenter(recipe.model, device=recipe.device, dtype=recipe.dtype)

    def shard(self, number: int, rows: Sequence[Row]) -> dict[str, Any]:
        """Do a shard and write its marker; what fails is listed there, never raised."""
        failed: list[dict[str, str]] = []
        files = 0
        for row in rows:
            try:
                if row.error is not None:
                    raise PromptError(row.error)
                files += self._one(row)
            except Exception as error:  # a broken file can break a decoder in any way
                if isinstance(error, OutputError) and not _about_name(error):
                    raise  # a full disk is not the picture's fault
                why = one_line(error)
                if not isinstance(error, ZimError):
                    why = f"{type(error).__name__}: {why}"
                failed.append({"image": row.image, "name": row.name, "error": why})
        marker = {
            "shard": number,
            "rows": rows_hash(rows),
            "count": len(rows),
            "files": files,
            "failed": failed,
        }
        atomic_write(marker_path(self.output, number), (json.dumps(marker) + "\n").encode())
        return marker

    def __call__(self, batch: Any) -> Any:
        """Serve Ray's ``map_batches``: a column of shards as JSON to a column of markers."""
        done = []
        for text in batch["shard"]:
            number, rows = json.loads(str(text))
            done.append(json.dumps(self.shard(number, [Row(**row) for row in rows])))
        return {"marker": done}

    def _one(self, row: Row) -> int:
        from zim.images import load_image
        from zim.result import Kind

        encoded: list[tuple[Path, bytes]] = []
        picture = load_image(row.image)
        self.model.set_image(picture.rgb)
        for stem, asked in zip(row.stems(), row.objects or ({},), strict=True):
            matte = self._matte(picture, asked)
            for kind in self.recipe.formats:
                data = matte.encode(
                    cast("Kind", kind),
                    ".png",
                    bits=cast("Any", self.recipe.bits),
                    background=self.recipe.background,
                    foreground=cast("Any", self.recipe.foreground),
                )
                encoded.append((self.output / f"{stem}.{kind}.png", data))
        for path, data in encoded:  # all objects or none
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, data)
        return len(encoded)

    def _matte(self, picture: LoadedImage, asked: dict[str, Any]) -> Any:
        """Answer one object of the picture that is set."""
        from zim.prompt_files import read_prompt
        from zim.prompt_json import ObjectPrompt, read_entry
        from zim.segmenters.answer import answer

        if "text" in asked:
            asked = self._found(picture.rgb, asked)
        size = (picture.rgb.shape[0], picture.rgb.shape[1])
        said = read_entry(asked, "the prompt") if asked else ObjectPrompt()
        prompt = read_prompt(said, size)
        return answer(self.model, picture.rgb, prompt, within=picture.alpha)

    def _found(self, rgb: np.ndarray, asked: dict[str, Any]) -> dict[str, Any]:
        """Put the box of the best match in the place of words."""
        words = asked["text"]
        if not isinstance(words, str) or not words.strip() or "bbox" in asked:
            raise PromptError(f"text {words!r}: expected words, and no bbox beside them")
        if self._detector is None:
            factory = plugins.find("zim.detectors", self.recipe.detector)
            self._detector = factory(name=None, device=self.recipe.device)
        detector = cast("Detector", self._detector)
        found = detector.detect(rgb, [words])
        if not found:
            raise PromptError(f"nothing in the picture answers {words!r}")
        best = max(found, key=lambda detection: detection.score)
        return {k: v for k, v in asked.items() if k != "text"} | {"bbox": [*map(float, best.box)]}


def _about_name(error: OutputError) -> bool:
    """Tell whether a file cannot be written for its own sake: no name for one, or a folder's."""
    names = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EISDIR)
    cause = error.__cause__
    return not isinstance(cause, OSError) or cause.errno in names


def rows_hash(rows: Sequence[Row]) -> str:
    """Hash what a shard's rows ask for, and the sizes of their pictures."""
    digest = hashlib.sha256()
    for row in rows:
        named = [o[k] for o in row.objects for k in _FILES if isinstance(o.get(k), str)]
        sizes = [_size(file) for file in (row.image, *named)]
        digest.update(json.dumps([asdict(row), sizes], sort_keys=True).encode())
    return digest.hexdigest()


def _size(file: str) -> int:
    try:
        return Path(file).stat().st_size
    except (OSError, ValueError):
        return -1


def marker_path(output: Path, number: int) -> Path:
    """Return where a shard's done-marker lies."""
    return output / SHARDS / f"{number:06d}.json"


def read_marker(output: Path, number: int, rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return a shard's marker if it is done for exactly these rows, else None."""
    try:
        marker = json.loads(marker_path(output, number).read_text(encoding="utf-8"))
        return marker if marker["rows"] == rows_hash(rows) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def prepare(output: Path, recipe: Recipe, *, overwrite: bool = False) -> None:
    """Claim the output folder for a recipe.

    Raises:
        OutputError: it is no folder, holds other files or results of another recipe, and may not be
            reused.
    """
    make_folder(output)
    path = output / RECIPE
    data = (json.dumps(asdict(recipe), indent=1) + "\n").encode()
    if path.is_file():
        begun = any((output / SHARDS).glob("[0-9]*.json")) or len(list(output.iterdir())) > 1
        if path.read_bytes() != data and begun and not overwrite:
            raise OutputError(
                f"{output} holds results of other settings; use another --output or --overwrite"
            )
    elif any(output.iterdir()) and not overwrite and not (output / SHARDS).is_dir():
        raise OutputError(f"{output} is not empty; use another --output or --overwrite")
    (output / SHARDS).mkdir(exist_ok=True)
    if overwrite:
        for marker in (output / SHARDS).glob("*.json"):
            marker.unlink()
    if overwrite or not path.is_file() or path.read_bytes() != data:
        atomic_write(path, data)


def run(
    rows: Sequence[Row],
    output: Path,
    recipe: Recipe,
    *,
    engine: str = "local",
    processes: int = 1,
    retry_failed: bool = False,
) -> dict[str, Any]:
    """Do all shards that are not done, and list every failure in ``failed.jsonl``.

    Args:
        rows: of :func:`read_rows`.
        output: folder, claimed with :func:`prepare`.
        recipe: settings.
        engine: ``local`` or ``ray``.
        processes: local processes, or Ray's actors.
        retry_failed: do shards with failures again.

    Returns:
        Counts: ``rows``, ``shards``, ``done_before`` (shards), ``failed``, ``to_do`` (shards that
        other ranks have not finished), and the failures.

    Raises:
        ZimError: the model cannot be loaded, Ray is missing, or the disk cannot be written.
    """
    size = recipe.shard_size
    shards = [rows[k : k + size] for k in range(0, len(rows), size)]
    rank, world = rank_and_world()
    todo: list[tuple[int, Sequence[Row]]] = []
    before = 0
    for number, shard in enumerate(shards):
        marker = read_marker(output, number, shard)
        if marker is not None and not (retry_failed and marker["failed"]):
            before += 1
        elif number % world == rank:
            todo.append((number, shard))
    if todo:
        if engine == "ray":
            work = _ray(todo, output, recipe, processes)
        elif engine == "local":
            work = _local(todo, output, recipe, processes)
        else:
            raise ConfigError(f"engine {engine!r} is unknown; expected local or ray")
        for _ in track(work, "shards", len(todo)):
            pass
    markers = [read_marker(output, number, shard) for number, shard in enumerate(shards)]
    failed = [entry for marker in markers if marker is not None for entry in marker["failed"]]
    text = "".join(json.dumps(entry) + "\n" for entry in failed)
    atomic_write(output / "failed.jsonl", text.encode())
    return {
        "rows": len(rows),
        "shards": len(shards),
        "done_before": before,
        "to_do": sum(marker is None for marker in markers),
        "failed": len(failed),
        "failures": failed,
    }


def _local(
    todo: Sequence[tuple[int, Sequence[Row]]], output: Path, recipe: Recipe, processes: int
) -> Iterator[dict[str, Any]]:
    if processes == 1:
        worker = Worker(recipe, str(output))
        for number, rows in todo:
            yield worker.shard(number, rows)
        return
    with worker_processes(min(processes, len(todo)), _start, recipe, str(output)) as pool:
        futures = [pool.submit(_shard, number, list(rows)) for number, rows in todo]
        for future in as_completed(futures):
            yield future.result()


_state: dict[str, Any] = {}


def _start(recipe: Recipe, output: str) -> None:
    _state["job"] = (recipe, output)


def _shard(number: int, rows: Sequence[Row]) -> dict[str, Any]:
    if "worker" not in _state:  # here and not in the initializer, whose errors are lost
        _state["worker"] = Worker(*_state["job"])
    return _state["worker"].shard(number, rows)


def _ray(
    todo: Sequence[tuple[int, Sequence[Row]]], output: Path, recipe: Recipe, actors: int
) -> Iterator[dict[str, Any]]:
    ray = require("ray", "ray")
    data = require("ray.data", "ray")
    from zim.api import choose_device

    gpu = choose_device(recipe.device).type == "cuda"
    started = not ray.is_initialized()
    if started:
        options: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False}
        if not os.environ.get("RAY_ADDRESS"):
            options["num_cpus"] = max(actors + 1, os.cpu_count() or 1)
        ray.init(**options)
    try:
        data.DataContext.get_current().enable_progress_bars = False
        items = [
            {"shard": json.dumps([number, [asdict(row) for row in rows]])} for number, rows in todo
        ]
        table = data.from_items(items).repartition(len(items))
        mapped = table.map_batches(
            Worker,
            fn_constructor_args=(recipe, str(output.resolve())),
            batch_size=1,
            batch_format="numpy",
            num_gpus=1 if gpu else 0,
            num_cpus=1,
            compute=data.ActorPoolStrategy(size=actors),
        )
        for row in mapped.iter_rows():
            yield json.loads(str(row["marker"]))
    finally:
        if started:
            ray.shutdown()
