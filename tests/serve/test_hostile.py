"""Two hundred requests nobody should send: each a 4xx in under a second, and the service lives."""

import base64
import json
import random
import struct
import time
import zlib

import pytest
from fastapi.testclient import TestClient

from zim.serve.app import create_app
from zim.serve.settings import Settings


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
