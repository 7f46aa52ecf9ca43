"""What the addresses do, between checked bodies and the engine."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from zim.images import load_image, read_mask
from zim.output import encode_alpha, encode_rgb, encode_rgba, quantise
from zim.prompts import Prompt
from zim.protocols import ServeTab, TabRequest, TabResult
from zim.serve.cache import Entry
from zim.serve.engine import Answer, Engine, Size, as_matte, checked_bytes, cut, merged
from zim.serve.problems import Problem
from zim.serve.schemas import AutoBody, ImageBody, MatteBody, ObjectBody
from zim.serve.tabs import TabBody

T = TypeVar("T")
SUFFIX = {"png": ".png", "webp": ".webp", "tiff": ".tif", "jpeg": ".jpg"}


#: bodies over a megabyte that are read at the same time
UPLOADS = 8
#: most pixels, of all mattes together, in an answer at full size (float32: 2 GB)
ANSWER_PIXELS = 500_000_000


@dataclass(eq=False)
class Desk:
    """A few threads for file work, and a bound on what waits for them."""

    threads: int
    name: str
    entered: int = 0
    pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        """Make the pool; its threads start when they are needed."""
        self.pool = ThreadPoolExecutor(self.threads, thread_name_prefix=self.name)


@dataclass(eq=False)
class Service:
    """The engine, asked from an event loop.

    Attributes:
        engine: models and their workers.
        quick: what a click needs: bodies, decoding of pictures, previews.
        slow: files at full size, which take seconds and must not keep clicks waiting.
        uploads: places for large bodies.
    """

    engine: Engine
    quick: Desk = field(default_factory=lambda: Desk(2, "zim-files"))
    slow: Desk = field(default_factory=lambda: Desk(1, "zim-full-size"))
    uploads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(UPLOADS))

    def close(self) -> None:
        """Drop what has not begun."""
        for desk in (self.quick, self.slow):
            desk.pool.shutdown(wait=False, cancel_futures=True)

    async def wait(self, future: Future[T], seconds: float) -> T:
        """Wait for a worker; afterwards nobody does, and work not begun is dropped."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
        except TimeoutError as error:
            if future.cancelled() or future.cancel():  # its turn never came
                text = f"the service is busy: no turn within {seconds:g} s; try again"
                raise Problem(429, text, {"Retry-After": "5"}) from error
            raise Problem(503, f"no answer within {seconds:g} s", {"Retry-After": "5"}) from error

    async def long(self, work: Callable[[], T]) -> T:
        """Wait for a long job, which ends early when nobody waits for it any more."""
        gone = threading.Event()
        try:
            return await self.wait(self.engine.long(work, gone), self.engine.settings.long_timeout)
        finally:
            gone.set()

    async def in_pool(self, work: Callable[..., T], *args: Any, desk: Desk | None = None) -> T:
        """Run file work beside the event loop, at the quick desk or another one.

        Raises:
            Problem: 429, too much waits there.
        """
        desk = desk or self.quick
        if desk.entered >= self.engine.settings.queue * 2:
            raise Problem(429, "the service is busy; try again shortly", {"Retry-After": "1"})
        desk.entered += 1
        try:
            future = desk.pool.submit(work, *args)
            return await self.wait(future, self.engine.settings.long_timeout)
        finally:
            desk.entered -= 1

    async def entry(self, body: ImageBody) -> Entry:
        """Return the picture a body is about."""
        if (body.image is None) == (body.embedding is None):
            raise Problem(422, "expected either image or embedding")
        if body.embedding is not None:
            entry = self.engine.find(body.embedding)
            if body.model not in (None, entry.model):
                text = (
                    f"the embedding is of model {entry.model}; leave model out, or send the image"
                )
                raise Problem(422, text)
            return entry
        model = self.engine.check_model(body.model)
        data, body.image = body.image, None  # once decoded, the file's memory is free
        return await self.in_pool(self.engine.open, data, model)

    async def embed(self, body: ImageBody) -> dict[str, Any]:
        """Encode a picture for prompts to come."""
        start = time.perf_counter()
        entry = await self.entry(body)
        known = bool(entry.predictors)
        if not known:
            await self.wait(self.engine.encode(entry), self.engine.settings.timeout)
        height, width = entry.size
        return {
            "id": entry.key,
            "model": entry.model,
            "width": width,
            "height": height,
            "cached": known,
            "bytes": entry.nbytes(),
            "seconds": round(time.perf_counter() - start, 4),
        }

    async def answers(
        self,
        entry: Entry,
        objects: list[ObjectBody],
        candidates: int,
        *,
        preview: bool,
        soft: bool = False,
    ) -> list[Answer]:
        """Answer the prompts of several objects; they share a batch.

        Raises:
            Problem: 422, at full size they would take too much memory together.
        """
        size: Size = "preview" if preview else "full"
        counts = [3 if candidates == 3 or one.candidate else 1 for one in objects]
        height, width = entry.size
        if not preview and sum(counts) * height * width > ANSWER_PIXELS:
            text = (
                f"{sum(counts)} mattes of {width} x {height} are too much for one request; "
                f"expected at most {ANSWER_PIXELS // (height * width)}: ask for fewer at a time"
            )
            raise Problem(422, text)
        seconds = self.engine.settings.timeout if preview else self.engine.settings.long_timeout
        prompts = [await self.in_pool(self._prompt, entry, one, size) for one in objects]
        asked = list(zip(prompts, counts, strict=True))
        futures = self.engine.ask(entry, asked, size, soft=soft)
        try:
            return [await self.wait(future, seconds) for future in futures]
        finally:
            for future in futures:  # where one fails, nobody waits for the others
                future.cancel()

    def _prompt(self, entry: Entry, one: ObjectBody, size: Size) -> Prompt:
        """Check a prompt before it takes a place in the queue."""
        prompt = {
            "points": [[*p, 1][:3] for p in one.points or ()] or None,
            "box": one.box,
            "scribble": one.scribble or None,
            "mask": None if one.mask is None else self._mask(entry, one.mask),
        }
        return self.engine.prompt(entry, prompt, size)

    def _mask(self, entry: Entry, data: bytes) -> NDArray[np.float32]:
        mask = read_mask(checked_bytes(data), self.engine.settings.max_pixels)
        if mask.shape != entry.size:
            raise Problem(
                422,
                f"the mask is {mask.shape[1]} x {mask.shape[0]}; expected the "
                f"picture's {entry.size[1]} x {entry.size[0]}",
            )
        return mask

    async def matte(self, body: MatteBody) -> dict[str, Any] | tuple[bytes, str]:
        """Answer with JSON, or with a file and its suffix."""
        start = time.perf_counter()
        entry = await self.entry(body)
        objects = body.wanted()
        if body.output == "json":
            found = await self.answers(entry, objects, body.candidates, preview=body.preview)
            desk = self.quick if body.preview else self.slow
            shown = await self.in_pool(self._listed, entry, found, objects, body, desk=desk)
            height, width = entry.size
            return {
                "embedding": entry.key,
                "model": entry.model,
                "width": width,
                "height": height,
                "objects": shown,
                "seconds": round(time.perf_counter() - start, 4),
            }
        found = await self.answers(entry, objects, 1, preview=False)
        suffix = SUFFIX[body.format]
        data = await self.in_pool(self._file, entry, found, objects, body, suffix, desk=self.slow)
        return data, suffix

    def _listed(
        self, entry: Entry, found: list[Answer], objects: list[ObjectBody], body: MatteBody
    ) -> list[dict[str, Any]]:
        rows = []
        for answer, one in zip(found, objects, strict=True):
            keep = list(range(len(answer.numbers)))
            if body.candidates == 1 and one.candidate:
                keep = [answer.numbers.index(one.candidate)]
            rows.append(
                {
                    "candidates": [
                        {
                            "candidate": answer.numbers[i],
                            "score": round(float(answer.scores[i]), 4),
                            "alpha": data_url(
                                encode_alpha(cut(entry, answer.mattes[i]), body.bits)
                            ),
                        }
                        for i in keep
                    ]
                }
            )
        return rows

    def _file(
        self,
        entry: Entry,
        found: list[Answer],
        objects: list[ObjectBody],
        body: MatteBody,
        suffix: str,
    ) -> bytes:
        alpha = chosen(found, objects)
        if body.refine:
            from zim.refine import refine

            alpha = refine(entry.rgb, alpha, entry.predictors.get("full"))
        alpha = cut(entry, alpha)
        background: Any = body.background
        if body.background_image is not None:
            limit = self.engine.settings.max_pixels
            background = load_image(checked_bytes(body.background_image), max_pixels=limit).rgb
        return as_matte(entry, alpha).encode(
            cast("Any", body.output),
            suffix,
            bits=body.bits,
            background=background,
            foreground=body.foreground,
        )

    async def auto(self, body: AutoBody) -> dict[str, Any]:
        """Find everything."""
        start = time.perf_counter()
        entry = await self.entry(body)

        def work() -> list[dict[str, Any]]:
            records = self.engine.automatic(entry, body.max_masks, body.points_per_side)
            return [_record(entry, record) for record in records]

        rows = await self.long(work)
        return self._about(entry, start) | {"objects": rows}

    async def tab(self, tab: ServeTab, body: ImageBody) -> dict[str, Any]:
        """Let a tab work; boxes it finds become mattes."""
        start = time.perf_counter()
        entry = await self.entry(body)
        alpha: NDArray[np.float32] | None = None
        if isinstance(body, TabBody):
            if body.mask is None and not body.objects:
                raise Problem(422, "expected objects, or mask: what the tab is to work on")
            if body.mask is not None:
                alpha = await self.in_pool(self._mask, entry, body.mask)
            else:
                objects = body.objects or []
                found = await self.answers(entry, objects, 1, preview=False, soft=True)
                alpha = await self.in_pool(
                    lambda: cut(entry, chosen(found, objects)), desk=self.slow
                )
        values = body.values.model_dump()  # pyright: ignore[reportAttributeAccessIssue]
        request = TabRequest(entry.rgb, alpha, values, self.engine.settings.device)
        result: TabResult = await self.long(lambda: tab.run(request))
        answer = self._about(entry, start) | {"notes": list(result.notes)}
        if result.image is not None:
            png = await self.in_pool(_picture, entry, result.image, desk=self.slow)
            return answer | {"image": data_url(png)}
        boxes = [
            ObjectBody.model_validate({"box": list(map(float, d.box))}) for d in result.detections
        ]
        found = await self.answers(entry, boxes, 1, preview=True) if boxes else []
        answer["objects"] = await self.in_pool(_detected, entry, result, found)
        return answer

    def _about(self, entry: Entry, start: float) -> dict[str, Any]:
        return {
            "embedding": entry.key,
            "model": entry.model,
            "width": entry.size[1],
            "height": entry.size[0],
            "seconds": round(time.perf_counter() - start, 4),
        }


