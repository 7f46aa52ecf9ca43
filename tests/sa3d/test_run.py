"""The command on a small copy of the built-in scene, and what it says when things are wrong."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zim.commandline import add_common_flags
from zim.errors import PromptError, ZimError
from zim_sa3d.cli import _configure, main
from zim_sa3d.field import render_view
from zim_sa3d.folders import folder_name
from zim_sa3d.grid_field import GridField, GridSettings, train_grid
from zim_sa3d.mask_grid import MaskGrid
from zim_sa3d.oracle import OracleSegmenter
from zim_sa3d.presets import POINTS
from zim_sa3d.readers import prepare, read_transforms
from zim_sa3d.runs import Run, middle_of
from zim_sa3d.segment import ScenePrompt, Settings, segment
from zim_sa3d.synthetic import orbit, render, synthetic_scene

SMALL = GridSettings(resolutions=(40, 72), steps=(120, 180), rays=512, samples=(48, 80))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run folder with the scene at 64 x 64 and a field trained on it."""
    path = tmp_path_factory.mktemp("run")
    scene = synthetic_scene(path / "scene", size=72, views=16)
    train_grid(scene, SMALL).save(path)
    return path


def test_mattes_of_the_scene_are_shares_of_its_pixels():
    rgb, mattes = render(orbit(24, 48)[0])
    assert rgb.shape == (48, 48, 3)
    total = np.sum(list(mattes.values()), axis=0)
    assert total.max() <= 1 + 1e-6
    for alpha in mattes.values():
        ninths = alpha * 9
        np.testing.assert_allclose(ninths, ninths.round(), atol=1e-4)
        assert 0.005 < alpha.mean() < 0.3


