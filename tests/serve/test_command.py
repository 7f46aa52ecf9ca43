import logging
import socket

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
    ],
)
def test_what_could_never_answer_does_not_start(flags, code, words, capsys):
    assert main(["serve", *flags]) == code
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


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
