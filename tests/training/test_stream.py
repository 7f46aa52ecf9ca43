"""Shards read from front to back: every picture once a round, and the same again after a stop."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from zim.errors import ConfigError
from zim_training import cli
from zim_training.data.shards import CroppedMatte, ShardSet, ShardWriter
from zim_training.data.stream import ShardStream, held_out
from zim_training.loop import Loop
from zim_training.matting.config import PRESETS
from zim_training.matting.source import open_source
from zim_training.matting.task import MatteTask

SHARDS, PICTURES = 5, 7


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        writer = ShardWriter(folder / f"sa_{shard:06d}.tar")
        for k in range(PICTURES):
            picture = cv2.resize(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8), (80, 64))
            matte = np.zeros((64, 80), np.float32)
            cv2.circle(matte, (int(rng.integers(20, 60)), 32), 14, 1.0, -1)
            found, jpeg = cv2.imencode(".jpg", picture)
            assert found
            crop = CroppedMatte(k, 0, 0, cv2.GaussianBlur(matte, (0, 0), 1.5))
            writer.add(f"sa_{10 * shard + k}", (64, 80), "x.tar", [crop], jpeg.tobytes())
        writer.close({})
    return folder


def keys(
    folder: Path, slot: int, slots: int, count: int, skip: int = 0, buffer: int = 4
) -> list[str]:
    stream = ShardStream(folder, buffer, 0.2).read(3, slot, slots, skip)
    return [sample.key for sample in itertools.islice(stream, count)]


def wanted() -> set[str]:
    names = (f"sa_{10 * s + k}" for s in range(SHARDS) for k in range(PICTURES))
    return {name for name in names if not held_out(name, 0.2)}


def test_every_training_picture_once_a_round(shards: Path) -> None:
    train = wanted()
    assert 20 < len(train) < SHARDS * PICTURES
    # pictures stay in the buffer for a while, so rounds overlap by its size
    seen = keys(shards, 0, 1, 3 * len(train))
    assert set(seen) == train
    assert max(seen.count(k) for k in train) <= 4
    assert seen != sorted(seen, key=lambda k: int(k[3:]))
    rows = ShardStream(shards, 4, 0.2).validation(100)
    assert {row["key"] for _, row in rows}.isdisjoint(train)
    assert len(rows) == SHARDS * PICTURES - len(train)


def test_readers_share_the_shards(shards: Path) -> None:
    """In the first round no tar goes to two readers (five tars, five readers)."""
    first = [set(keys(shards, slot, 5, 2, buffer=1)) for slot in range(5)]
    tars = [{int(k[3:]) // 10 for k in some} for some in first]
    assert sorted(t for some in tars for t in some) == list(range(5))


@pytest.mark.parametrize("skip", [1, 9, 40, 100])
def test_passing_over_is_as_good_as_reading(shards: Path, skip: int) -> None:
    whole = keys(shards, 1, 2, 130)
    assert keys(shards, 1, 2, 130 - skip, skip) == whole[skip:]


def test_samples_are_those_of_the_random_reader(shards: Path) -> None:
    at_random = ShardSet(shards)
    numbers = {row["key"]: k for k, (_, row) in enumerate(at_random.entries)}
    for sample in itertools.islice(ShardStream(shards, 1, 0.0).read(0, 0, 1, 0), 10):
        assert at_random.read(numbers[sample.key]) == sample


def _lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_run_goes_on_exactly(shards: Path, tmp_path: Path, workers: int) -> None:
    """Stopped after a checkpoint at a step that is no multiple of the workers."""
    torch.set_num_threads(1)
    config = dataclasses.replace(
        PRESETS["test"], batch=2, steps=8, save_every=3, log_every=1, eval_every=99, stream=4,
        workers=workers, corrections=0.5,
    )  # fmt: skip

    def loop(name: str) -> Loop:
        source = open_source(shards, config.held_out, config.stream, 2)
        return Loop(MatteTask(config, source), config, tmp_path / name, "cpu")

    whole = loop("whole")
    whole.fit()
    whole.close()
    cut = loop("cut")
    batches = cut._batches()
    while cut.step < 3:
        cut._one_step(batches)
        cut.step += 1
    cut.save()
    cut.close()
    rest = loop("cut")
    assert rest.step == 3
    rest.fit()
    rest.close()
    after = [
        r["loss"] for r in _lines(tmp_path / "whole") if r["kind"] == "train" and r["step"] > 3
    ]
    assert [r["loss"] for r in _lines(tmp_path / "cut") if r["kind"] == "train"] == after
    changed = dataclasses.replace(config, workers=workers + 1)
    with pytest.raises(ConfigError, match="other settings \\(workers\\)"):
        Loop(whole.task, changed, tmp_path / "whole", "cpu")


def test_what_cannot_be_streamed_is_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("image", "alpha"):
        (tmp_path / part).mkdir()
    flags = ["--preset", "test", "--stream", "8", "--output", str(tmp_path / "run")]
    assert cli.main(["matte", "--data", str(tmp_path), *flags, "--device", "cpu"]) == 1
    assert "holds no shards to stream" in capsys.readouterr().err
    for path in shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = tmp_path / "sa_000000.tar"
    broken.write_bytes(broken.read_bytes()[:5000] + b"\xff" * 5000 + broken.read_bytes()[10000:])
    stream = ShardStream(tmp_path, 1, 0.0).read(0, 0, 1, 0)
    with pytest.raises(ConfigError, match=r"sa_000000.tar is damaged \(.*convert it again"):
        list(itertools.islice(stream, 99))