def test_whole_command_from_one_click_with_true_mattes(folder, capsys):
    assert (
        main(["--scene", "synthetic", "--output", str(folder), "--model", "oracle", "--json"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert {"mask", "rgba", "ply", "mesh", "report", "csv", "mp4", "gif"} <= set(report["outputs"])
    assert all(Path(path).exists() for path in report["outputs"].values())
    assert report["metrics"]["psnr"] > 17
    assert report["metrics"]["iou"] > 0.5  # few small views; the slow test asks for more
    assert report["metrics"]["views_accepted"] >= 0.8
    masked = json.loads((folder / "transforms_masked.json").read_text())
    for frame in masked["frames"]:
        assert (folder / frame["mask_path"]).is_file()
        assert (folder / frame["file_path"]).is_file()
    # the exported points lie on the ball, in the scene's own units
    from plyfile import PlyData

    vertex = PlyData.read(folder / "object.ply")["vertex"]
    xyz = np.stack([vertex[axis] for axis in "xyz"], 1)
    distance = np.linalg.norm(xyz - [0.45, 0.35, -0.12], axis=1)
    assert np.median(distance) < 0.36
    assert len(PlyData.read(folder / "object_mesh.ply")["face"].data) > 50
    rows = (folder / "views.csv").read_text().splitlines()
    assert len(rows) == 15  # header, the user's view, 13 others


def test_field_and_grid_come_back_from_the_folder(folder):
    scene = read_transforms(folder / "scene")
    field = GridField.load(folder)
    first = render_view(field, scene.views[0].camera).rgb.astype(int)
    assert np.abs(first - scene.views[0].rgb()).mean() < 30
    if (folder / "mask_grid.npz").is_file():
        assert (MaskGrid.load(folder / "mask_grid.npz").value > 0).any()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda note: note.pop("version"), "an older zim-sa3d"),
        (lambda note: note.update(version=note["version"] + 1), "a newer zim-sa3d"),
        (lambda note: note.pop("space"), "is damaged"),
    ],
)
def test_a_field_of_another_version_is_refused_in_one_line(
    ball_field, tmp_path, capsys, change, text
):
    synthetic_scene(tmp_path / "scene", size=16, views=3)
    ball_field.save(tmp_path)
    note = json.loads((tmp_path / "field.json").read_text())
    change(note)
    (tmp_path / "field.json").write_text(json.dumps(note))
    assert main(["train", "--scene", "synthetic", "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert text in error
    assert "train again with --scene SCENE --overwrite" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("shuffled", [False, True])
def test_only_poses_of_other_pictures_are_told_by_the_poor_fit(tmp_path, capsys, shuffled):
    scene = synthetic_scene(tmp_path / "scene", size=24, views=16)
    path = tmp_path / "scene" / "transforms.json"
    about = json.loads(path.read_text())
    if shuffled:
        order = np.random.default_rng(0).permutation(len(scene.views))
        poses = [about["frames"][k]["transform_matrix"] for k in order]
        for frame, pose in zip(about["frames"], poses, strict=True):
            frame["transform_matrix"] = pose
        path.write_text(json.dumps(about))
    given = read_transforms(tmp_path / "scene")
    train_grid(given, GridSettings((24, 32), (40, 60), 384, (32, 48))).save(tmp_path)
    assert main(["train", "--scene", "synthetic", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    hint = re.search(r"PSNR is 1\d\.\d dB, which is low: are the poses right", printed.err)
    assert bool(hint) == shuffled, printed


def test_gradient_and_closed_form_give_the_same_object(folder):
    scene = read_transforms(folder / "scene")
    field = GridField.load(folder)
    views = scene.train[:4]
    prompt = ScenePrompt(views[0], (middle_of(scene.views[views[0]].matte("cube")),), (1,))
    grids = [
        segment(
            scene, field, OracleSegmenter(scene), prompt, Settings(side=24, gradient=kind), views
        ).grid.value.numpy()
        for kind in (False, True)
    ]
    np.testing.assert_allclose(grids[0], grids[1], atol=1e-3)


def test_a_click_on_nothing_and_a_gate_that_nothing_passes(folder):
    scene = read_transforms(folder / "scene")
    field = GridField.load(folder)
    oracle = OracleSegmenter(scene)
    corner = ScenePrompt(scene.train[0], ((1.0, 1.0),), (1,))
    with pytest.raises(PromptError, match="is the background"):  # the sky is no object
        segment(scene, field, oracle, corner, Settings(side=24), scene.train[:3])
    first = scene.train[0]
    ball = ScenePrompt(first, (middle_of(scene.views[first].matte("ball")),), (1,))
    with pytest.raises(ZimError, match=r"all \d+ views were rejected .*--iou-gate"):
        segment(scene, field, oracle, ball, Settings(side=24, iou_gate=1.01), scene.train[:3])


def test_an_empty_field_is_an_error_that_says_so(folder):
    scene = read_transforms(folder / "scene")
    field = GridField.load(folder)
    field.voxels[:, 0] = -30.0
    first = scene.train[0]
    ball = ScenePrompt(first, (middle_of(scene.views[first].matte("ball")),), (1,))
    with pytest.raises(PromptError, match="meets nothing in 3D"):
        segment(scene, field, OracleSegmenter(scene), ball, Settings(side=24), [])


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--object", "chair"], 2, "expected one of ball"),
        (["--view", "99"], 1, "no view '99'"),
        (["--view", "-1"], 1, "no view '-1'"),
        (["--prompts", "/nowhere.json"], 1, "No such file"),
        (["--prompts", "p.json", "--points", "3,3"], 2, "leave out --points, or --prompts"),
        (["--prompts", "p.json", "--view", "0"], 2, "leave out --view, or --prompts"),
        (["--points", "3"], 2, "not X,Y"),
        (["--binarize", "5"], 2, "not a number from 0 to 1"),
        (["--penalty", "nan"], 2, "'nan' is not a number of at least 0"),
        (["--first-view-penalty", "-1"], 2, "'-1' is not a number of at least 0"),
        (["--min-weight", "1"], 2, "'1' is not a number from 0 to below 1"),
        (["--score-weight", "nan"], 2, "'nan' is not a number from 0 to below 1"),
    ],
)
def test_wrong_flags_are_one_line(folder, capsys, words, code, text):
    assert (
        main(
            [
                "segment",
                "--scene",
                "synthetic",
                "--output",
                str(folder),
                "--model",
                "oracle",
                *words,
            ]
        )
        == code
    )
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"points": [[1000, 10]]}, "outside"),
        ({"box": [30, 20, 1]}, "x0, y0, x1, y1"),
        ({"point": [[5, 5]], "mask": "m.png"}, "mask and scribble are not taken"),
        ({"view": "view_003"}, "neither point nor bbox"),
        ([1], "no JSON object"),
    ],
)
def test_prompt_files_are_checked_before_anything_is_trained(tmp_path, capsys, data, said):
    synthetic_scene(tmp_path / "o" / "scene", size=32, views=4)
    (tmp_path / "p.json").write_text(json.dumps(data))
    words = ["--scene", "synthetic", "-o", str(tmp_path / "o"), "--model", "oracle"]
    assert main([*words, "--prompts", str(tmp_path / "p.json")]) == 1
    assert said in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["scene"]


