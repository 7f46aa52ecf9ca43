"""nerfacto through nerfstudio: trains, loads, renders, segments, all on the CPU.

Runs where nerfstudio is installed, in an environment of its own: ``.ci/nerfstudio``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from zim.errors import CheckpointError, ConfigError
from zim_sa3d import backends
from zim_sa3d.cli import main
from zim_sa3d.export import predict_view
from zim_sa3d.field import psnr, render_view
from zim_sa3d.field_note import write_note
from zim_sa3d.mask_grid import MaskGrid
from zim_sa3d.nerfstudio_field import NerfstudioField
from zim_sa3d.readers import read_transforms
from zim_sa3d.segment import iou
from zim_sa3d.synthetic import synthetic_scene

pytest.importorskip("nerfstudio")
pytestmark = [
    pytest.mark.slow,
    # nerfstudio 1.1.5 uses what torch and numpy have deprecated since
    pytest.mark.filterwarnings("default"),
]
STEPS = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run folder after the whole command with nerfacto."""
    path = tmp_path_factory.mktemp("run")
    synthetic_scene(path / "scene", size=64, views=16)
    words = ["--scene", "synthetic", "--model", "oracle", "--output", str(path), "--json"]
    words += ["--backend", "nerfstudio", "--device", "cpu", "--steps", str(STEPS)]
    assert main(words) == 0
    return path


def test_whole_command(folder):
    report = json.loads((folder / "report.json").read_text())
    assert report["metrics"]["backend"] == "nerfstudio"
    assert all(Path(path).exists() for path in report["outputs"].values())
    assert report["metrics"]["psnr"] > 15
    assert report["metrics"]["iou"] > 0.5


def test_field_renders_what_nerfstudio_itself_renders(folder):
    from nerfstudio.cameras.cameras import Cameras  # pyright: ignore[reportMissingImports]

    scene = read_transforms(folder / "scene")
    field = NerfstudioField.load(folder, "cpu")
    camera = scene.views[0].camera.resized(24, 24)
    ours = render_view(field, camera)
    assert psnr(render_view(field, scene.views[0].camera).rgb, scene.views[0].rgb()) > 14
    # the camera as nerfstudio sees it: by its own record of how it moved the scene
    run = json.loads((folder / "field.json").read_text())["config"]
    moved = json.loads((Path(run).parent / "dataparser_transforms.json").read_text())
    pose = np.array(moved["transform"]) @ np.vstack([camera.c2w, [0, 0, 0, 1]])
    pose[:, 3] *= moved["scale"]
    theirs = Cameras(
        torch.tensor(pose, dtype=torch.float32)[None], camera.fx, camera.fy, camera.cx, camera.cy
    )
    theirs.height = theirs.width = torch.tensor([[24]])
    out = field.model.get_outputs_for_camera_ray_bundle(theirs.generate_rays(0))
    np.testing.assert_allclose(ours.accumulation, out["accumulation"][..., 0], atol=6e-3)
    # what is behind everything differs: nerfacto repeats the last sample, wherever that lies
    solid = ours.accumulation > 0.95
    assert solid.mean() > 0.05
    rgb = (out["rgb"].numpy() * 255).round()
    assert np.abs(ours.rgb - rgb)[solid].mean() < 3.0
    depth = out["expected_depth"][..., 0].numpy() / moved["scale"]
    assert np.abs(ours.depth - depth)[solid].mean() < 0.02


def test_object_is_where_it_is(folder):
    """The exported points lie on the ball in the scene's units, whatever nerfstudio made of it."""
    from plyfile import PlyData

    vertex = PlyData.read(folder / "object.ply")["vertex"]
    xyz = np.stack([vertex[axis] for axis in "xyz"], 1)
    distance = np.linalg.norm(np.median(xyz, axis=0) - [0.45, 0.35, -0.12])
    assert distance < 0.25


def test_a_run_trained_elsewhere_is_taken_up(folder, tmp_path):
    """The same scene turned, moved and scaled: its frame is found, its object is found."""
    scene = read_transforms(folder / "scene")
    field = backends.load(folder, "cpu")
    run = Path(json.loads((folder / "field.json").read_text())["config"])
    angle = 0.7
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]]
    )
    motion = np.concatenate([turn, [[0.3], [-0.2], [0.5]]], 1)
    views = tuple(replace(v, camera=v.camera.moved(motion, 2.0)) for v in scene.views)
    other = replace(scene, views=views, kind="inward", extent=None)
    taken = backends.train(
        other,
        tmp_path,
        backend="auto",
        device="cpu",
        steps=None,
        seed=0,
        load_config=run,
    )
    first = render_view(field, scene.views[0].camera)
    second = render_view(taken, views[0].camera)
    assert np.abs(first.rgb.astype(int) - second.rgb).mean() < 2.0
    seen = first.accumulation > 0.9
    assert np.median((second.depth / first.depth)[seen]) == pytest.approx(2.0, rel=0.02)
    bent = replace(views[3], camera=views[4].camera)
    wrong = replace(other, views=(*views[:3], bent, *views[4:]))
    with pytest.raises(ConfigError, match="do not fit onto each other"):
        backends.train(
            wrong, tmp_path, backend="auto", device="cpu", steps=None, seed=0, load_config=run
        )


def test_mask_grid_reads_out_in_held_out_views(folder):
    scene = read_transforms(folder / "scene")
    field = backends.load(folder, "cpu")
    grid = MaskGrid.load(folder / "mask_grid.npz")
    hits = []
    for i in scene.held_out:
        mask, _ = predict_view(field, grid, scene.views[i].camera, "indicator")
        hits.append(iou(mask, scene.views[i].matte("ball") > 0.5))
    assert np.mean(hits) > 0.5


def test_broken_runs_are_one_line(folder, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        backends.train(
            read_transforms(folder / "scene"),
            tmp_path,
            backend="nerfstudio",
            device="cpu",
            steps=None,
            seed=0,
            load_config=tmp_path / "config.yml",
        )
    with pytest.raises(ConfigError, match="no method 'nerfacta'"):
        backends.train(
            read_transforms(folder / "scene"),
            tmp_path,
            backend="nerfstudio",
            device="cpu",
            steps=1,
            seed=0,
            method="nerfacta",
        )
    write_note(tmp_path, {"backend": "nerfstudio"})
    with pytest.raises(CheckpointError, match="is damaged"):
        backends.load(tmp_path, "cpu")
