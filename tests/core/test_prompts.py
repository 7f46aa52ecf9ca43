"""Points, boxes, masks and scribbles are checked once and sampled as the paper says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zim.errors import PromptError
from zim.prompts import SCRIBBLE_POINTS, Prompt, check_box, scribble_points

SIZE = (100, 200)  # height, width


def test_points_take_labels_inside_or_beside() -> None:
    a = Prompt.create(SIZE, points=[(5, 6, 1), (7, 8, 0)])
    b = Prompt.create(SIZE, points=np.array([[5, 6], [7, 8]]), labels=[1, 0])
    np.testing.assert_array_equal(a.points, b.points)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert Prompt.create(SIZE, points=[(5, 6)]).labels.tolist() == [1]
    assert Prompt.create(SIZE, points=(5, 6)).points.tolist() == [[5, 6]]


def test_single_click_is_the_ambiguous_prompt() -> None:
    assert Prompt.create(SIZE, points=[(5, 6)]).single_click
    assert not Prompt.create(SIZE, points=[(5, 6, 0)]).single_click
    assert not Prompt.create(SIZE, points=[(5, 6)], box=(0, 0, 9, 9)).single_click
    assert not Prompt.create(SIZE, points=[(5, 6), (8, 9)]).single_click


def test_sequence_ends_with_the_box_corners() -> None:
    points, labels = Prompt.create(SIZE, points=[(5, 6, 0)], box=(1, 2, 30, 40)).sequence()
    assert points.tolist() == [[5, 6], [1, 2], [30, 40]]
    assert labels.tolist() == [0, 2, 3]


@given(
    st.tuples(*[st.floats(-300, 300) for _ in range(4)]).filter(
        lambda b: abs(b[0] - b[2]) > 1e-3 and abs(b[1] - b[3]) > 1e-3
    )
)
def test_boxes_are_ordered_and_cut_to_the_picture(box: tuple[float, ...]) -> None:
    x0, x1 = sorted((box[0], box[2]))
    y0, y1 = sorted((box[1], box[3]))
    visible = min(x1, 200) - max(x0, 0), min(y1, 100) - max(y0, 0)
    if min(visible) <= 0:
        with pytest.raises(PromptError, match="outside"):
            check_box(box, SIZE)
        return
    got = check_box(box, SIZE)
    expected = [max(x0, 0), max(y0, 0), min(x1, 200), min(y1, 100)]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-30)


def test_a_mask_alone_brings_its_box() -> None:
    mask = np.zeros(SIZE, np.uint8)
    mask[10:20, 30:50] = 255
    prompt = Prompt.create(SIZE, mask=mask)
    assert prompt.box is not None
    assert prompt.box.tolist() == [30, 10, 50, 20]
    assert prompt.mask is not None
    assert prompt.mask.max() == 1
    assert Prompt.create(SIZE, mask=mask, points=[(40, 15)]).box is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"points": [(1, 2, 3, 4)]}, "expected N x 2"),
        ({"points": [(1, 2, 1)], "labels": [1]}, "drop one"),
        ({"points": "abc"}, "not numbers"),
        ({"points": [(1, 2), (3,)]}, "not numbers"),
        ({"points": [(200, 5)]}, "outside the 200 x 100"),
        ({"points": [(-1, 5)]}, "outside"),
        ({"labels": [1]}, "without points"),
        ({"box": (5, 5, 5, 9)}, "no area"),
        ({"box": (np.nan, 5, 8, 9)}, "NaN"),
        ({"mask": np.zeros((5, 5))}, "expected the picture's 100 x 200"),
        ({"mask": np.zeros(SIZE)}, "empty"),
        ({"mask": "mask.png"}, "the mask is a str; expected H x W values .*read_mask"),
        ({"mask": np.full(SIZE, 3.0)}, "expected 0 to 1"),
        ({"scribble": np.zeros(SIZE)}, "empty"),
        ({"scribble": [[1, 2, 3]]}, "stroke has shape"),
        ({"scribble": [[1, 2], [1000, 3]]}, "outside"),
    ],
)
def test_what_is_refused(call: dict[str, object], message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        Prompt.create(SIZE, **call)
    assert "\n" not in str(caught.value)


def test_strokes_are_sampled_evenly_by_arc_length() -> None:
    # an L of 60 + 60 pixels drawn with very uneven clicks
    stroke = [[10, 10], [11, 10], [12, 10], [70, 10], [70, 70]]
    points = scribble_points(stroke, SIZE)
    assert len(points) == SCRIBBLE_POINTS == 24
    along = np.where(points[:, 1] <= 10, points[:, 0] - 10, 60 + points[:, 1] - 10)
    np.testing.assert_allclose(np.diff(along), 120 / 23, atol=1e-4)
    assert points[0].tolist() == [10, 10]
    assert points[-1].tolist() == [70, 70]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 199), st.integers(0, 99)), min_size=1, max_size=12),
        min_size=1,
        max_size=40,
    )
)
def test_never_more_than_24_points_and_all_on_the_strokes(
    strokes: list[list[tuple[int, int]]],
) -> None:
    points = scribble_points([np.array(s, float) for s in strokes], SIZE)
    assert 1 <= len(points) <= 24
    for x, y in points:
        nearest = min(_distance_to_stroke((x, y), s) for s in strokes)
        assert nearest < 1e-3


def _distance_to_stroke(p: tuple[float, float], stroke: list[tuple[int, int]]) -> float:
    best = min(float(np.hypot(p[0] - x, p[1] - y)) for x, y in stroke)
    for (x0, y0), (x1, y1) in itertools.pairwise(stroke):
        d = np.array([x1 - x0, y1 - y0], float)
        if not d.any():
            continue
        t = np.clip(((p[0] - x0) * d[0] + (p[1] - y0) * d[1]) / (d @ d), 0, 1)
        best = min(best, float(np.hypot(x0 + t * d[0] - p[0], y0 + t * d[1] - p[1])))
    return best


def test_two_strokes_share_all_points_by_length() -> None:
    # 24 points: 1 each, 22 more by length 3:1, that is 16.5 and 5.5: one is over
    long, short = np.array([[5, 5], [95, 5]], float), np.array([[5, 20], [35, 20]], float)
    points = scribble_points([long, short], (100, 120))
    assert [int((points[:, 1] == y).sum()) for y in (5, 20)] == [18, 6]


def test_painted_scribbles_spread_over_the_paint() -> None:
    painted = np.zeros(SIZE, bool)
    painted[48:53, 20:180] = True
    points = scribble_points(painted, SIZE)
    assert len(points) == 24
    assert painted[points[:, 1].astype(int), points[:, 0].astype(int)].all()
    xs = np.sort(points[:, 0])
    assert xs[0] <= 22
    assert xs[-1] >= 177
    assert np.diff(xs).max() < 16  # no stretch of the stroke is left out


@pytest.mark.parametrize(
    ("dtype", "full"),
    [("u1", 1), ("u1", 255), ("i4", 1), ("i4", 255), ("i8", 1), ("u2", 65535), ("f4", 1), ("?", 1)],
)
def test_binary_masks_of_any_type_are_the_same_mask(dtype: str, full: int) -> None:
    mask = np.zeros(SIZE, bool)
    mask[10:20, 30:50] = True
    prompt = Prompt.create(
        SIZE, mask=(mask.astype(np.int64) * full).astype(dtype), box=(0, 0, 9, 9)
    )
    np.testing.assert_array_equal(prompt.mask, mask.astype(np.float32))


def test_masks_of_other_ranges_are_refused() -> None:
    with pytest.raises(PromptError, match="expected 0 to 1, 255 or 65535"):
        Prompt.create(SIZE, mask=np.full(SIZE, -1))
    with pytest.raises(PromptError, match="different lengths"):
        Prompt.create(SIZE, mask=[[1, 2], [3]])
    with pytest.raises(PromptError, match="scribble"):
        Prompt.create(SIZE, scribble=[[[1, 2], [3]]])
