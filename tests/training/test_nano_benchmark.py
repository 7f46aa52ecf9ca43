"""The benchmark of nano: no object it asks about was trained on, its scenes stay as frozen."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import zim_training.data
from zim.errors import ConfigError
from zim_training.data.scenes import SceneMaker
from zim_training.data.sources import FOLDERS, group_of, list_sources, split_table

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "index.csv").is_file(), reason="the image collection is not beside the checkout"
)


@pytest.fixture(scope="module")
def scenes(benchmark_script: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_script("nano_scenes")


@pytest.fixture(scope="module")
def nano(benchmark_script: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_script("nano")


@needs_data
def test_committed_split_is_that_of_the_collection() -> None:
    path = Path(zim_training.data.__file__).with_name("splits.json")
    assert json.loads(path.read_text()) == split_table(DATA)


@needs_data
def test_nothing_scored_is_an_object_that_was_trained_on() -> None:
    trained = [s for folder in FOLDERS for s in list_sources(DATA, folder, "train")]
    groups = {s.group for s in trained}
    assert not [s.file for s in trained if "am2k" in s.file]
    drawn = SceneMaker(DATA, "dev")
    pools = [drawn.photos, drawn.cuts, drawn.emojis, *drawn.segments.values()]
    scored = {s.group for pool in pools for s in pool}
    assert scored
    assert not scored & groups
    photographs = list((DATA / "mattes" / "images").iterdir())
    assert photographs
    assert not {group_of(p.name) for p in photographs} & groups


@needs_data
def test_first_scenes_are_the_frozen_ones(scenes: ModuleType) -> None:
    painter = scenes.Painter(DATA)
    for case in scenes.read_cases()[:3]:
        drawn = painter.draw(case)  # refuses other pixels
        x0, y0, x1, y1 = case.targets[0].box
        rows, columns = np.nonzero(drawn.alphas[0] > 0.1)
        assert x0 <= columns.min() <= columns.max() < x1
        assert y0 <= rows.min() <= rows.max() < y1
        x, y = case.targets[0].click
        assert drawn.alphas[0][y, x] > 0.5


@needs_data
def test_other_scenes_are_refused(scenes: ModuleType) -> None:
    one, other = scenes.read_cases()[:2]
    with pytest.raises(ConfigError, match="drawn differently"):
        scenes.Painter(DATA).draw(replace(one, seed=other.seed))


def test_manifest_is_whole_and_refuses_edits(
    scenes: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cases = scenes.read_cases()
    assert {s: len(scenes.read_cases(s)) for s in scenes.COUNTS} == scenes.COUNTS
    assert len({c.seed for c in cases}) == len(cases)
    data = json.loads(scenes.MANIFEST.read_text())
    data["cases"][7]["targets"][0]["box"][0] += 1
    edited = tmp_path / "nano_scenes.json"
    edited.write_text(json.dumps(data))
    monkeypatch.setattr(scenes, "MANIFEST", edited)
    with pytest.raises(ConfigError, match="was edited"):
        scenes.read_cases()


def test_next_click_is_in_the_deepest_mistake(nano: ModuleType) -> None:
    truth, answer = np.zeros((2, 60, 80), np.float32)
    truth[10:40, 10:40] = answer[10:40, 10:40] = 1
    point = np.array([20, 20], np.float32)
    picture = nano.Picture("p", "scenes", np.zeros((60, 80, 3), np.uint8), truth, point, point)
    assert nano.next_click(answer, picture, 1)[1] == 1  # nothing to correct
    answer[5:10, 10:40] = 1  # five rows too many above, eleven columns missing at the right
    answer[10:40, 29:40] = 0
    (x, y), label = nano.next_click(answer, picture, 1)
    assert label == 1
    assert abs(x - 34) <= 1
    assert 14 <= y < 36
    answer[45:60, 50:80] = 1  # now fifteen rows of something else are the deepest
    (x, y), label = nano.next_click(answer, picture, 1)
    assert label == 0
    assert abs(y - 52) <= 1


def test_success_on_a_nested_pair(nano: ModuleType) -> None:
    assert nano.succeeds([0.9, 0.3], 0)
    assert not nano.succeeds([0.4, 0.3], 0)  # too little of it
    assert not nano.succeeds([0.6, 0.7], 0)  # rather the other
