"""``zim eval`` on damaged and contradictory data: named, counted, never silently scored."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import zim.segmenters
from zim.cli import main
from zim.errors import ConfigError, ImageError
from zim.evaluation import runner
from zim.evaluation.datasets import read_dataset
from zim.evaluation.runner import Settings
from zim.evaluation.samples import Sample, load_sample
from zim.testing import BoxFiller, disc, picture, tiny_model

BOX = {"point": [[32, 24, 1]], "bbox": [16, 8, 48, 40]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Pictures and mattes that the lines of a manifest may name."""
    root = tmp_path / "set"
    (root / "ünï côde").mkdir(parents=True)
    alpha = disc()
    eight = np.rint(255 * alpha).astype(np.uint8)
    cv2.imwrite(str(root / "a.png"), picture()[..., ::-1])
    cv2.imwrite(str(root / "m.png"), eight)
    (root / "ünï côde/ß.png").write_bytes((root / "m.png").read_bytes())
    cv2.imwrite(str(root / "m16.png"), np.rint(65535 * alpha).astype(np.uint16))
    cv2.imwrite(str(root / "mrgb.png"), np.repeat(eight[..., None], 3, 2))
    cv2.imwrite(str(root / "mrgba.png"), np.dstack([np.zeros((48, 64, 3), np.uint8), eight]))
    cv2.imwrite(str(root / "small.png"), eight[:40])
    cv2.imwrite(str(root / "empty.png"), 0 * eight)
    (root / "torn.png").write_bytes((root / "a.png").read_bytes()[:200])
    (root / "torn.json").write_text('{"point": [[32')
    return root


def evaluate(root: Path, lines: list[Any], output: Path, *more: str) -> int:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "list.jsonl").write_text(text)
    words = ["eval", "--dataset", "manifest", "--root", str(root / "list.jsonl"), "--json"]
    words += ["--models", "grabcut", "--workers", "0", "--output", str(output)]
    return main([*words, *more])


def test_every_fault_is_named_and_the_rest_is_scored(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"image": "a.png", "alpha": "m.png", "prompt": BOX}
    bad: dict[str, tuple[Any, str]] = {
        "list.jsonl:1": ("not json", "line 1: expected a JSON object"),
        "list.jsonl:2": ({"alpha": "m.png"}, "line 2: expected a JSON object with image and alpha"),
        "list.jsonl:3": (
            {**good, "prompt": [1, 2]},
            "its prompt is neither a file nor a JSON object",
        ),
        "no-picture": ({**good, "image": "gone.png"}, "gone.png does not exist"),
        "no-matte": ({**good, "alpha": "gone.png"}, "gone.png does not exist"),
        "sizes": ({**good, "alpha": "small.png"}, "expected the same size"),
        "torn-picture": ({**good, "image": "torn.png"}, "torn.png"),
        "torn-matte": ({**good, "alpha": "torn.png"}, "torn.png"),
        "empty": ({**good, "alpha": "empty.png"}, "nothing to ask for"),
        "torn-prompt": ({**good, "prompt": "torn.json"}, "torn.json: not a prompt file"),
        "no-prompt": ({**good, "prompt": "gone.json"}, "gone.json: not a prompt file"),
        "three": ({**good, "prompt": {**BOX, "bbox": [1, 2, 3]}}, "3 numbers in bbox"),
        "outside": ({**good, "prompt": {**BOX, "point": [[99, 9, 1]]}}, "outside the 64 x 48"),
        "no-area": ({**good, "prompt": {**BOX, "bbox": [9, 9, 9, 30]}}, "no area"),
        "label": ({**good, "prompt": {**BOX, "point": [[9, 9, 0.7]]}}, "no positive point"),
        "negative": ({**good, "prompt": {**BOX, "point": [[9, 9, 0]]}}, "no positive point"),
        "nan": ({**good, "prompt": {**BOX, "bbox": [1, 2, float("nan"), 9]}}, "NaN"),
        "m (entry 18)": ({**good, "key": "m"}, "the name m belongs to"),
    }
    lines = [line if key.startswith(("list", "m (")) else {**line, "key": key}
             for key, (line, _) in bad.items()]  # fmt: skip
    kinds = ("m16.png", "mrgb.png", "mrgba.png", "ünï côde/ß.png", "../set/m.png")
    kinds = (*kinds, str(root / "m.png"))
    rows = [*lines[:17], good, lines[17], *({**good, "alpha": kind} for kind in kinds)]
    bad["m (entry 19)"] = bad.pop("m (entry 18)")
    assert evaluate(root, rows, tmp_path / "out") == 0
    report = json.loads(capsys.readouterr().out)
    reasons = {item["input"]: item["error"] for item in report["excluded"]}
    assert set(reasons) == set(bad)
    for key, (_, said) in bad.items():
        assert said in reasons[key], key
    assert report["metrics"]["excluded"] == len(bad)
    half = {"three", "outside", "no-area", "label", "negative", "nan"}  # the other prompt is fine
    assert report["metrics"]["scored"] == 2 * (1 + len(kinds)) + len(half)
    assert report["metrics"]["still_to_do"] == 0
    table = (tmp_path / "out/tables.md").read_text()
    assert all(f"- {key}: " in table for key in bad)
    scored = [
        json.loads(line) for line in (tmp_path / "out/results.0.jsonl").read_text().splitlines()
    ]
    for prompt in ("point", "box"):  # one truth in six kinds of file
        mine = [r for r in scored if r["prompt"] == prompt and r["key"] not in bad]
        values = [r["mse"] for r in mine]
        assert len(values) == 1 + len(kinds)
        assert np.ptp(values) < 0.1


