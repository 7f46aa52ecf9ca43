"""Pictures for people: what must be visible where."""

from __future__ import annotations

import numpy as np
import pytest

from zim import viz
from zim.errors import ImageError

GREY = np.full((100, 160, 3), 120, np.uint8)


def test_checkerboard_squares():
    board = viz.checkerboard(5, 7, cell=2)
    assert board.shape == (5, 7, 3)
    light, dark = board[0, 0, 0], board[0, 2, 0]
    assert light > dark
    rows = ["LLDDLLD", "LLDDLLD", "DDLLDDL", "DDLLDDL", "LLDDLLD"]
    want = [[light if c == "L" else dark for c in row] for row in rows]
    np.testing.assert_array_equal(board[..., 0], want)


def test_over_checkerboard_blends_by_alpha():
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[..., 0], rgba[10:20, :, 3], rgba[20:30, :, 3] = 200, 255, 128
    shown, board = viz.over_checkerboard(rgba, 5), viz.checkerboard(40, 40, 5)
    np.testing.assert_array_equal(shown[:10], board[:10])
    assert (shown[10:20] == (200, 0, 0)).all()
    want = np.array([200, 0, 0]) * (128 / 255) + board[20:30] * (127 / 255)
    assert np.abs(shown[20:30] - want).max() <= 0.51
    with pytest.raises(ImageError, match="H x W x 4"):
        viz.over_checkerboard(rgba[..., :3])


def test_overlay_shows_object_bright_and_rest_dark():
    alpha = np.zeros((100, 160), np.float32)
    alpha[30:70, 50:110] = 1
    before = GREY.copy()
    shown = viz.overlay(GREY, alpha, colour=(0, 0, 255)).astype(int)
    assert shown[50, 80, 2] > shown[50, 80, 0] + 50  # tinted
    assert shown[10, 10].max() < 80  # dark, and grey
    assert np.ptp(shown[10, 10]) == 0
    assert np.abs(shown[30, 80] - (0, 0, 255)).max() < 20  # the line along 0.5
    np.testing.assert_array_equal(GREY, before)
    with pytest.raises(ImageError):
        viz.overlay(GREY, alpha[1:])


def test_prompts_are_drawn_where_they_are():
    shown = viz.draw_prompts(
        GREY,
        points=[(30, 20, 1), (120, 80, 0)],
        boxes=(60, 30, 100, 70),
        scribbles=[[(10, 90), (50, 90)], np.array([(130, 10), (150, 10)])],
    )
    assert tuple(shown[20, 30]) == viz.POSITIVE_COLOUR
    assert tuple(shown[80, 120]) == viz.NEGATIVE_COLOUR
    assert tuple(shown[30, 80]) == viz.BOX_COLOUR
    assert tuple(shown[50, 100]) == viz.BOX_COLOUR
    assert tuple(shown[90, 30]) == viz.POSITIVE_COLOUR
    assert tuple(shown[10, 140]) == viz.POSITIVE_COLOUR
    assert tuple(shown[40, 80]) == (120, 120, 120)
    assert (GREY == 120).all()


def test_labels_may_come_apart_from_points_and_strokes_alone():
    shown = viz.draw_prompts(GREY, points=np.array([[30, 20], [60, 20]]), labels=[0, 1])
    assert tuple(shown[20, 30]) == viz.NEGATIVE_COLOUR
    assert tuple(shown[20, 60]) == viz.POSITIVE_COLOUR
    shown = viz.draw_prompts(GREY, scribbles=[(10, 90), (50, 90)])
    assert tuple(shown[90, 30]) == viz.POSITIVE_COLOUR


def test_marks_grow_with_the_picture():
    def marked(scale):
        picture = np.full((100 * scale, 160 * scale, 3), 120, np.uint8)
        drawn = viz.draw_prompts(picture, points=[(50 * scale, 50 * scale)])
        return (drawn != 120).any(-1).mean()

    assert marked(10) == pytest.approx(marked(20), rel=0.15)


@pytest.mark.parametrize("bad", [[(1, 2, 3, 4, 5)], [(float("nan"), 3)], 7])
def test_prompts_that_cannot_be_drawn(bad):
    with pytest.raises(ImageError, match="cannot draw"):
        viz.draw_prompts(GREY, boxes=bad)


def test_contact_sheet_lays_out_rows():
    red = np.full((50, 100, 3), (255, 0, 0), np.uint8)
    clear = np.zeros((50, 50, 4), np.uint8)
    matte = np.full((50, 25), 0.5, np.float32)
    sheet = viz.contact_sheet(
        [[(red, "red"), (clear, "a caption far too long for a picture so narrow")], [(matte, "")]],
        height=100,
        gap=10,
    )
    assert sheet.shape[1] == 10 + 200 + 10 + 100 + 10
    assert (sheet[60, 100] == (255, 0, 0)).all()
    assert set(np.unique(sheet[10:110, 220:320])) == {204, 255}
    # a row takes 100 for pictures, 18 for captions of 12, 10 for the gap: 10 + 128 = 138
    assert (sheet[138:238, 10:60] == 128).all()
    assert (sheet[110:130, 10:60] < 128).any()  # the caption
    assert (sheet[110:130, 320:] == 255).all()  # ... does not run out of its column
    with pytest.raises(ImageError):
        viz.contact_sheet([])
