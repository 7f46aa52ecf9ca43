import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from zim import metrics
from zim.api import choose_device
from zim.cli import main
from zim.evaluation import paper
from zim.evaluation.datasets import read_dataset
from zim.evaluation.samples import load_sample
from zim.segmenters.classical import GrabCut
from zim.testing import disc, picture, tiny_model


def micromat(root: Path) -> Path:
    """Two pictures in MicroMat-3K's true layout: three objects, one of them coarse."""
    for folder in (
        "img",
        *(f"{a}/{b}" for a in ("matte", "prompt", "seg") for b in ("fine", "coarse")),
    ):
        (root / folder).mkdir(parents=True)
    lines = []
    for image, number, group, radius in (
        ("0001", 0, "fine", 12.0),
        ("0001", 1, "coarse", 2.0),
        ("0002", 0, "fine", 8.0),
    ):
        cv2.imwrite(str(root / f"img/{image}.png"), picture(48, 64, int(image))[..., ::-1])
        stem = f"{image}_{number}"
        alpha = disc(48, 64, radius=radius)
        cv2.imwrite(str(root / f"matte/{group}/{stem}.png"), np.rint(alpha * 255))
        cv2.imwrite(str(root / f"seg/{group}/{stem}.png"), (alpha > 0.5) * np.uint8(255))
        prompt = {"point": [[32, 24, 1], [2, 2, 0], [-1, -1, -1]], "bbox": [16, 8, 48, 40]}
        (root / f"prompt/{group}/{stem}.json").write_text(json.dumps(prompt))
        lines.append(
            f"img/{image}.png matte/{group}/{stem}.png prompt/{group}/{stem}.json "
            f"seg/{group}/{stem}.png"
        )
    (root / "data_list.txt").write_text("\n".join(lines) + "\n")
    return root


def run(root: Path, output: Path, *more: str, models: str = "grabcut") -> int:
    args = ["eval", "--dataset", "micromat3k", "--root", str(root), "--models", models]
    return main([*args, "--output", str(output), "--workers", "0", *more])


@pytest.fixture
def root(tmp_path):
    return micromat(tmp_path / "MicroMat3K")


