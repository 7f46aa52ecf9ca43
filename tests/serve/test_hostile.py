"""Two hundred requests nobody should send: each a 4xx in under a second, and the service lives."""

import base64
import json
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient

from zim.serve.app import create_app
from zim.serve.settings import Settings
from zim.serve.worker import Job
from zim.testing import served


def bomb(width: int, height: int) -> bytes:
    """Return a PNG whose header promises a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100_000, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def hostile(png: bytes, key: str) -> list[dict]:
    draw = random.Random(0)
    good = base64.b64encode(png).decode()
    asked = [
        {"content": json.dumps({"embedding": key} | body), "json": True} for body in bodies(draw)
    ]
    files = [png[: draw.randrange(1, len(png) - 30)] for _ in range(60)]
    files += [
        bomb(60_000, 60_000),
        bomb(2**31 - 1, 1),
        bomb(1, 2**31 - 1),
        bomb(0, 5),
        b"",
        b"\0" * 99,
    ]
    files += [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"GIF89a"]
    files += [b"RIFF\xff\xff\xff\xffWEBPVP8 ", b"II*\0\xff\xff\xff\xff", b"BM" + b"\xff" * 60]
    files += [bytes(draw.randrange(256) for _ in range(200)) for _ in range(20)]
    asked += [{"files": {"image": file}} for file in files]
    asked += [{"files": {"image": ("../../../etc/passwd", b"x")}}, {"files": {"imag": png}}]
    texts = [
        "",
        "{",
        "[" * 50_000,
        '{"image": NaN}',
        "null",
        "[]",
        '"x"',
        "1e999",
        "\ud800".encode("utf-8", "surrogatepass"),
    ]
    texts += [
        f'{{"image": "{good}", "points": [[NaN, 1]]}}',
        f'{{"image": "{good}", "box": [Infinity, 0, 1, 1]}}',
    ]
    texts += [
        json.dumps({"image": name})
        for name in ("/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/x.png", "-", "../x.png")
    ]
    asked += [{"content": text, "json": True} for text in texts]
    asked += [
        {"content": png, "headers": {"content-type": kind}}
        for kind in (
            "image/png",
            "",
            "text/plain",
            "multipart/form-data",
            "multipart/form-data; boundary=x",
        )
    ]
    asked += [{"content": b"x" * 300_000, "headers": {"content-type": "application/json"}}]
    asked += [
        {"content": "{}", "headers": {"content-type": "application/json", "content-length": n}}
        for n in ("-1", "x", "9" * 30)
    ]
    good_form = {"files": {"image": png}}
    asked += [
        good_form | {"headers": {"host": name}}
        for name in ("evil.example", "127.0.0.1.evil.example", "[", "a b")
    ]
    asked += [
        good_form | {"headers": {"origin": name}}
        for name in ("http://evil.example", "null", "https://127.0.0.1:1")
    ]
    asked += [good_form | {"headers": {"sec-fetch-site": "cross-site"}}]
    asked += [
        {"files": {"image": png}, "data": {"embedding": key}},
        {"files": {"image": png, "mask": b"x"}},
    ]
    asked += [{"files": {"image": png}, "data": {f"x{i}": "1" for i in range(n)}} for n in (1, 100)]
    return asked


def bodies(draw: random.Random) -> list[dict]:
    points = [
        [[1e300, 0, 1]],
        [[-5, -5]],
        [["a", "b"]],
        [[1]],
        [[1, 2, 3, 4]],
        [[1, 2, 7]],
        "x",
        5,
        [None],
        [[1, 2]] * 500,
    ]
    boxes = [
        [0, 0, 0, 0],
        [1, 2, 3],
        [1e9, 1e9, 2e9, 2e9],
        "0,0,1,1",
        [None] * 4,
        [-9, -9, -1, -1],
        {},
        [0] * 400,
    ]
    scribbles = [[[[1, 2, 3]]], [[["x", "y"]]], [[]], 5, [[[-1000, 5]]], [[[1, 1]]] * 200]
    rows: list[dict] = [{"points": value} for value in points]
    rows += [{"box": value} for value in boxes] + [{"scribble": value} for value in scribbles]
    rows += [
        {"objects": value} for value in ([], [{}] * 99, [{"points": 1}], "x", [{"objects": []}])
    ]
    rows += [
        {"background": value}
        for value in ("/etc/passwd", "-", "../x.png", "#12", 5, "file:x", "x" * 99)
    ]
    rows += [
        {"bits": 12},
        {"bits": "8 bit"},
        {"format": "exe"},
        {"output": "../../x"},
        {"candidates": 2},
        {"candidates": 10**30},
    ]
    rows += [
        {"model": "../x"},
        {"embedding": "../../etc/passwd"},
        {"embedding": "0" * 40},
        {"embedding": 5},
    ]
    rows += [
        {"mask": "!"},
        {"mask": "aGVsbG8="},
        {"background_image": 7},
        {"refine": "perhaps"},
        {"unknown": 1},
        {"candidate": 9},
    ]
    rows += [{"points": [[draw.uniform(100, 1e5), draw.uniform(100, 1e5)]]} for _ in range(20)]
    return [row for row in rows if row != {"model": "../x"}]


def test_each_is_refused_quickly_and_the_service_lives(client, png):
    key = client.post("/v1/embeddings", files={"image": png}).json()["id"]
    requests = hostile(png, key)
    assert len(requests) >= 200
    for number, request in enumerate(requests):
        headers = dict(request.pop("headers", {}))
        if request.pop("json", False):
            headers["content-type"] = "application/json"
        start = time.perf_counter()
        answer = client.post("/v1/matte", headers=headers, **request)
        taken = time.perf_counter() - start
        about = (
            f"request {number}: {str(request)[:200]} gave {answer.status_code} {answer.text[:200]}"
        )
        assert 400 <= answer.status_code < 500, about
        assert answer.headers["content-type"] == "application/problem+json", about
        assert set(answer.json()) == {"type", "title", "status", "detail"}, about
        assert taken < 1, about
    assert client.post("/v1/matte", json={"embedding": key, "points": [[5, 5]]}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/%2e%2e/%2e%2e/settings.py",
        "/js/..%2f..%2fapp.py",
        "/v1/nothing",
        "//etc/passwd",
    ],
)
def test_no_path_leaves_the_page(client, path):
    assert client.get(path).status_code == 404


def test_a_token_is_asked_for(model, png):
    app = create_app(Settings(models=("tiny",), token="s3cret"), models={"tiny": model}, tabs={})
    with TestClient(app, base_url="http://localhost") as client:
        for given in (
            None,
            "Bearer",
            "Bearer wrong",
            "Basic s3cret",
            "Bearer s3cret2",
            "Bearer \xe9",
        ):
            headers = {} if given is None else {b"authorization": given.encode("latin-1")}
            answer = client.post("/v1/embeddings", files={"image": png}, headers=headers)
            assert answer.status_code == 401
        assert client.get("/metrics").status_code == 401
        assert client.get("/healthz").status_code == 200
        headers = {"authorization": "Bearer s3cret"}
        assert client.post("/v1/embeddings", files={"image": png}, headers=headers).is_success


def test_only_names_that_were_given_are_served(model):
    settings = Settings(models=("tiny",), hosts=("zim.example.org",))
    app = create_app(settings, models={"tiny": model}, tabs={})
    with TestClient(app, base_url="http://localhost") as client:

        def status(host: str, origin: str) -> int:
            headers = {"host": host, "origin": origin}
            return client.post("/v1/embeddings", json={}, headers=headers).status_code

        assert status("zim.example.org", "https://zim.example.org") == 422
        assert status("ZIM.example.org:8080", "https://ZIM.example.org:8080") == 422
        assert status("zim.example.org", "https://evil.example") == 403
        assert status("evil.example", "https://evil.example") == 403


def test_a_body_of_nothing_but_values_is_not_parsed(client, monkeypatch):
    monkeypatch.setattr("zim.serve.bodies.VALUES", 1000)
    monkeypatch.setattr("zim.serve.bodies._json", lambda *_: pytest.fail("it was parsed"))
    points = "[" + "[1,2]," * 500 + "[1,2]]"
    as_json = {"content": f'{{"points":{points}}}', "headers": {"content-type": "application/json"}}
    as_form = {"data": {"box": points}, "files": {"image": b"x"}}
    for request in (as_json, as_form):
        answer = client.post("/v1/matte", **request)
        assert answer.status_code == 413
        assert "1,000 values" in answer.json()["detail"]


@pytest.fixture
def hurried(model, monkeypatch) -> Iterator[str]:
    """A service in a thread that waits for bodies a moment only, and reads one at a time."""
    monkeypatch.setattr("zim.serve.security.PATIENCE", 0.3)
    monkeypatch.setattr("zim.serve.security.LONGEST", 0.8)
    monkeypatch.setattr("zim.serve.bodies.LARGE", 50)
    monkeypatch.setattr("zim.serve.bodies.TURN", 0.1)
    monkeypatch.setattr("zim.serve.service.UPLOADS", 1)
    settings = Settings(models=("tiny",), max_bytes=200_000)
    with served(create_app(settings, models={"tiny": model}, tabs={})) as address:
        yield address


KINDS = ("application/json", "multipart/form-data; boundary=x")


@pytest.mark.parametrize("kind", KINDS)
def test_bodies_that_are_too_large_or_never_end(hurried, kind, caplog):
    start = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    headers = {"content-type": kind}

    def chunks(count: int, pause: float) -> Iterator[bytes]:
        yield start
        for _ in range(count):
            yield b" " * 10_000
            time.sleep(pause)

    def status(count: int, pause: float) -> int:
        content = chunks(count, pause)
        url = f"{hurried}/v1/embeddings"
        return httpx.post(url, content=content, headers=headers).status_code

    assert status(25, 0) == 413
    assert status(2, 0.5) == 408  # it stalls
    assert status(10, 0.1) == 408  # it drips
    with upload(hurried, kind, 100):
        pass  # and hangs up
    assert httpx.get(f"{hurried}/healthz").status_code == 200
    assert caplog.records == []


def upload(address: str, kind: str, length: int) -> socket.socket:
    """Begin an upload and leave it unfinished."""
    parts = urlsplit(address)
    made = socket.create_connection((parts.hostname, parts.port))
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {kind}\r\n"
    made.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
    return made


def test_few_large_bodies_are_read_at_the_same_time(hurried, png):
    with upload(hurried, KINDS[0], 1000):
        time.sleep(0.05)
        answer = httpx.post(f"{hurried}/v1/embeddings", files={"image": png})
        assert answer.status_code == 429
        small = httpx.post(f"{hurried}/v1/embeddings", json={"embedding": "0" * 10})
        assert small.status_code == 422
    time.sleep(0.5)
    assert httpx.post(f"{hurried}/v1/embeddings", files={"image": png}).status_code == 200


def test_what_a_client_no_longer_waits_for_is_not_computed(model, png):
    app = create_app(Settings(models=("tiny",)), models={"tiny": model}, tabs={})
    engine = app.state.engine
    gate = threading.Event()
    with served(app) as address, ThreadPoolExecutor() as pool:
        key = httpx.post(f"{address}/v1/embeddings", files={"image": png}).json()["id"]
        engine.long_lane.submit(Job(lambda _: [gate.wait(10)], None))
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/auto", json={"embedding": key}, timeout=0.3)
        ran = []
        engine.automatic = lambda *_: ran.append(1) or []
        time.sleep(0.1)
        stays = pool.submit(httpx.post, f"{address}/v1/auto", json={"embedding": key})
        time.sleep(0.1)
        gate.set()
        assert stays.result(10).status_code == 200
        assert ran == [1]
