"""Requests to checked bodies, whether they come as JSON or as multipart forms."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

from zim.serve.problems import Problem

B = TypeVar("B", bound=BaseModel)


async def read_body(request: Request, kind: type[B]) -> B:
    """Parse and check a body.

    Raises:
        Problem: 415 another content type, 400 not parseable, 422 a field is wrong.
    """
    content = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content == "application/json":
        data = _json(await request.body())
    elif content == "multipart/form-data":
        data = await _form(request)
    else:
        raise Problem(415, "expected application/json or multipart/form-data")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"][:6])
        raise Problem(422, f"{where or 'body'}: {first['msg']}") from error


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"the body is no JSON ({type(error).__name__})") from error


async def _form(request: Request) -> dict[str, Any]:
    try:
        form = await request.form(max_files=4, max_fields=40, max_part_size=2**20)
    except Problem:
        raise
    except Exception as error:  # the parser raises whatever malformed input runs into
        raise Problem(400, "the multipart form cannot be parsed") from error
    data: dict[str, Any] = {}
    try:
        for name, value in form.multi_items():
            if name in data:
                raise Problem(400, f"the form has {name[:40]!r} twice")
            if isinstance(value, UploadFile):
                data[name] = await value.read()  # its file name is never looked at
            elif value[:1] in "[{" and value:
                data[name] = _json(value.encode())
            elif value:
                data[name] = _plain(value)
    finally:
        await form.close()
    return data


def _plain(value: str) -> Any:
    if value in ("true", "false"):
        return value == "true"
    return int(value) if value.isdecimal() and len(value) < 10 else value
