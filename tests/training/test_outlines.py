"""Outlines from boxes and strokes: found where a drawn picture has them, kept to their split."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from zim_training import cli
from zim_training.data import outlines, scenes
from zim_training.data.outlines import outline, read_outlines
from zim_training.data.sources import FOLDERS, group_of, split_of

SIZE = (120, 160)


def two_things() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A red disc and a red square on noisy green, with their masks."""
    rng = np.random.default_rng(0)
    disc, square = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    cv2.circle(disc, (50, 60), 28, 1, -1)
    cv2.rectangle(square, (100, 40), (140, 80), 1, -1)
    picture = np.where((disc | square)[..., None] > 0, (200, 40, 40), (40, 120, 60))
    picture = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
    return picture, disc > 0, square > 0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_box_polygon_and_strokes_choose_the_object() -> None:
    picture, disc, square = two_things()
    both = {"box": [15, 25, 150, 95]}
    assert overlap(outline(picture, {"box": [15, 25, 85, 95]}), disc) > 0.97
    assert overlap(outline(picture, {"within": [[15, 25], [85, 25], [50, 98]]}), disc) < 0.95
    assert overlap(outline(picture, both), disc | square) > 0.97
    inside = [[104 + x, 44 + y] for y in range(0, 36, 3) for x in (0, 33)]
    assert not outline(picture, both | {"rest": [inside]})[46:76, 108:132].any()
    drawn = outline(picture, {"polygon": [[100, 40], [140.4, 40], [140.4, 80], [100, 80]]})
    assert overlap(drawn, square) > 0.99
    kept = outline(picture, {"box": [15, 25, 85, 95], "object": [[[50, 60], [50, 90]]]})
    assert kept[50:85, 49:52].all()


def test_scenes_take_outlines_of_their_own_split_only(
    collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {f"photos/wall_{k}.jpg": [{"box": [20, 15, 80, 60]}] for k in range(30)}
    monkeypatch.setattr(scenes, "read_outlines", lambda root: drawn)
    files = {
        split: {s.file for s in scenes.SceneMaker(collection, split, 64, 1.0, 1.0).drawn}  # pyright: ignore[reportArgumentType]
        for split in ("train", "dev")
    }
    assert files["train"]
    assert files["train"].isdisjoint(files["dev"])
    assert files["train"] | files["dev"] == set(drawn)
    # without them a seed gives the scene it gave before there were any
    one = scenes.SceneMaker(collection, "train", 64, 1.0).make((1, 2))
    monkeypatch.setattr(scenes, "read_outlines", lambda root: {})
    two = scenes.SceneMaker(collection, "train", 64, 1.0, 0.5).make((1, 2))
    np.testing.assert_array_equal(one.image, two.image)


def test_outlined_photographs_make_a_matting_set(
    collection: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn = {"photos/wall_3.jpg": [{"box": [20, 15, 80, 60]}]}
    monkeypatch.setattr(outlines, "read_outlines", lambda root: drawn)
    command = ["data", "outlines", str(tmp_path / "set"), "--data-root", str(collection)]
    assert cli.main(command) == 0
    assert (tmp_path / "set" / "images" / "wall_3.jpg").is_file()
    alpha = np.asarray(cv2.imread(str(tmp_path / "set" / "alphas" / "wall_3.png"), 0))
    assert alpha.shape == (72, 96)
    assert not alpha[:15].any()
    assert not alpha[:, 80:].any()
    capsys.readouterr()
    assert cli.main(command) == 1  # never over what is there
    assert "not empty" in capsys.readouterr().err
    drawn.clear()
    assert cli.main([*command[:2], str(tmp_path / "none"), *command[3:]]) == 1
    assert not (tmp_path / "none").exists()


def test_what_was_drawn_is_well_formed() -> None:
    path = Path(outlines.__file__).with_name("outlines.json")
    drawn = read_outlines(Path())
    assert len(drawn) >= 40
    assert json.loads(path.read_text()) == drawn
    for file, entries in drawn.items():
        assert str(Path(file).parent) in FOLDERS
        assert group_of(file)
        assert entries
        for entry in entries:
            if "polygon" in entry:
                assert set(entry) - {"proposed"} == {"polygon"}
                # what the model itself proposed must not be what it is compared on
                assert not entry.get("proposed") or split_of(group_of(file)) == "train"
                assert cv2.contourArea(np.array(entry["polygon"], np.float32)) > 1000
                continue
            assert set(entry) <= {"box", "within", "object", "rest"}
            assert ("box" in entry) != ("within" in entry)
            if "box" in entry:
                x0, y0, x1, y1 = entry["box"]
                assert x1 - x0 > 8
                assert y1 - y0 > 8
            for stroke in (*entry.get("object", ()), *entry.get("rest", ())):
                assert np.array(stroke).ndim == 2
