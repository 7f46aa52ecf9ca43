"""Where results go is decided before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from zim.commandline import UsageError
from zim.commands.outputs import Result, output_folder, pending, plan_outputs
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


def test_existing_files_need_a_word(tmp_path: Path) -> None:
    old, new = tmp_path / "old.png", tmp_path / "new.png"
    old.touch()
    paths = {"rgba": old, "alpha": new}
    with pytest.raises(OutputError, match=r"old\.png exists"):
        pending(paths, overwrite=False, skip_existing=False)
    assert pending(paths, overwrite=True, skip_existing=False) == paths
    assert pending(paths, overwrite=False, skip_existing=True) == {"alpha": new}


def test_a_folder_in_the_way_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        pending({"rgba": tmp_path}, overwrite=True, skip_existing=False)


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
        pending(paths, overwrite=True, skip_existing=False)


def test_what_is_read_is_never_written_over(tmp_path: Path) -> None:
    photo, other = tmp_path / "photo.png", tmp_path / "x.alpha.png"
    photo.write_bytes(b"")
    other.write_bytes(b"")
    with pytest.raises(UsageError, match="is an input"):
        plan_outputs(str(photo), [Result(str(photo))], None, None)
    with pytest.raises(UsageError, match="is an input"):
        plan_outputs(str(tmp_path), [Result("x.png"), Result(str(other))], ["alpha"], None)
