import json

import cv2
import numpy as np
import pytest

from zim.images import save_rgb
from zim.masks import box_iou
from zim.testing import disc, picture, tiny_model
from zim_grounded import work
from zim_grounded.boxes_file import BoxesFile
from zim_grounded.candidates import Found
from zim_grounded.cli import main
from zim_grounded.detectors import load_detector
from zim_grounded.draw import annotate
from zim_grounded.mattes import distinct, label_map, soft_iou, take_away


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return str(tiny_model().save_pretrained(tmp_path_factory.mktemp("model")))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    save_rgb(tmp_path / "in" / "a.png", picture(96, 128))
    save_rgb(tmp_path / "in" / "b.png", picture(80, 100, seed=1))
    return tmp_path


def run(capsys, *words):
    code = main([*words, "--json", "--device", "cpu"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def pixels(path):
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert values is not None
    return values


def boxes(folder, *rows):
    file = folder / "boxes.json"
    file.write_text(json.dumps([{"box": b, "phrase": p, "score": s} for b, p, s in rows]))
    return str(file)


def test_words_to_files_with_a_tiny_grounding_dino(folder, capsys, model, gdino_folder):
    words = ["red ball . the dog's fur", "cat", "--detector", str(gdino_folder)]
    words += ["--threshold", "0", "--max-boxes", "4", "--model", model, "-o", "out"]
    code, report, err = run(capsys, *words, "--image", "in/a.png")
    assert code == 0, err
    phrases = [item["phrase"] for item in report["items"]]
    order = ["red ball", "the dog's fur", "cat"]
    assert [order.index(p) for p in phrases] == sorted(order.index(p) for p in phrases)
    assert "Loading" not in err
    assert set(report["outputs"]) == {"labels", "overlay", "json"}
    table = json.loads((folder / "out" / "a.json").read_text())
    assert table["phrases"] == order
    assert len(table["detections"]) == len(report["items"])
    labels = pixels(str(folder / "out" / "a.labels.png"))
    assert labels.shape == (96, 128)
    assert labels.max() <= len(phrases)
    for item in report["items"]:
        rgba = pixels(item["outputs"]["rgba"])
        alpha = pixels(item["outputs"]["alpha"])
        assert rgba.shape == (96, 128, 4)
        assert alpha.dtype == np.uint16
        assert np.abs(alpha / 257 - rgba[..., 3].astype(float)).max() <= 0.51
    assert pixels(str(folder / "out" / "a.overlay.jpg")).shape == (96, 128, 3)


def test_alone_or_in_a_folder_the_same_bytes(folder, capsys, model, gdino_folder):
    words = ["cat . red ball", "--detector", str(gdino_folder), "--threshold", "0"]
    words += ["--max-boxes", "3", "--model", model]
    assert run(capsys, *words, "--image", "in", "-o", "both")[0] == 0
    assert run(capsys, *words, "--image", "in/b.png", "-o", "alone")[0] == 0
    alone = sorted(p for p in (folder / "alone").iterdir() if p.suffix != ".json")
    assert alone
    for path in alone:
        assert path.read_bytes() == (folder / "both" / path.name).read_bytes()
    a, b = (json.loads((folder / d / "b.json").read_text()) for d in ("alone", "both"))
    for table in (a, b):
        del table["seconds"]
        for row in table["detections"]:
            del row["files"]
    assert a == b


def test_nothing_found_exits_1_with_the_best_scores(folder, capsys, model, gdino_folder):
    words = ["cat", "--detector", str(gdino_folder), "--threshold", "1", "--model", model]
    code, report, err = run(capsys, *words, "--image", "in/a.png")
    assert code == 1
    assert "nothing found above the threshold 1" in err
    assert report["items"][0]["error"] == report["error"]
    table = json.loads((folder / "a.json").read_text())
    assert table["detections"] == []
    best = table["best_scores"]["cat"]
    assert f"'cat' {best:.2f}" in err
    code, report, _ = run(capsys, *words, "--image", "in/a.png", "--skip-existing")
    assert code == 1  # skipping makes no success of it
    assert "a.json says that nothing was found; use --overwrite to look again" in report["error"]
    assert report["outputs"] == {"json": "a.json"}
    seen = load_detector(str(gdino_folder), "cpu").candidates(picture(96, 128), ["cat"])
    assert best == pytest.approx(max(f.score for f in seen), abs=1e-4)


def test_boxes_from_a_file_need_no_detector_and_no_words(folder, capsys, model):
    file = boxes(folder, ([10, 10, 60, 70], "Dog", 0.9), ([5, 5, 40, 30], "red ball", 0.4))
    code, report, _ = run(capsys, "--boxes", file, "--image", "in/a.png", "--model", model)
    assert code == 0
    assert [i["phrase"] for i in report["items"]] == ["Dog", "red ball"]
    code, report, _ = run(
        capsys, "red ball", "--detector", "boxes", "--boxes", file, "--image", "in/a.png",
        "--model", model, "-o", "ball", "--format", "alpha",
    )  # fmt: skip
    assert code == 0
    assert sorted(p.name for p in (folder / "ball").iterdir()) == [
        "a.1.red-ball.alpha.png",
        "a.json",
    ]
    assert report["metrics"]["score"] == 0.4


def test_boxes_only_runs_no_model(folder, capsys):
    file = boxes(folder, ([10, 10, 60, 70], "dog", 0.9))
    words = ["dog", "--boxes", file, "--image", "in/a.png", "--boxes-only", "--model", "mis/sing"]
    code, report, _ = run(capsys, *words)
    assert code == 0
    assert report["items"][0]["box"] == [10, 10, 60, 70]
    assert sorted(p.name for p in folder.iterdir()) == ["a.json", "boxes.json", "in"]


def test_a_part_that_is_not_found_takes_nothing_out(folder, capsys, model, monkeypatch):
    class OnlyDogs(BoxesFile):
        def candidates(self, image, phrases):
            return [Found((10, 10, 100, 80), p, 0.9) for p in phrases if "dog" in p]

    monkeypatch.setattr(work, "chosen_detector", lambda args: OnlyDogs(boxes(folder)))
    monkeypatch.setattr(work, "BoxesFile", type(None))
    words = ["the dog", "--image", "in/a.png", "--model", model]
    assert run(capsys, *words, "-o", "all")[0] == 0
    code, _, err = run(capsys, *words, "--not", "the dog's collar", "-o", "less")
    assert code == 0
    assert '--not "the dog\'s collar": nothing found, so nothing is taken out' in err
    files = [folder / d / "a.1.the-dog.alpha.png" for d in ("all", "less")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert json.loads((folder / "less" / "a.json").read_text())["without"] == []


def test_overwriting_leaves_nothing_of_before(folder, capsys, model):
    rows = ([10, 10, 100, 80], "dog", 0.9), ([40, 30, 70, 60], "ball", 0.8)
    words = ["--boxes", boxes(folder, *rows), "--image", "in/a.png", "--model", model, "-o", "out"]
    assert run(capsys, *words)[0] == 0
    assert run(capsys, *words, "--overwrite", "ball")[0] == 0
    assert sorted(p.name for p in (folder / "out").iterdir()) == [
        "a.1.ball.alpha.png",
        "a.1.ball.rgba.png",
        "a.json",
        "a.labels.png",
        "a.overlay.jpg",
    ]


def test_skipping_takes_up_what_is_not_done(folder, capsys, model):
    rows = ([10, 10, 100, 80], "dog", 0.9), ([40, 30, 70, 60], "ball", 0.8)
    words = ["dog", "--boxes", boxes(folder, *rows), "--image", "in/a.png", "--model", model]
    assert run(capsys, *words, "--boxes-only")[0] == 0
    assert run(capsys, *words, "--skip-existing")[0] == 0
    assert (folder / "a.1.dog.rgba.png").is_file()
    assert run(capsys, *words, "--skip-existing")[1]["items"][0]["skipped"]
    code, report, _ = run(capsys, "ball", *words[1:], "--skip-existing")
    assert code == 1
    assert "is about other phrases; use --overwrite" in report["error"]


def test_a_list_with_commas_gets_a_hint(folder, capsys):
    rows = ([10, 10, 100, 80], "dog, ball", 0.9)
    words = ["dog, ball", "--boxes", boxes(folder, rows), "--image", "in/a.png", "--boxes-only"]
    code, _, err = run(capsys, *words)
    assert code == 0
    assert "several are divided by dots: 'dog . ball'" in err


@pytest.mark.parametrize(
    ("phrase", "hint"),
    [
        ("dog and ball", "'dog . ball'"),
        ("cat, dog and red ball", "'cat . dog . red ball'"),
        ("a black and white dog", None),
        ("sand", None),
    ],
)
def test_a_list_with_and_gets_a_hint(folder, capsys, phrase, hint):
    rows = ([10, 10, 100, 80], phrase, 0.9)
    words = [phrase, "--boxes", boxes(folder, rows), "--image", "in/a.png", "--boxes-only"]
    code, _, err = run(capsys, *words)
    assert code == 0
    assert (hint in err) if hint else ("divided by dots" not in err)


def test_skipping_writes_the_kinds_that_are_not_there(folder, capsys, model):
    words = ["dog", "--boxes", boxes(folder, ([10, 10, 60, 70], "dog", 0.9)), "--model", model]
    words += ["--image", "in/a.png", "-o", "out"]
    assert run(capsys, *words, "--format", "rgba")[0] == 0
    for kind in ("alpha.png", "overlay.jpg", "labels.png"):
        assert run(capsys, *words, "--format", kind[:-4], "--skip-existing")[0] == 0
        assert len(list((folder / "out").glob(f"*.{kind}"))) == 1
    report = run(capsys, *words, "--skip-existing")[1]
    assert report["items"][0]["skipped"]
    (row,) = json.loads((folder / "out" / "a.json").read_text())["detections"]
    assert set(row["files"]) == {"rgba", "alpha"}


def test_the_bundled_detector_reads_numbers_groups_and_lists():
    detector = load_detector("mini", "cpu")
    read = detector._meaning  # pyright: ignore[reportAttributeAccessIssue]
    for phrase, name in {
        "a pair of dogs": "dog",
        "one of the red umbrellas": "umbrella",
        "person without umbrella": None,
        "dog without umbrella": "dog",
        "sock": "socks",
        "blueberry": "blueberries",
        "french fry": "french fries",
        "strawberries": "strawberry",
        "foxes": "fox",
        "cookies": "cookie",
        "flies": "fly",
        "pies": "pie",
        "glass": None,
        "bus": "bus",
    }.items():
        known = detector.model.config.names  # pyright: ignore[reportAttributeAccessIssue]
        meaning = read(phrase)
        assert (None if meaning is None else known[meaning[0]]) == name, phrase


def test_what_not_to_take_is_taken_out(folder, capsys, model):
    rows = ([10, 10, 100, 80], "dog", 0.9), ([40, 30, 70, 60], "collar", 0.9)
    file = boxes(folder, *rows)
    words = ["--boxes", file, "--image", "in/a.png", "--model", model, "--dtype", "float32"]
    assert run(capsys, "dog", *words, "-o", "with")[0] == 0
    assert run(capsys, "collar", *words, "-o", "collar")[0] == 0
    assert run(capsys, "dog", "--not", "collar", *words, "-o", "without")[0] == 0
    read = [
        pixels(str(folder / d / f"a.1.{n}.alpha.png")) / 65535
        for d, n in (("with", "dog"), ("collar", "collar"), ("without", "dog"))
    ]
    np.testing.assert_allclose(read[2], read[0] * (1 - read[1]), atol=2e-4)


def test_a_scribble_is_the_same_as_the_library_call(folder, capsys, model):
    from zim import ZimPredictor, load

    stroke = [[30, 20], [60, 50], [70, 80]]
    (folder / "s.json").write_text(json.dumps(stroke))
    code, report, _ = run(
        capsys, "--scribble", "s.json", "--image", "in/a.png", "--model", model,
        "--dtype", "float32",
    )  # fmt: skip
    assert code == 0
    alpha = pixels(report["outputs"]["alpha"]) / 65535
    predictor = ZimPredictor(load(model, device="cpu", dtype="float32"))
    predictor.set_image(picture(96, 128))
    mattes, _, _ = predictor.predict_batch([{"scribble": stroke}])
    np.testing.assert_allclose(alpha, mattes[0, 0], atol=2e-5)
    assert len(json.loads((folder / "a.json").read_text())["points"]) == 24


def test_existing_results_are_kept(folder, capsys, model):
    file = boxes(folder, ([10, 10, 60, 70], "dog", 0.9))
    words = ["dog", "--boxes", file, "--image", "in/a.png", "--model", model]
    assert run(capsys, *words)[0] == 0
    before = (folder / "a.json").stat().st_mtime_ns
    code, _, err = run(capsys, *words)
    assert code == 1
    assert "a.json exists" in err
    code, report, _ = run(capsys, *words, "--skip-existing")
    assert (code, report["items"][0]["skipped"]) == (0, True)
    assert (folder / "a.json").stat().st_mtime_ns == before
    assert run(capsys, *words, "--overwrite")[0] == 0


def test_one_bad_picture_stops_none(folder, capsys, model):
    (folder / "in" / "a.png").write_bytes(b"no picture")
    file = boxes(folder, ([10, 10, 60, 70], "dog", 0.9))
    words = ["dog", "--boxes", file, "--image", "in", "--model", model, "-o", "out"]
    code, report, err = run(capsys, *words)
    assert code == 1
    assert report["error"] == "1 of 2 images failed"
    assert [bool(item["error"]) for item in report["items"]] == [True, False]
    assert "a.png" in err


def test_the_bare_command_works_offline_and_says_what_it_does(folder, capsys, monkeypatch):
    monkeypatch.setenv("ZIM_OFFLINE", "1")
    code, report, err = run(capsys, "the dog's fur", "-o", "out")
    assert code == 0
    assert report["detector"] == "mini"
    assert report["bundled_picture"] is True
    assert "no --image, so this is the bundled picture dog.jpg" in err
    assert "no such part found, the box of its owner stands in" in err
    (item,) = report["items"]
    assert item["fallback"] == "owner"
    assert box_iou(item["box"], (92, 183, 258, 382)) > 0.5  # where the picture's maker put the dog
    alpha = pixels(item["outputs"]["alpha"]) / 65535
    assert alpha[300, 170] > 0.9
    assert alpha[250, 500] < 0.1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dog", "in/a.png"], "in/a.png is a file; give pictures with --image"),
        (["dog", "--not", "in/a.png"], "in/a.png is a file; give pictures with --image"),
        (["dog", "gone.JPG"], "gone.JPG is no file, and looks like the name of one; give pictures"),
    ],
)
def test_a_picture_among_the_words_is_no_phrase(folder, capsys, words, said):
    code, report, err = run(capsys, *words)
    assert code == 2
    assert said in err
    assert said in report["error"]
    assert err.count("\n") == 1
    assert not (folder / "out").exists()


def test_colours_tell_things_apart(folder, capsys):
    code, report, err = run(capsys, "red umbrella . purple umbrella", "--boxes-only")
    assert code == 0
    assert [item["phrase"] for item in report["items"]] == ["purple umbrella"]
    assert "'red umbrella': nothing above" in err
    code, report, err = run(capsys, "submarine", "--overwrite")
    assert code == 1
    assert "'submarine' 0.00 (no such name here)" in err


def test_missing_weights_are_one_message(folder, capsys, monkeypatch):
    monkeypatch.setenv("ZIM_OFFLINE", "1")
    monkeypatch.setenv("ZIM_HOME", str(folder))
    code, report, err = run(capsys, "the dog's fur", "--detector", "gdino-tiny")
    assert code == 1
    assert "bundled picture dog.jpg" in err
    lines = err.strip().splitlines()
    assert len(lines) == 2
    assert "IDEA-Research/grounding-dino-tiny" in report["error"]
    assert not (folder / "dog.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to find"),
        (["dog", "--scribble", "s.json"], "takes the place of words"),
        (["--scribble", "s.json"], "add --image"),
        (["dog", "--detector", "boxes"], "needs the file"),
        (["dog", "--boxes", "b.json", "--detector", "mini"], "drop one"),
        (["dog", "--threshold", "2"], "number from 0 to 1"),
        (["dog", "--image", "."], "holds no pictures"),
        (["dog", "in/"], "in/ is a folder; give pictures with --image"),
        (["--scribble", "s.json", "--image", "in/a.png", "--boxes-only"], "nothing to do"),
        (["dog", "--image", "in/a.png", "x/a.png"], "would both write"),
    ],
)
def test_wrong_usage_exits_2(folder, capsys, words, message):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_instances_that_show_one_object_are_one():
    a, b, c = disc(40, 40, radius=12), disc(40, 40, radius=12.2), disc(40, 40, radius=5)
    assert soft_iou(a, b) > 0.9 > soft_iou(a, c)
    dogs = [Found((0, 0, 9, 9), "dog", s) for s in (0.9, 0.8, 0.7)]
    assert distinct(dogs, [a, b, c]) == [0, 2]
    cat = Found((0, 0, 9, 9), "cat", 0.6)
    assert distinct([dogs[0], cat], [a, a]) == [0, 1]