def chosen(found: list[Answer], objects: list[ObjectBody]) -> NDArray[np.float32]:
    """Return the matte of all objects together, each by its chosen candidate."""
    return merged(
        [
            answer.mattes[answer.numbers.index(one.candidate) if one.candidate else 0]
            for answer, one in zip(found, objects, strict=True)
        ]
    )


def data_url(png: bytes) -> str:
    """Return a PNG as text that a browser and a base64 decoder both understand."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _picture(entry: Entry, image: NDArray[np.uint8]) -> bytes:
    """Return a tab's picture as PNG, as transparent as the one it was made of."""
    if entry.alpha is None or image.shape[:2] != entry.size:
        return encode_rgb(image)
    return encode_rgba(np.dstack([image, quantise(entry.alpha)]))


def _detected(entry: Entry, result: TabResult, found: list[Answer]) -> list[dict[str, Any]]:
    return [
        {
            "phrase": detection.phrase,
            "box": [float(v) for v in detection.box],
            "score": round(float(detection.score), 4),
            "alpha": data_url(encode_alpha(cut(entry, one.mattes[0]))),
        }
        for detection, one in zip(result.detections, found, strict=True)
    ]


def _record(entry: Entry, record: Any) -> dict[str, Any]:
    alpha = record["alpha"]
    height, width = entry.size
    fy, fx = height / alpha.shape[0], width / alpha.shape[1]
    x, y, w, h = record["bbox"]
    return {
        "box": [x * fx, y * fy, (x + w + 1) * fx, (y + h + 1) * fy],
        "score": round(float(record["predicted_iou"]), 4),
        "stability": round(float(record["stability_score"]), 4),
        "area": round(float(record["area"]) * fx * fy),
        "alpha": data_url(encode_alpha(alpha)),
    }
