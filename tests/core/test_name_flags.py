"""Flags that take names: of models, formats, data sets."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from zim.cli import main
from zim.name_flags import Names, add_model_flag, add_models_flag, one_of


def _parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--format", action=Names, each=one_of(("rgba", "alpha")))
    add_model_flag(parser)
    add_models_flag(parser, rivals=True, also=("coco",))
    return parser.parse_args(words)


@pytest.mark.parametrize(
    "words", [["rgba", "alpha"], ["rgba,alpha"], ["rgba,", "alpha,rgba"], [" rgba , alpha"]]
)
def test_commas_and_spaces_mean_the_same(words: list[str]) -> None:
    assert _parsed("--format", *words).format == ("rgba", "alpha")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "rgba", "png"], "'png' is unknown; expected rgba, alpha"),
        (["--format", ",", " "], "an empty list"),
        (["--model", "nanno"], "unknown model 'nanno'; did you mean 'nano'?"),
        (["--model", "grabcut"], "grabcut is for zim matte, batch and eval"),
        (["--model", "coco"], "unknown model 'coco'"),
        (["--model", "grabcutt"], "unknown model 'grabcutt'; expected one of nano"),
        (["--models", "nano,grabcutt"], "did you mean 'grabcut'?"),
    ],
)
def test_wrong_names_say_what_is_expected(words: list[str], said: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=r".") as caught:
        _parsed(*words)
    assert said in str(caught.value)


def test_names_of_models_files_and_hub_ids_pass(tmp_path: Path) -> None:
    file = tmp_path / "a,b.safetensors"
    file.touch()
    models = _parsed("--models", "coco,grabcut", str(file), "someone/zim").models
    assert models == ("coco", "grabcut", str(file), "someone/zim")


def test_a_misspelt_model_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("zim.commandline.apply_runtime", lambda _: pytest.fail("torch is loaded"))
    assert main(["matte", "x.png", "--model", "nanno"]) == 2
    assert "zim matte: argument --model: unknown model 'nanno'" in capsys.readouterr().err
