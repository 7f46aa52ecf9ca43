"""The application: addresses, OpenAPI, the page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from zim import __version__
from zim.errors import OutputError, ZimError
from zim.protocols import ServeTab
from zim.serve.bodies import read_body
from zim.serve.engine import Engine
from zim.serve.metrics import Counted, Metrics
from zim.serve.problems import Problem, problem_response
from zim.serve.schemas import AutoBody, ImageBody, MatteBody
from zim.serve.security import Guard
from zim.serve.service import Service
from zim.serve.settings import Settings
from zim.serve.tabs import body_of, describe, load_tabs

log = logging.getLogger(__name__)
B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")

STATIC = Path(__file__).parent / "static"
MEDIA = {".png": "image/png", ".webp": "image/webp", ".tif": "image/tiff", ".jpg": "image/jpeg"}


def create_app(
    settings: Settings | None = None,
    *,
    models: dict[str, Any] | None = None,
    tabs: dict[str, ServeTab] | None = None,
) -> FastAPI:
    """Return the ASGI application.

    Args:
        settings: limits and names.
        models: loaded models by name, for tests.
        tabs: by name; what is installed by default.
    """
    settings = settings or Settings()
    engine = Engine(settings, models)
    service = Service(engine)
    metrics = Metrics(engine)
    pages = load_tabs() if tabs is None else tabs

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close(1)
        service.close()

    app = FastAPI(
        title="zim serve",
        version=__version__,
        summary="Promptable image matting: clicks, boxes, scribbles or words in, mattes out",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.engine = engine
    _errors(app)

    async def read(request: Request, kind: type[B]) -> B:
        return await read_body(request, kind, service.in_pool, service.uploads)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="Whether the service is up")
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", "version": __version__, "models": engine.states}

    @app.get("/metrics", summary="Numbers for Prometheus", response_class=Response)
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", summary="Models, their state, tabs and limits")
    async def listed() -> dict[str, Any]:
        return {
            "models": [{"name": name} | state for name, state in engine.states.items()],
            "tabs": [describe(name, tab) for name, tab in pages.items()],
            "limits": {"bytes": settings.max_bytes, "pixels": settings.max_pixels},
            "version": __version__,
        }

    @app.post("/v1/embeddings", openapi_extra=_takes(ImageBody), summary="Encode a picture once")
    async def embeddings(request: Request) -> dict[str, Any]:
        return await attended(request, service.embed(await read(request, ImageBody)))

    @app.post("/v1/matte", openapi_extra=_takes(MatteBody), summary="Prompts in, mattes out")
    async def matte(request: Request) -> Response:
        answer = await attended(request, service.matte(await read(request, MatteBody)))
        if isinstance(answer, dict):
            return JSONResponse(answer)
        data, suffix = answer
        return Response(data, media_type=MEDIA[suffix])

    @app.post("/v1/auto", openapi_extra=_takes(AutoBody), summary="Mattes of everything")
    async def auto(request: Request) -> dict[str, Any]:
        return await attended(request, service.auto(await read(request, AutoBody)))

    def add(tab: ServeTab) -> None:
        kind = body_of(tab)

        @app.post(f"/v1/{tab.endpoint}", openapi_extra=_takes(kind), summary=tab.summary)
        async def run(request: Request) -> dict[str, Any]:
            return await attended(request, service.tab(tab, await read(request, kind)))

    for tab in pages.values():
        add(tab)
    app.mount("/", _Page(directory=STATIC, html=True), name="page")
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Counted, metrics=metrics)  # outermost: what the guard refuses counts too
    return app


class _Page(StaticFiles):
    """The page's files; browsers ask each time whether they have changed."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


async def attended(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work of a request whose body was read, and give it up when the client hangs up.

    Raises:
        Problem: 408, which nobody reads any more.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Problem(408, "the client hung up")
        return task.result()
    finally:
        task.cancel()
        watch.cancel()


def _takes(kind: type[BaseModel]) -> dict[str, Any]:
    """Describe a body in OpenAPI: JSON, or a form of the same fields."""
    schema = _inlined(kind.model_json_schema())
    content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": schema}}
    problem = {"content": {"application/problem+json": {}}, "description": "a problem (RFC 9457)"}
    return {"requestBody": {"content": content, "required": True}, "responses": {"4XX": problem}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Put definitions in their places: OpenAPI looks for references elsewhere."""
    parts = schema.pop("$defs", {})

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(one) for one in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return walk(parts[node["$ref"].rsplit("/", 1)[1]])
        return {key: walk(value) for key, value in node.items()}

    return walk(schema)


def _methods(app: FastAPI, path: str) -> str:
    """Return the methods, with commas, that the routes of a path answer."""
    known = (route for route in app.routes if isinstance(route, APIRoute) and route.path == path)
    return ", ".join(sorted({method for route in known for method in route.methods or ()}))


def _errors(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return problem_response(error.status, error.detail, error.headers)

    @app.exception_handler(ZimError)
    async def expected(_: Request, error: ZimError) -> Response:
        # what a request cannot know about (missing weights, packages) is the server's to mend
        status = 422 if isinstance(error, ValueError | OutputError) else 503
        return problem_response(status, " ".join(str(error).split()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        # the page, mounted over everything, answers what a route refused because of its method
        path = request.url.path
        if error.status_code in (404, 405) and (allowed := _methods(app, path)):
            detail = f"{request.method} is not answered here; use {allowed}"
            return problem_response(405, detail, {"Allow": allowed})
        if error.status_code in (404, 405) and path.startswith("/v1/"):
            return problem_response(404, "there is nothing at this address; see /openapi.json")
        return problem_response(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        log.error("unexpected error", exc_info=error)
        return problem_response(500, "unexpected error; the server's log says more")
