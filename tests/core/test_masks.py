"""Grids, crops, stability, duplicates, clean-up and run lengths, against plain references."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from zim.errors import ConfigError, ImageError
from zim.masks import (
    box_iou,
    clean_alpha,
    clean_regions,
    crop_boxes,
    cut_by_crop,
    layer_grids,
    logit,
    mask_cells,
    mask_xywh,
    nms,
    point_grid,
    stability_score,
)
from zim.rle import decode_rle, encode_coco, encode_rle, pack_counts, rle_area, unpack_counts

SIZES = ((480, 640), (601, 333), (64, 64))


@pytest.fixture(scope="module")
def amg(segment_anything: Any) -> Any:
    return importlib.import_module(f"{segment_anything.__name__}.utils.amg")


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    """Masks of all shapes, from empty over speckled to full."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    bits = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    return np.array(bits).reshape(height, width)


# Points and crops


def test_point_grid_by_hand() -> None:
    assert point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


def test_crops_by_hand() -> None:
    # overlap int(0.25 * 40 * 2 / 2) = 10, so two crops of (100 + 10) / 2 = 55 and (40 + 10) / 2
    assert crop_boxes((40, 100), 1, 0.25) == [
        ((0, 0, 100, 40), 0),
        ((0, 0, 55, 25), 1),
        ((0, 15, 55, 40), 1),
        ((45, 0, 100, 25), 1),
        ((45, 15, 100, 40), 1),
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 3), st.floats(0, 0.5))
def test_crops_cover_the_picture(height: int, width: int, layers: int, overlap: float) -> None:
    for layer in range(layers + 1):
        seen = np.zeros((height, width), bool)
        for (x0, y0, x1, y1), own in crop_boxes((height, width), layers, overlap):
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            if own == layer:
                seen[y0:y1, x0:x1] = True
        assert seen.all()


@pytest.mark.parity
@pytest.mark.parametrize("side", [1, 5, 32])
def test_grids_equal_sam(amg: Any, side: int) -> None:
    np.testing.assert_allclose(point_grid(side), amg.build_point_grid(side))
    for ours, theirs in zip(
        layer_grids(side, 2, 2) if side > 4 else [],
        amg.build_all_layer_point_grids(side, 2, 2) if side > 4 else [],
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs)


@pytest.mark.parity
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_crops_equal_sam(amg: Any, size: tuple[int, int], layers: int) -> None:
    boxes, indices = amg.generate_crop_boxes(size, layers, 512 / 1500)
    ours = crop_boxes(size, layers, 512 / 1500)
    assert [list(box) for box, _ in ours] == boxes
    assert [layer for _, layer in ours] == indices


@pytest.mark.parity
def test_boxes_cut_by_a_crop_equal_sam(amg: Any) -> None:
    rng = np.random.default_rng(0)
    size, crop = (300, 400), (100, 0, 300, 160)
    corners = np.sort(rng.integers(0, 160, (200, 2, 2)), axis=1).astype(np.float32)
    boxes = corners.reshape(-1, 4)
    theirs = amg.is_box_near_crop_edge(torch.tensor(boxes), list(crop), [0, 0, 400, 300])
    np.testing.assert_array_equal(cut_by_crop(boxes, crop, size), theirs.numpy())


# Stability


def test_stability_by_hand() -> None:
    # alphas 0.3, 0.45, 0.55, 0.65, 0.9: two above 0.6, four above 0.4
    logits = torch.tensor([[[logit(a) for a in (0.3, 0.45, 0.55, 0.65, 0.9)]]])
    assert stability_score(logits).tolist() == [0.5]
    # logits -0.85, -0.20, 0.20, 0.62, 2.20: one above 1, five above -1
    assert stability_score(logits, offset=1.0, space="logit").tolist() == pytest.approx([0.2])


def test_stability_of_nothing_is_nan_and_fails_every_threshold() -> None:
    score = stability_score(torch.full((1, 4, 4), -9.0))
    assert score.isnan().all()
    assert not bool(score >= 0)


def test_stability_beyond_the_range_of_alpha() -> None:
    logits = torch.tensor([[[5.0, -5.0]]])
    assert stability_score(logits, 0.5, 0.5).item() == 0  # nothing is above 1, all above 0


def test_unknown_space() -> None:
    with pytest.raises(ConfigError, match="space 'alpha'"):
        stability_score(torch.zeros(1, 2, 2), space="alpha")  # pyright: ignore[reportArgumentType]


