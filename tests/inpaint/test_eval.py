"""``zim-inpaint eval`` on a tiny COCO folder, with a tiny CLIP of random weights."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zim.errors import CheckpointError, ZimError
from zim.images import save_rgb
from zim.rle import decode_rle, encode_coco
from zim.testing import picture
from zim_inpaint import eval_command, evaluate
from zim_inpaint.cli import main
from zim_inpaint.clip_metrics import Clip, crop, measure
from zim_inpaint.coco import Filter, Target, draw_points, polygon_mask, read_coco

NAMES = ["cat", "dog", "tv", "hot dog", "bus", "cup", "bed"]


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Register a small architecture and save weights for it."""
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 16,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    (folder / "tiny-clip-test.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_clip = pytest.importorskip("open_clip")
        import torch

        open_clip.add_model_config(folder / "tiny-clip-test.json")
        torch.manual_seed(0)
        model = open_clip.create_model("tiny-clip-test", pretrained=None)
        torch.save(model.state_dict(), folder / "tiny.pt")
    return folder / "tiny.pt"


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two pictures, four objects that count (polygons, run lengths) and three that do not."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    images, annotations = [], []
    square = [20.0, 20.0, 60.0, 20.0, 60.0, 64.0, 20.0, 64.0]
    one: dict[str, Any] = {"image_id": 1, "iscrowd": 0, "category_id": 18, "area": 1760.0}
    for k, (height, width) in enumerate(((96, 128), (120, 100))):
        name = f"{k + 1:012d}.jpg"
        save_rgb(root / "val2017" / name, picture(height, width))
        images.append({"id": k + 1, "file_name": name, "height": height, "width": width})
        mask = np.zeros((height, width), np.bool_)
        mask[30:80, 40:90] = True
        one["image_id"] = k + 1
        annotations += [
            one | {"id": 10 * k + 1, "bbox": [20, 20, 40, 44], "segmentation": [square]},
            one
            | {"id": 10 * k + 2, "bbox": [40, 30, 50, 50], "area": 2500.0, "category_id": 17}
            | {"segmentation": encode_coco(mask)},
        ]
    annotations += [
        one | {"id": 31, "bbox": [0, 0, 40, 40], "iscrowd": 1, "segmentation": [square]},
        one | {"id": 32, "bbox": [0, 0, 8, 40], "segmentation": [square]},
        one | {"id": 33, "bbox": [0, 0, 100, 120], "segmentation": [square]},
    ]
    categories = [{"id": 17 + k, "name": name} for k, name in enumerate(NAMES)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(data))
    return root


def words(coco: Path, clip: Path, output: Path, *more: str) -> list[str]:
    fixed = ["eval", "--coco", str(coco), "--output", str(output), "--backend", "telea"]
    fixed += ["--clip-model", "tiny-clip-test", "--clip-pretrained", str(clip), "--device", "cpu"]
    return [*fixed, "--json", *more]


def test_objects_of_the_true_layout(coco: Path) -> None:
    targets, names, skipped = read_coco(coco, Filter())
    assert [t.key for t in targets] == [1, 2, 11, 12]
    assert names == NAMES
    assert skipped == {"crowd": 1, "box too small": 1, "box too large": 1}
    square, run_lengths = targets[0].mask(), targets[1].mask()
    assert square.sum() == 40 * 44
    assert square[20:64, 20:60].all()
    assert run_lengths.sum() == 2500
    assert run_lengths[30:80, 40:90].all()
    some, _, _ = read_coco(coco, Filter(), limit=2, seed=3)
    assert len(some) == 2
    assert some == read_coco(coco, Filter(), limit=2, seed=3)[0]


def test_a_box_that_is_no_numbers_is_left_out(coco: Path) -> None:
    path = coco / "annotations" / "instances_val2017.json"
    data = json.loads(path.read_text())
    data["annotations"][0]["bbox"][0] = float("nan")
    data["annotations"][1]["bbox"][2] = float("inf")
    path.write_text(json.dumps(data))
    targets, _, skipped = read_coco(coco, Filter(0, 0, 1))
    assert not {1, 2} & {target.key for target in targets}
    assert skipped["box without numbers"] == 2


def test_polygons_agree_with_cocos_tools_to_the_pixel() -> None:
    mask_tools = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = (int(v) for v in rng.integers(5, 60, 2))
        corners = rng.uniform(0, [width, height], (int(rng.integers(3, 12)), 2)).round(2)
        if rng.random() < 0.3:
            corners = corners.round()
        polygon = corners.reshape(-1).tolist()
        theirs = decode_rle(mask_tools.frPyObjects([polygon], height, width)[0])
        np.testing.assert_array_equal(polygon_mask(polygon, height, width), theirs)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1.0, 2.0, 3.0]],
        [[]],
        [[1.0, 2.0, 3.0, 4.0]],
        [["a", "b", "c", "d", "e", "f"]],
        None,
        5,
        [[1e9, 1, 2, 3, 4, 5e9]],
        [[float("nan"), 1, 2, 3, 4, 5]],
        encode_coco(np.ones((9, 9), np.bool_)),
        {"size": [20, 30], "counts": ["x"]},
    ],
)
def test_a_damaged_annotation_is_one_error(segmentation: Any) -> None:
    target = Target(7, Path("a.jpg"), "cat", (0, 0, 9, 9), (20, 30), segmentation)
    with pytest.raises(ZimError, match=r"annotation 7 "):
        target.mask()


