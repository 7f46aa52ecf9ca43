"""Flags that cannot be meant, and wrong things given: one line, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from zim_training import cli

PLAN = ["convert", "--plan", "--rate", "1", "--matte-bytes", "1"]
NANO = ["matte", "--preset", "nano", "--data", "."]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval-converter", ".", "--size", "0"], "0: expected a multiple of 32"),
        (["eval-converter", ".", "--views", "0"], "'0' is not a whole number of at least 1"),
        (["ablate", "--table", "3", "--max-steps", "-2"], "-2: expected a whole number, 1 or more"),
        (["ablate", "--table", "3", "--size", "65"], "65: expected a multiple of 32"),
        (["ablate", "--table", "3", "--dtype", "float16"], "--dtype float16 does not apply here"),
        (["testset", ".", "--most", "-1"], "-1: expected a whole number, 1 or more"),
        (["testset", ".", "--size", "65"], "65: expected a multiple of 32"),
        ([*PLAN, "--gpus", "0"], "'0' is not a whole number of at least 1"),
        (["detector", "--minutes", "0"], "0: expected more than 0"),
        (["detector", "--batch", "0"], "'0' is not a whole number of at least 1"),
        (["data", "synth", "x", "--scenes", "-8"], "-8: expected a whole number, 0 or more"),
        (["data", "synth", "x", "--workers", "0"], "'0' is not a whole number of at least 1"),
        ([*NANO, "--minutes", "0"], "0: expected more than 0"),
        ([*NANO, "--workers", "-1"], "--workers -1: expected 0 or more"),
        ([*NANO, "--ema", "1.5"], "--ema 1.5: expected 0 or more, at most 1"),
        ([*NANO, "--render", "1.5"], "1.5: expected 0 or more, at most 1"),
        ([*NANO, "--dtype", "float16"], "training takes --precision"),
    ],
)
def test_numbers_out_of_their_bounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main([*words, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_what_a_bundle_cannot_be_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    words = ["bundle", str(tmp_path), "--output", str(tmp_path / "out")]
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert "give the folder of a run that has begun" in error
    assert "--resume" not in error
    torch.save({"ema": {}, "step": 1}, tmp_path / "last.pt")
    assert cli.main(words) == 1
    assert "trained no matting network; its result is" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_packs_are_for_their_own_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "pack.json").write_text("{}", encoding="utf-8")
    words = ["matte", "--preset", "paper", "--data", str(tmp_path)]
    assert cli.main([*words, "--output", str(tmp_path / "run")]) == 2
    assert "holds packs, which the preset nano trains on" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
