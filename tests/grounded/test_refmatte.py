import csv
import json

import numpy as np
import pytest

from zim.errors import PromptError, ZimError
from zim.images import save_alpha, save_rgb
from zim.testing import picture, tiny_model
from zim_grounded.boxes_file import BoxesFile
from zim_grounded.candidates import CandidateDetector, Found, Thresholds
from zim_grounded.cli import main
from zim_grounded.refmatte import evaluate, read_entities, summary


class Filled:
    """Fills the box it is given."""

    def set_image(self, image):
        self.size = image.shape[:2]

    def predict(self, point_coords=None, point_labels=None, box=None, *_, **__):
        alpha = np.zeros((1, *self.size), np.float32)
        x0, y0, x1, y1 = np.asarray(box).astype(int)
        alpha[0, y0:y1, x0:x1] = 1
        return alpha, np.ones(1), np.zeros((1, 8, 8))


class Known(CandidateDetector):
    name = "known"
    thresholds = Thresholds()

    def candidates(self, image, phrases):
        boxes = {"the left thing": (10, 10, 30, 40), "a thing": (20, 10, 40, 40)}
        return [Found(boxes[p], p, 0.9) for p in phrases if p in boxes]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "image").mkdir()
    (tmp_path / "mask").mkdir()
    save_rgb(tmp_path / "image" / "one.jpg", picture(60, 80))
    mask = np.zeros((60, 80), np.float32)
    mask[10:40, 10:30] = 1  # 600 pixels
    save_alpha(tmp_path / "mask" / "one_1.png", mask)
    expressions = ["the left thing", "a thing", "something else"]
    index = {"one_1": {"image_name": "one", "expressions": expressions}}
    (tmp_path / "refmatte_rw100_label.json").write_text(json.dumps(index))
    return tmp_path


def test_scores_by_hand(root):
    rows, left_out = evaluate(read_entities(root), Filled(), Known())
    assert not left_out
    assert [row["boxes"] for row in rows] == ["true", "detected", "detected", "detected"]
    # true box: exact; found: exact; half beside it: 300 too many and 300 missing; missed: all 600
    assert [row["sad"] for row in rows] == pytest.approx([0, 0, 0.6, 0.6])
    assert [row["mse"] for row in rows] == pytest.approx([0, 0, 125, 125])
    assert [row["hit"] for row in rows] == [True, True, False, False]
    assert [row["found"] for row in rows] == [True, True, True, False]
    means = summary(rows)
    assert means["true_boxes"]["sad"] == 0
    assert means["detected_boxes"]["sad"] == pytest.approx(0.4)
    assert means["detected_boxes"]["box_recall"] == pytest.approx(1 / 3)
    assert means["detected_boxes_per_entity"]["samples"] == 1


def test_entities_weigh_alike_however_many_expressions_they_have():
    zeros = dict.fromkeys(("mse", "mae", "grad", "conn"), 0.0)
    rows = [
        {"entity": e, "boxes": "detected", "hit": True, "found": True, "sad": s} | zeros
        for e, s in (("a", 1.0), ("a", 3.0), ("a", 5.0), ("b", 9.0))
    ]
    means = summary(rows)
    assert means["detected_boxes"]["sad"] == 4.5
    assert means["detected_boxes_per_entity"]["sad"] == 6.0


def test_the_command_writes_a_table(root, capsys, tmp_path):
    model = str(tiny_model().save_pretrained(tmp_path / "model"))
    boxes = [{"box": [10, 10, 30, 40], "phrase": "the left thing", "score": 0.9}]
    (tmp_path / "b.json").write_text(json.dumps(boxes))
    words = ["eval", "--refmatte", str(root), "--boxes", str(tmp_path / "b.json")]
    words += ["--model", model, "--device", "cpu", "-o", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metrics"]["detected_boxes"]["box_recall"] == pytest.approx(1 / 3, abs=1e-5)
    with (tmp_path / "out" / "refmatte.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["expression"] for row in rows[1:]] == [
        "the left thing",
        "a thing",
        "something else",
    ]
    assert main(words) == 1
    assert "use --overwrite" in capsys.readouterr().err


def test_boxes_of_a_table_by_file_name_are_those_of_the_picture(root):
    table = {"one.jpg": [{"box": [10, 10, 30, 40], "phrase": "a thing", "score": 0.9}]}
    (root / "b.json").write_text(json.dumps(table))
    rows, _ = evaluate(read_entities(root), Filled(), BoxesFile(root / "b.json"))
    assert [row["hit"] for row in rows if row["expression"] == "a thing"] == [True]


def test_what_cannot_be_scored_is_named_and_left_out(root, capsys, tmp_path):
    save_alpha(root / "mask" / "one_2.png", np.zeros((60, 80), np.float32))
    index = json.loads((root / "refmatte_rw100_label.json").read_text())
    index["one_2"] = {"image_name": "one", "expressions": ["nothing"]}
    (root / "refmatte_rw100_label.json").write_text(json.dumps(index))
    model = str(tiny_model().save_pretrained(tmp_path / "model"))
    words = ["eval", "--refmatte", str(root), "--true-boxes", "--model", model, "--device", "cpu"]
    assert main([*words, "-o", str(tmp_path / "out"), "--json"]) == 1
    captured = capsys.readouterr()
    assert "left out one_2: one_2.png is empty" in captured.err
    assert json.loads(captured.out)["metrics"]["true_boxes"]["samples"] == 1
    assert main([*words, "-o", str(tmp_path / "out"), "--skip-existing"]) == 0


def test_what_the_detector_cannot_read_is_left_out(root):
    class Short(Known):
        def candidates(self, image, phrases):
            if phrases == ["something else"]:
                raise PromptError("phrase 'something else' has 20 tokens; shorten it")
            return super().candidates(image, phrases)

    index = json.loads((root / "refmatte_rw100_label.json").read_text())
    index["two"] = {"image_name": "one", "expressions": ["the left thing"]}
    (root / "mask" / "two.png").write_bytes((root / "mask" / "one_1.png").read_bytes())
    (root / "refmatte_rw100_label.json").write_text(json.dumps(index))
    rows, left_out = evaluate(read_entities(root), Filled(), Short())
    assert [row["entity"] for row in rows] == ["two", "two"]
    assert "shorten it" in left_out["one_1"]
    (root / "b.json").write_text('{"other.jpg": []}')
    rows, left_out = evaluate(read_entities(root), Filled(), BoxesFile(root / "b.json"))
    assert rows == []
    assert "has no boxes for one.jpg" in left_out["two"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"one_1": {"name": "one"}}, r"keys \['name'\]; expected image_name"),
        ({"two": {"image_name": "one", "expressions": ["x"]}}, r"mask/two\.png"),
        ({"one_1": {"image_name": "two", "expressions": ["x"]}}, r"image/two\.jpg"),
        ([], "keyed by"),
    ],
)
def test_what_does_not_fit_is_named(root, index, message):
    (root / "refmatte_rw100_label.json").write_text(json.dumps(index))
    with pytest.raises(ZimError, match=message):
        read_entities(root)


def test_a_missing_set_says_where_to_get_it(tmp_path, capsys):
    assert main(["eval", "--refmatte", str(tmp_path / "none")]) == 1
    assert "CC BY-NC" in capsys.readouterr().err
