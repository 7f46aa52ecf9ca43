"""Everything the README tells people to type works as typed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of one language ('' for none)."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("") for line in block.splitlines()]
    return [line for line in lines if line]


PROGRAMS = ("zim", "zim-inpaint", "zim-sa3d", "zim-medical", "zim-grounded")
ZIM_COMMANDS = [line for line in commands() if line.split()[0] in PROGRAMS]
#: serve a page until they are interrupted
PAGES = [line for line in ZIM_COMMANDS if {"view", "serve"} & set(line.split()[1:2])]
#: seconds that any one command may take on a slow machine
PATIENCE = 900


def test_the_readme_has_commands_of_known_kinds_only() -> None:
    # A new kind of command needs a test below before it may be in the README.
    others = {" ".join(shlex.split(line)[:2]) for line in commands()} - {
        " ".join(shlex.split(line)[:2]) for line in ZIM_COMMANDS
    }
    assert others == {"make demo", "make test", "pip install"}


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).is_file()


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in ZIM_COMMANDS if line not in PAGES])
def test_zim_commands_work_as_typed(line: str, workdir: Path) -> None:
    words = shlex.split(line)
    program = Path(sys.executable).parent / words[0]
    done = subprocess.run(
        [program, *words[1:]],
        cwd=workdir,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    if words[:2] == ["zim", "matte"]:
        assert done.stderr == ""  # others may say what stands in for what
    written = [word for word in done.stdout.split() if (workdir / word).is_file()]
    assert written
    for path in written:
        assert (workdir / path).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("line", PAGES)
def test_pages_answer_until_interrupted(line: str, workdir: Path) -> None:
    words = shlex.split(line)
    program = Path(sys.executable).parent / words[0]
    if words[:2] == ["zim-sa3d", "view"]:  # of the folder that the line before it makes
        from zim_sa3d.synthetic import synthetic_scene

        folder = workdir / words[words.index("--output") + 1]
        synthetic_scene(folder / "scene", size=64, views=8)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with subprocess.Popen(
        [program, *words[1:], "--port", port],
        cwd=workdir,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that started these tests in the background has told them to ignore Ctrl+C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as served:
        watchdog = threading.Timer(PATIENCE, served.kill)  # a silent page would never end
        watchdog.start()
        try:
            assert served.stderr is not None
            said = next(text for text in served.stderr if "Ctrl+C ends it" in text)
            address = next(word.strip(",") for word in said.split() if word.startswith("http"))
            with urllib.request.urlopen(address, timeout=60) as page:
                assert page.status == 200
            served.send_signal(signal.SIGINT)
            assert served.wait(timeout=60) == 0
        finally:
            served.kill()
            watchdog.cancel()


@pytest.mark.slow
def test_python_blocks_run(workdir: Path) -> None:
    code = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=workdir,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert (workdir / "rabbit.rgba.png").stat().st_size > 0


@pytest.mark.slow
def test_make_demo(tmp_path: Path) -> None:
    """``make demo`` with the environment that runs the tests."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    stamp = tmp_path / "set-up-done"
    stamp.touch()
    bin_folder = Path(sys.executable).parent
    done = subprocess.run(
        ["make", "demo", f"BIN={bin_folder}", f"STAMP={stamp}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env=os.environ | {"MAKEFLAGS": ""},
    )
    assert done.returncode == 0, done.stderr
    for name in ("rabbit", "hyrax", "coffee"):
        for kind in ("rgba", "alpha", "composite"):
            path = tmp_path / "demo-output" / f"{name}.{kind}.png"
            assert path.stat().st_size > 0
            assert f"demo-output/{name}.{kind}.png" in done.stdout
