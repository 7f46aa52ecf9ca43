"""Pictures and prompts to mattes: models, their workers, the cache; no HTTP here."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from zim._progress import abandoned_when
from zim.errors import ConfigError, ImageError, ZimError
from zim.images import load_image
from zim.prompts import Prompt
from zim.result import Matte
from zim.serve.cache import Cache, Entry, embedding_id
from zim.serve.problems import Problem
from zim.serve.settings import Settings
from zim.serve.worker import Job, Lane

log = logging.getLogger(__name__)

Size = Literal["full", "preview"]
#: long side of the picture that prompts are answered on while someone is still clicking
PREVIEW = 1280
#: first bytes of what may be decoded: PNG, JPEG, GIF, TIFF, BMP; WebP is checked apart
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"BM")


@dataclass(frozen=True, eq=False)
class Answer:
    """Candidates of one prompt: mattes C x H x W float32 in [0, 1], scores C, their numbers C.

    Mattes are the model's own; :func:`cut` takes away what the picture's transparency has not.
    """

    mattes: NDArray[np.float32]
    scores: NDArray[np.float32]
    numbers: tuple[int, ...]


class Engine:
    """Everything behind the addresses; thread-safe."""

    def __init__(self, settings: Settings, models: dict[str, Any] | None = None) -> None:
        """Start the workers.

        Args:
            settings: limits and model names.
            models: loaded models by name, for tests; otherwise they are loaded on first use.
        """
        self.settings = settings
        self.cache = Cache(settings.cache_bytes)
        self.lanes = [Lane(f"zim-model-{i}", settings.queue) for i in range(settings.workers)]
        #: automatic mattes and tabs take seconds; they must not keep clicks waiting
        self.long_lane = Lane("zim-long", max(1, settings.queue // 4))
        self._devices = _devices(settings.device)
        self._sources = shown_names(settings.models)
        self.names = tuple(self._sources)
        self._loaded: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()
        self._turn = itertools.count()
        self.states: dict[str, dict[str, Any]] = {
            name: {"state": "available", "error": None} for name in self.names
        }
        for name, model in (models or {}).items():
            for device in self._devices:
                self._loaded[name, device] = model
            self.states[name] = {"state": "ready", "error": None}

    def close(self, seconds: float = 10) -> None:
        """Stop the workers, each within so many seconds unless it is in the middle of something."""
        for lane in (*self.lanes, self.long_lane):
            lane.close(seconds)

    def check_model(self, name: str | None) -> str:
        """Return the name of a model that may be used, or raise a 422 problem."""
        chosen = self.names[0] if name is None else name
        if chosen not in self.names:
            known = ", ".join(self.names)
            raise Problem(422, f"model {chosen[:80]!r} is not served here; expected one of {known}")
        return chosen

    def load(self, name: str, worker: int = 0) -> Any:
        """Return a model, loading it on first use; what went wrong is remembered as its state."""
        from zim.api import load

        device = self._devices[worker % len(self._devices)]
        model = self._loaded.get((name, device))
        if model is not None:  # without the lock: another model may be loading
            return model
        with self._lock:
            model = self._loaded.get((name, device))
            if model is not None:
                return model
            self.states[name] = {"state": "loading", "error": None}
            try:
                source = self._sources[name]
                model = load(source, device=device, dtype=self.settings.dtype)
            except Exception as error:
                self.states[name] = {"state": "failed", "error": str(error)}
                log.warning("model %s cannot be loaded: %s", name, error)
                if isinstance(error, ZimError):
                    raise Problem(503, f"model {name} cannot be used: {error}") from error
                raise
            self._loaded[name, device] = model
            self.states[name] = {"state": "ready", "error": None}
            return model

    def open(self, data: bytes, model: str) -> Entry:
        """Decode a picture, or find it in the cache. Runs in the caller's thread.

        Raises:
            ImageError: it is no picture, damaged, or larger than allowed.
        """
        key = embedding_id(model, data)
        known = self.cache.get(key)
        if known is not None:
            return known
        loaded = load_image(checked_bytes(data), max_pixels=self.settings.max_pixels)
        worker = next(self._turn) % len(self.lanes)
        entry = Entry(key, model, loaded.rgb, loaded.alpha, worker)
        return self.cache.put(entry)

    def find(self, key: str) -> Entry:
        """Return a cached picture by its id, or raise a 404 problem."""
        entry = self.cache.get(key)
        if entry is None:
            raise Problem(404, "no such embedding, or it was dropped to make room; send the image")
        return entry

    def encode(self, entry: Entry, size: Size = "preview") -> Future[Any]:
        """Compute a picture's embedding on its worker."""
        job = Job(lambda _: [self._predictor(entry, size) and None], None)
        return self.lanes[entry.worker].submit(job)

    def ask(
        self,
        entry: Entry,
        prompts: Sequence[tuple[Prompt, int]],
        size: Size,
        *,
        soft: bool = False,
    ) -> list[Future[Answer]]:
        """Answer the prompts of one request; those for one picture that wait share a batch.

        Args:
            entry: the picture.
            prompts: from :meth:`prompt`, for the same size, each with its number of candidates: 1
                for the answer, 3 for the alternatives, in the order of their numbers.
            size: ``preview`` answers at up to ``PREVIEW`` pixels a side.
            soft: see :attr:`zim.ZimPredictor.soft`.

        Raises:
            Problem: 429, too many requests wait.
        """

        def job(prompt: Prompt, candidates: int) -> Job:
            return Job(
                lambda several: self._decode(entry, several, candidates, size, soft),
                prompt,
                (entry.key, candidates, size, soft),
            )

        jobs = [job(*one) for one in prompts]
        self.lanes[entry.worker].submit(*jobs)
        return [one.future for one in jobs]

    def prompt(self, entry: Entry, raw: dict[str, Any], size: Size) -> Prompt:
        """Check a prompt against the picture and bring it to the size that is asked.

        Args:
            entry: the picture.
            raw: arguments of :meth:`zim.Prompt.create`, in pixels of the full picture.
            size: as for :meth:`ask`.

        Raises:
            PromptError: it is malformed or outside the picture.
        """
        prompt = Prompt.create(entry.size, **raw)
        height, width = entry.size
        target = preview_size(entry.size) if size == "preview" else entry.size
        if target == entry.size:
            return prompt
        scale = np.array([target[1] / width, target[0] / height], np.float32)
        box = None if prompt.box is None else prompt.box * np.tile(scale, 2)
        mask = prompt.mask
        if mask is not None:
            mask = cv2.resize(mask, target[::-1], interpolation=cv2.INTER_AREA)
        # pixel centres are at integers, so points move by half a pixel on the way
        points = (prompt.points + 0.5) * scale - 0.5
        return Prompt(points.astype(np.float32), prompt.labels, box, mask, prompt.low_res)

    def long(self, work: Callable[[], Any], gone: threading.Event | None = None) -> Future[Any]:
        """Run ``work()`` in the thread for long jobs; its loops end once ``gone`` is set."""
        gone = gone or threading.Event()

        def run(_: Sequence[Any]) -> list[Any]:
            with abandoned_when(gone.is_set):
                return [work()]

        return self.long_lane.submit(Job(run, None))

    def _predictor(self, entry: Entry, size: Size) -> Any:
        from zim.predictor import ZimPredictor

        target = preview_size(entry.size) if size == "preview" else entry.size
        name = "full" if target == entry.size else size
        found = entry.predictors.get(name)
        if found is None:
            found = ZimPredictor(self.load(entry.model, entry.worker))
            rgb = entry.rgb
            if target != entry.size:
                rgb = cv2.resize(rgb, target[::-1], interpolation=cv2.INTER_AREA)
            found.set_image(rgb)
            entry.predictors[name] = found
            if self.cache.get(entry.key) is entry:
                self.cache.put(entry)
        return found

    def _decode(
        self, entry: Entry, prompts: Sequence[Prompt], candidates: int, size: Size, soft: bool
    ) -> list[Answer]:
        predictor = self._predictor(entry, size)
        predictor.soft = soft  # it is this thread's own
        several = candidates > 1
        mattes, scores, _ = predictor.predict_batch(list(prompts), multimask_output=several)
        if not several and predictor.best_of_three:
            return [
                self._lone(predictor, *one) for one in zip(prompts, mattes, scores, strict=True)
            ]
        numbers = tuple(range(1, mattes.shape[1] + 1)) if several else (0,)
        return [Answer(m.copy(), s, numbers) for m, s in zip(mattes, scores, strict=True)]

    def _lone(
        self, predictor: Any, prompt: Prompt, matte: NDArray[Any], score: NDArray[Any]
    ) -> Answer:
        """Answer one click as ``zim.matte`` does where the model prefers its best alternative."""
        if not prompt.single_click:
            return Answer(matte.copy(), score, (0,))
        mattes, scores, _ = predictor.predict_batch([prompt], multimask_output=True)
        best = int(np.argmax(scores[0]))
        return Answer(mattes[0, best : best + 1].copy(), scores[0, best : best + 1], (0,))

    def automatic(self, entry: Entry, max_masks: int, points_per_side: int | None) -> list[Any]:
        """Return everything in a picture, as :class:`zim.ZimAutomaticMaskGenerator` does."""
        from zim.automatic import ZimAutomaticMaskGenerator

        model = self.load(entry.model, entry.worker)
        generator = ZimAutomaticMaskGenerator(
            model, max_masks=max_masks, points_per_side=points_per_side
        )
        small = preview_size(entry.size)
        rgb = entry.rgb
        if small != entry.size:
            rgb = cv2.resize(rgb, small[::-1], interpolation=cv2.INTER_AREA)
        return cast("list[Any]", generator.generate(rgb))


