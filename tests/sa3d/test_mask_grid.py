"""Weights, inverse rendering, read-outs, self-prompting: against loops and hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zim.memory import peak_resident, reset_peak, resident
from zim_sa3d.cameras import look_at
from zim_sa3d.export import predict_view
from zim_sa3d.field import composite, render_view, trace_camera
from zim_sa3d.grid_field import _spread
from zim_sa3d.mask_grid import (
    READOUTS,
    MaskGrid,
    add_view,
    add_view_gradient,
    interpolate,
    keep_component,
    render_mask,
    splat,
)
from zim_sa3d.self_prompt import box_around, find_points


def matte_of(camera, field):
    return render_view(field, camera).accumulation


def test_weights_are_those_of_a_loop_and_sum_to_the_accumulation(ball_field, cameras):
    origins, directions = cameras[0].rays(torch.arange(240, 330))
    samples = ball_field.trace(origins, directions)
    edges = ball_field.space.distances(origins, directions, ball_field.samples)
    full = render_view(ball_field, cameras[0]).accumulation.ravel()
    for ray in range(0, 90, 7):
        light, total = 1.0, 0.0
        for k in range(ball_field.samples):
            t = (edges[ray, k] + edges[ray, k + 1]) / 2
            at = (origins[ray] + t * directions[ray])[None]
            if at.abs().max() > 1:
                continue
            step = float(edges[ray, k + 1] - edges[ray, k])
            alpha = 1 - np.exp(-float(ball_field.density(at)) * step)
            total += light * alpha
            light *= 1 - alpha
        mine = float(samples.weight[samples.ray == ray].sum())
        assert mine == pytest.approx(total, abs=2e-3)
        assert full[240 + ray] == pytest.approx(mine, abs=1e-5)


def test_a_ball_renders_as_a_ball(ball_field, cameras):
    view = render_view(ball_field, cameras[0])
    assert view.accumulation[12, 12] > 0.99
    assert view.accumulation[0, 0] < 0.01
    assert view.rgb[12, 12, 0] > 220
    place = np.linalg.norm(cameras[0].position)
    assert view.depth[12, 12] == pytest.approx(place - 0.5, abs=0.08)


def test_splatting_is_the_transpose_of_reading():
    generator = torch.Generator().manual_seed(1)
    grid = torch.rand(50, 3, generator=generator) * 2 - 1
    values = torch.rand(5, 5, 5, generator=generator)
    weights = torch.rand(50, 1, generator=generator)
    out = torch.zeros(1, 5, 5, 5)
    splat(out, grid, weights)
    left = (interpolate(values, grid) * weights[:, 0]).sum()
    torch.testing.assert_close((out[0] * values).sum(), left)
    assert float(out.sum()) == pytest.approx(float(weights.sum()), rel=1e-5)


def test_closed_form_gradient_and_a_loop_agree(ball_field, cameras):
    options = {"binarize": 0.3, "min_weight": 0.02}
    closed, slow = MaskGrid.empty(9), MaskGrid.empty(9)
    hand = np.zeros((9, 9, 9))
    seen = np.zeros((9, 9, 9))
    for k, camera in enumerate(cameras[:2]):
        matte = matte_of(camera, ball_field)
        matte[:, :11] = 0
        penalty = 5.0 if k == 0 else 1.0
        for grid, vote in ((closed, add_view), (slow, add_view_gradient)):
            vote(grid, trace_camera(ball_field, camera, 100), matte, penalty=penalty, **options)
        step = np.zeros((9, 9, 9))
        for _, _, samples in trace_camera(ball_field, camera, 10**6):
            for ray, at, weight in zip(samples.ray, samples.grid, samples.weight, strict=True):
                if weight <= 0.02:
                    continue
                sign = 1.0 if matte.ravel()[ray] > 0.3 else -penalty
                x, y, z = ((at + 1) / 2 * 8).tolist()
                for i, j, m in np.ndindex(2, 2, 2):
                    a, b, c = int(x) + i, int(y) + j, int(z) + m
                    share = (1 - abs(x - a)) * (1 - abs(y - b)) * (1 - abs(z - c))
                    step[min(c, 8), min(b, 8), min(a, 8)] += sign * float(weight) * share
        touched = np.abs(step) > 1e-7
        hand = np.where(touched, (hand * seen + step) / np.maximum(seen + 1, 1), hand)
        seen += touched
    assert hand.max() > 1
    assert hand.min() < -1
    np.testing.assert_allclose(closed.value.numpy(), slow.value.numpy(), atol=2e-4)
    np.testing.assert_allclose(closed.value.numpy(), hand, atol=2e-4)
    for name in ("inside", "total"):  # the soft 3D matte does not depend on how the step is taken
        np.testing.assert_allclose(getattr(closed, name), getattr(slow, name), atol=2e-4)
    assert closed.inside.max() > 1


def test_read_outs_find_the_ball_again(ball_field, cameras):
    grid = MaskGrid.empty(24)
    for camera in cameras[:3]:
        matte = matte_of(camera, ball_field)
        add_view(
            grid, trace_camera(ball_field, camera), matte, penalty=1, binarize=0.3, min_weight=0
        )
    truth = matte_of(cameras[3], ball_field) > 0.5
    for readout in READOUTS:
        limit = 0.0 if readout == "score" else 0.5
        values = render_mask(
            trace_camera(ball_field, cameras[3]),
            lambda at, r=readout: grid.read(at, r),
            (24, 24),
            0.1 if readout == "score" else 0.0,
        )
        found = values > limit
        assert (found & truth).sum() / (found | truth).sum() > 0.9, readout


def test_a_grid_comes_back_from_its_file(tmp_path, ball_field, cameras):
    grid = MaskGrid.empty(8)
    matte = matte_of(cameras[0], ball_field)
    add_view(
        grid, trace_camera(ball_field, cameras[0]), matte, penalty=5, binarize=0.3, min_weight=0
    )
    grid.save(tmp_path / "g.npz", scene="ball")
    again = MaskGrid.load(tmp_path / "g.npz")
    for name in ("value", "count", "inside", "total", "keep"):
        assert torch.equal(getattr(grid, name), getattr(again, name))


def test_only_the_largest_piece_stays():
    grid = MaskGrid.empty(12)
    grid.value[1:6, 1:6, 1:6] = 1.0
    grid.value[9:11, 9:11, 9:11] = 1.0
    assert keep_component(grid) == 8
    middle = torch.tensor([[10, 10, 10], [3, 3, 3]]).float() / 11 * 2 - 1
    assert grid.read(middle, "indicator").tolist() == [0.0, 1.0]


def test_the_piece_that_was_clicked_on_stays_though_it_is_smaller():
    grid = MaskGrid.empty(12)
    grid.value[1:6, 1:6, 1:6] = 1.0
    grid.value[9:11, 9:11, 8:10] = 1.0  # z, y, x
    places = torch.tensor([[8, 9, 9], [3, 3, 3]]).float() / 11 * 2 - 1  # x, y, z
    assert keep_component(grid, places[:1]) == 125
    assert grid.read(places, "indicator").tolist() == [1.0, 0.0]


def test_composite_adds_per_ray(ball_field, cameras):
    origins, directions = cameras[0].rays(torch.tensor([0, 24 * 12 + 12]))
    samples = ball_field.trace(origins, directions)
    total = composite(torch.ones_like(samples.weight), samples, 2)
    assert float(total[0]) < 0.01
    assert float(total[1]) > 0.99


def test_spread_of_weights_is_that_of_a_double_loop():
    generator = torch.Generator().manual_seed(3)
    ray = torch.tensor([0, 0, 0, 2, 2, 3])
    weight = torch.rand(6, generator=generator)
    way = torch.tensor([0.1, 0.4, 0.8, 0.3, 0.35, 0.9])
    total = sum(
        float(weight[i] * weight[j] * abs(way[i] - way[j]))
        for i in range(6)
        for j in range(6)
        if ray[i] == ray[j]
    )
    assert float(_spread(ray, weight, way, 4)) == pytest.approx(total / 4, rel=1e-5)


def test_the_box_is_around_the_largest_piece():
    mask = np.zeros((20, 30), bool)
    mask[3:9, 10:21] = True
    mask[15:17, 2:5] = True
    assert box_around(mask) == (10, 3, 21, 9)


@pytest.mark.slow
def test_twelve_million_pixels_are_voted_in_bounded_memory(ball_field):
    camera = look_at((2.4, 0.3, 0.6), (0, 0, 0), size=(3000, 4000), fov=42.0)
    matte = np.ones((3000, 4000), np.float32)
    grid = MaskGrid.empty(32)
    before = resident()
    if before is None or not reset_peak():
        pytest.skip("this system does not tell a process's peak of memory")
    with torch.no_grad():
        add_view(
            grid, trace_camera(ball_field, camera), matte, penalty=1, binarize=0.3, min_weight=0.01
        )
    peak = peak_resident()
    assert peak is not None
    assert peak - before < 300 * 2**20  # all samples at once would take over 10 GiB
    assert grid.value.max() > 0


class Everything:
    """A segmenter whose mask is the whole picture; it counts its calls."""

    def __init__(self):
        self.asked = []

    def set_image(self, image):
        pass

    def predict(
        self,
        point_coords=None,
        point_labels=None,
        box=None,
        mask_input=None,
        multimask_output=True,
        return_logits=False,
    ):
        self.asked.append(0 if point_coords is None else len(point_coords))
        return np.ones((1, 20, 30), np.float32), np.ones(1), np.ones((1, 5, 5))


def test_clicks_start_at_the_best_score_and_keep_their_distance():
    score = np.full((20, 30), -1.0, np.float32)
    score[4:8, 4:8] = 0.5
    score[5, 5] = 0.9
    score[14:18, 20:26] = 0.6
    depth = np.ones((20, 30), np.float32)
    points = find_points(score, depth, 10, Everything(), 0.3)
    assert points[0] == (5, 5)
    assert 1 < len(points) <= 10
    for k, (x, y) in enumerate(points):
        assert score[y, x] > 0
        for u, v in points[:k]:  # outside of the square of half-side 2 around every earlier one
            assert max(abs(x - u), abs(y - v)) > 1


def test_a_far_place_pays_for_its_distance():
    score = np.zeros((20, 30), np.float32)
    score[5, 5], score[5, 10], score[5, 25] = 1.0, 0.5, 0.5
    depth = np.ones((20, 30), np.float32)
    near = find_points(score, depth, 2, Everything(), 0.3)
    assert near == [(5, 5), (10, 5)]


def test_no_positive_score_gives_no_click():
    segmenter = Everything()
    flat = np.zeros((20, 30), np.float32)
    assert find_points(flat, flat, 10, segmenter, 0.3) == []
    assert segmenter.asked == []


def test_the_score_read_out_leaves_out_samples_lighter_than_asked(ball_field, cameras):
    grid = MaskGrid.empty(16)
    grid.value += 1
    seen = [
        predict_view(ball_field, grid, cameras[0], "score", weight)[0].sum() for weight in (0, 0.9)
    ]
    assert seen[0] > seen[1]
