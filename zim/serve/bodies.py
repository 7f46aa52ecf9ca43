"""Requests to checked bodies, whether they come as JSON or as multipart forms."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from zim.serve.problems import Problem

B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")
#: runs file work beside the event loop
Pool = Callable[..., Awaitable[T]]
#: bodies up to so many bytes are parsed at once, longer ones beside the event loop
SMALL = 2**16
#: bodies above so many bytes are read only a few at a time
LARGE = 2**20
#: seconds that a large body may wait for its turn
TURN = 30.0
#: lists, objects and their members in one body; parsing holds up everybody and takes memory
VALUES = 1_000_000
#: what fields look like, for those whose mistakes are common
_LOOKS = {"points": "[[x, y, label], ...]", "box": "[x0, y0, x1, y1]"}
_LOOKS["scribble"] = "[[[x, y], ...], ...]"


async def read_body(
    request: Request, kind: type[B], pool: Pool[B], uploads: asyncio.Semaphore
) -> B:
    """Read, parse and check a body.

    Args:
        request: the request.
        kind: what the body has to be.
        pool: runs the parser.
        uploads: places for large bodies that are read at the same time.

    Raises:
        Problem: 415 another content type, 400 not parseable, 408 it stopped coming, 413 too many
            values, 422 a field is wrong, 429 no place for a large body.
    """
    content = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content not in ("application/json", "multipart/form-data"):
        raise Problem(415, "expected application/json or multipart/form-data")
    try:
        async with _place(request, uploads):
            if content == "application/json":
                parse = partial(_from_json, kind, await request.body())
            else:
                parse = partial(_from_form, kind, await _form(request))
            return parse() if _length(request) <= SMALL else await pool(parse)
    except ClientDisconnect as error:
        raise Problem(408, "the body did not arrive in time; send it again") from error


@asynccontextmanager
async def _place(request: Request, uploads: asyncio.Semaphore) -> AsyncIterator[None]:
    if _length(request) <= LARGE:
        yield
        return
    try:
        await asyncio.wait_for(uploads.acquire(), TURN)
    except TimeoutError as error:
        text = "too many uploads at the same time; try again shortly"
        raise Problem(429, text, {"Retry-After": "5"}) from error
    try:
        yield
    finally:
        uploads.release()


def _length(request: Request) -> float:
    """Return the bytes that a body says it has; without end where it does not say."""
    length = request.headers.get("content-length")
    return float("inf") if length is None else int(length[:19])


def _from_json(kind: type[B], data: bytes) -> B:
    _check_count(data)
    return _checked(kind, _json(data, "the body"))


def _from_form(kind: type[B], form: dict[str, str | bytes]) -> B:
    data: dict[str, Any] = {}
    _check_count(*(value.encode() for value in form.values() if isinstance(value, str)))
    for name, value in form.items():
        text = value.strip() if isinstance(value, str) else value
        if isinstance(text, bytes):
            data[name] = text
        elif text[:1] in ("[", "{"):
            data[name] = _json(text.encode(), f"the field {name[:40]}")
        elif text:
            data[name] = _plain(text)
    return _checked(kind, data)


def _checked(kind: type[B], data: Any) -> B:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"][:6])
        looks = next((_LOOKS[part] for part in first["loc"] if part in _LOOKS), None)
        text = f"{where or 'body'}: {first['msg'].removeprefix('Value error, ')}"
        raise Problem(422, text + (f"; expected {looks}" if looks else "")) from error


def _check_count(*parts: bytes) -> None:
    """Refuse what is nothing but values, before anything is made of them."""
    if sum(part.count(sign) for part in parts for sign in (b",", b"[", b"{")) > VALUES:
        raise Problem(413, f"the body has over {VALUES:,} values; send fewer points and strokes")


def _json(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"{what} is no JSON ({type(error).__name__})") from error


async def _form(request: Request) -> dict[str, str | bytes]:
    """Return the fields of a form: text, and the bytes of files."""
    try:
        form = await request.form(max_files=4, max_fields=40, max_part_size=2**20)
    except (Problem, ClientDisconnect):
        raise
    except Exception as error:  # the parser raises whatever malformed input runs into
        raise Problem(400, "the multipart form cannot be parsed") from error
    data: dict[str, str | bytes] = {}
    try:
        for name, value in form.multi_items():
            if name in data:
                raise Problem(400, f"the form has {name[:40]!r} twice")
            # a file's name is never looked at
            data[name] = await value.read() if isinstance(value, UploadFile) else value
    finally:
        await form.close()
    return data


def _plain(value: str) -> Any:
    if value in ("true", "false"):
        return value == "true"
    return int(value) if value.isdecimal() and len(value) < 10 else value
