"""Where results go is decided before anything is computed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from zim.cli import main
from zim.commandline import UsageError
from zim.commands.outputs import Inputs, Result, output_folder, pending, plan_outputs
from zim.errors import OutputError

PHOTO = Result("pictures/photo.jpg")


def test_the_default_is_cut_out_and_matte_in_the_current_folder() -> None:
    plan = plan_outputs(None, [PHOTO], None, None)
    assert plan.paths[PHOTO] == {"rgba": Path("photo.rgba.png"), "alpha": Path("photo.alpha.png")}


def test_a_background_adds_a_composite() -> None:
    plan = plan_outputs("out", [PHOTO], None, "red")
    assert plan.paths[PHOTO]["composite"] == Path("out/photo.composite.png")


@pytest.mark.parametrize("output", ["out", "out/", "out.v1", "out.png/"])
def test_anything_without_a_picture_suffix_is_a_folder(output: str) -> None:
    plan = plan_outputs(output, [PHOTO], ["alpha"], None)
    assert plan.paths[PHOTO] == {"alpha": Path(output) / "photo.alpha.png"}


def test_an_existing_folder_is_a_folder_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "results.png"
    folder.mkdir()
    plan = plan_outputs(str(folder), [PHOTO], ["alpha"], None)
    assert plan.paths[PHOTO] == {"alpha": folder / "photo.alpha.png"}


def test_a_file_holds_the_cut_out_unless_told_otherwise() -> None:
    assert plan_outputs("cut.png", [PHOTO], None, None).paths[PHOTO] == {"rgba": Path("cut.png")}
    assert plan_outputs("a.png", [PHOTO], ["alpha"], None).paths[PHOTO] == {"alpha": Path("a.png")}
    assert plan_outputs("c.jpg", [PHOTO], None, "red").paths[PHOTO] == {"composite": Path("c.jpg")}


def test_objects_and_candidates_are_numbered() -> None:
    plan = plan_outputs("o", [Result("x.jpg", 2, 3)], ["alpha"], None)
    assert plan.paths[Result("x.jpg", 2, 3)] == {"alpha": Path("o/x.2.c3.alpha.png")}


def test_stdin_and_dotted_names_have_stems() -> None:
    assert Result("-").stem == "stdin"
    assert Result("a/my.photo.v2.jpeg").stem == "my.photo.v2"
    assert Result(r"C:\pictures\cat.png").stem == "cat"


def test_stdout_takes_one_result_and_no_files() -> None:
    plan = plan_outputs("-", [PHOTO], None, None)
    assert plan.to_stdout
    assert plan.paths == {PHOTO: {}}


@pytest.mark.parametrize("output", ["cut.png", "-"])
def test_several_results_do_not_fit_one_file(output: str) -> None:
    with pytest.raises(UsageError, match="2 results"):
        plan_outputs(output, [PHOTO], ["rgba", "alpha"], None)
    with pytest.raises(UsageError, match="2 results"):
        plan_outputs(output, [PHOTO, Result("b.jpg")], None, None)


def test_two_inputs_of_one_name_collide() -> None:
    with pytest.raises(UsageError, match=r"a/x\.jpg and b/x\.png would both write"):
        plan_outputs("out", [Result("a/x.jpg"), Result("b/x.png")], None, None)


def test_a_background_nobody_uses_is_refused() -> None:
    with pytest.raises(UsageError, match="composite"):
        plan_outputs("out", [PHOTO], ["alpha"], "red")


def test_a_jpeg_cannot_be_a_cut_out() -> None:
    with pytest.raises(UsageError, match="no transparency"):
        plan_outputs("cut.jpg", [PHOTO], None, None)


@pytest.mark.parametrize(
    ("output", "kind", "holds"),
    [("a.jpg", "alpha", False), ("a.tif", "rgba", False), ("a.TIF", "alpha", True)],
)
def test_a_file_holds_the_bits_that_are_asked_for(output: str, kind: str, holds: bool) -> None:
    assert plan_outputs("c.jpg", [PHOTO], None, "red", bits=16)  # bits are of mattes
    if holds:
        assert plan_outputs(output, [PHOTO], [kind], None, bits=16)
        return
    with pytest.raises(UsageError, match="holds no 16-bit"):
        plan_outputs(output, [PHOTO], [kind], None, bits=16)


def test_existing_files_need_a_word(tmp_path: Path) -> None:
    old, new = tmp_path / "old.png", tmp_path / "new.png"
    old.touch()
    paths = {"rgba": old, "alpha": new}
    with pytest.raises(OutputError, match=r"old\.png exists"):
        pending(paths, overwrite=False, skip_existing=False, inputs=Inputs([]))
    assert pending(paths, overwrite=True, skip_existing=False, inputs=Inputs([])) == paths
    assert pending(paths, overwrite=False, skip_existing=True, inputs=Inputs([])) == {"alpha": new}


def test_a_folder_in_the_way_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        pending({"rgba": tmp_path}, overwrite=True, skip_existing=False, inputs=Inputs([]))


@pytest.mark.parametrize("output", ["cut.gif", "some/cut.BMP", "cut.avif"])
def test_pictures_that_are_not_written_are_no_folders(output: str) -> None:
    with pytest.raises(UsageError, match=r"\.png, \.webp, \.jpg, \.jpeg, \.tif, \.tiff") as refused:
        plan_outputs(output, [PHOTO], None, None)
    assert Path(output).suffix.lower() in str(refused.value)
    plan = plan_outputs(f"{output}/", [PHOTO], ["alpha"], None)
    assert plan.paths[PHOTO] == {"alpha": Path(output) / "photo.alpha.png"}


@pytest.mark.parametrize("output", ["out", "out.v1", "new.png/", None])
def test_commands_of_several_files_take_a_folder(output: str | None) -> None:
    assert output_folder(output, "here") == Path(output or "here")


@pytest.mark.parametrize("output", ["-", "cut.png", "rows.JSON", "model.onnx", "label.nii.gz"])
def test_nobody_means_a_folder_by_a_files_name(output: str) -> None:
    with pytest.raises(UsageError, match="give a folder"):
        output_folder(output)


def test_a_file_in_place_of_a_folder_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(UsageError, match="taken is a file"):
        output_folder(str(tmp_path / "taken"))
    (tmp_path / "there.png").mkdir()
    assert output_folder(str(tmp_path / "there.png")) == tmp_path / "there.png"
    paths = plan_outputs(str(tmp_path / "taken"), [PHOTO], ["alpha"], None).paths[PHOTO]
    with pytest.raises(OutputError, match="taken is a file"):
        pending(paths, overwrite=True, skip_existing=False, inputs=Inputs([]))
    with pytest.raises(UsageError, match=r"--output .*sub: .*taken is a file"):
        output_folder(str(tmp_path / "taken" / "sub"))


def test_what_is_read_is_never_written_over(tmp_path: Path) -> None:
    photo, other, link = tmp_path / "photo.png", tmp_path / "new.png", tmp_path / "link.png"
    photo.write_bytes(b"")
    link.symlink_to(photo)
    inputs = Inputs([str(photo), "-", None, "red", "gone.png", "\0", "~nobody-at-all/x.png"])
    for path in (photo, link, tmp_path / "." / "photo.png"):
        assert path in inputs
        with pytest.raises(OutputError, match="is an input"):
            pending({"rgba": path}, overwrite=True, skip_existing=False, inputs=inputs)
        assert pending({"rgba": path}, overwrite=False, skip_existing=True, inputs=inputs) == {}
    done = pending({"rgba": other}, overwrite=True, skip_existing=False, inputs=inputs)
    assert done == {"rgba": other}


def test_a_rerun_over_a_folder_skips_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((24, 32, 3), np.uint8))
    words = ["matte", "--points", "9,9", "--format", "rgba", "-o", str(tmp_path)]
    assert main([*words, str(tmp_path / "a.png"), str(tmp_path / "b.png")]) == 0
    every = sorted(str(path) for path in tmp_path.glob("*.png"))
    assert len(every) == 4
    assert main([*words, *every, "--skip-existing"]) == 0
    before = (tmp_path / "b.rgba.png").read_bytes()
    capsys.readouterr()
    assert main([*words, *every, "--overwrite"]) == 1
    assert capsys.readouterr().err.count("is an input") == 2
    assert (tmp_path / "b.rgba.png").read_bytes() == before