def test_points_are_distinct_pixels_of_the_mask_and_repeat() -> None:
    mask = np.zeros((40, 50), np.bool_)
    mask[5:9, 7:12] = True
    points = draw_points(mask, 7, 10, 0)
    assert len(np.unique(points, axis=0)) == 10
    at = points.astype(int)
    np.testing.assert_array_equal(at, points)  # pixel centres are whole numbers
    assert mask[at[:, 1], at[:, 0]].all()
    np.testing.assert_array_equal(points, draw_points(mask, 7, 10, 0))
    assert (points != draw_points(mask, 8, 10, 0)).any()
    assert (points != draw_points(mask, 7, 10, 1)).any()


def test_measures_by_hand() -> None:
    texts = np.eye(3, 3)
    same = measure(np.array([1.0, 0, 0]), np.array([1.0, 0, 0]), texts, 0)
    assert same["cosine"] == 0
    assert same["l2"] == 0
    assert all(same[f"{rule}@{k}"] == 0 for rule in ("source", "truth") for k in (1, 3, 5))
    # the source shows class 0 most, the truth is class 1, the result shows 2 > 1 > 0
    u, v = np.array([0.8, 0.6, 0.0]), np.array([0.0, 0.6, 0.8])
    row = measure(u, v, texts, 1)
    assert row["cosine"] == pytest.approx(100 * (1 - 0.36))
    assert row["l2"] == pytest.approx(100 * np.sqrt(2 - 2 * 0.36))
    assert (row["source@1"], row["truth@1"], row["agrees"]) == (1, 1, False)
    # of three classes all are among the first three and five
    assert row["source@3"] == row["truth@3"] == row["source@5"] == 0
    four = np.eye(4)
    row = measure(np.array([1.0, 0, 0, 0]), np.array([0.1, 0.5, 0.5, 0.5]), four, 0)
    assert (row["source@1"], row["source@3"], row["source@5"]) == (1, 1, 0)


def test_the_order_of_classes_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    texts = rng.normal(size=(9, 6))
    u, v = rng.normal(size=(2, 6))
    order = rng.permutation(9)
    assert measure(u, v, texts, 4) == measure(u, v, texts[order], int(np.argmax(order == 4)))


def test_crops() -> None:
    image = picture(60, 80)
    padded = np.asarray(crop(image, (10, 20, 40, 30)))
    assert padded.shape == (30, 30, 3)
    np.testing.assert_array_equal(padded[10:20], image[20:30, 10:40])
    assert padded[:10].max() == padded[20:].max() == 0
    assert crop(image, (10, 20, 40, 30), "wide", "clip").size == (36, 12)
    assert crop(image, (10, 20, 40, 30), "image", "clip").size == (80, 60)
    assert crop(image, (10, 20, 40, 30), "box", "squash").size == (30, 30)
    assert crop(image, (70, 50, 95, 70), "box", "clip").size == (10, 10)