def test_micromat_end_to_end(root, tmp_path, capsys):
    samples = read_dataset("micromat3k", root)
    assert [s.key for s in samples] == ["coarse/0001_1", "fine/0001_0", "fine/0002_0"]
    assert all(s.seg and s.seg.is_file() for s in samples)
    out = tmp_path / "out"
    assert run(root, out, "--sheet", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metrics"] == {"samples": 3, "scored": 6, "excluded": 0, "still_to_do": 0}
    rows = [json.loads(line) for line in (out / "results.0.jsonl").read_text().split("\n") if line]
    model = GrabCut()
    one = load_sample(samples[1], ("box",), 0, None)
    model.set_image(one.rgb)
    matte = model.predict(box=np.array([16, 8, 48, 40]))[0][0]
    row = next(r for r in rows if r["key"] == "fine/0001_0" and r["prompt"] == "box")
    assert row["mse"] == pytest.approx(metrics.mse(matte, one.alpha))
    assert {r["key"]: r["size"] for r in rows} == {
        "coarse/0001_1": "S",
        "fine/0001_0": "L",
        "fine/0002_0": "M",
    }
    table = (out / "table1.csv").read_text()
    assert 'SMat,box,"paper, not measured here",-,390.360' in table
    assert "V100" in (out / "table7.tex").read_text()
    drawn = cv2.imread(str(out / "sheet.jpg"))
    assert drawn is not None
    assert drawn.shape[0] > 6 * 180


def test_interrupted_and_resumed_gives_the_same_table(root, tmp_path):
    assert run(root, tmp_path / "whole") == 0
    assert run(root, tmp_path / "part") == 0
    results = tmp_path / "part/results.0.jsonl"
    text = results.read_text()
    results.write_text(text[: len(text) // 2])  # as a kill leaves it: a torn last line
    (tmp_path / "part/tables.md").unlink()
    assert run(root, tmp_path / "part") == 0
    for name in ("tables.md", "table1.csv", "table7.tex"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_ranks_are_one(root, tmp_path, monkeypatch):
    assert run(root, tmp_path / "one") == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert run(root, tmp_path / "two") == 0
    first, second = (
        {
            json.loads(line)["key"]
            for line in (tmp_path / f"two/results.{r}.jsonl").read_text().split("\n")
            if line
        }
        for r in "01"
    )
    assert not first & second
    assert (tmp_path / "one/tables.md").read_bytes() == (tmp_path / "two/tables.md").read_bytes()


def test_what_cannot_be_scored_is_counted_named_and_left_out(root, tmp_path, capsys):
    (root / "prompt/fine/0001_0.json").write_text('{"point": 3}')
    (root / "matte/coarse/0001_1.png").unlink()
    assert run(root, tmp_path / "out", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metrics"]["excluded"] == 2
    assert report["metrics"]["scored"] == 2
    reasons = {item["input"]: item["error"] for item in report["excluded"]}
    assert "bbox" in reasons["fine/0001_0"]
    assert "does not exist" in reasons["coarse/0001_1"]
    prompt = (root / "prompt/coarse/0001_1.json").read_text()
    (root / "prompt/fine/0001_0.json").write_text(prompt)  # repaired: scored by the next run
    assert run(root, tmp_path / "out", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["metrics"]["excluded"], report["metrics"]["scored"]) == (1, 4)
    (root / "prompt/fine/0001_0.json").write_text("[]")
    cv2.imwrite(str(root / "matte/fine/0002_0.png"), np.full((20, 20), 255, np.uint8))
    assert run(root, tmp_path / "none", "--json") == 1
    assert "expected the same size" in capsys.readouterr().out


def test_a_system_that_is_missing_keeps_its_row(root, tmp_path, monkeypatch):
    monkeypatch.setenv("ZIM_HOME", str(tmp_path / "home"))
    assert run(root, tmp_path / "out", models="smat,grabcut") == 1
    table = (tmp_path / "out/table1.csv").read_text()
    assert 'smat,-,"not run: smat is not packaged' in table
    assert "grabcut,box,measured,2 + 1" in table


def test_other_settings_do_not_mix(root, tmp_path, capsys):
    assert run(root, tmp_path / "out") == 0
    assert run(root, tmp_path / "out", "--max-side", "32") == 1
    assert "other settings" in capsys.readouterr().err


def test_folders_get_drawn_prompts_and_worker_processes(tmp_path):
    for name in ("images", "alphas"):
        (tmp_path / "set" / name).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "set/images/a.png"), picture()[..., ::-1])
    cv2.imwrite(str(tmp_path / "set/alphas/a.png"), np.rint(disc() * 255))
    shutil.copy(tmp_path / "set/images/a.png", tmp_path / "set/images/lonely.png")
    args = ["eval", "--dataset", "folder", "--root", str(tmp_path / "set"), "--models", "grabcut"]
    assert main([*args, "--output", str(tmp_path / "out"), "--workers", "1"]) == 0
    prompts = [
        json.loads(line)
        for line in (tmp_path / "out/prompts.jsonl").read_text().split("\n")
        if line
    ]
    by_key = {row["key"]: row for row in prompts}
    assert "does not exist" in by_key["lonely"]["excluded"]
    x, y, label = by_key["a"]["point"][0]
    assert label == 1
    assert disc()[int(y), int(x)] > 0.9
    rows, columns = np.nonzero(np.rint(disc() * 255) / 255 > 0.1)
    assert by_key["a"]["bbox"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize(
    ("dataset", "images", "masks"),
    [
        ("am2k", "validation/original", "validation/mask"),
        ("aim500", "original", "mask"),
        ("p3m", "validation/P3M-500-NP/original_image", "validation/P3M-500-NP/mask"),
        ("p3m", "P3M-500-P/blurred_image", "P3M-500-P/mask"),
        ("refmatte_rw100", "image", "mask"),
    ],
)
def test_layouts(tmp_path, dataset, images, masks):
    (tmp_path / images).mkdir(parents=True)
    (tmp_path / masks).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / images / "a.jpg"), picture())
    stem = "a_0" if dataset == "refmatte_rw100" else "a"
    cv2.imwrite(str(tmp_path / masks / f"{stem}.png"), np.rint(disc() * 255))
    (sample,) = read_dataset(dataset, tmp_path)
    assert load_sample(sample, ("point", "box"), 0, None).alpha.shape == (48, 64)


def test_the_papers_numbers():
    rows = {(r["method"], r["prompt"]): r["cells"] for r in paper.table1()}
    assert len(rows) == 14
    assert rows["ZIM", "box"]["fine", "mse"] == 1.893
    assert rows["Matting-Any", "point"]["coarse", "conn"] == 155.780
    two = {(r["method"], r["prompt"]): r["cells"] for r in paper.table2()}
    assert two["SMat", "box"]["aim500", "mse"] == 7.869
    seven = {(r["method"], r["backbone"], r["prompt"]): r for r in paper.table7()}
    assert len(seven) == 30
    assert seven["ZIM", "ViT-L", "box"]["cells"]["coarse", "L"] == 0.686
    assert seven["SAM2", "Hiera-L", "point"]["ms"] == 195.0


def test_latency_comes_from_bench(root, tmp_path, capsys):
    row = {"stage": "matte", "model": "grabcut", "median_s": 0.1234}
    (tmp_path / "bench.json").write_text(json.dumps({"rows": [row]}))
    assert run(root, tmp_path / "out", "--latency", str(tmp_path / "bench.json")) == 0
    assert "grabcut,point,measured,123.4," in (tmp_path / "out/table7.csv").read_text()
    (tmp_path / "bench.json").write_text("{}")
    assert run(root, tmp_path / "out", "--latency", str(tmp_path / "bench.json")) == 2
    assert "zim bench --json" in capsys.readouterr().err


def test_other_weights_are_scored_again(tmp_path):
    root = micromat(tmp_path / "MicroMat3K")
    model = tmp_path / "model"
    tables = []
    for seed in (0, 1, 1):
        tiny_model(seed=seed).save_pretrained(model)
        assert run(root, tmp_path / "out", "--device", "cpu", models=str(model)) == 0
        tables.append((tmp_path / "out/tables.md").read_bytes())
    assert tables[0] != tables[1]
    assert tables[1] == tables[2]
    assert (tmp_path / "out/results.0.jsonl").read_text().count("seconds") == 12


def test_every_rank_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [str(choose_device(name)) for name in ("auto", "cuda", "cuda:0", "cpu")] == [
        "cuda:1",
        "cuda:1",
        "cuda:0",
        "cpu",
    ]