def test_only_what_is_asked_for_has_to_be_there(root: Path, tmp_path: Path) -> None:
    line = {"image": "a.png", "alpha": "m.png", "prompt": {"bbox": BOX["bbox"]}}
    assert evaluate(root, [line], tmp_path / "out", "--prompts", "box") == 0
    assert evaluate(root, [line], tmp_path / "both") == 0  # a click is missing: the box is scored
    table = (tmp_path / "both/tables.md").read_text()
    assert "| grabcut | box | measured | 1 |" in table
    assert "- m: the manifest's prompt: expected" in table


def test_prompts_at_the_rim_are_scaled_with_their_picture(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture(67, 101)[..., ::-1])
    alpha = np.zeros((67, 101), np.uint8)
    alpha[20:, 40:] = 255
    cv2.imwrite(str(tmp_path / "m.png"), alpha)
    prompt = {"point": [[100, 66, 1], [0, 0, 0]], "bbox": [40, 20, 101, 67]}
    sample = Sample("a", tmp_path / "a.png", tmp_path / "m.png", prompt=prompt)
    loaded = load_sample(sample, ("point", "box"), 0, 50)
    assert not loaded.problems
    assert loaded.alpha.shape == (33, 50)
    np.testing.assert_allclose(loaded.prompts["point"].points, [[49, 32], [0, 0]], atol=0.26)
    box = loaded.prompts["box"].box
    assert box is not None
    np.testing.assert_allclose(box, [40 * 50 / 101, 20 * 33 / 67, 50, 33], rtol=1e-6)


def test_a_click_without_a_label_is_on_the_object(root: Path) -> None:
    where = root / "a.png", root / "m.png"
    sample = Sample("m", *where, "all", {"point": [[30, 20]], "bbox": [5, 5, 50, 40]})
    prompt = load_sample(sample, ("point",), 0, None).prompts["point"]
    assert prompt.labels.tolist() == [1]
    assert prompt.points.tolist() == [[30, 20]]


def test_partners_are_found_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    for folder, names in (("images", ("a.PNG", "b.jpg")), ("alphas", ("a.png", "b.PNG"))):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    samples = read_dataset("folder", tmp_path)
    assert [(s.image.name, s.alpha.name, s.error) for s in samples] == [
        ("a.PNG", "a.png", None),
        ("b.jpg", "b.PNG", None),
    ]


def test_every_group_of_a_manifest_has_its_columns(root: Path, tmp_path: Path) -> None:
    good = {"image": "a.png", "alpha": "m.png", "prompt": BOX}
    groups = ("hair", "fine", None)
    lines = [{**good, "key": str(g), "group": g} for g in groups]
    assert evaluate(root, lines, tmp_path / "out") == 0
    head = (tmp_path / "out/table1.csv").read_text().splitlines()[0].split(",")
    assert [name for name in head if name.endswith(" SAD")] == ["fine SAD", "all SAD", "hair SAD"]


class Loud(BoxFiller):
    """Answers beyond 1."""

    def predict(self, *args: Any, **more: Any) -> Any:
        matte, scores, low = super().predict(*args, **more)
        return matte * 2.5, scores, low


def test_what_is_no_alpha_is_not_scored(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zim.segmenters, "load_segmenter", lambda name, **_: Loud())
    cv2.imwrite(str(root / "ones.png"), (disc() > 0.5).astype(np.uint8))
    line = {"image": "a.png", "alpha": "m.png", "prompt": BOX}
    lines = [line, {**line, "alpha": "ones.png", "key": "ones"}]
    assert evaluate(root, lines, tmp_path / "out", "--prompts", "box") == 1
    table = (tmp_path / "out/tables.md").read_text()
    assert "it answers with values from 0 to 2.5; expected 0 to 1" in table
    assert "ones.png goes from 0 to 1 of 255" in table


