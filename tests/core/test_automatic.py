"""Automatic mattes against a brute-force twin, and what records promise."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import zim
from zim import click_search
from zim.automatic import ZimAutomaticMaskGenerator
from zim.click_search import ClickSearch, Rules, batch_budget, click_bytes
from zim.config import PRESETS
from zim.errors import ConfigError
from zim.mask_record import MaskRecord
from zim.rle import decode_rle
from zim.testing import TINY_NANO, picture, tiny_model

SIDE = 4
#: sizes that fill the 64-pixel frame, and that do not: wide, tall, odd, larger than the frame
SIZES = ((48, 64), (64, 41), (97, 130))


@dataclass
class Answer:
    """What the twin knows of one answer."""

    point: tuple[float, float]
    score: float
    stability: float
    box: list[float]
    alpha: NDArray[np.float32]


def every_answer(predictor: zim.ZimPredictor, image: NDArray[np.uint8], side: int) -> list[Answer]:
    """Ask for every point alone and keep everything."""
    predictor.set_image(image)
    height, width = image.shape[:2]
    size = predictor.model.config.image_size
    scale = size / max(height, width)
    scaled = int(height * scale + 0.5), int(width * scale + 0.5)
    answers = []
    for row in range(side):
        for column in range(side):
            x, y = (column + 0.5) / side * width, (row + 0.5) / side * height
            mattes, scores, low = predictor.predict(np.array([[x, y]]), np.array([1]))
            for matte, score, logits in zip(mattes, scores, low, strict=True):
                shown = logits[: -(-scaled[0] // 2), : -(-scaled[1] // 2)]
                alpha = 1 / (1 + np.exp(-shown.astype(np.float64)))
                wide = int((alpha > 0.4).sum())
                stability = float((alpha > 0.6).sum()) / wide if wide else float("nan")
                rows, columns = np.nonzero(alpha > 0.5)
                box = [0.0] * 4
                if len(rows):
                    box = [
                        columns.min() * 2 * width / scaled[1],
                        rows.min() * 2 * height / scaled[0],
                        min((columns.max() + 1) * 2 * width / scaled[1], width),
                        min((rows.max() + 1) * 2 * height / scaled[0], height),
                    ]
                answers.append(Answer((x, y), float(score), stability, box, matte))
    predictor.reset_image()
    return answers


def overlap(a: list[float], b: list[float]) -> float:
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
    return wide * high / union


def brute_force(
    answers: list[Answer], quality: float, stability: float, nms: float
) -> list[Answer]:
    """Filter, then keep the best of every group of overlapping boxes."""
    good = [a for a in answers if a.score > quality and a.stability >= stability and any(a.box)]
    kept: list[Answer] = []
    for answer in sorted(good, key=lambda a: -a.score):
        if all(overlap(answer.box, other.box) <= nms for other in kept):
            kept.append(answer)
    return [a for a in kept if (a.alpha > 0.5).any()]


@pytest.fixture(scope="module")
def model() -> zim.Zim:
    return tiny_model()


@pytest.fixture(scope="module")
def predictor(model: zim.Zim) -> zim.ZimPredictor:
    return zim.ZimPredictor(model)


@pytest.fixture(scope="module")
def cases(predictor: zim.ZimPredictor) -> dict[tuple[int, int], tuple[Any, list[Answer], float]]:
    """Pictures with all their answers, and a quality that two of three answers reach."""
    made = {}
    for size in SIZES:
        image = picture(*size)
        answers = every_answer(predictor, image, SIDE)
        scores = sorted({a.score for a in answers})
        middle = len(scores) // 3
        made[size] = image, answers, (scores[middle] + scores[middle + 1]) / 2
    return made


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("nms", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("batch", [None, 5])
def test_records_equal_the_brute_force_twin(
    model: zim.Zim, cases: Any, size: tuple[int, int], nms: float, batch: int | None
) -> None:
    image, answers, quality = cases[size]
    stability = 0.5
    want = brute_force(answers, quality, stability, nms)
    records = ZimAutomaticMaskGenerator(
        model,
        SIDE,
        batch,
        pred_iou_thresh=quality,
        stability_score_thresh=stability,
        box_nms_thresh=nms,
    ).generate(image)

    assert len(records) == len(want) > (1 if nms > 0.5 else 0)
    for record, answer in zip(records, want, strict=True):
        assert record["point_coords"] == [pytest.approx(answer.point)]
        assert record["predicted_iou"] == pytest.approx(answer.score, abs=1e-5)
        assert record["stability_score"] == pytest.approx(answer.stability, abs=1e-3)
        np.testing.assert_allclose(record["alpha"], answer.alpha, atol=2e-5)
        mask = record["segmentation"]
        assert mask.dtype == bool
        # a pixel may fall to either side only where alpha is 0.5 but for rounding
        differ = mask != (answer.alpha > 0.5)
        assert (np.abs(answer.alpha[differ] - 0.5) < 2e-5).all()
        rows, columns = np.nonzero(mask)
        assert record["area"] == len(rows)
        assert record["bbox"] == [
            columns.min(),
            rows.min(),
            columns.max() - columns.min(),
            rows.max() - rows.min(),
        ]
        assert record["crop_box"] == [0, 0, size[1], size[0]]


def test_the_filters_matter(cases: Any) -> None:
    for _, answers, quality in cases.values():
        everything = brute_force(answers, -9, 0, 2)
        assert len(everything) > len(brute_force(answers, quality, 0, 2))
        assert len(everything) > len(brute_force(answers, -9, 0.5, 2))
        assert len(everything) > len(brute_force(answers, -9, 0, 0.7))


def test_only_clicks_of_good_quality_cost_pixels(
    model: zim.Zim, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, answers, _ = cases[SIZES[0]]
    best = np.array([a.score for a in answers]).reshape(-1, 3).max(1)
    quality = float(np.sort(best)[-5:-3].mean())  # four clicks are better
    decoded = 0
    decode = model.decode_pixels

    def counting(features: Any, state: Any, tokens: slice) -> Any:
        nonlocal decoded
        decoded += len(state)
        return decode(features, state, tokens)

    monkeypatch.setattr(model, "decode_pixels", counting)
    ZimAutomaticMaskGenerator(
        model, SIDE, pred_iou_thresh=quality, stability_score_thresh=0
    ).generate(image)
    assert decoded == (best > quality).sum() == 4


def test_thinning_changes_nothing(
    model: zim.Zim, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _, _ = cases[SIZES[2]]
    generator = ZimAutomaticMaskGenerator(
        model, SIDE, 4, pred_iou_thresh=0, stability_score_thresh=0.3, box_nms_thresh=0.8
    )
    want = generator.generate(image)
    side = PRESETS["tiny"].image_size // 2
    monkeypatch.setattr(click_search, "KEEP_BYTES", 3 * 4 * side**2)  # room for three
    got = generator.generate(image)
    assert len(got) == len(want) > 3
    for a, b in zip(got, want, strict=True):
        assert a["point_coords"] == b["point_coords"]
        assert a["predicted_iou"] == pytest.approx(b["predicted_iou"], abs=1e-5)
        np.testing.assert_allclose(a["alpha"], b["alpha"], atol=2e-5)


# Crops


def test_crops_find_what_the_crop_alone_shows(model: zim.Zim) -> None:
    image = picture(60, 90)
    options: dict[str, Any] = {"pred_iou_thresh": 0, "stability_score_thresh": 0.3}
    records = ZimAutomaticMaskGenerator(model, 4, crop_n_layers=1, **options).generate(image)
    whole = [0, 0, 90, 60]
    crops = {tuple(r["crop_box"]) for r in records}
    assert len(crops - {tuple(whole)}) > 1
    predictor = zim.ZimPredictor(model)
    for record in records:
        x, y, width, height = record["crop_box"]
        predictor.set_image(np.ascontiguousarray(image[y : y + height, x : x + width]))
        click = np.array(record["point_coords"]) - (x, y)
        mattes, _, _ = predictor.predict(click, np.array([1]))
        inside = record["alpha"][y : y + height, x : x + width]
        assert min(np.abs(inside - matte).max() for matte in mattes) < 2e-5
        outside = record["alpha"].copy()
        outside[y : y + height, x : x + width] = 0
        assert not outside.any()
        mask = record["segmentation"]
        assert mask.shape == (60, 90)
        assert record["area"] == mask.sum()
        left, top, wide, high = record["bbox"]
        assert mask[top : top + high + 1, left : left + wide + 1].sum() == mask.sum()
    for a in records:
        for b in records:
            if a is not b:
                boxes = [
                    [
                        r["bbox"][0],
                        r["bbox"][1],
                        r["bbox"][0] + r["bbox"][2] + 1,
                        r["bbox"][1] + r["bbox"][3] + 1,
                    ]
                    for r in (a, b)
                ]
                # boxes at stride 2 decided; at full size they differ by a cell or so
                assert overlap(boxes[0], boxes[1]) < 0.9


def test_point_grids_replace_points_per_side(model: zim.Zim) -> None:
    image = picture()
    options: dict[str, Any] = {"pred_iou_thresh": 0, "stability_score_thresh": 0}
    grid = np.array([[0.5, 0.5], [0.1, 0.2]])
    records = ZimAutomaticMaskGenerator(model, point_grids=[grid], **options).generate(image)
    points = {tuple(r["point_coords"][0]) for r in records}
    assert records
    assert points <= {(0.5 * 64, 0.5 * 48), (0.1 * 64, 0.2 * 48)}


# Clean-up


def test_clean_up_changes_mask_and_alpha_alike(model: zim.Zim) -> None:
    image = picture(64, 64, seed=2)
    options: dict[str, Any] = {
        "points_per_side": SIDE,
        "pred_iou_thresh": 0,
        "stability_score_thresh": 0,
        "box_nms_thresh": 0.99,
    }
    plain = ZimAutomaticMaskGenerator(model, **options).generate(image)
    cleaned = ZimAutomaticMaskGenerator(model, min_mask_region_area=60, **options).generate(image)
    by_click = {(tuple(r["point_coords"][0]), r["predicted_iou"]): r for r in plain}
    changed = 0
    for record in cleaned:
        mask, alpha = record["segmentation"], record["alpha"]
        np.testing.assert_array_equal(mask, alpha > 0.5)
        assert record["area"] == mask.sum()
        for region in (mask, ~mask):
            sizes = region_sizes(region)
            assert len(sizes) <= 1 or min(sizes) >= 60
        before = by_click[tuple(record["point_coords"][0]), record["predicted_iou"]]
        changed += not np.array_equal(before["alpha"], alpha)
    assert changed


def region_sizes(mask: NDArray[np.bool_]) -> list[int]:
    """Sizes of 8-connected regions, by walking."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    sizes = []
    while left:
        todo, size = [left.pop()], 0
        while todo:
            y, x = todo.pop()
            size += 1
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            todo += near
        sizes.append(size)
    return sizes


