"""The five modes against an independent implementation of the cited protocol."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import measure

from zim_medical.options import PRESETS, Protocol
from zim_medical.prompts import Query, centre, mode_prompts, regions, tight_box

CITED = PRESETS["mazurowski"]


def random_mask(rng: np.random.Generator) -> np.ndarray:
    """Blobs, single pixels, diagonal neighbours and objects that touch the border."""
    mask = np.zeros((rng.integers(12, 48), rng.integers(12, 48)), np.uint8)
    height, width = mask.shape
    for _ in range(rng.integers(1, 6)):
        at = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        kind = rng.integers(4)
        if kind == 0:
            size = (int(rng.integers(0, 8)), int(rng.integers(0, 8)))
            cv2.ellipse(mask, at, size, float(rng.integers(180)), 0, 360, 1, -1)
        elif kind == 1:
            mask[at[1], at[0]] = 1
        elif kind == 2:
            mask[
                at[1] : at[1] + int(rng.integers(1, 7)), at[0] : at[0] + int(rng.integers(1, 7))
            ] = 1
        else:
            for i in range(4):
                mask[min(at[1] + i, height - 1), min(at[0] + i, width - 1)] = 1
    return mask


def independent(mask: np.ndarray) -> list[tuple[set[tuple[int, int]], list[int]]]:
    """Regions as the cited code finds them: deepest pixels (a set, for ties) and the box."""
    labeled: Any = measure.label(mask, return_num=True, connectivity=2)
    labels, count = labeled
    ratios = [(float((labels == i).sum()) / mask.size, i) for i in range(1, count + 1)]
    found = []
    for _, i in sorted(ratios, reverse=True):
        region = (labels == i).astype(np.uint8)
        # brute force: squared distance of every object pixel to every pixel of the padded outside
        padded = np.pad(region, 1)
        outside, inside = np.argwhere(padded == 0), np.argwhere(padded == 1)
        gaps = ((inside[:, None] - outside[None]) ** 2).sum(-1).min(1)
        deepest = inside[gaps == gaps.max()] - 1
        rows, columns = np.where(region)
        box = [columns.min(), rows.min(), columns.max(), rows.max()]
        found.append(({(int(x), int(y)) for y, x in deepest}, [int(v) for v in box]))
    return found


def test_a_thousand_random_masks_agree_with_the_cited_protocol() -> None:
    rng = np.random.default_rng(0)
    ties = several = touching = single = 0
    for _ in range(1000):
        mask = random_mask(rng)
        if not mask.any():
            continue
        expected = independent(mask)
        got = mode_prompts(mask > 0, CITED, rng=rng)
        (one,), (three,) = got[1].queries, got[2].queries
        assert one.points[0] in expected[0][0]
        assert len(three.points) == min(3, len(expected))
        for point, (deepest, _) in zip(three.points, expected, strict=False):
            assert point in deepest
        assert [list(q.box or ()) for q in got[3].queries] == [expected[0][1]]
        assert [list(q.box or ()) for q in got[4].queries] == [box for _, box in expected[:3]]
        boxes = np.array([box for _, box in expected])
        assert got[5].queries[0].box == (*boxes[:, :2].min(0), *boxes[:, 2:].max(0))
        ties += len(expected[0][0]) > 1
        several += len(expected) > 3
        single += any(len(d) == 1 and b[0] == b[2] and b[1] == b[3] for d, b in expected)
        touching += bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
    assert min(ties, several, touching, single) > 50  # the hard kinds were among them


def test_our_tie_rule_by_hand() -> None:
    # a 1 x 4 bar: every pixel is 1 deep, their mean is between the second and the third
    bar = np.zeros((3, 6), bool)
    bar[1, 1:5] = True
    assert centre(bar) == (2, 1)
    # a 2 x 2 square: four equal ones, the smallest (y, x) wins
    square = np.zeros((4, 4), bool)
    square[1:3, 1:3] = True
    assert centre(square) == (1, 1)
    drawn = {centre(square, np.random.default_rng(seed)) for seed in range(40)}
    assert drawn == {(1, 1), (2, 1), (1, 2), (2, 2)}


def test_a_border_counts_as_the_end_of_the_object() -> None:
    mask = np.ones((5, 9), bool)
    assert centre(mask) == (4, 2)


def test_equal_areas_follow_the_preset() -> None:
    mask = np.zeros((4, 8), bool)
    mask[0, 0:2] = mask[3, 4:6] = True
    assert [np.argwhere(r)[0].tolist() for r in regions(mask, Protocol())] == [[0, 0], [3, 4]]
    assert [np.argwhere(r)[0].tolist() for r in regions(mask, CITED)] == [[3, 4], [0, 0]]


@pytest.mark.parametrize(("connectivity", "count"), [(8, 1), (4, 2)])
def test_connectivity(connectivity: int, count: int) -> None:
    mask = np.eye(2, dtype=bool)
    assert len(regions(mask, replace(Protocol(), connectivity=connectivity))) == count


def test_a_mask_of_a_thousand_specks_gives_as_many_regions_as_are_asked_for() -> None:
    mask = np.indices((60, 60)).sum(0) % 2 > 0  # a mask of each would not fit a large picture
    found = regions(mask, replace(Protocol(), connectivity=4))
    assert [np.argwhere(r).tolist() for r in found] == [[[0, 1]], [[0, 3]], [[0, 5]]]


def test_minimum_area_and_margin() -> None:
    mask = np.zeros((10, 10), bool)
    mask[0, 0] = True
    mask[4:8, 4:9] = True
    protocol = replace(Protocol(), min_area=2, box_margin=3)
    prompts = mode_prompts(mask, protocol)
    assert prompts[4].queries == (Query(box=(1, 1, 9, 9)),)
    assert mode_prompts(mask, replace(protocol, min_area=21)) == {}


def test_a_box_without_area_is_widened_only_for_the_model() -> None:
    query = Query(box=(3, 4, 3, 4))
    assert query.box == (3, 4, 3, 4)
    assert query.usable_box() == (3, 4, 4, 5)


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_transposing_the_mask_transposes_boxes(seed: int) -> None:
    mask = random_mask(np.random.default_rng(seed)) > 0
    if mask.any():
        x0, y0, x1, y1 = tight_box(mask)
        assert tight_box(mask.T) == (y0, x0, y1, x1)


def test_one_region_makes_modes_equal() -> None:
    mask = np.zeros((9, 9), bool)
    mask[2:6, 3:8] = True
    prompts = mode_prompts(mask, Protocol())
    assert prompts[1].queries == prompts[2].queries
    assert prompts[3].queries == prompts[4].queries == prompts[5].queries