def test_label_map_and_subtraction_by_hand():
    a = np.array([[0.9, 0.6, 0.4]], np.float32)
    b = np.array([[0.8, 0.7, 0.5]], np.float32)
    assert label_map([a, b]).tolist() == [[1, 2, 0]]
    assert label_map([a] * 300).dtype == np.uint16
    np.testing.assert_allclose(take_away(a, [b]), [[0.18, 0.18, 0.2]], atol=1e-6)
    # what covers a pixel twice takes no more than the stronger of the two
    np.testing.assert_allclose(take_away(a, [b, a]), [[0.09, 0.18, 0.2]], atol=1e-6)
    np.testing.assert_array_equal(take_away(a, []), a)


def test_captions_stay_inside_the_picture():
    rgb = np.full((60, 80, 3), 90, np.uint8)
    drawn = annotate(rgb, [disc(60, 80)], [(70, 0, 80, 9)], ["a long caption 0.99"])
    assert drawn.shape == rgb.shape
    assert (drawn != annotate(rgb, [disc(60, 80)], [None], [""])).any()


def test_skip_existing_completes_an_interrupted_run(folder, capsys, model):
    words = ["--boxes", boxes(folder, ([10, 10, 60, 60], "dog", 0.9)), "--image", "in/a.png"]
    words += ["--model", model, "-o", "out"]
    assert run(capsys, *words)[0] == 0
    (folder / "out" / "a.json").unlink()  # the table is written last
    (folder / "out" / "a.labels.png").write_bytes(b"mine")
    assert run(capsys, *words)[0] == 1
    assert run(capsys, *words, "--skip-existing")[0] == 0
    assert (folder / "out" / "a.json").is_file()
    assert (folder / "out" / "a.labels.png").read_bytes() == b"mine"