@pytest.mark.parity
def test_stability_equals_sam(amg: Any) -> None:
    logits = torch.randn(7, 30, 40, generator=torch.Generator().manual_seed(0)) * 3
    theirs = amg.calculate_stability_score(logits, 0.0, 1.0)
    torch.testing.assert_close(stability_score(logits, 0.5, 1.0, "logit"), theirs)


# Boxes and duplicates


@settings(max_examples=60, deadline=None)
@given(masks())
def test_boxes_of_masks(mask: NDArray[np.bool_]) -> None:
    cells = mask_cells(torch.from_numpy(mask)[None])[0].tolist()
    points = [(x, y) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
    if not points:
        assert cells == [0, 0, 0, 0]
        assert mask_xywh(mask) == [0, 0, 0, 0]
        return
    xs, ys = [x for x, _ in points], [y for _, y in points]
    assert cells == [min(xs), min(ys), max(xs) + 1, max(ys) + 1]
    assert mask_xywh(mask) == [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


@pytest.mark.parity
def test_box_of_a_mask_equals_sam(amg: Any) -> None:
    mask = np.random.default_rng(1).random((9, 14)) > 0.93
    theirs = amg.box_xyxy_to_xywh(amg.batched_mask_to_box(torch.from_numpy(mask))).tolist()
    assert mask_xywh(mask) == theirs


def naive_nms(boxes: NDArray[Any], scores: NDArray[Any], threshold: float) -> list[int]:
    """Greedy suppression as its definition says, one pair at a time."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        for j in kept:
            a, b = boxes[i], boxes[j]
            wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
            high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
            if union > 0 and wide * high / union > threshold:
                break
        else:
            kept.append(i)
    return kept


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 40), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_nms_equals_the_naive_loop(count: int, threshold: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.uniform(0, 30, (count, 2, 2)), axis=1).reshape(-1, 4)
    scores = rng.integers(0, 6, count) / 5  # many ties
    assert nms(boxes, scores, threshold).tolist() == naive_nms(boxes, scores, threshold)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 13)), min_size=4, max_size=4),
)
def test_box_iou_counts_pixels(spans: list[tuple[int, int]]) -> None:
    (ax, aw), (ay, ah), (bx, bw), (by, bh) = spans
    a, b = (ax, ay, ax + aw, ay + ah), (bx, by, bx + bw, by + bh)
    grids = np.zeros((2, 30, 30), bool)
    for grid, (x0, y0, x1, y1) in zip(grids, (a, b), strict=True):
        grid[y0:y1, x0:x1] = True
    assert box_iou(a, b) == pytest.approx((grids[0] & grids[1]).sum() / (grids[0] | grids[1]).sum())


def test_nms_by_hand() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10]])
    scores = np.array([0.5, 0.9, 0.1])
    assert nms(boxes, scores, 0.5).tolist() == [1, 0, 2]  # an IoU of exactly 0.5 is no duplicate
    assert nms(boxes, scores, 0.49).tolist() == [1, 2]


# Clean-up


def speckled() -> NDArray[np.bool_]:
    mask = np.zeros((20, 24), bool)
    mask[3:15, 3:15] = True
    mask[6:8, 6:8] = False  # a hole of 4
    mask[10, 10] = False  # a hole of 1
    mask[2, 20] = True  # an island of 1
    mask[17:20, 19:22] = True  # an island of 9
    mask[15, 15] = True  # hangs on by a corner
    return mask


def test_clean_regions_by_hand() -> None:
    mask = speckled()
    filled, changed = clean_regions(mask, 4, "holes")
    assert changed
    assert filled[10, 10]
    assert not filled[6:8, 6:8].any()
    kept, changed = clean_regions(mask, 9, "islands")
    assert changed
    assert not kept[2, 20]
    assert kept[17:20, 19:22].all()
    assert kept[15, 15]
    assert clean_regions(mask, 1, "holes")[1] is False


def test_the_largest_island_stays_when_all_are_small() -> None:
    mask = np.zeros((9, 9), bool)
    mask[1, 1] = mask[5:7, 5:7] = True
    kept, changed = clean_regions(mask, 100, "islands")
    assert changed
    assert kept.sum() == 4
    assert kept[5:7, 5:7].all()


@pytest.mark.parity
@settings(max_examples=40, deadline=None)
@given(mask=masks(), area=st.integers(0, 12))
def test_clean_regions_equal_sam(amg: Any, mask: NDArray[np.bool_], area: int) -> None:
    for kind in ("holes", "islands"):
        if not mask.any() and kind == "islands":
            continue  # SAM has no largest of none
        theirs, _ = amg.remove_small_regions(mask, area, kind)
        np.testing.assert_array_equal(clean_regions(mask, area, kind)[0], theirs)


@settings(max_examples=60, deadline=None)
@given(masks(), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_a_clean_alpha_has_the_clean_mask(mask: NDArray[np.bool_], area: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    alpha = np.where(mask, rng.uniform(0.51, 1, mask.shape), rng.uniform(0, 0.5, mask.shape))
    alpha = alpha.astype(np.float32)
    given_alpha = alpha.copy()
    cleaned, changed = clean_alpha(alpha, 0.5, area)
    want, holes = clean_regions(mask, area, "holes")
    want, islands = clean_regions(want, area, "islands")
    np.testing.assert_array_equal(cleaned > 0.5, want)
    assert changed == (holes or islands)
    np.testing.assert_array_equal(alpha, given_alpha)  # the argument is left alone


def test_soft_rims_go_with_their_island() -> None:
    y, x = np.mgrid[:60, :80].astype(np.float32)
    body = np.clip((18 - np.hypot(x - 25, y - 30)) / 6 + 0.5, 0, 1)
    speck = np.clip((3 - np.hypot(x - 65, y - 30)) / 4 + 0.5, 0, 1)
    pinhole = np.clip((2 - np.hypot(x - 25, y - 30)) / 4 + 0.5, 0, 1)
    cleaned, changed = clean_alpha(np.maximum(body - pinhole, speck), 0.5, 60)
    assert changed
    np.testing.assert_allclose(cleaned, body, atol=1e-6)


# Run lengths


def test_rle_by_hand() -> None:
    # columns of [[0, 0, 1], [0, 1, 1]] one after the other: 0 0, 0 1, 1 1
    mask = np.array([[0, 0, 1], [0, 1, 1]], bool)
    assert encode_rle(mask) == {"size": [2, 3], "counts": [3, 3]}
    assert encode_rle(~mask) == {"size": [2, 3], "counts": [0, 3, 3]}
    np.testing.assert_array_equal(decode_rle({"size": [2, 3], "counts": [3, 3]}), mask)


def test_compressed_counts_by_hand() -> None:
    # 6, 1 and 40 as they are, then 4 - 1 = 3 and 5 - 40 = -35; five bits a character, lowest
    # first, bit 5 says that more follow, characters start at "0":
    # 6 -> "6"; 1 -> "1"; 40 = 8 + 1 * 32 -> "X" (8 + 32) "1"; 3 -> "3";
    # -35 = 29 - 2 * 32 -> "m" (29 + 32), -2 -> 30 -> "N"
    assert pack_counts([6, 1, 40, 4, 5]) == "61X13mN"
    assert unpack_counts("61X13mN") == [6, 1, 40, 4, 5]


@settings(max_examples=100, deadline=None)
@given(masks())
def test_rle_round_trip(mask: NDArray[np.bool_]) -> None:
    plain, packed = encode_rle(mask), encode_coco(mask)
    for rle in (plain, packed, packed | {"counts": str(packed["counts"]).encode()}):
        np.testing.assert_array_equal(decode_rle(rle), mask)
        assert rle_area(rle) == mask.sum()
    assert isinstance(packed["counts"], str)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**31), max_size=30))
def test_counts_round_trip(counts: list[int]) -> None:
    assert unpack_counts(pack_counts(counts)) == counts


@pytest.mark.parity
@settings(max_examples=40, deadline=None)
@given(mask=masks())
def test_rle_equals_sam(amg: Any, mask: NDArray[np.bool_]) -> None:
    assert amg.mask_to_rle_pytorch(torch.from_numpy(mask)[None]) == [encode_rle(mask)]


@pytest.mark.parity
@settings(max_examples=40, deadline=None)
@given(mask=masks())
def test_compressed_rle_equals_pycocotools(mask: NDArray[np.bool_]) -> None:
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_coco(mask)["counts"] == theirs["counts"].decode()


@pytest.mark.parametrize("counts", [[3, 4], [-1, 7], "5", "6\u00e9", "X"])
def test_broken_run_lengths(counts: Any) -> None:
    with pytest.raises(ImageError):
        decode_rle({"size": [2, 3], "counts": counts})