# Forms of output


@pytest.fixture(scope="module")
def plain(model: zim.Zim) -> list[MaskRecord]:
    return ZimAutomaticMaskGenerator(
        model, 4, pred_iou_thresh=0, stability_score_thresh=0.3
    ).generate(picture())


@pytest.mark.parametrize("mode", ["uncompressed_rle", "coco_rle"])
def test_run_lengths(model: zim.Zim, plain: list[MaskRecord], mode: Any) -> None:
    records = ZimAutomaticMaskGenerator(
        model, 4, pred_iou_thresh=0, stability_score_thresh=0.3, output_mode=mode
    ).generate(picture())
    assert len(records) == len(plain) > 1
    for record, want in zip(records, plain, strict=True):
        rle = record["segmentation"]
        assert rle["size"] == [48, 64]
        assert isinstance(rle["counts"], list if mode == "uncompressed_rle" else str)
        np.testing.assert_array_equal(decode_rle(rle), want["segmentation"])


def test_alpha_as_bytes(model: zim.Zim, plain: list[MaskRecord]) -> None:
    records = ZimAutomaticMaskGenerator(
        model, 4, pred_iou_thresh=0, stability_score_thresh=0.3, alpha_dtype="uint8"
    ).generate(picture())
    for record, want in zip(records, plain, strict=True):
        assert record["alpha"].dtype == np.uint8
        np.testing.assert_array_equal(record["alpha"], np.floor(want["alpha"] * 255 + 0.5))


