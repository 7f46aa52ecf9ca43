"""The baseline benchmark's own arithmetic and its reports, on small made-up pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from zim.errors import ImageError, ZimError
from zim.evaluation.samples import inner_point
from zim.segmenters.classical import band_trimap

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "classical_baselines.py"


@pytest.fixture(scope="module")
def bench(benchmark_script: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_script("classical_baselines")


@pytest.fixture(scope="module")
def scores(benchmark_script: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_script("matting_scores")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two pictures of a red disc on a green field, 120 x 90, with soft true alpha."""
    folder = tmp_path / "research_only" / "discs"
    for part in ("images", "alphas"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(5)
    rows, columns = np.mgrid[:90, :120]
    for i, (y, x) in enumerate([(40, 50), (50, 70)]):
        alpha = np.clip((25 - np.hypot(rows - y, columns - x)) / 3 + 0.5, 0, 1)[..., None]
        bgr = alpha * [30, 30, 210] + (1 - alpha) * [40, 170, 50] + rng.normal(0, 6, (90, 120, 3))
        cv2.imwrite(str(folder / "images" / f"disc{i}.png"), np.clip(bgr, 0, 255).astype(np.uint8))
        cv2.imwrite(str(folder / "alphas" / f"disc{i}.png"), np.rint(alpha * 255).astype(np.uint8))
    return folder


def test_prompts_come_from_the_true_alpha(scores: ModuleType, root: Path) -> None:
    first, _ = scores.load_pictures(root, 800, seed=0)
    # Alpha passes 0.1 at radius 26.2, so the disc spans 24..76 by 14..66, ends exclusive.
    np.testing.assert_array_equal(first.box, [24, 14, 77, 67])
    assert np.hypot(first.point[0] - 50, first.point[1] - 40) < 4
    np.testing.assert_array_equal(
        inner_point(first.alpha, "disc0", 0), inner_point(first.alpha, "disc0", 0)
    )
    small = scores.load_pictures(root, 60, seed=0)[0]
    assert small.rgb.shape == (45, 60, 3)
    assert small.alpha.shape == (45, 60)


def test_band_by_hand() -> None:
    mask = np.zeros((1, 9), dtype=bool)
    mask[0, 3:] = True
    # Outside the frame counts as neither, so the right end stays certain.
    np.testing.assert_array_equal(band_trimap(mask, 2), [[0, 0.5, 0.5, 0.5, 0.5, 1, 1, 1, 1]])


def test_bootstrap_of_a_constant_is_the_constant(scores: ModuleType) -> None:
    assert scores.bootstrap(np.full(7, 2.5), seed=0) == (2.5, 2.5)
    values = np.array([0.0] * 50 + [1.0] * 50)
    low, high = scores.bootstrap(values, seed=0)
    # The mean of 100 coins has standard deviation 0.05.
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.015)
    assert high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.015)


def test_run_writes_reports_that_rank_the_methods(
    bench: ModuleType, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    perfect = bench.Method("truth", lambda picture, kind: picture.alpha)
    monkeypatch.setattr(bench, "CLASSICAL", (*bench.CLASSICAL[:2], perfect))
    output, sheet = tmp_path / "out", tmp_path / "out" / "sheet.png"
    bench.run(bench.Options(root=(root,), output=output, sheet=sheet))
    report = json.loads((output / "classical.json").read_text())
    assert {"commit", "hardware", "date"} <= set(report["conditions"])
    rows = {(r["prompt"], r["method"]): r for r in report["summary"]["1:discs"]}
    assert set(rows) == {
        ("box", "filled box"),
        *((k, m) for k in ("box", "point") for m in ("GrabCut", "truth")),
    }
    box, cut, best = (rows["box", m] for m in ("filled box", "GrabCut", "truth"))
    assert best["mse"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert best["wins"] == 2
    assert 0 < cut["mse"]["mean"] < 0.2 * box["mse"]["mean"]
    assert rows["point", "GrabCut"]["mse"]["mean"] == pytest.approx(cut["mse"]["mean"], rel=0.5)
    mean = np.mean([r["sad"] for r in report["pictures"] if r["method"] == "filled box"])
    assert box["sad"]["mean"] == pytest.approx(mean)
    assert "| box | GrabCut | 2 |" in (output / "classical.md").read_text()
    assert cv2.imread(str(sheet)) is not None


def test_private_pictures_stay_out_of_the_repository(
    bench: ModuleType, root: Path, tmp_path: Path
) -> None:
    sheet = SCRIPT.parent / "sheet.png"
    with pytest.raises(ZimError, match="may not be passed on"):
        bench.run(bench.Options(root=(root,), output=tmp_path, sheet=sheet))
    assert not sheet.exists()


def test_missing_data_is_one_clear_line(scores: ModuleType, root: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="images/ and alphas/"):
        scores.load_pictures(tmp_path / "nothing", 800, 0)
    (root / "images" / "disc1.png").unlink()
    with pytest.raises(ImageError, match=r"disc1\.png"):
        scores.load_pictures(root, 800, 0)
