"""What an operator decides: where to listen, who may come in, how much anyone may ask for."""

from __future__ import annotations

from dataclasses import dataclass

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Settings:
    """Limits and names of one service.

    Attributes:
        models: names a request may ask for; the first is the default. Never paths from requests.
        device: as for :func:`zim.load`; ``auto`` puts one worker on every CUDA device.
        dtype: as for :func:`zim.load`.
        workers: model workers; they share the devices evenly.
        token: what callers have to show as a bearer token; None lets everyone in.
        open_host: answer under any host name, not only loopback ones and ``hosts``.
        hosts: further host names, those of a proxy in front for example.
        max_bytes: largest request body.
        max_pixels: largest picture, checked in its header before anything is decoded.
        queue: requests that may wait for a worker; more are answered with 429.
        timeout: seconds that encoding a picture, or a prompt for a preview, may take, waiting
            included.
        long_timeout: the same for everything else: prompts at full size, files, automatic mattes,
            tabs.
        cache_bytes: embeddings and their pictures kept in memory.
    """

    models: tuple[str, ...] = ("nano",)
    device: str = "auto"
    dtype: str = "auto"
    workers: int = 1
    token: str | None = None
    open_host: bool = False
    hosts: tuple[str, ...] = ()
    max_bytes: int = 32 * 2**20
    max_pixels: int = 40_000_000
    queue: int = 32
    timeout: float = 30.0
    long_timeout: float = 300.0
    cache_bytes: int = 2**30