def test_four_candidates_and_a_limit(model: zim.Zim) -> None:
    options: dict[str, Any] = {"pred_iou_thresh": 0, "stability_score_thresh": 0}
    three = ZimAutomaticMaskGenerator(model, 4, box_nms_thresh=1.0, **options).generate(picture())
    four = ZimAutomaticMaskGenerator(model, 4, box_nms_thresh=1.0, multimask=4, **options).generate(
        picture()
    )
    assert len(four) > len(three)
    limited = ZimAutomaticMaskGenerator(
        model, 4, box_nms_thresh=1.0, max_masks=3, **options
    ).generate(picture())
    assert [r["predicted_iou"] for r in limited] == [r["predicted_iou"] for r in three[:3]]


def test_offsets_as_logits(model: zim.Zim, cases: Any) -> None:
    image, _, _ = cases[SIZES[0]]
    # logit(0.6) = 0.405, so these two say the same
    offsets: list[dict[str, Any]] = [
        {"stability_score_offset": 0.1},
        {"stability_score_offset": float(np.log(0.6 / 0.4)), "space": "logit"},
    ]
    a, b = (
        ZimAutomaticMaskGenerator(
            model, SIDE, pred_iou_thresh=0, stability_score_thresh=0.4, **offset
        ).generate(image)
        for offset in offsets
    )
    assert [r["stability_score"] for r in a] == [r["stability_score"] for r in b]
    assert len(a) > 1