def test_rendering_what_was_never_segmented_trains_nothing(tmp_path, capsys):
    synthetic_scene(tmp_path / "scene", size=16, views=3)
    assert main(["render", "-o", str(tmp_path)]) == 1
    assert "mask_grid.npz does not exist; run zim-sa3d segment first" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["scene"]


def test_a_model_that_is_not_there_is_told_before_anything_is_trained(tmp_path, capsys):
    out = tmp_path / "o"
    code = main(["--scene", "synthetic", "--output", str(out), "--model", "vit_b"])
    assert code == 1
    assert "vit_b: no weights at" in capsys.readouterr().err
    assert not out.exists()


def test_missing_scene_is_one_line(tmp_path, capsys):
    code = main(["--scene", "trex", "--data", str(tmp_path), "--output", str(tmp_path / "o")])
    assert code == 1
    assert not (tmp_path / "o").exists()
    assert "poses_bounds.npy" in capsys.readouterr().err


def test_a_run_folder_knows_its_scene(folder, tmp_path, capsys):
    words = ["--output", str(folder), "--model", "oracle"]
    assert main(["segment", *words, "--object", "cube", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["views_accepted"] > 0
    assert not (folder / "summary.png").exists()  # nor anything else of an object before
    assert not (folder / "object.ply").exists()
    assert not list((folder / "overlay").glob("*"))
    assert main(["render", *words, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["object"] == "cube"
    assert metrics["iou"] > 0.5
    for command in (["segment"], ["render", "-o", str(tmp_path)], ["prepare"], []):
        assert main([*command, "--model", "oracle"]) == 2
        assert "the following arguments are required: --scene" in capsys.readouterr().err
    assert main(["train", "--overwrite", *words]) == 2
    assert "name it with --scene" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_flags_that_say_other_than_the_folder_holds_are_told(tmp_path, capsys):
    """Nothing is done: neither with what was given nor, silently, with what is there."""
    here, other, run = tmp_path / "here" / "desk", tmp_path / "other" / "desk", tmp_path / "run"
    for folder in (here, other):
        synthetic_scene(folder, size=24, views=4)
    words = ["train", "-o", str(run)]
    made = [*words, "--scene", str(here), "--factor", "2", "--steps", "3", "--backend", "grid"]
    assert main(made) == 0
    (here.parent / "link").symlink_to(here)
    capsys.readouterr()
    scene = ["--scene", str(here)]
    for same in (
        made,
        words,
        [*words, *scene],
        ["prepare", "-o", str(run), *scene, "--steps", "3"],
    ):
        assert main(same) == 0
    assert main([*words, "--scene", str(here.parent / "link"), "--backend", "auto"]) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "now" not in capsys.readouterr().err
    for flags, was in (
        (["--scene", str(other)], f"--scene {here}, now --scene {other}"),
        (["--scene", "synthetic"], f"--scene {here}, now --scene synthetic"),
        (["--factor", "4"], "--factor 2, now --factor 4"),
        (["--steps", "5"], "--steps 3, now --steps 5"),
        (["--backend", "nerfstudio"], "--backend grid, now --backend nerfstudio"),
        (["--load-config", "c.yml"], "no --load-config, now --load-config "),
    ):
        for command in (["train"], ["segment", "--points", "5,5"], ["render"], ["prepare"], []):
            assert main([*command, "-o", str(run), "--model", "grabcut", *flags]) == 2
            error = capsys.readouterr().err
            assert was in error
            assert "another --output, or" in error
            assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert main([*words, "--scene", str(other), "--steps", "5", "--overwrite"]) == 0
    here.rename(tmp_path / "gone")  # a scene is not needed any more once it is prepared
    other.rename(tmp_path / "desk")
    assert main([*words, "--scene", "desk", "--data", str(tmp_path), "--steps", "5"]) == 0


def test_the_built_in_scene_has_one_size(tmp_path, capsys):
    assert main(["prepare", "--scene", "synthetic", "--factor", "2", "-o", str(tmp_path)]) == 2
    assert "--factor: the built-in scene has one size" in capsys.readouterr().err
    synthetic_scene(tmp_path / "scene", size=16, views=3)
    assert main(["prepare", "--factor", "2", "-o", str(tmp_path)]) == 2
    assert "no --factor, now --factor 2 is given" in capsys.readouterr().err


def test_a_free_click_is_not_measured_against_an_object(folder, capsys):
    scene = read_transforms(folder / "scene")
    view = scene.train[0]
    x, y = middle_of(scene.views[view].matte("cube"))
    words = ["segment", "-o", str(folder), "--model", "oracle", "--view", scene.views[view].name]
    assert main([*words, "--points", f"{x},{y}", "--json"]) == 0
    assert "iou" not in json.loads(capsys.readouterr().out)["metrics"]
    with np.load(folder / "mask_grid.npz") as data:
        assert str(data["object"]) == ""


def test_a_folder_is_called_what_it_is_called(tmp_path, monkeypatch):
    (tmp_path / "desk" / "in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "desk" / "in")
    assert [folder_name(given) for given in (".", "..", "x/trex/", "/")] == [
        "in",
        "desk",
        "trex",
        "scene",
    ]


def test_a_scene_without_its_name_has_no_preset_prompt(tmp_path, capsys):
    synthetic_scene(tmp_path / "scene", size=32, views=4)
    path = tmp_path / "scene" / "transforms.json"
    about = json.loads(path.read_text())
    for frame in about["frames"]:
        frame.pop("mattes")
    path.write_text(json.dumps(about))
    assert main(["segment", "--output", str(tmp_path)]) == 2
    assert "does not tell the prompt; give --points" in capsys.readouterr().err


def test_what_stands_behind_no_flag_is_told_its_flag(folder, tmp_path, capsys):
    for words, said in (
        (["segment", str(folder)], f"the folder of a run with --output {folder}"),
        ([str(folder), "--model", "oracle"], f"the folder of a run with --output {folder}"),
        (["prepare", "fern"], "give the scene with --scene fern"),
        (["view", str(tmp_path)], f"give the scene with --scene {tmp_path}"),
        (["train", "--scene", "synthetic", "--stepz", "5"], "did you mean --steps?"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_a_replaced_scene_leaves_nothing_of_the_one_before(ball_field, tmp_path, capsys):
    source, run = tmp_path / "source", tmp_path / "run"
    synthetic_scene(source, size=16, views=3)
    synthetic_scene(run / "scene", size=16, views=4)
    ball_field.save(run)
    (run / "overlay").mkdir()
    for name in ("mask_grid.npz", "object.ply", "overlay/view_003.png", "prompts.json", "mine"):
        (run / name).touch()
    assert main(["prepare", "--scene", str(source), "-o", str(run), "--overwrite"]) == 0
    left = {path.name for path in run.iterdir()}
    assert left == {"scene", "overlay", "prompts.json", "mine", "report.json"}
    assert not list((run / "overlay").iterdir())


@pytest.mark.parametrize(("factor", "click"), [(1, (6.5, 2.5)), (4, (3, 1)), (8, (1.25, 0.25))])
def test_preset_clicks_are_of_the_working_size(tmp_path, monkeypatch, factor, click):
    """Pictures of half the size that the poses state; a later --factor changes nothing."""
    synthetic_scene(tmp_path / "trex", size=16, views=3)
    path = tmp_path / "trex" / "transforms.json"
    about = json.loads(path.read_text())
    for frame in about["frames"]:
        del frame["mattes"]
        frame |= {"w": 32, "h": 32, "cx": 16, "cy": 16}
    path.write_text(json.dumps(about))
    prepare(str(path.parent), tmp_path / "run" / "scene", factor=factor)
    again = read_transforms(tmp_path / "run" / "scene")
    words = ["--scene", str(path.parent), "-o", str(tmp_path / "run"), "--factor", "2"]
    monkeypatch.setitem(POINTS, "trex", ((3, 1),))
    parser = argparse.ArgumentParser()
    _configure(parser)
    add_common_flags(parser)
    assert Run(parser.parse_args(words)).prompt(again).points == (click,)
    monkeypatch.setitem(POINTS, "trex", ((300, 300),))
    with pytest.raises(PromptError, match="outside"):  # told at once, not after training
        Run(parser.parse_args(words)).prompt(again)


def test_help_is_quick_and_light():
    code = "import sys, zim_sa3d.cli as c; c.main(['--help']); " + (
        "assert not {'torch', 'numpy', 'cv2', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--scene" in done.stdout


@pytest.mark.slow
def test_built_in_scene_reaches_what_the_documentation_says(tmp_path, capsys):
    words = ["--scene", "synthetic", "--output", str(tmp_path / "run"), "--model", "oracle"]
    assert main([*words, "--object", "ball", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["psnr"] >= 22
    assert metrics["iou"] >= 0.85
    assert metrics["views_accepted"] >= 0.8
