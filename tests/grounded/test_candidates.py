import json

import numpy as np
import pytest

from zim.errors import PromptError
from zim_grounded.candidates import Found, Thresholds, best_scores, choose, cut_box
from zim_grounded.detectors import BoxesFile, load_detector


def test_choice_keeps_the_order_of_phrases_and_the_best():
    found = [
        Found((0, 0, 9, 9), "cat", 0.5),
        Found((0, 0, 9, 9), "dog", 0.4),
        Found((0, 0, 9, 9), "dog", 0.9),
        Found((20, 0, 29, 9), "dog", 0.6),
        Found((40, 0, 49, 9), "dog", 0.2),
    ]
    chosen = choose(found, ["dog", "cat"], Thresholds())
    assert [(f.phrase, f.score) for f in chosen] == [("dog", 0.9), ("dog", 0.6), ("cat", 0.5)]
    best = choose(found, ["cat", "dog"], Thresholds(most=2))
    assert [(f.phrase, f.score) for f in best] == [("dog", 0.9), ("dog", 0.6)]
    assert choose(found, ["dog"], Thresholds(box=0.95)) == []
    assert best_scores(found, ["dog", "bird"]) == {"dog": 0.9, "bird": 0.0}


def test_boxes_are_cut_to_the_picture():
    assert cut_box((-3, 2, 50, 9), (8, 40)) == (0, 2, 40, 8)
    assert cut_box((39.5, 0, 60, 8), (8, 40)) is None


def test_boxes_from_a_file(tmp_path):
    file = tmp_path / "boxes.json"
    entries = [
        {"box": [5, 5, 20, 20], "phrase": "Red ball", "score": 0.5},
        {"box": [0, 0, 10, 10], "phrase": "dog"},
        {"box": [90, 90, 99, 99], "phrase": "dog", "score": 0.9},
    ]
    file.write_text(json.dumps(entries))
    detector = load_detector(f"boxes:{file}")
    picture = np.zeros((30, 40, 3), np.uint8)
    found = detector.detect(picture, ["dog", "red ball", "cat"])
    assert [(f.phrase, f.box) for f in found] == [
        ("dog", (0, 0, 10, 10)),
        ("red ball", (5, 5, 20, 20)),
    ]
    file.write_text(json.dumps([*entries[:2], entries[0] | {"phrase": "red  BALL"}]))
    alike = BoxesFile(file)
    assert alike.phrases() == ["Red ball", "dog"]
    assert len(alike.candidates(picture, alike.phrases())) == 3
    file.write_text(json.dumps({"a.jpg": entries[:1], "b": entries[1:]}))
    many = BoxesFile(file)
    many.open("/somewhere/b.png")
    assert many.phrases() == ["dog"]
    with pytest.raises(PromptError, match=r"no boxes for c\.png"):
        many.open("c.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("3", "expected a list of"),
        ('[{"box": [1, 2, 3], "phrase": "dog"}]', "entry 1"),
        ('[{"box": [1, 2, 3, 4]}]', "expected a list of"),
        ('[{"box": [3, 2, 1, 4], "phrase": "dog"}]', "no area"),
        ('[{"box": [1, 2, 3, NaN], "phrase": "dog"}]', "entry 1"),
        ('[{"box": [1, 2, 3, 4], "phrase": "dog", "score": 7}]', "0 to 1"),
    ],
)
def test_a_bad_boxes_file_is_one_line(tmp_path, text, message):
    file = tmp_path / "boxes.json"
    file.write_text(text)
    with pytest.raises(PromptError, match=message) as caught:
        BoxesFile(file)
    assert "\n" not in str(caught.value)