def test_what_changed_is_scored_again_whichever_rank_had_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "p.json").write_text(json.dumps(BOX))
    line = {"image": "a.png", "alpha": "m.png", "prompt": "p.json"}
    lines = [{**line, "key": "first"}, {**line, "key": "second"}]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert evaluate(root, lines, tmp_path / "out") == 0
    assert evaluate(root, lines, tmp_path / "out", "--overwrite") == 2
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    changed = json.dumps({**BOX, "bbox": [20, 8, 48, 40]})
    assert len(changed) == len(json.dumps(BOX))  # the size tells nothing
    (root / "p.json").write_text(changed)
    os.utime(root / "p.json", ns=(1, 1))
    assert evaluate(root, lines, tmp_path / "out") == 0
    assert evaluate(root, lines, tmp_path / "new") == 0
    for name in ("tables.md", "prompts.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "new" / name).read_bytes()


def test_a_model_that_fails_is_named_not_scored(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Odd(BoxFiller):
        def predict(self, *args: Any, box: Any = None, **more: Any) -> Any:
            if box is None:
                raise RuntimeError("out of\nmemory")
            matte, scores, low = super().predict(box=box)
            return matte * np.nan, scores, low

    monkeypatch.setattr(zim.segmenters, "load_segmenter", lambda name, **_: Odd())
    line = {"image": "a.png", "alpha": "m.png", "prompt": BOX}
    assert evaluate(root, [line], tmp_path / "out") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["metrics"]["scored"] == 0
    assert {item["error"] for item in report["excluded"]} == {
        "the model failed: RuntimeError: out of memory",
        "the model's answer holds NaN or infinity",
    }


@pytest.mark.parametrize(
    ("dataset", "place", "said"),
    [
        ("folder", "nothing", "does not exist"),
        ("folder", "empty", "looked for images with alphas"),
        ("micromat3k", "empty", "neither data_list.txt nor"),
        ("manifest", "empty", "is a folder; --root of a manifest"),
        ("manifest", "void.jsonl", "an empty manifest"),
        ("am2k", "void.jsonl", "has not the layout of am2k"),
    ],
)
def test_nothing_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dataset: str, place: str, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "void.jsonl").touch()
    words = ["eval", "--dataset", dataset, "--root", str(tmp_path / place), "--models", "grabcut"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    (tmp_path / "file").touch()
    assert main([*words[:4], str(tmp_path / "empty"), "--output", str(tmp_path / "file/x")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_torchrun_with_two_ranks_gives_the_tables_of_one(root: Path, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    line = {"image": "a.png", "alpha": "m.png"}
    lines = [json.dumps({**line, "key": f"{k}"}) for k in range(5)]
    (root / "list.jsonl").write_text("\n".join(lines))
    words = ["-m", "zim.cli", "eval", "--dataset", "manifest", "--root", str(root / "list.jsonl")]
    words += ["--models", f"{tmp_path / 'model'},grabcut", "--workers", "0", "--device", "cpu"]
    words += ["--threads", "1", "--output"]
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two, one = str(tmp_path / "two"), str(tmp_path / "one")
    for command in ([*ranks, *words, two], [*words, one]):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    shares = [
        {json.loads(text)["key"] for text in file.read_text().splitlines() if text}
        for file in sorted((tmp_path / "two").glob("results.*.jsonl"))
    ]
    assert [len(share) for share in shares] == [3, 2]
    assert not shares[0] & shares[1]
    for name in ("tables.md", "table1.csv", "table1.tex", "table7.csv", "prompts.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


class Stamp:
    """A segmenter that answers with the same array whatever it is asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def set_image(self, image: Any, image_format: str = "RGB") -> None:
        """Look at nothing."""

    def predict(self, *_: Any, **__: Any) -> tuple[Any, Any, Any]:
        return self.answer[None], np.ones(1), None


def test_answers_of_other_types_are_scored_and_of_other_sizes_named(
    root: Path, tmp_path: Path
) -> None:
    sample = Sample("a", root / "a.png", root / "m.png")
    alpha = disc()
    eight = np.rint(255 * alpha).astype(np.uint8)
    answers: dict[str, Any] = {
        "small": alpha[:40],
        "bool": alpha > 0.5,
        "uint8": eight,
        "float64": alpha.astype(np.float64),
        "tensor": torch.from_numpy(alpha.astype(np.float32)),
    }
    models: dict[str, Any] = {k: lambda v=v: Stamp(v) for k, v in answers.items()}
    output = str(tmp_path / "out")  # a name will do
    settings = Settings("folder", ("box",))
    assert runner.evaluate(models, [sample], settings, output) == {}  # pyright: ignore
    rows = {row["model"]: row for row in runner.read_results(Path(output))}
    assert "expected (48, 64)" in rows["small"]["excluded"]
    for name in ("uint8", "float64", "tensor"):
        assert rows[name]["mse"] < 0.01  # times 1000
    assert 1 < rows["bool"]["mse"] < 20


@pytest.mark.parametrize("prompts", ["box", ("scribble",), ("box", "x")])
def test_prompts_that_nobody_asks_with_are_refused(prompts: Any) -> None:
    with pytest.raises(ConfigError, match="a tuple of some of"):
        Settings("folder", prompts)


def test_names_of_data_sets_are_checked(root: Path) -> None:
    with pytest.raises(ConfigError, match="data set 'coco' is unknown"):
        read_dataset("coco", root)
    with pytest.raises(ImageError, match="does not exist"):
        read_dataset("folder", str(root / "gone"))  # pyright: ignore[reportArgumentType]
