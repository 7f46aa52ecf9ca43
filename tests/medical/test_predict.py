"""``zim-medical predict`` end to end on every kind of input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from zim.errors import PromptError
from zim.testing import tiny_model
from zim_medical.cli import main
from zim_medical.segment import Input, SlicePrompt, open_input, segment, slice_prompts
from zim_medical.volumes import Volume

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.0, 0, -5], [0, 0, 3.0, 7], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model().save_pretrained(folder)
    return str(folder)


def write_volume(path: Path) -> np.ndarray:
    data = np.random.default_rng(0).random((12, 16, 6)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    return data


def test_nifti_in_nifti_out(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_volume(tmp_path / "scan.nii.gz")
    argv = ["predict", str(tmp_path / "scan.nii.gz"), "--box", "2,3,1,8,11,3"]
    argv += ["--model", tiny, "--output", str(tmp_path / "out"), "--json"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metrics"]["slices"] == 3
    label: Any = nib.load(report["outputs"]["mask"])
    soft: Any = nib.load(report["outputs"]["alpha"])
    assert label.get_data_dtype() == np.uint8
    assert soft.get_data_dtype() == np.float32
    for image in (label, soft):
        assert image.shape == (12, 16, 6)
        assert np.array_equal(image.affine, AFFINE)
    values = np.asarray(soft.dataobj)
    assert values[..., 1:4].any()
    assert not values[..., [0, 4, 5]].any()
    assert np.array_equal(np.asarray(label.dataobj), values > 0.3)
    assert Path(report["outputs"]["overlay"]).is_file()
    assert main(argv) == 1  # nothing is overwritten unasked
    assert "exists" in capsys.readouterr().err


def test_skip_existing_completes_an_interrupted_run(tiny: str, tmp_path: Path) -> None:
    write_volume(tmp_path / "scan.nii.gz")
    argv = ["predict", str(tmp_path / "scan.nii.gz"), "--box", "2,3,1,8,11,3", "--model", tiny]
    argv += ["--output", str(tmp_path / "out"), "--skip-existing"]
    assert main(argv) == 0
    soft = tmp_path / "out" / "scan.soft.nii.gz"
    soft.unlink()
    label = tmp_path / "out" / "scan.label.nii.gz"
    label.write_bytes(b"corrected by hand")
    assert main(argv) == 0
    assert soft.is_file()
    assert label.read_bytes() == b"corrected by hand"
    before = soft.stat().st_mtime_ns
    assert main(argv) == 0
    assert soft.stat().st_mtime_ns == before


def test_a_picture_takes_flat_prompts(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 60000, (20, 30)).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    argv = ["predict", str(tmp_path / "x.tif"), "--model", tiny, "--output", str(tmp_path / "o")]
    assert main([*argv, "--points", "25,4", "3,3,0"]) == 0
    image: Any = nib.load(tmp_path / "o" / "x.label.nii.gz")
    assert image.shape == (30, 20, 1)
    assert main([*argv, "--points", "25,4,0,1", "--overwrite"]) == 2
    capsys.readouterr()
    for words, said in (
        (["--points", "35,4"], "(35, 4) lies outside the 30 x 20 picture"),
        (["--box", "35,4,50,10"], "(35, 4, 50, 10) lies outside the 30 x 20 picture"),
    ):
        assert main([*argv, *words, "--overwrite"]) == 1
        assert said in capsys.readouterr().err
    assert main([*argv, "--box", "20,-4,35,10", "--overwrite"]) == 0
    assert main([*argv, "--points", "25,4", "--space", "mm", "--overwrite"]) == 2
    assert "a picture has no place in mm" in capsys.readouterr().err


def test_millilitres_are_those_of_the_voxels_or_unknown(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_volume(tmp_path / "scan.nii.gz")
    tilted = AFFINE.copy()
    tilted[1, 2] = 4.0  # a tilted gantry: slices of 3 mm whose corners are 5 mm apart
    nib.save(nib.Nifti1Image(data, tilted), tmp_path / "tilted.nii.gz")
    Image.fromarray(np.rint(255 * data[..., 0].T).astype(np.uint8)).save(tmp_path / "x.png")
    for name, box in (
        ("scan.nii.gz", "2,3,1,8,11,3"),
        ("tilted.nii.gz", "2,3,1,8,11,3"),
        ("x.png", "2,3,8,11"),
    ):
        argv = ["predict", str(tmp_path / name), "--box", box, "--model", tiny, "--json"]
        assert main([*argv, "--output", str(tmp_path / "o")]) == 0
        metrics = json.loads(capsys.readouterr().out)["metrics"]
        assert metrics["voxels"] > 0
        if name == "x.png":
            assert metrics["millilitres"] is None
        else:  # 2 x 1 x 3 mm
            assert metrics["millilitres"] == pytest.approx(metrics["voxels"] * 0.006)


def test_an_empty_label_is_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    box_filler: Any,
) -> None:
    monkeypatch.setattr("zim.segmenters.load_segmenter", lambda *_, **__: box_filler)
    write_volume(tmp_path / "scan.nii.gz")
    argv = ["predict", str(tmp_path / "scan.nii.gz"), "--box", "2,3,1,8,11,3", "--overwrite"]
    for threshold, told in (("0.3", False), ("0.5", True)):
        assert main([*argv, "--threshold", threshold, "--output", str(tmp_path / "o")]) == 0
        assert ("nothing is above 0.5, so the label is empty" in capsys.readouterr().err) == told


def test_results_have_the_name_that_was_given(tiny: str, tmp_path: Path) -> None:
    write_volume(tmp_path / "5f3a.nii.gz")  # as data sets under git-annex lie
    (tmp_path / "scan.nii.gz").symlink_to(tmp_path / "5f3a.nii.gz")
    argv = ["predict", str(tmp_path / "scan.nii.gz"), "--box", "2,3,1,8,11,3", "--model", tiny]
    assert main([*argv, "--output", str(tmp_path / "o")]) == 0
    assert (tmp_path / "o" / "scan.label.nii.gz").is_file()


def test_a_background_click_alone_labels_nothing() -> None:
    volume = Volume(np.zeros((12, 16, 6), np.float32), AFFINE, "v")
    clicks = [(3, 5, 2, 1), (9, 5, 4, 0), (8, 5, 4, 0)]
    with pytest.raises(PromptError, match=r"\(9, 5, 4\) is on no object \(label 0\).*that slice"):
        slice_prompts(volume, 2, clicks, None)
    assert list(slice_prompts(volume, 2, clicks, (2, 3, 4, 8, 11, 4))) == [1, 3]
    flat = Volume(
        np.zeros((12, 16, 1), np.float32), np.diag([-1.0, -1, -1, 1]), "v", plane_only=True
    )
    with pytest.raises(PromptError, match=r"\(3, 5\) is on no object"):
        slice_prompts(flat, 2, [(3, 5, 0, 0)], None)


def test_a_picture_that_is_turned_by_its_exif_is_what_people_see(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60), np.uint8)
    pixels[:10] = 200  # stored at the top, seen on the right
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = 6
    image.save(tmp_path / "x.png", exif=image.getexif())
    volume = open_input(tmp_path / "x.png").volume
    assert volume.data.shape == (40, 60, 1)
    assert volume.data[:, 0, 0].tolist() == [0.0] * 30 + [200.0] * 10


def test_the_overlay_has_the_proportions_of_the_patient(tiny: str, tmp_path: Path) -> None:
    write_volume(tmp_path / "scan.nii.gz")
    argv = ["predict", str(tmp_path / "scan.nii.gz"), "--box", "2,3,1,8,11,3", "--model", tiny]
    for axis, size in (("axial", (24, 16)), ("coronal", (24, 18)), ("sagittal", (16, 18))):
        assert main([*argv, "--axis", axis, "--output", str(tmp_path / axis)]) == 0
        with Image.open(tmp_path / axis / "scan.overlay.png") as image:
            assert image.width / image.height == pytest.approx(size[0] / size[1], rel=0.01)
            assert 500 <= max(image.size) <= 700


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_box_is_cut_at_the_edges(axis: int) -> None:
    volume = Volume(np.zeros((12, 16, 6), np.float32), AFFINE, "v")
    inside = slice_prompts(volume, axis, [], (4, 0, 2, 11, 9, 5))
    for beyond in ((4, -7, 2, 99, 9, 8), (99, 9, 8, 4, -7, 2)):
        assert slice_prompts(volume, axis, [], beyond) == inside
    places = [(AFFINE @ [*corner, 1])[:3] for corner in ((4, -7, 2), (99, 9, 8))]
    by_mm = slice_prompts(volume, axis, [], [*places[0], *places[1]], "mm")
    assert list(by_mm) == list(inside)
    for key, prompt in inside.items():
        assert by_mm[key].box == pytest.approx(prompt.box)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_click_on_the_outermost_edge_is_in_the_outermost_voxel(axis: int) -> None:
    volume = Volume(np.zeros((12, 10, 8), np.float32), np.diag([-1.0, -1, -1, 1]), "v")
    last = slice_prompts(volume, axis, [(11.5, 9.5, 7.5, 1)], None)
    assert last == slice_prompts(volume, axis, [(11, 9, 7, 1)], None)
    first = slice_prompts(volume, axis, [(-0.5, -0.5, -0.5, 1)], None)
    assert first == slice_prompts(volume, axis, [(0, 0, 0, 1)], None)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_voxels_and_millimetres_are_the_same_place(axis: int) -> None:
    data = np.zeros((12, 16, 6), np.float32)
    volume = Volume(data, AFFINE, "v")
    voxel = (3.0, 5.0, 2.0)
    place = (AFFINE @ [*voxel, 1])[:3]
    by_voxel = slice_prompts(volume, axis, [(*voxel, 1)], None)
    by_mm = slice_prompts(volume, axis, [(*place, 1)], None, "mm")
    assert list(by_voxel) == list(by_mm)
    for key in by_voxel:
        assert np.allclose(by_voxel[key].points, by_mm[key].points)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_prompted_voxel_is_the_one_that_is_answered(axis: int, box_filler: Any) -> None:
    data = np.random.default_rng(0).random((12, 16, 6)).astype(np.float32)
    volume = Volume(data, AFFINE, "v")
    prompts = slice_prompts(volume, axis, [], (2, 3, 1, 8, 11, 3))
    result = segment(Input(volume), axis, prompts, box_filler)
    expected = np.zeros(data.shape, bool)
    expected[2:9, 3:12, 1:4] = True
    assert np.array_equal(result.soft > 0.3, expected)


def test_boxes_are_handed_on_and_stop(box_filler: Any) -> None:
    data = np.random.default_rng(0).random((40, 40, 9)).astype(np.float32)
    volume = Volume(data, AFFINE, "v")
    prompts = {4: SlicePrompt(box=(10.0, 10.0, 20.0, 20.0))}
    result = segment(Input(volume), 2, prompts, box_filler, propagate=2)
    assert result.slices == [2, 3, 4, 5, 6]
    # the answer fills its box, and each box is one pixel wider on every side
    areas = sorted({int((result.soft[..., k] > 0.3).sum()) for k in range(9)})
    assert areas == [0, 11 * 11, 13 * 13, 15 * 15]


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_volume(tmp_path / "scan.nii.gz")
    scan = str(tmp_path / "scan.nii.gz")
    out = ["--output", str(tmp_path / "o")]
    for words, code, said in (
        ([], 2, "no prompt"),
        (["--box", "1,2,3,4"], 2, "a volume takes 6"),
        (["--box", "1,2,30,4,5,60"], 1, "(1, 2, 30, 4, 5, 60) lies outside the volume of 12 x 16"),
        (["--points", "1,2,60"], 1, "(1, 2, 60) lies outside the volume of 12 x 16 x 6 voxels"),
        (["--points", "1,2,nan"], 2, "finite"),
        (["--points", "1,2,3", "--window", "5,1"], 1, "LO < HI"),
    ):
        assert main(["predict", scan, *words, *out]) == code
        error = capsys.readouterr().err.strip().splitlines()
        assert said in error[-1]
    assert main(["predict", "--points", "1,2,3", scan, *out]) == 2
    assert "put VOLUME before --points" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: 0 * v, "empty, all of its 1152 values are 0"),
        (lambda v: np.where(v == v[2, 3, 1], np.nan, v), "1 of 1152 voxels are NaN"),
        (lambda v: np.stack([v, v], -1), "4D volume"),
        (lambda v: v[:0], "no voxels"),
        (lambda v: np.concatenate([0 * v[..., :4], v[..., 4:]], -1), "prompted slices"),
    ],
)
def test_nothing_is_labelled_where_nothing_is_to_be_seen(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, said: str
) -> None:
    data = change(write_volume(tmp_path / "scan.nii.gz"))
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "scan.nii.gz")
    argv = ["predict", str(tmp_path / "scan.nii.gz"), "--box", "2,3,1,8,11,3", "--model", tiny]
    assert main([*argv, "--output", str(tmp_path / "o")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "scan.nii.gz" in line
    assert said in line
    assert not (tmp_path / "o").exists()


def test_a_blank_slice_among_others_stays_empty(box_filler: Any) -> None:
    data = np.random.default_rng(0).random((12, 16, 6)).astype(np.float32)
    data[..., 2] = 0.5
    volume = Volume(data, AFFINE, "v")
    prompts = slice_prompts(volume, 2, [], (2, 3, 1, 8, 11, 3))
    result = segment(Input(volume), 2, prompts, box_filler)
    assert [bool((result.soft[..., k] > 0.3).any()) for k in (1, 2, 3)] == [True, False, True]
    assert len(result.blank) == 1


def test_rgb_pictures_keep_their_colours(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 9, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "c.png")
    source = open_input(tmp_path / "c.png")
    assert source.colour is not None
    assert np.array_equal(source.colour, pixels)
