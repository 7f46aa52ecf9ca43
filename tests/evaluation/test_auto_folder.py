import json

import cv2

from zim.cli import main
from zim.testing import TINY_NANO, picture, tiny_model


def test_folders_become_data_sets_with_a_contact_sheet(tmp_path, capsys):
    model = tiny_model(TINY_NANO).save_pretrained(tmp_path / "model")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "same.png"), picture(40, 56)[..., ::-1])
    args = ["auto", str(tmp_path / "first"), str(tmp_path / "second"), "--model", str(model)]
    args += ["--points-per-side", "2", "--pred-iou-thresh", "-9", "--device", "cpu"]
    assert main([*args, "--output", str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["items"]) == 2
    for name in ("first", "second"):
        assert (tmp_path / "out" / name / "same.overlay.png").is_file()
        assert cv2.imread(str(tmp_path / "out" / name / "sheet.jpg")) is not None
        assert report["outputs"][f"sheet_{name}"]


def test_an_empty_folder_is_an_error(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["auto", str(tmp_path / "empty"), "--output", str(tmp_path / "out")]) == 1
    assert "holds no pictures" in capsys.readouterr().err