def test_clip_of_identical_crops_is_no_distance(tiny_clip: Path) -> None:
    clip = Clip("tiny-clip-test", str(tiny_clip), NAMES)
    one = Image.fromarray(picture(40, 40))
    other = Image.fromarray(picture(40, 40)[::-1].copy())
    u, v, w = clip.embed([one, one, other])
    assert np.linalg.norm(u) == pytest.approx(1, abs=1e-5)
    row = measure(u, v, clip.texts, 2)
    assert row["cosine"] == pytest.approx(0, abs=1e-4)
    assert row["l2"] == pytest.approx(0, abs=1e-2)
    assert all(row[f"source@{k}"] == 0 for k in (1, 3, 5))
    assert measure(u, w, clip.texts, 2)["l2"] > 0.1


def test_missing_clip_weights_are_one_clear_line(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("ZIM_OFFLINE", "1")
    for model, weights in (
        ("tiny-clip-test", str(tmp_path / "none.pt")),
        ("no-such", "openai"),
    ):
        with pytest.raises(CheckpointError, match="--clip-pretrained FILE") as caught:
            Clip(model, weights, NAMES)
        assert "\n" not in str(caught.value)
        assert not caplog.records
    with pytest.raises(CheckpointError, match="chance"):
        Clip("tiny-clip-test", "", NAMES)


def test_eval_end_to_end(coco: Path, tiny_clip: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "out"
    more = ("--models", "coco,grabcut", "--sheet", "2", "--template", "a { {}")
    assert main(words(coco, tiny_clip, output, *more)) == 0
    report = json.loads(capsys.readouterr().out)
    rows = evaluate.read_results(output)
    assert {(r["model"], r["key"]) for r in rows} == {
        (model, key) for model in ("coco", "grabcut") for key in (1, 2, 11, 12)
    }
    truth = {row["key"]: row for row in rows if row["model"] == "coco"}
    assert truth[1]["mask_area"] == pytest.approx(40 * 44 / (96 * 128))
    for row in rows:
        assert row["outside_mse"] == 0
        assert row["cosine"] == pytest.approx(row["l2"] ** 2 / 200, abs=1e-3)
        assert row["source@1"] >= row["source@3"] >= row["source@5"]
        assert len(row["points"]) == 10
    assert {r["key"]: r["points"] for r in rows if r["model"] == "grabcut"} == {
        key: row["points"] for key, row in truth.items()
    }
    mean = report["metrics"]["coco"]
    assert mean["iou"] == 1
    assert mean["l2"] == pytest.approx(np.mean([row["l2"] for row in truth.values()]))
    text = (output / "tables.md").read_text()
    assert "| paper, not measured here: ZIM | 73.11 | 0.8616 | 0.7543 | 0.6855 |" in text
    assert "identical" in text
    for choice in ("threshold 0.02", "grow 0", "backend telea", "region box", "1 crowd"):
        assert choice in text
    assert (output / "table5.csv").read_text().count("\n") == 6
    with Image.open(output / "sheet.jpg") as sheet:
        assert sheet.width > 500


def test_a_killed_run_goes_on_where_it_stopped(
    coco: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(words(coco, tiny_clip, whole, "--models", "coco")) == 0
    calls = itertools.count()
    original = evaluate.measure

    def dies_at_the_third(*args: Any) -> dict[str, Any]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(evaluate, "measure", dies_at_the_third)
    assert main(words(coco, tiny_clip, broken, "--models", "coco")) != 0
    with (broken / "results.jsonl").open("a") as file:
        file.write('{"model": "coco", "key": 12}\n')  # without its values
        file.write('{"model": "coco", "key": 11, "l2"')  # torn
    assert [row["key"] for row in evaluate.read_results(broken)] == [1, 2]
    calls = itertools.count(10)
    assert main(words(coco, tiny_clip, broken, "--models", "coco")) == 0
    assert next(calls) == 12  # two objects were left
    assert evaluate.read_results(broken) == evaluate.read_results(whole)


def test_other_settings_need_another_folder(
    coco: Path, tiny_clip: Path, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "out"
    assert main(words(coco, tiny_clip, output, "--models", "coco", "--limit", "2")) == 0
    again = words(coco, tiny_clip, output, "--models", "coco", "--limit", "2", "--grow", "3")
    assert main(again) == 1
    assert "other settings (grow 0, now 3)" in capsys.readouterr().err
    assert main([*again, "--overwrite"]) == 0
    areas = [row["mask_area"] for row in evaluate.read_results(output)]
    assert min(areas) > 40 * 44 / (96 * 128)


def test_a_model_that_finds_nothing_removes_nothing(
    coco: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Blind:
        def set_image(self, image: Any) -> None:
            self.size = image.shape[:2]

        def predict(self, **kwargs: Any) -> Any:
            assert kwargs["point_coords"].shape == (10, 2)
            return np.zeros((1, *self.size), np.float32), np.ones(1), None

    monkeypatch.setattr("zim_inpaint.finder.load_segmenter", lambda name, **kwargs: Blind())
    output = tmp_path / "out"
    assert main(words(coco, tiny_clip, output, "--models", "nano")) == 0
    mean = json.loads(capsys.readouterr().out)["metrics"]["nano"]
    assert (mean["objects"], mean["refused"]) == (4, 4)
    assert mean["l2"] == pytest.approx(0, abs=1e-2)
    assert mean["source@1"] == mean["mask_area"] == 0


def test_bad_pictures_and_models_do_not_stop_the_rest(
    coco: Path, tiny_clip: Path, tmp_path: Path, capsys: Any
) -> None:
    (coco / "val2017" / "000000000001.jpg").write_bytes(b"no picture")
    output = tmp_path / "out"
    assert main(words(coco, tiny_clip, output, "--models", "no/such,coco")) == 1
    captured = capsys.readouterr()
    assert [row["key"] for row in evaluate.read_results(output)] == [11, 12]
    assert "no/such: not run" in captured.err
    assert len(json.loads(captured.out)["items"]) == 2


def test_an_object_of_few_pixels_is_clicked_on_each_and_one_of_none_is_left_out(
    coco: Path, tiny_clip: Path, tmp_path: Path, capsys: Any
) -> None:
    path = coco / "annotations" / "instances_val2017.json"
    data = json.loads(path.read_text())
    dot = data["annotations"][0] | {"bbox": [30, 30, 3, 2], "area": 6}
    dot["segmentation"] = [[30.0, 30.0, 33.0, 30.0, 33.0, 32.0, 30.0, 32.0]]
    line = dot | {"bbox": [30, 30, 3, 1], "segmentation": [[30.0, 30.1, 33.0, 30.1, 33.0, 30.2]]}
    data["annotations"] = [dot | {"id": 1}, line | {"id": 2}]
    path.write_text(json.dumps(data))
    output = tmp_path / "out"
    for _ in range(2):  # and again when everything is scored
        assert main(words(coco, tiny_clip, output, "--all", "--models", "coco,grabcut")) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["left_out"] == {"mask without a pixel": 1}
        assert report["items"] == []
        rows = evaluate.read_results(output)
        assert [(row["model"], row["key"]) for row in rows] == [("coco", 1), ("grabcut", 1)]
        clicks = sorted([x, y] for x, y in rows[0]["points"])
        assert clicks == [[x, y] for x in (30, 31, 32) for y in (30, 31)]
    text = (output / "tables.md").read_text()
    assert "fewer than 10 pixels is clicked on each" in text
    assert "Left out: 1 mask without a pixel." in text


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--threshold", "1"], 2, "--threshold 1"),
        (["--template", "a photo"], 2, "where the class goes"),
        (["--models", ","], 2, "an empty list"),
        (["--coco", "/nowhere"], 1, "no COCO folder"),
        (["--min-side", "5000"], 1, "no object is left"),
    ],
)
def test_wrong_use_is_one_line(
    coco: Path, tiny_clip: Path, tmp_path: Path, capsys: Any, more: list[str], code: int, says: str
) -> None:
    assert main(words(coco, tiny_clip, tmp_path / "out", *more)) == code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_choices_of_the_flags_are_those_of_the_library() -> None:
    import argparse

    from zim_inpaint.clip_metrics import REGIONS, SQUARES

    parser = argparse.ArgumentParser()
    eval_command.configure(parser)
    choices = {action.dest: action.choices for action in parser._actions}
    assert choices["region"] == REGIONS
    assert choices["square"] == SQUARES