def test_nothing_found_is_an_empty_list(model: zim.Zim) -> None:
    assert ZimAutomaticMaskGenerator(model, 2, pred_iou_thresh=99).generate(picture()) == []


def test_a_picture_of_one_pixel(model: zim.Zim) -> None:
    for layers in (0, 1):
        records = ZimAutomaticMaskGenerator(
            model,
            2,
            crop_n_layers=layers,
            pred_iou_thresh=-1e9,
            stability_score_thresh=0,
            mask_threshold=1e-6,
            stability_score_offset=0,
        ).generate(np.zeros((1, 1, 3), np.uint8))
        assert [r["segmentation"].shape for r in records] == [(1, 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_side": 4, "point_grids": [np.zeros((1, 2))]}, "both given"),
        ({"point_grids": [np.zeros((1, 2))], "crop_n_layers": 1}, "1 point grids; expected 2"),
        ({"points_per_side": 0}, "points_per_side is 0"),
        ({"points_per_batch": 0}, "points_per_batch is 0"),
        ({"output_mode": "png"}, "output_mode is 'png'"),
        ({"space": "alpha"}, "space is 'alpha'"),
        ({"multimask": 2}, "multimask is 2"),
        ({"points_per_side": 100_000}, "points_per_side is 100000; expected at most"),
        ({"pred_iou_thresh": math.nan}, "pred_iou_thresh is nan"),
        ({"stability_score_offset": math.inf}, "stability_score_offset is inf"),
        ({"box_nms_thresh": 5}, "box_nms_thresh is 5"),
        ({"crop_nms_thresh": math.nan}, "crop_nms_thresh is nan"),
        ({"crop_overlap_ratio": 2, "crop_n_layers": 1}, "crop_overlap_ratio is 2"),
        ({"mask_threshold": 1.0}, "mask_threshold is 1.0"),
        ({"crop_n_layers": -1}, "crop_n_layers is -1"),
        ({"min_mask_region_area": -1}, "min_mask_region_area is -1"),
        ({"alpha_dtype": "float16"}, "alpha_dtype is 'float16'"),
    ],
)
def test_bad_parameters(model: zim.Zim, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ZimAutomaticMaskGenerator(model, **options)


def test_a_predictor_is_taken_and_keeps_its_picture(predictor: zim.ZimPredictor) -> None:
    mine = picture()[::-1].copy()
    predictor.set_image(mine)
    ZimAutomaticMaskGenerator(predictor, 2).generate(picture())
    assert predictor.image is not None
    np.testing.assert_array_equal(predictor.image, mine)


# Records


def test_a_record_is_a_dictionary(plain: list[MaskRecord]) -> None:
    record = plain[0]
    keys = {
        "segmentation",
        "area",
        "bbox",
        "predicted_iou",
        "point_coords",
        "stability_score",
        "crop_box",
        "alpha",
    }
    assert isinstance(record, dict)
    assert set(record) == set(record.keys()) == keys
    assert len(record) == len(keys)
    for view in (dict(record), {**record}, dict(record.items()), record | {}, record.copy()):
        assert set(view) == keys
        assert isinstance(view["alpha"], np.ndarray)
        assert isinstance(view["segmentation"], np.ndarray)
    assert isinstance(record.get("alpha"), np.ndarray)
    assert record.get("nothing", 7) == 7
    assert any(isinstance(v, np.ndarray) for v in record.values())
    again = pickle.loads(pickle.dumps(record))
    np.testing.assert_array_equal(again["alpha"], record["alpha"])
    taken = record.copy()
    assert isinstance(taken.pop("alpha"), np.ndarray)
    assert "alpha" not in taken
    assert "alpha" in record
    assert "MaskRecord" in repr(record)


def test_arrays_are_kept_only_where_there_is_room(
    model: zim.Zim, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = ZimAutomaticMaskGenerator(model, 3, pred_iou_thresh=0, stability_score_thresh=0)
    record = generator.generate(picture())[0]
    assert record["alpha"] is record["alpha"]
    monkeypatch.setattr("zim.automatic.RECORD_BYTES", 0)
    record = generator.generate(picture())[0]
    assert record["alpha"] is not record["alpha"]
    np.testing.assert_array_equal(record["alpha"], record["alpha"])


# Memory


@pytest.mark.parametrize("name", ["nano", "vit_b"])
def test_batches_fit_the_budget(name: str) -> None:
    tokens, pixels = click_bytes(PRESETS[name], 4)
    assert 0 < tokens < pixels
    assert 1 <= batch_budget(torch.device("cpu")) <= click_search.BATCH_BYTES


# Models with cues and framing


@pytest.fixture
def nano_like() -> zim.Zim:
    return tiny_model(TINY_NANO)


def test_models_with_cues_get_a_coarser_grid(nano_like: zim.Zim, model: zim.Zim) -> None:
    assert [len(g) for g in ZimAutomaticMaskGenerator(nano_like).point_grids] == [16**2]
    assert [len(g) for g in ZimAutomaticMaskGenerator(model).point_grids] == [32**2]
    asked = ZimAutomaticMaskGenerator(nano_like, 32)
    assert [len(g) for g in asked.point_grids] == [32**2]


def test_a_second_look_is_the_predictors_answer_to_the_box(
    nano_like: zim.Zim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(click_search, "AGREEMENT", 0.0)
    image = picture(96, 128)
    rules = Rules(0, 0, 0.1, "prob", 0.5, 0.7, slice(1, None))
    predictor = zim.ZimPredictor(nano_like)
    framing = nano_like.config
    nano_like.config = replace(framing, framing=0.0)
    grid = np.array([[0.5, 0.5], [0.2, 0.3]])
    first = ClickSearch(nano_like, image, (0, 0, 128, 96), rules).run(grid)
    nano_like.config = framing
    assert first
    predictor.set_image(image)
    for candidate in first:
        search = ClickSearch(nano_like, image, (0, 0, 128, 96), rules)
        box, click = candidate.box.copy(), candidate.point.copy()
        with torch.inference_mode():
            search._look_closer(candidate)
        predictor.set_image(image)
        _, scores, low = predictor.predict(
            click[None], np.array([1]), box=box, multimask_output=False
        )
        assert candidate.iou == pytest.approx(float(scores[0]), abs=1e-5)
        assert candidate.logits is not None
        if candidate.crop == (0, 0, 128, 96):
            np.testing.assert_allclose(candidate.logits.numpy(), low[0], atol=1e-4)


def test_closer_looks_side_by_side_find_what_one_after_the_other_finds(
    nano_like: zim.Zim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(click_search, "AGREEMENT", 0.0)
    image = picture(96, 128)

    def found(threads: int) -> list[MaskRecord]:
        monkeypatch.setattr(click_search, "workers", lambda: threads)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            generator = ZimAutomaticMaskGenerator(
                nano_like, 4, pred_iou_thresh=0, stability_score_thresh=0
            )
            return generator.generate(image)
        finally:
            torch.set_num_threads(before)

    one, two = found(1), found(2)
    assert len(one) == len(two) > 2
    for a, b in zip(one, two, strict=True):
        assert a["point_coords"] == b["point_coords"]
        np.testing.assert_allclose(a["alpha"], b["alpha"], atol=1e-4)


def test_what_a_second_look_does_not_confirm_is_dropped(
    nano_like: zim.Zim, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(96, 128)

    def count(quality: float) -> int:
        generator = ZimAutomaticMaskGenerator(
            nano_like, 2, pred_iou_thresh=quality, stability_score_thresh=0
        )
        return len(generator.generate(image))

    monkeypatch.setattr(click_search, "AGREEMENT", 0.0)
    assert count(0) > 0  # 0 takes everything, also from the second look
    assert count(-99) > 0
    monkeypatch.setattr(click_search, "CLOSER_GAIN", 200)
    assert count(-99) == 0
    assert count(0) > 0
    monkeypatch.setattr(click_search, "AGREEMENT", 1.1)
    assert count(0) == 0


@pytest.mark.slow
def test_an_onnx_folder_finds_the_same(
    model: zim.Zim, plain: list[MaskRecord], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra onnx)")
    from zim.onnx import export_onnx

    export_onnx(model, tmp_path / "tiny")
    records = ZimAutomaticMaskGenerator(
        tmp_path / "tiny", 4, pred_iou_thresh=0, stability_score_thresh=0.3
    ).generate(picture())
    assert len(records) == len(plain) > 1
    for record, want in zip(records, plain, strict=True):
        assert record["point_coords"] == want["point_coords"]
        np.testing.assert_allclose(record["alpha"], want["alpha"], atol=1e-3)


def test_a_plain_background_is_not_cut_into_pieces() -> None:
    rgb = np.full((96, 128, 3), (240, 240, 238), np.uint8)
    y, x = np.mgrid[:96, :128]
    rgb[np.hypot(x - 40, y - 50) < 24] = (180, 60, 50)
    rgb = cv2.resize(rgb, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    all_of_it = ZimAutomaticMaskGenerator("nano", 4, outline_contrast_thresh=0).generate(rgb)
    kept = ZimAutomaticMaskGenerator("nano", 4).generate(rgb)
    assert len(kept) < len(all_of_it)
    disc = np.hypot(*np.mgrid[-150:138, -120:264]) < 72
    for record in kept:
        mask = np.asarray(record["segmentation"])
        assert (mask & disc).sum() / (mask | disc).sum() > 0.8
    assert kept
