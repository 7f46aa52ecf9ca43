"""The NVOS protocol on a tiny folder in the true layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from zim.output import save_alpha, save_rgb
from zim_sa3d.cameras import look_at
from zim_sa3d.cli import main
from zim_sa3d.nvos import _prompt, _table, scores, scribble_clicks
from zim_sa3d.synthetic import orbit, render


def test_clicks_lie_on_the_scribble_and_repeat_with_the_seed():
    painted = np.zeros((40, 60), bool)
    painted[18:23, 5:55] = True
    clicks = [scribble_clicks(painted, 0.2, np.random.default_rng(3)) for _ in range(2)]
    np.testing.assert_array_equal(clicks[0], clicks[1])
    assert 3 <= len(clicks[0]) <= 20
    assert all(painted[int(y), int(x)] for x, y in clicks[0])
    assert np.abs(clicks[0][:, 1] - 20).max() <= 1  # along the middle
    assert len(scribble_clicks(painted, 0.0, np.random.default_rng(0))) == 1


def test_scores_by_hand():
    truth = np.zeros((4, 4), bool)
    truth[:2] = True
    predicted = np.array([[True, False], [True, False]])  # left half, at half the size
    assert scores(predicted, truth) == pytest.approx({"iou": 100 * 4 / 12, "accuracy": 50.0})


def nvos_folder(root: Path) -> Path:
    scene = root / "fern"
    names = [f"IMG_{4020 + k}" for k in range(6)]
    for part in (scene / "images", *(root / p / "fern" for p in ("masks", "scribbles"))):
        part.mkdir(parents=True)
    (root / "reference_image" / "fern").mkdir(parents=True)
    rows = []
    for k, camera in enumerate(orbit(6, 48)):
        rgb, mattes = render(camera)
        save_rgb(scene / "images" / f"{names[k]}.png", rgb)
        right, up, back, place = camera.c2w.T
        matrix = np.stack([-up, right, back, place, np.array([48, 48, camera.fx])], 1)
        rows.append([*matrix.ravel(), 1.2, 6.0])
        if k == 0:
            save_rgb(root / "reference_image" / "fern" / f"{names[k]}.png", rgb)
            inside = mattes["ball"] > 0.9
            save_alpha(root / "scribbles" / "fern" / "pos_0_fern.png", inside.astype(np.float32))
            save_alpha(root / "scribbles" / "fern" / "neg_0_fern.png", mattes["cube"])
        if k == 3:
            save_alpha(root / "masks" / "fern" / f"{names[k]}_mask.png", mattes["ball"])
    np.save(scene / "poses_bounds.npy", np.array(rows))
    return root


def test_a_tiny_folder_is_scored_and_the_target_takes_no_part(tmp_path, capsys):
    root = nvos_folder(tmp_path / "nvos")
    out = tmp_path / "out"
    words = ["eval", "--nvos", str(root), "--output", str(out), "--factor", "1", "--steps", "30"]
    words += ["--iou-gate", "0", "--min-weight", "0", "--score-weight", "0", "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    (item,) = report["items"]
    assert item["error"] is None
    assert 0 <= item["metrics"]["iou"] <= 100
    assert item["metrics"]["paper_SAM"] == 84.9
    assert report["metrics"]["targets"] == 1
    log = (out / "fern" / "nano" / "views.csv").read_text()
    assert "IMG_4020,prompt" in log
    assert "IMG_4023" not in log
    prompt = json.loads((out / "fern" / "nano" / "prompts.json").read_text())
    assert {label for *_, label in prompt["point"]} == {0, 1}
    table = (out / "nvos.md").read_text()
    assert "seed 0" in table
    row = next(line for line in table.splitlines() if line.startswith("| fern"))
    assert row.endswith("| 84.9 | 86.6 |")
    assert f"{item['metrics']['iou']:.1f}" in row


def test_a_failed_target_is_in_no_mean():
    good = {
        "input": "fern",
        "model": "m",
        "metrics": {"iou": 80.0, "accuracy": 90.0},
        "error": None,
    }
    failed = {"input": "trex", "model": "m", "metrics": {}, "error": "no"}
    mean = _table([good, failed], ["m"]).splitlines()[-2]
    assert mean == "| mean | 80.0 | 90.0 | 84.9 | 86.6 |"


def test_clicks_on_a_smaller_view_keep_their_place(tmp_path):
    painted = np.zeros((40, 40), np.float32)
    painted[21, 21] = 1
    save_alpha(tmp_path / "pos_0.png", painted)
    camera = look_at((2, 0, 0), (0, 0, 0), size=(10, 10), fov=40)
    assert _prompt(tmp_path, camera, 0).points == ((4.875, 4.875),)  # (21.5 / 4) - 0.5


def test_a_folder_without_targets_is_a_usage_error(tmp_path, capsys):
    assert main(["eval", "--nvos", str(tmp_path)]) == 2
    assert "masks/<target>" in capsys.readouterr().err
