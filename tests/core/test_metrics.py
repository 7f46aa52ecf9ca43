"""Metrics against values worked out by hand and against slow, independent twins."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zim import metrics
from zim.errors import ImageError, ZimError

Metric = Callable[..., float]
NAMES = ["sad", "mse", "mae", "grad", "conn", "grad_dim", "conn_dim"]
MEANS = {"mse", "mae", "grad"}


def metric(name: str) -> Metric:
    return getattr(metrics, name)


# --- slow twins: plain Python loops, written from the definitions ---------------------------


def twin_differences(pred: np.ndarray, target: np.ndarray) -> list[float]:
    height, width = pred.shape
    return [
        abs(float(pred[y, x]) - float(target[y, x])) for y in range(height) for x in range(width)
    ]


def twin_filter(alpha: np.ndarray, kernel: np.ndarray, *, repeat: bool) -> np.ndarray:
    height, width = alpha.shape
    half = kernel.shape[0] // 2
    out = np.zeros(alpha.shape)
    for y in range(height):
        for x in range(width):
            total = 0.0
            for dy in range(-half, half + 1):
                for dx in range(-half, half + 1):
                    v, u = y + dy, x + dx
                    if repeat:
                        v, u = min(max(v, 0), height - 1), min(max(u, 0), width - 1)
                    if 0 <= v < height and 0 <= u < width:
                        total += kernel[dy + half, dx + half] * float(alpha[v, u])
            out[y, x] = total
    return out


def twin_sobel(alpha: np.ndarray) -> np.ndarray:
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=float)
    gx = twin_filter(alpha, kernel, repeat=False)
    gy = twin_filter(alpha, kernel.T, repeat=False)
    return np.sqrt(gx**2 + gy**2 + 1e-8)


def twin_gaussian(alpha: np.ndarray) -> np.ndarray:
    sigma = 1.4

    def density(x: float) -> float:
        return math.exp(-(x**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))

    kernel = np.array(
        [[density(y) * -x * density(x) / sigma**2 for x in range(-4, 5)] for y in range(-4, 5)]
    )
    kernel /= math.sqrt(float((kernel**2).sum()))
    gx = twin_filter(alpha, kernel, repeat=True)
    gy = twin_filter(alpha, kernel.T, repeat=True)
    return np.sqrt(gx**2 + gy**2)


def twin_largest(binary: np.ndarray) -> set[tuple[int, int]]:
    """Flood fill from each unseen pixel in reading order; the first of the largest regions."""
    height, width = binary.shape
    seen: set[tuple[int, int]] = set()
    best: set[tuple[int, int]] = set()
    for start in ((y, x) for y in range(height) for x in range(width)):
        if not binary[start] or start in seen:
            continue
        region, todo = {start}, [start]
        while todo:
            y, x = todo.pop()
            for step in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                inside = 0 <= step[0] < height and 0 <= step[1] < width
                if inside and binary[step] and step not in region:
                    region.add(step)
                    todo.append(step)
        seen |= region
        if len(region) > len(best):
            best = region
    return best


def twin_connectedness(
    pred: np.ndarray, target: np.ndarray, *, skip_empty: bool
) -> tuple[np.ndarray, np.ndarray]:
    level = np.full(pred.shape, np.nan)
    for i in range(1, 11):
        body = twin_largest((pred >= i / 10) & (target >= i / 10))
        if not body and skip_empty:
            continue
        for y in range(pred.shape[0]):
            for x in range(pred.shape[1]):
                if np.isnan(level[y, x]) and (y, x) not in body:
                    level[y, x] = (i - 1) / 10
    level[np.isnan(level)] = 1.0

    def phi(alpha: np.ndarray) -> np.ndarray:
        d = alpha - level
        return 1.0 - d * (d >= 0.15)

    return phi(pred), phi(target)


def twin(name: str, pred: np.ndarray, target: np.ndarray) -> float:
    """The unscaled metric, slowly."""
    if name in {"sad", "mae", "mse"}:
        differences = twin_differences(pred, target)
        if name == "sad":
            return math.fsum(differences)
        power = 2 if name == "mse" else 1
        return math.fsum(d**power for d in differences) / len(differences)
    if name == "grad":
        return float(np.mean(np.abs(twin_sobel(pred) - twin_sobel(target))))
    if name == "grad_dim":
        return float(np.sum((twin_gaussian(pred) - twin_gaussian(target)) ** 2))
    a, b = twin_connectedness(pred, target, skip_empty=name == "conn_dim")
    return float(np.sum(np.abs(a - b)))


def disc(height: int, width: int, y: float, x: float, radius: float, soft: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.clip((radius - np.hypot(rows - y, columns - x)) / soft + 0.5, 0, 1)


def pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(7)
    noise = rng.random((13, 11))
    soft = disc(20, 26, 9.0, 11.0, 7.0, 4.0)
    two = np.maximum(soft, disc(20, 26, 4.0, 23.0, 3.0, 1.0))
    return {
        "noise": (noise, rng.random((13, 11))),
        "bytes": (np.round(noise * 255) / 255, np.round(rng.random((13, 11)) * 255) / 255),
        "tenths": (np.floor(noise * 11) / 10, np.floor(rng.random((13, 11)) * 11) / 10),
        "binary noise": (np.round(noise), np.round(rng.random((13, 11)))),
        "soft discs": (disc(20, 26, 10.0, 12.0, 6.0, 6.0), soft),
        "lost part": (soft, two),
        "never opaque": (soft * 0.83, two),
        "empty and full": (np.zeros((6, 9)), np.ones((6, 9))),
        "full and empty": (np.ones((6, 9)), np.zeros((6, 9))),
        "empty both": (np.zeros((5, 4)), np.zeros((5, 4))),
        "constants": (np.full((7, 5), 0.45), np.full((7, 5), 0.85)),
        "one row": (rng.random((1, 17)), rng.random((1, 17))),
        "one pixel": (np.array([[0.3]]), np.array([[0.9]])),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", list(pairs()))
def test_agrees_with_its_slow_twin(name: str, case: str) -> None:
    pred, target = pairs()[case]
    expected = twin(name, pred, target)
    assert metric(name)(pred, target, scale=False) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_connected_components_agree_on_many_small_ties() -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        height, width = rng.integers(1, 9, size=2)
        pred = rng.integers(0, 3, size=(height, width)) / 2
        target = rng.integers(0, 3, size=(height, width)) / 2
        for name in ("conn", "conn_dim"):
            expected = twin(name, pred, target)
            assert metric(name)(pred, target, scale=False) == pytest.approx(expected, abs=1e-12)


def test_conn_finds_the_largest_region_even_where_a_coarse_look_would_miss_it() -> None:
    # Dots on every 16th pixel outnumber the bar there, but the bar is the largest region.
    target = np.zeros((80, 80))
    target[::16, ::16] = 1.0
    target[40, 2:60] = 1.0
    assert metrics.conn(target, target, scale=False) == 0.0
    # Without the bar in the prediction the common part is 25 dots; the first one is the body.
    pred = target.copy()
    pred[40, 2:60] = 0.0
    assert metrics.conn(pred, target, scale=False) == pytest.approx(58.0)


# --- worked by hand -------------------------------------------------------------------------


def test_differences_by_hand() -> None:
    pred = np.array([[0.0, 1.0], [0.5, 0.25]])
    target = np.array([[1.0, 1.0], [0.0, 0.0]])
    # |p - g| = 1, 0, 1/2, 1/4
    assert metrics.sad(pred, target) == pytest.approx(0.00175)
    assert metrics.mae(pred, target) == pytest.approx(437.5)
    assert metrics.mse(pred, target) == pytest.approx(328.125)
    assert metrics.sad(pred, target, scale=False) == pytest.approx(1.75)
    assert metrics.mae(pred, target, scale=False) == pytest.approx(0.4375)
    assert metrics.mse(pred, target, scale=False) == pytest.approx(0.328125)


def test_grad_of_one_pixel_by_hand() -> None:
    pred = np.zeros((3, 3))
    pred[1, 1] = 1.0
    # Sobel around a dot: 4 corners (1, 1), 4 sides 2 in one direction, 0 in the middle.
    corner, side = math.sqrt(2 + 1e-8) - 1e-4, math.sqrt(4 + 1e-8) - 1e-4
    expected = (4 * corner + 4 * side) / 9
    assert metrics.grad(pred, np.zeros((3, 3)), scale=False) == pytest.approx(expected)
    assert metrics.grad(pred, np.zeros((3, 3))) == pytest.approx(1000 * expected)


def test_grad_pads_with_zeros_by_hand() -> None:
    # Against the zero border an all-opaque matte has edges: corners (3, 3), sides 4.
    corner, side = math.sqrt(18 + 1e-8) - 1e-4, math.sqrt(16 + 1e-8) - 1e-4
    expected = (4 * corner + 4 * side) / 9
    value = metrics.grad(np.ones((3, 3)), np.zeros((3, 3)), scale=False)
    assert value == pytest.approx(expected)


def test_grad_dim_of_one_pixel_by_hand() -> None:
    # The response to a dot is the kernel itself, and both kernels have unit norm: 1 + 1.
    pred = np.zeros((21, 21))
    pred[10, 10] = 1.0
    assert metrics.grad_dim(pred, np.zeros((21, 21)), scale=False) == pytest.approx(2.0)
    assert metrics.grad_dim(pred, np.zeros((21, 21))) == pytest.approx(0.002)
    # 9 x 9: nothing is seen five pixels away.
    far = np.zeros((21, 21), dtype=bool)
    far[:, 15] = True
    assert metrics.grad_dim(pred, np.zeros((21, 21)), mask=far) == pytest.approx(0.0, abs=1e-15)


def test_grad_dim_repeats_the_border() -> None:
    assert metrics.grad_dim(np.ones((5, 5)), np.zeros((5, 5))) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(
    ("pred", "target", "conn", "conn_dim"),
    [
        # A part of the truth is missing: it hangs on nothing, so its d is 1 there.
        ([1, 1, 0, 0, 0], [1, 1, 0, 1, 0], 1.0, 1.0),
        # Leaves the body after 0.5 because the neighbour goes on: d = 1 - 0.5.
        ([1, 0.5], [1, 1], 0.5, 0.5),
        # Leaves after 0.9: d = 0.1 is below the tolerance of 0.15.
        ([1, 0.9], [1, 1], 0.0, 0.0),
        # Level 0.1 and d = 0.15 exactly: the tolerance itself already counts.
        ([1, 0.1], [1, 0.25], 0.15, 0.15),
        # Nothing reaches 0.6: conn gives everything level 0.5, conn_dim keeps level 1.
        ([0.5, 0.5], [1, 1], 1.0, 0.0),
        # The background, however large, is never the body.
        ([0, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0, 1, 0], 1.0, 1.0),
        # No common pixel at all.
        ([1, 0], [0, 1], 2.0, 0.0),
    ],
)
def test_conn_by_hand(pred: list[float], target: list[float], conn: float, conn_dim: float) -> None:
    p, g = np.array([pred], dtype=float), np.array([target], dtype=float)
    assert metrics.conn(p, g, scale=False) == pytest.approx(conn)
    assert metrics.conn_dim(p, g, scale=False) == pytest.approx(conn_dim)
    assert metrics.conn(p, g) == pytest.approx(conn / 1000)
    assert metrics.conn_dim(p, g) == pytest.approx(conn_dim / 1000)


def test_conn_is_four_connected() -> None:
    diagonal = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    lower = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    assert metrics.conn(diagonal, lower, scale=False) == pytest.approx(1.0)
    # Both mattes hold the corner pixel, yet it touches the body only diagonally: it hangs equally
    # loose in both, so they agree.
    assert metrics.conn(diagonal, diagonal, scale=False) == 0.0


def test_thresholds_follow_the_callers_type() -> None:
    # float32 0.7 is slightly below the real 0.7 and must still reach the threshold 0.7.
    pred = np.array([[1.0, 0.7]], dtype=np.float32)
    target = np.ones((1, 2), dtype=np.float32)
    assert metrics.conn(pred, target, scale=False) == pytest.approx(0.3)
    assert metrics.size_bucket(np.full((4, 4), 0.3, dtype=np.float32)) == "S"


# --- scaling, masks, types ------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_scale(name: str) -> None:
    pred, target = pairs()["noise"]
    plain = metric(name)(pred, target, scale=False)
    assert plain > 0
    factor = 1e3 if name in MEANS else 1e-3
    assert metric(name)(pred, target) == pytest.approx(plain * factor)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_evaluate_is_the_five(scale: bool, masked: bool) -> None:
    pred, target = pairs()["lost part"]
    mask = target > 0.2 if masked else None
    values = metrics.evaluate(pred, target, scale=scale, mask=mask)
    assert list(values) == NAMES[:5]
    for name, value in values.items():
        assert type(value) is float
        assert value == metric(name)(pred, target, scale=scale, mask=mask)


@pytest.mark.parametrize("name", NAMES)
def test_mask_parts_make_up_the_whole(name: str) -> None:
    pred, target = pairs()["noise"]
    mask = np.zeros(pred.shape, dtype=bool)
    mask[:, 4:] = True
    parts = [metric(name)(pred, target, scale=False, mask=m) for m in (mask, ~mask)]
    whole = metric(name)(pred, target, scale=False)
    if name in MEANS:
        share = float(mask.mean())
        assert share * parts[0] + (1 - share) * parts[1] == pytest.approx(whole)
    else:
        assert sum(parts) == pytest.approx(whole)
    assert metric(name)(pred, target, mask=np.ones_like(mask)) == pytest.approx(
        metric(name)(pred, target)
    )


def test_mask_by_hand() -> None:
    pred, target = np.array([[0.5, 1.0, 0.0]]), np.array([[1.0, 0.0, 0.0]])
    mask = np.array([[True, False, True]])
    assert metrics.mae(pred, target, scale=False, mask=mask) == pytest.approx(0.25)
    assert metrics.mse(pred, target, scale=False, mask=mask) == pytest.approx(0.125)
    assert metrics.sad(pred, target, scale=False, mask=mask) == pytest.approx(0.5)


@pytest.mark.parametrize("name", NAMES)
def test_types_agree(name: str) -> None:
    rng = np.random.default_rng(11)
    pred, target = (rng.integers(0, 256, size=(9, 12), dtype=np.uint8) for _ in range(2))
    expected = metric(name)(pred / 255.0, target / 255.0)
    wide = [a.astype(np.uint16) * 257 for a in (pred, target)]
    single = [(a / 255.0).astype(np.float32) for a in (pred, target)]
    assert metric(name)(pred, target) == pytest.approx(expected)
    assert metric(name)(*wide) == pytest.approx(expected)
    assert metric(name)(*single) == pytest.approx(expected, rel=1e-5)
    assert metric(name)(pred[::-1, ::-1], target[::-1, ::-1]) == pytest.approx(
        metric(name)(pred[::-1, ::-1].copy(), target[::-1, ::-1].copy())
    )
    tensors = [torch.from_numpy(a).requires_grad_() for a in single]
    assert metric(name)(*tensors) == metric(name)(*single)
    assert metric(name)(torch.from_numpy(pred), target) == pytest.approx(expected)


def test_bool_and_half_types() -> None:
    opaque = np.array([[True, False], [True, True]])
    assert metrics.sad(opaque, opaque.astype(float)) == 0.0
    assert metrics.mae(~opaque, opaque, scale=False) == 1.0
    half = torch.tensor([[0.5, 0.25]], dtype=torch.bfloat16)
    assert metrics.sad(half, half.to(torch.float16), scale=False) == 0.0
    assert metrics.sad(half, torch.zeros(1, 2), mask=torch.tensor([[True, False]])) == 0.0005


def test_inputs_are_left_alone() -> None:
    pred, target = pairs()["noise"]
    before = pred.copy(), target.copy()
    for name in NAMES:
        metric(name)(pred, target)
    np.testing.assert_array_equal(pred, before[0])
    np.testing.assert_array_equal(target, before[1])


@pytest.mark.parametrize(
    ("opaque", "expected"),
    [(0, "S"), (99, "S"), (100, "M"), (999, "M"), (1000, "L"), (10000, "L")],
)
def test_size_bucket_edges(opaque: int, expected: str) -> None:
    target = np.full(10000, 0.3)
    target[:opaque] = 0.31
    assert metrics.size_bucket(target.reshape(100, 100)) == expected


# --- bad input ------------------------------------------------------------------------------

GOOD = np.full((4, 6), 0.5)


def spoiled(value: float) -> np.ndarray:
    array = GOOD.copy()
    array[1, 2] = value
    return array


@pytest.mark.parametrize(
    ("pred", "target", "hint"),
    [
        (np.zeros((6, 4)), GOOD, "4 x 6"),
        (np.zeros((4, 6, 1)), GOOD, "(4, 6, 1)"),
        (GOOD, np.zeros(24), "(24,)"),
        (np.zeros((0, 6)), np.zeros((0, 6)), "(0, 6)"),
        (spoiled(np.nan), GOOD, "NaN"),
        (GOOD, spoiled(np.inf), "inf"),
        (spoiled(-0.001), GOOD, "-0.001"),
        (GOOD, spoiled(1.001), "1.001"),
        (GOOD * 255, GOOD, "127.5"),
        (np.zeros((4, 6), dtype=np.int64), GOOD, "int64"),
        (GOOD.astype(complex), GOOD, "complex128"),
        ("matte.png", GOOD, "shape ()"),
        ([[0.5], [0.5, 0.5]], GOOD, "list"),
        (None, GOOD, "shape ()"),
        (torch.full((4, 6), float("nan")), GOOD, "NaN"),
    ],
)
@pytest.mark.parametrize("name", [*NAMES, "evaluate"])
def test_bad_mattes_get_one_clear_line(name: str, pred: object, target: object, hint: str) -> None:
    with pytest.raises(ImageError) as caught:
        getattr(metrics, name)(pred, target)
    message = str(caught.value)
    assert hint in message
    assert "\n" not in message
    assert isinstance(caught.value, ZimError)


@pytest.mark.parametrize(
    "mask",
    [
        np.ones((4, 5), dtype=bool),
        np.full((4, 6), 128, dtype=np.uint8),
        np.zeros((4, 6), dtype=bool),
    ],
)
def test_bad_masks(mask: np.ndarray) -> None:
    with pytest.raises(ImageError, match="mask"):
        metrics.sad(GOOD, GOOD, mask=mask)


def test_size_bucket_checks_its_input() -> None:
    with pytest.raises(ImageError, match="target"):
        metrics.size_bucket(spoiled(2.0))


# --- properties -----------------------------------------------------------------------------

ALPHA = st.floats(0, 1, allow_subnormal=False)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=10)
PAIR = SHAPES.flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float64, shape, elements=ALPHA), hnp.arrays(np.float64, shape, elements=ALPHA)
    )
)
quick = settings(max_examples=40, deadline=None)


@quick
@given(PAIR)
def test_symmetric_and_never_negative(pair: tuple[np.ndarray, np.ndarray]) -> None:
    for name in NAMES:
        there, back = metric(name)(*pair), metric(name)(*pair[::-1])
        assert there >= 0
        assert there == pytest.approx(back, rel=1e-12)


@quick
@given(PAIR)
def test_zero_exactly_on_equal_mattes(pair: tuple[np.ndarray, np.ndarray]) -> None:
    for name in NAMES:
        assert metric(name)(pair[0], pair[0].copy()) == 0.0
    different = not np.array_equal(*pair)
    assert (metrics.sad(*pair) > 0) == different
    assert (metrics.mae(*pair) > 0) == different


@quick
@given(PAIR, st.floats(0, 1), st.floats(0, 1))
def test_closer_to_the_truth_scores_better(
    pair: tuple[np.ndarray, np.ndarray], a: float, b: float
) -> None:
    pred, target = pair
    near, far = sorted((a, b))
    for name in ("sad", "mse", "mae"):
        low, high = (
            metric(name)(np.clip(target + s * (pred - target), 0, 1), target) for s in (near, far)
        )
        assert low <= high + 1e-12


@quick
@given(PAIR)
def test_how_the_differences_relate(pair: tuple[np.ndarray, np.ndarray]) -> None:
    sad, mae, mse = (metric(n)(*pair, scale=False) for n in ("sad", "mae", "mse"))
    assert sad == pytest.approx(mae * pair[0].size)
    assert mae**2 <= mse + 1e-12  # Jensen
    assert mse <= mae + 1e-12  # differences are at most 1


@quick
@given(PAIR)
def test_mirrors_and_transposes_change_nothing(pair: tuple[np.ndarray, np.ndarray]) -> None:
    for name in ("sad", "mse", "mae", "grad", "grad_dim"):
        value = metric(name)(*pair)
        assert metric(name)(pair[0][:, ::-1], pair[1][:, ::-1]) == pytest.approx(value, abs=1e-9)
        assert metric(name)(pair[0].T, pair[1].T) == pytest.approx(value, abs=1e-9)


@quick
@given(PAIR)
def test_conn_agrees_with_its_twin_everywhere(pair: tuple[np.ndarray, np.ndarray]) -> None:
    # Bytes, so that no value sits within rounding of a threshold.
    pred, target = (np.round(a * 255) / 255 for a in pair)
    for name in ("conn", "conn_dim"):
        expected = twin(name, pred, target)
        value = metric(name)(pred, target, scale=False)
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_scored_alike_from_numpy_and_torch(name: str) -> None:
    rng = np.random.default_rng(0)
    pred, target = rng.random((2, 40, 50)).round(1).astype(np.float16)
    wide = metric(name)(pred.astype(np.float32), target.astype(np.float32))
    assert metric(name)(pred, target) == wide
    assert metric(name)(torch.from_numpy(pred), torch.from_numpy(target)) == wide
