"""A reduced collection has the same sources, smaller, with outlines that still fit."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from zim_training import cli
from zim_training.data import outlines, reduced
from zim_training.data.outlines import outline, read_outlines
from zim_training.data.pack import write_pack
from zim_training.data.sources import FOLDERS, list_sources


@pytest.fixture
def small(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    drawn = {"photos/wall_3.jpg": [{"box": [20, 15, 80, 60], "rest": [[[4, 8], [90, 70]]]}]}
    monkeypatch.setattr(reduced, "read_outlines", lambda root: drawn)
    monkeypatch.setattr(reduced, "PHOTO_SIDE", 48)
    outlines.read_outlines.cache_clear()
    out = tmp_path / "small"
    assert cli.main(["data", "reduce", str(out), "--data-root", str(collection)]) == 0
    return out


def test_sources_keep_names_sizes_and_splits(collection: Path, small: Path) -> None:
    for folder in FOLDERS:
        full, kept = (list_sources(root, folder) for root in (collection, small))
        emoji = sum("fluent" in s.file for s in full)
        assert len(kept) == len(full) - emoji // 2
        assert set(kept) <= set(full)
        for source in kept[:5]:
            old, new = (
                np.asarray(cv2.imread(str(root / source.file), cv2.IMREAD_UNCHANGED))
                for root in (collection, small)
            )
            if folder == "photos":
                assert max(new.shape) == 48
            else:
                assert new.shape == old.shape
            if folder == "foregrounds":
                np.testing.assert_array_equal(new[..., 3], old[..., 3])
    assert not (small / "research_only").exists()
    assert not (small / "mattes").exists()
    with (small / "index.csv").open(newline="") as handle:
        assert all((small / row["file"]).is_file() for row in csv.DictReader(handle))


def test_outlines_shrink_with_their_photographs(small: Path) -> None:
    own = json.loads((small / "outlines.json").read_text())
    assert own == {"photos/wall_3.jpg": [{"box": [10, 7.5, 40, 30], "rest": [[[2, 4], [45, 35]]]}]}
    assert read_outlines(small) == own
    picture = np.asarray(cv2.imread(str(small / "photos/wall_3.jpg")))
    assert outline(picture, own["photos/wall_3.jpg"][0]).shape == (36, 48)


def test_packs_are_drawn_from_it(small: Path, tmp_path: Path) -> None:
    list(write_pack(small, tmp_path / "pack", "train", 4, side=64, outlined=1.0))
    image = np.load(tmp_path / "pack" / "shard_00000" / "image.npy")
    assert image.any((1, 2, 3)).all()


def test_a_folder_with_something_in_it_is_refused(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "note").write_text("mine")
    assert cli.main(["data", "reduce", str(tmp_path), "--data-root", str(collection)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["note"]
