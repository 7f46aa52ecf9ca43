"""The split: by object, disjoint, and blind to everything that must not be trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import zim_training.data
from zim import _progress
from zim.errors import ConfigError
from zim_training import cli
from zim_training.data import pack
from zim_training.data.sources import FOLDERS, group_of, list_sources, split_of, split_table


def test_splits_are_disjoint_by_object(collection: Path) -> None:
    for folder in FOLDERS:
        train = {s.group for s in list_sources(collection, folder, "train")}
        dev = {s.group for s in list_sources(collection, folder, "dev")}
        both = {s.group for s in list_sources(collection, folder)}
        assert not train & dev
        assert train | dev == both
        assert train


def test_only_what_may_be_trained_on(collection: Path) -> None:
    files = [s.file for folder in FOLDERS for s in list_sources(collection, folder)]
    assert len(files) == 5 * 30
    assert not [f for f in files if "am2k" in f or "research_only" in f or "mattes" in f]
    for folder in ("mattes/images", "research_only/photos", "research_only/segments/images"):
        with pytest.raises(ConfigError, match="must not be trained on"):
            list_sources(collection, folder)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("photos/ccp_1007.jpg", "segments/images/ccp_1007.jpg"),
        ("foregrounds/fluent_1f431.png", "foregrounds/noto_1f431.png"),
        ("foregrounds/fluent_1f431.png", "foregrounds/noto_u1f431.png"),
    ],
)
def test_pictures_of_one_object_share_a_group(one: str, other: str) -> None:
    assert group_of(one) == group_of(other)


def test_committed_split_is_the_rule() -> None:
    path = Path(zim_training.data.__file__).with_name("splits.json")
    table = json.loads(path.read_text())
    assert set(table["dev"]) == set(FOLDERS)
    for folder, groups in table["dev"].items():
        assert 0 < len(groups) < table["groups"][folder] / 5
        assert all(split_of(group) == "dev" for group in groups)
        assert not [g for g in groups if "am2k" in g]


def test_missing_collection_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected the image collection .*--data-root"):
        split_table(tmp_path)


def test_packs_show_how_far_they_are(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bar of the missing shards of every part, as other long commands have; text in no log."""
    seen: list[tuple[str, int | None, int]] = []

    def tracker(items: Iterable[Any], description: str, total: int | None) -> Iterator[Any]:
        kept = list(items)
        seen.append((description, total, len(kept)))
        return iter(kept)

    monkeypatch.setattr(pack, "SHARD", 2)
    words = ["data", "synth", str(tmp_path), "--data-root", str(collection), "--dev-scenes", "1"]
    token = _progress._tracker.set(tracker)
    try:
        for scenes in "2", "6":
            assert cli.main([*words, "--scenes", scenes]) == 0
    finally:
        _progress._tracker.reset(token)
    assert seen == [("dev shards", 1, 1), ("train shards", 1, 1), ("train shards", 2, 2)]
