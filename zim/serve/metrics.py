"""Numbers for Prometheus; one registry per application, so that tests do not meet."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zim.serve.engine import Engine


class Metrics:
    """What ``/metrics`` shows."""

    def __init__(self, engine: Engine) -> None:
        """Register everything."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "zim_requests", "answered requests", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "zim_request_seconds", "time to answer", ["path"], registry=self.registry
        )
        gauges = {
            "zim_cache_bytes": lambda: engine.cache.nbytes,
            "zim_cache_entries": lambda: len(engine.cache),
            "zim_cache_evicted": lambda: engine.cache.evicted,
            "zim_queue": lambda: sum(lane.waiting for lane in engine.lanes),
            "zim_queue_long": lambda: engine.long_lane.waiting,
            "zim_batches": lambda: sum(lane.batched for lane in engine.lanes),
        }
        for name, read in gauges.items():
            Gauge(name, name.replace("_", " "), registry=self.registry).set_function(read)

    def seen(self, path: str, status: int, seconds: float) -> None:
        """Count one request."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


class Counted:
    """ASGI middleware that counts every answer, refusals and unexpected errors among them."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """Wrap an application."""
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, answer)
        finally:
            path = getattr(scope.get("route"), "path", "") or "other"
            self.metrics.seen(path, status, time.perf_counter() - start)
