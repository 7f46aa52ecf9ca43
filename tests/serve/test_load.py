"""A whole service under load, in a process of its own: bounded and slow."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

pytestmark = pytest.mark.slow
SECONDS = float(os.environ.get("ZIM_LOAD_SECONDS", "60"))
CLIENTS, PROMPTS, FIRST = 32, 2000, 500


@pytest.fixture
def service() -> Iterator[tuple[str, psutil.Process]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "zim.cli", "serve", "--port", str(port), "--queue", "16"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                httpx.get(f"{address}/healthz")
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def pictures(address: str) -> list[dict]:
    files = [Path("examples") / name for name in ("rabbit.jpg", "hyrax.jpg", "coffee.jpg")]
    with httpx.Client(timeout=120) as client:
        return [
            client.post(f"{address}/v1/embeddings", files={"image": f.read_bytes()}).json()
            for f in files
        ]


def prompt(draw: random.Random, picture: dict) -> dict:
    w, h = picture["width"], picture["height"]
    body = {"embedding": picture["id"], "preview": True}
    if draw.random() < 0.5:
        x, y = draw.uniform(0, w * 0.6), draw.uniform(0, h * 0.6)
        return body | {"box": [x, y, x + 0.35 * w, y + 0.35 * h]}
    return body | {"points": [[draw.uniform(0, w - 1), draw.uniform(0, h - 1), 1]]}


def test_thirty_two_clients_for_a_minute(service):
    address, _ = service
    known = pictures(address)
    statuses: Counter[int] = Counter()
    times: list[float] = []

    async def client(number: int, http: httpx.AsyncClient) -> None:
        draw = random.Random(number)
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            start = time.perf_counter()
            answer = await http.post("/v1/matte", json=prompt(draw, draw.choice(known)))
            statuses[answer.status_code] += 1
            if answer.status_code == 200:
                times.append(time.perf_counter() - start)
            else:
                await asyncio.sleep(0.25)

    async def everyone() -> None:
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as http:
            await asyncio.gather(*(client(i, http) for i in range(CLIENTS)))

    asyncio.run(everyone())
    p50, p95 = np.percentile(times, [50, 95])
    print(f"{dict(statuses)} in {SECONDS:g} s; served p50 {p50:.2f} s, p95 {p95:.2f} s")  # noqa: T201
    assert set(statuses) <= {200, 429}
    assert statuses[200] > SECONDS
    assert p95 < 30


def test_memory_stays_where_it_is(service):
    address, process = service
    known = pictures(address)
    draw = random.Random(0)
    resident = {}
    with httpx.Client(base_url=address, timeout=60) as client:
        for number in range(1, PROMPTS + 1):
            answer = client.post("/v1/matte", json=prompt(draw, draw.choice(known)))
            assert answer.status_code == 200
            if number in (FIRST, PROMPTS):
                resident[number] = process.memory_info().rss / 2**20
    print(", ".join(f"{mb:.0f} MB after {n}" for n, mb in resident.items()))  # noqa: T201
    assert resident[PROMPTS] <= 1.05 * resident[FIRST]
