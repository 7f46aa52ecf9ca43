import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import zim
from zim import plugins
from zim.cli import main
from zim.images import encode_alpha, read_alpha
from zim.protocols import Detection
from zim.testing import disc, picture, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_model().save_pretrained(tmp_path_factory.mktemp("model")))


@pytest.fixture
def folder(tmp_path):
    return pictures(tmp_path / "in", 6)


def pictures(root: Path, count: int) -> Path:
    (root / "sub").mkdir(parents=True)
    for k in range(count):
        where = root / ("sub" if k % 2 else "") / f"p{k:02d}.png"
        cv2.imwrite(str(where), picture(40, 56, k)[..., ::-1])
    return root


def files(output: Path) -> dict[str, bytes]:
    """Everything but the settings, which name the number of threads and the like."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }


def batch(source: Path, output: Path, model: str, *more: str) -> list[str]:
    args = ["batch", str(source), "--output", str(output), "--model", model, "--shard-size", "2"]
    return [*args, "--device", "cpu", *more]


def test_same_matte_as_the_library(folder, tmp_path, model):
    assert main(batch(folder, tmp_path / "out", model)) == 0
    want = zim.matte(folder / "sub/p01.png", model=zim.load(model, device="cpu"))
    assert (tmp_path / "out/sub/p01.alpha.png").read_bytes() == encode_alpha(want.alpha)
    assert len(list((tmp_path / "out").rglob("*.alpha.png"))) == 6


def test_manifest_with_prompts_objects_and_broken_lines(folder, tmp_path, model, capsys):
    rows = [
        '{"image": "p00.png", "name": "clicks/a", "point": [[28, 20, 1], [-1, -1, -1]]}',
        '{"image": "p00.png", "objects": [{"bbox": [5, 5, 50, 35]}, {"point": [[28, 20, 1]]}]}',
        "not json",
        '{"image": "p02.png", "name": "../up"}',
        '{"image": "p04.png", "bbox": [900, 900, 950, 950]}',
        '{"image": "gone.png"}',
    ]
    manifest = folder / "list.jsonl"
    manifest.write_text("\n".join(rows))
    assert main(batch(manifest, tmp_path / "out", model, "--json")) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["metrics"]["failed"] == 4
    listed = (tmp_path / "out/failed.jsonl").read_text().splitlines()
    failed = [json.loads(line) for line in listed]
    for entry, part in zip(
        failed, ("line 3", "leaves the output", "outside", "does not exist"), strict=True
    ):
        assert part in entry["error"]
    made = sorted(
        p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png")
    )
    assert made == ["clicks/a.alpha.png", "p00.1.alpha.png", "p00.2.alpha.png"]


def test_scribbles_masks_and_words(folder, tmp_path, model, monkeypatch):
    stroke = [[20, 18], [36, 22]]
    cv2.imwrite(str(folder / "mask.png"), np.rint(255 * disc(40, 56)).astype(np.uint8))
    (folder / "stroke.json").write_text(json.dumps(stroke))
    rows = [
        {"image": "p00.png", "name": "stroke", "scribble": stroke},
        {"image": "p00.png", "name": "file", "scribble": "stroke.json"},
        {"image": "p00.png", "name": "mask", "mask": "mask.png"},
        {"image": "p00.png", "name": "words", "text": "a disc"},
        {"image": "p00.png", "name": "nothing", "text": "a cat"},
    ]
    manifest = folder / "list.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))

    class Finder:
        def detect(self, image, phrases):
            found = {"a disc": [((0, 0, 9, 9), 0.2), ((8, 4, 50, 36), 0.9)]}.get(phrases[0], [])
            return [Detection(box, phrases[0], score) for box, score in found]

    monkeypatch.setattr(plugins, "names", lambda group: ["finder"])
    monkeypatch.setattr(plugins, "find", lambda group, name: lambda **_: Finder())
    assert main(batch(manifest, tmp_path / "out", model)) == 1
    (entry,) = (tmp_path / "out/failed.jsonl").read_text().splitlines()
    assert "nothing in the picture answers 'a cat'" in json.loads(entry)["error"]
    loaded = zim.load(model, device="cpu")
    mask = read_alpha(folder / "mask.png")
    wanted: dict[str, dict[str, Any]] = {
        "stroke": {"scribble": stroke},
        "file": {"scribble": stroke},
        "mask": {"mask": mask},
        "words": {"box": (8, 4, 50, 36)},
    }
    for name, asked in wanted.items():
        want = zim.matte(folder / "p00.png", model=loaded, **asked)
        assert (tmp_path / f"out/{name}.alpha.png").read_bytes() == encode_alpha(want.alpha)
    (folder / "stroke.json").write_text("[[20, 18], [36, 22], [36, 30]]")  # asked anew
    before = (tmp_path / "out/file.alpha.png").read_bytes()
    assert main(batch(manifest, tmp_path / "out", model)) == 1
    assert (tmp_path / "out/file.alpha.png").read_bytes() != before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"image": None}, "it has no image, the name of a file"),
        ({}, "it has no image"),
        ({"image": "p00.png", "boxes": [[1, 2, 3, 4]]}, "line 3: boxes is unknown; expected point"),
        ({"image": "p00.png", "objects": []}, "objects is empty"),
        ({"image": "p00.png", "name": "a\0b"}, "zero byte"),
        ({"image": "p00.png", "objects": [{}]}, "a prompt is empty"),
        ({"image": "p00.png", "points": []}, "a prompt is empty"),
        ({"image": "p00.png", "objects": {"bbox": [1, 2, 3, 4]}}, "list of JSON objects"),
        ({"image": "p00.png", "objects": [], "bbox": [1, 2, 30, 40]}, "put it into objects"),
        ({"image": "p00.png", "objects": [{"bux": [1, 2, 30, 40]}]}, "unknown key 'bux'"),
        ({"image": "p00.png", "box": [1, 2, 3, 4], "bbox": [1, 2, 3, 4]}, "give one of them"),
        ({"image": "p00.png", "point": 3}, "'point' is 3"),
        ({"image": "p00.png", "point": [[10, 10, 0.7]]}, "not 0 or 1"),
        ({"image": "p00.png", "bbox": [1, 2, 3, 10**400]}, "not finite"),
        ({"image": "p00.png", "scribble": "gone.png"}, "gone.png"),
        ({"image": "p00.png", "mask": [1]}, "not the name of a file"),
        ({"image": "p00.png", "text": " "}, "expected words"),
        ({"image": "p00.png", "name": "/abs"}, "leaves the output folder"),
        ({"image": "p00.png", "name": ".shards/000000"}, "leaves the output folder"),
        ({"image": "p02.png", "name": "good"}, "writes good already"),
        ({"image": "p02.png", "name": "two.1"}, "writes two.1 already"),
        ([1, 2], "JSON object"),
    ],
)
def test_a_bad_line_is_named_and_stops_nothing(folder, tmp_path, line, said):
    box = {"bbox": [4, 4, 50, 36]}
    good = {"image": "p00.png", "name": "good", **box}
    two = {"image": "p00.png", "name": "two", "objects": [box, box]}
    manifest = folder / "list.jsonl"
    manifest.write_text("\n".join(json.dumps(row) for row in (good, two, line)))
    assert main(batch(manifest, tmp_path / "out", "grabcut")) == 1
    (entry,) = (tmp_path / "out/failed.jsonl").read_text().splitlines()
    assert said in json.loads(entry)["error"]
    made = sorted(p.name for p in (tmp_path / "out").rglob("*.png"))
    assert made == ["good.alpha.png", "two.1.alpha.png", "two.2.alpha.png"]


def test_names_in_a_folder(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for name in ("a.png", "a.jpg", "näme ß.png", "b.tiff"):
        data = cv2.imencode(Path(name).suffix, picture(40, 56)[..., ::-1])[1]
        (root / name).write_bytes(data.tobytes())
    (root / "._a.png").write_bytes(b"a companion of macOS")
    assert main(batch(root, tmp_path / "out", "grabcut")) == 0
    made = sorted(p.name for p in (tmp_path / "out").glob("*.png"))
    assert made == ["a.jpg.alpha.png", "a.png.alpha.png", "b.alpha.png", "näme ß.alpha.png"]


def test_one_corrupt_picture_in_50_stops_nothing(tmp_path):
    root = pictures(tmp_path / "in", 50)
    (root / "p24.png").write_bytes((root / "p24.png").read_bytes()[:300])
    assert main(batch(root, tmp_path / "out", "grabcut", "--shard-size", "8")) == 1
    assert len(list((tmp_path / "out").rglob("*.alpha.png"))) == 49
    (entry,) = (tmp_path / "out/failed.jsonl").read_text().splitlines()
    assert json.loads(entry)["name"] == "p24"
    cv2.imwrite(str(root / "p24.png"), picture(40, 56, 24)[..., ::-1])  # repaired
    assert main(batch(root, tmp_path / "out", "grabcut", "--shard-size", "8")) == 0
    assert (tmp_path / "out/failed.jsonl").read_text() == ""


def test_a_finished_run_is_free_and_a_lost_shard_comes_back(folder, tmp_path, model, capsys):
    out = tmp_path / "out"
    assert main(batch(folder, out, model)) == 0
    first = files(out)
    (out / ".shards/000001.json").unlink()
    victim = next(p for p in out.rglob("p04.alpha.png"))
    victim.unlink()
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.alpha.png")}
    capsys.readouterr()
    main(batch(folder, out, model, "--json"))
    report = json.loads(capsys.readouterr().out)
    assert report["metrics"]["done_before"] == 2
    assert files(out) == first
    untouched = [p for p, t in times.items() if p.stat().st_mtime_ns == t]
    assert len(untouched) == 4


def test_other_settings_and_foreign_folders_are_refused(folder, tmp_path, model, capsys):
    assert main(batch(folder, tmp_path / "out", model)) == 0
    assert main(batch(folder, tmp_path / "out", model, "--bits", "16")) == 1
    assert "other settings" in capsys.readouterr().err
    assert main(batch(folder, tmp_path / "out", model, "--bits", "16", "--overwrite")) == 0
    assert main(batch(folder, tmp_path / "out", model, "--bits", "16")) == 0  # now its settings
    assert main(batch(folder, tmp_path / "out", model)) == 1
    capsys.readouterr()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    assert main(batch(folder, tmp_path / "full", model)) == 1
    assert "not empty" in capsys.readouterr().err


def test_mattes_are_no_pictures_of_the_next_run(folder, tmp_path, model, capsys):
    inside = folder / "mattes"
    for _ in range(2):
        assert main(batch(folder, inside, model)) == 0
        assert len(list(inside.rglob("*.png"))) == 6
    before = files(folder)
    for args in ((inside, tmp_path / "out"), (folder, folder), (folder, folder, "--overwrite")):
        capsys.readouterr()
        assert main(batch(args[0], args[1], model, *args[2:])) != 0
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1
        assert "taken for pictures" in said
    assert files(folder) == before


def test_inputs_are_not_written_over(folder, model, capsys):
    (folder / "p00.png").rename(folder / "x.alpha.png")
    lines = [{"image": "x.alpha.png", "name": "other"}, {"image": "p02.png", "name": "x"}]
    manifest = folder / "list.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = files(folder)
    assert main(batch(manifest, folder, model, "--overwrite")) != 0
    assert "x.alpha.png is an input and would be overwritten" in capsys.readouterr().err
    assert files(folder) == before


def test_a_picture_for_a_list_and_a_file_for_a_folder_are_one_line(tmp_path, capsys):
    picture_file, manifest = tmp_path / "a.png", tmp_path / "list.jsonl"
    cv2.imwrite(str(picture_file), np.zeros((4, 4, 3), np.uint8))
    manifest.write_text('{"image": "a.png"}')
    assert main(["batch", str(picture_file), "--output", str(tmp_path / "out")]) == 1
    assert main(["batch", str(manifest), "--output", str(picture_file)]) == 2
    error = capsys.readouterr().err
    assert f"{picture_file} is a picture; give its folder" in error
    assert f"{picture_file} is a file; give a folder" in error
    assert error.count("\n") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "list.jsonl"}


def test_ranks_and_processes_write_the_same_bytes(folder, tmp_path, model, monkeypatch):
    assert main(batch(folder, tmp_path / "one", model)) == 0
    assert main(batch(folder, tmp_path / "two", model, "--processes", "2")) == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(batch(folder, tmp_path / "one", model, "--overwrite")) == 2
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        assert main(batch(folder, tmp_path / "ranks", model)) == 0
    assert files(tmp_path / "one") == files(tmp_path / "ranks")


def test_kill_9_and_resume(tmp_path, model):
    root = pictures(tmp_path / "in", 24)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "zim.cli", *batch(root, out, model)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not list(out.glob(".shards/0*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(out.glob(".shards/0*.json"))) < 12
    assert main(batch(root, out, model)) == 0
    assert main(batch(root, tmp_path / "whole", model)) == 0
    left = {k: v for k, v in files(out).items() if not k.endswith(".tmp")}
    assert left == files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_writes_the_same_bytes(folder, tmp_path, model):
    pytest.importorskip("ray.data")
    assert main(batch(folder, tmp_path / "one", model)) == 0
    assert main(batch(folder, tmp_path / "ray", model, "--engine", "ray", "--processes", "2")) == 0
    assert files(tmp_path / "one") == files(tmp_path / "ray")


def test_alpha_of_the_file_is_kept(tmp_path):
    (tmp_path / "in").mkdir()
    rgba = np.dstack([picture(40, 56)[..., ::-1], np.zeros((40, 56), np.uint8)])
    rgba[:, 28:, 3] = 255
    cv2.imwrite(str(tmp_path / "in/a.png"), rgba)
    assert main(batch(tmp_path / "in", tmp_path / "out", "grabcut")) == 0
    alpha = cv2.imread(str(tmp_path / "out/a.alpha.png"), cv2.IMREAD_UNCHANGED)
    assert alpha is not None
    assert not alpha[:, :28].any()