def checked_bytes(data: bytes) -> bytes:
    """Return data that begins like a picture, or raise ImageError before any decoder sees it."""
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    if not webp and not data.startswith(_MAGIC):
        raise ImageError("the upload is no picture; expected PNG, JPEG, WebP, TIFF, GIF or BMP")
    return data


def shown_names(models: Sequence[str]) -> dict[str, str]:
    """Return the models by the names callers see: of a path on this machine its last part.

    Raises:
        ConfigError: two of them would have the same name.
    """
    names = {Path(m).resolve().name if Path(m).exists() else m: m for m in models}
    if len(names) < len(set(models)):
        raise ConfigError(f"two of the models {', '.join(models)} have one name; rename a file")
    return names


def preview_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return ``(height, width)`` with a long side of at most ``PREVIEW``."""
    scale = min(1.0, PREVIEW / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def merged(answers: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the matte of several objects together: the largest alpha at every pixel."""
    return np.max(np.stack(answers), axis=0)


def cut(entry: Entry, alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take away from a matte, of any size, what the picture's own transparency has not."""
    if entry.alpha is None:
        return alpha
    height, width = alpha.shape
    return alpha * cv2.resize(entry.alpha, (width, height), interpolation=cv2.INTER_AREA)


def as_matte(entry: Entry, alpha: NDArray[np.float32]) -> Matte:
    """Pair a full-size matte with its picture."""
    return Matte(image=entry.rgb, alpha=alpha)


def _devices(device: str) -> list[str]:
    if device != "auto":
        return [device]
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{i}" for i in range(count)] or ["cpu"]
