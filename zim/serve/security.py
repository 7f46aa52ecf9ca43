"""What stands before every request: size, host, origin, token; and headers on every answer."""

from __future__ import annotations

import asyncio
import hmac
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zim.serve.problems import Problem, problem_response
from zim.serve.settings import LOOPBACK, Settings

#: seconds between two parts of a request's body
PATIENCE = 20.0
#: seconds for all of it
LONGEST = 300.0
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware; refuses before anything reads the body."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Wrap an application."""
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refusal(scope)
        if refused:
            await problem_response(*refused)(scope, receive, answer)
            return
        try:
            await self.app(scope, self._limited(receive), answer)
        except asyncio.CancelledError:  # the server ends, and its patience with this request
            if not begun:
                await problem_response(503, "the service is stopping")(scope, receive, answer)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = _split(f"//{host}")[0]
        served = self.settings.open_host or name in (*LOOPBACK, *self.settings.hosts)
        if not served:
            return 403, (
                "this host name is not served; use the service's loopback address, or start it "
                "with --name and this name"
            )
        origin = headers.get("origin")
        if origin is not None and _split(origin)[1] != host:
            return 403, "requests of other sites are refused"
        if headers.get("sec-fetch-site") == "cross-site" and scope["method"] not in ("GET", "HEAD"):
            return 403, "requests of other sites are refused"
        path: str = scope["path"]
        guarded = path.startswith("/v1/") or path in ("/metrics", "/openapi.json")
        if self.settings.token and guarded and not self._known(headers):
            return 401, "a token is needed: send Authorization: Bearer TOKEN"
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return 400, "Content-Length is no number"
        if int(length[:19]) > self.settings.max_bytes:
            return 413, self._too_large()
        return None

    def _known(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        expected = (self.settings.token or "").encode()
        return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), expected)

    def _too_large(self) -> str:
        return f"the request is larger than {self.settings.max_bytes / 2**20:g} MB"

    def _limited(self, receive: Receive) -> Receive:
        seen, ended, latest = 0, False, time.monotonic() + LONGEST

        async def limited() -> Message:
            nonlocal seen, ended
            if ended:  # afterwards only a disconnect can come, which may take its time
                return await receive()
            try:
                left = min(PATIENCE, latest - time.monotonic())
                message = await asyncio.wait_for(receive(), left)
            except TimeoutError:
                return {"type": "http.disconnect"}
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                ended = not message.get("more_body", False)
                if seen > self.settings.max_bytes:
                    raise Problem(413, self._too_large())
            return message

        return limited


def _split(address: str) -> tuple[str | None, str]:
    """Return host name, and host with port, of an address; nothing where it is malformed."""
    try:
        parts = urlsplit(address)
        return parts.hostname, parts.netloc
    except ValueError:
        return None, ""
