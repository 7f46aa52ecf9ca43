import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from zim import plugins
from zim.cli import main
from zim.errors import MissingExtraError
from zim.serve.tabs import body_of, load_tabs


def test_other_hosts_need_a_token(capsys, monkeypatch):
    monkeypatch.delenv("ZIM_SERVE_TOKEN", raising=False)
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "--token auto" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1"])
def test_ports_are_checked(port, capsys):
    assert main(["serve", "--port", port]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_port_in_use_is_a_failure(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 1
    said = capsys.readouterr().err
    assert "choose another --port" in said
    assert said.count("\n") == 1  # and no address, which would not answer


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--host", "nonsense.invalid", "--token", "auto"], 1, "nonsense.invalid cannot be used"),
        (["--models", "nano", "nope"], 2, "unknown model 'nope'"),
        (["--models", "nano", "vit_b"], 1, "vit_b: no weights at"),
        (["--models", "./none.pt"], 1, "there is no such file"),
        (["--device", "nope"], 1, "device 'nope' is unknown"),
        (["--device", "cuda:99"], 1, "device 'cuda:99' is not"),
        (["--name", "https://zim.example.org"], 2, "without https:// or port"),
        (["--token", ""], 2, "the token is empty"),
        (["--token", "pä€"], 2, "characters that a header cannot carry"),
        (["--token", "two words"], 2, "without spaces"),
    ],
)
def test_what_could_never_answer_does_not_start(flags, code, words, capsys):
    assert main(["serve", *flags]) == code
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def started(*flags: str) -> tuple[subprocess.Popen, str]:
    """Start the service; return its process and the line it printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "zim.cli", "serve", "--port", str(port), *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    for _ in range(200):
        with suppress(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/healthz")
            break
        time.sleep(0.05)
    return process, line


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_it_whatever_it_is_doing(times):
    process, line = started("--token", "a&b%")
    address, _, token = line.removeprefix("zim serve: ").strip().partition("#token=")
    assert token == "a%26b%25"

    def ask() -> None:
        with suppress(httpx.HTTPError):
            files = {"image": Path("examples/rabbit.jpg").read_bytes()}
            headers = {"authorization": "Bearer a&b%"}
            httpx.post(f"{address}v1/auto", files=files, headers=headers, timeout=60)

    threading.Thread(target=ask, daemon=True).start()
    time.sleep(2)
    start = time.perf_counter()
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert time.perf_counter() - start < (12 if times == 1 else 3)
    assert said.startswith("zim serve: stopping; ")
    assert "Traceback" not in said
    assert said.endswith("zim serve: interrupted\n" if times == 1 else "zim serve: stopped\n")


def test_installed_parts_bring_their_tabs():
    tabs = load_tabs()
    assert tabs["remove"].endpoint == "inpaint"
    body = body_of(tabs["remove"]).model_validate({}).model_dump()
    assert body["values"]["mode"] == "remove"


def test_a_missing_or_broken_part_is_left_out(monkeypatch, caplog):
    def find(group, name):
        if name == "missing":
            raise MissingExtraError("diffusers", "inpaint")
        return object()

    monkeypatch.setattr(plugins, "names", lambda group: ["broken", "missing"])
    monkeypatch.setattr(plugins, "find", find)
    with caplog.at_level(logging.WARNING):
        assert load_tabs() == {}
    assert "[inpaint]'" in caplog.text
    assert "ServeTab" in caplog.text
