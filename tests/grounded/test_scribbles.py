import json

import cv2
import numpy as np
import pytest

from zim.errors import PromptError
from zim_grounded.scribbles import read_scribble

SIZE = (200, 300)


def read(tmp_path, data):
    file = tmp_path / "stroke.json"
    file.write_text(json.dumps(data))
    return read_scribble(file, SIZE)


def test_a_straight_line_gives_24_points_ten_pixels_apart(tmp_path):
    prompt = read(tmp_path, [[20, 50], [20, 50], [250, 50]])
    assert len(prompt.points) == 24
    np.testing.assert_allclose(np.diff(prompt.points[:, 0]), 10, atol=1e-4)
    assert (prompt.labels == 1).all()


def test_a_corner_is_not_cut(tmp_path):
    prompt = read(tmp_path, [[20, 20], [120, 20], [120, 120]])
    assert np.hypot(*(prompt.points - [120, 20]).T).min() <= 5


def test_a_dot_is_one_point_and_swapped_axes_swap_points(tmp_path):
    assert len(read(tmp_path, [[50, 60]]).points) == 1
    stroke = np.array([[20, 30], [90, 60], [100, 150]])
    a, b = read(tmp_path, stroke.tolist()), read(tmp_path, stroke[:, ::-1].tolist())
    np.testing.assert_allclose(a.points, b.points[:, ::-1])


def test_strokes_share_the_points_by_length(tmp_path):
    prompt = read(tmp_path, [[[0, 10], [180, 10]], [[0, 90], [60, 90]]])
    upper = int((prompt.points[:, 1] < 50).sum())
    assert len(prompt.points) <= 24
    assert upper == pytest.approx(18, abs=1)
    assert len(prompt.points) - upper == pytest.approx(6, abs=1)


def test_background_strokes_share_too_and_sizes_are_scaled(tmp_path):
    strokes = [
        {"label": 1, "points": [[5, 5], [95, 5]]},
        {"label": 0, "points": [[5, 50], [35, 50]]},
    ]
    prompt = read(tmp_path, {"width": 150, "height": 100, "strokes": strokes})
    assert len(prompt.points) <= 24
    on = prompt.points[prompt.labels == 1]
    assert len(on) == 18
    assert on.min(0).tolist() == [10, 10]
    assert on.max(0).tolist() == [190, 10]
    assert (prompt.points[prompt.labels == 0][:, 1] == 100).all()


def test_a_painted_stroke_stays_on_the_paint(tmp_path):
    painted = np.zeros(SIZE, np.uint8)
    cv2.ellipse(painted, (150, 100), (70, 70), 0, 40, 320, 255, 9)
    cv2.imwrite(str(tmp_path / "c.png"), painted)
    prompt = read_scribble(tmp_path / "c.png", SIZE)
    assert 10 <= len(prompt.points) <= 24
    x, y = prompt.points.astype(int).T
    assert (painted[y, x] > 0).all()
    with pytest.raises(PromptError, match=r"300 x 200; expected the picture's own 301 x 200"):
        read_scribble(tmp_path / "c.png", (200, 301))


@pytest.mark.parametrize(
    "data",
    [
        *(3, [], {"strokes": []}, {"strokes": [{}]}, [["a", 1]], [[1, 2, 3]], [[1, 2], [3]]),
        {"strokes": [{"label": 0, "points": [[1, 2]]}]},
        {"strokes": [{"label": 7, "points": [[1, 2]]}]},
    ],
)
def test_bad_json_is_one_line(tmp_path, data):
    with pytest.raises(PromptError) as caught:
        read(tmp_path, data)
    assert "\n" not in str(caught.value)
