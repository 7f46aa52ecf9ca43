"""The converter: its data's two strategies, its network, what it learns, and the sets it reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from zim.errors import CheckpointError, ConfigError, ImageError
from zim_training import cli
from zim_training.converter.config import PRESETS
from zim_training.converter.model import Converter, ConverterOutput, undecided
from zim_training.converter.samples import Pool, draw_view, training_samples
from zim_training.converter.task import ConverterTask, converter_loss
from zim_training.data.coarse import coarse_label, spatial_cut
from zim_training.data.readers import find_sets
from zim_training.loop import Loop


def disc(side: int = 96, radius: float = 28, soft: float = 8) -> np.ndarray:
    yy, xx = np.mgrid[:side, :side]
    distance = radius - np.hypot(xx - side / 2, yy - side / 2)
    return np.clip(distance / soft + 0.5, 0, 1).astype(np.float32)


def test_coarse_labels_differ_but_keep_the_object() -> None:
    alpha = disc()
    labels = []
    for k in range(60):
        label, done = coarse_label(np.random.default_rng(k), alpha)
        again, same = coarse_label(np.random.default_rng(k), alpha)
        np.testing.assert_array_equal(label, again)
        assert done == same
        plain = alpha > 0.5
        assert (label & plain).sum() / (label | plain).sum() >= 0.5
        labels.append(label)
    assert len({label.tobytes() for label in labels}) > 40


def test_sga_cuts_label_and_matte_alike_and_after_the_label() -> None:
    alpha = disc()
    cuts = 0
    for k in range(40):
        rng = np.random.default_rng(k)
        label = alpha > 0.3
        cut, matte = spatial_cut(rng, label, alpha)
        survives = cut.sum() / label.sum()
        cuts += survives < 1
        assert survives == 1 or 0.05 <= survives <= 0.95
        # both are their originals times one and the same region
        gone = label & ~cut
        assert (matte[gone] == 0).all()
        kept = cut
        np.testing.assert_array_equal(matte[kept], alpha[kept])
    assert cuts > 30


def test_stl_targets_are_their_labels(collection: Path) -> None:
    pool = Pool(collection=collection)
    for k in range(12):
        rgb, label, alpha, rigid = draw_view(np.random.default_rng(k), pool, 64, 0.5, 1.0)
        assert rigid
        np.testing.assert_array_equal(label, alpha == 1)
        assert set(np.unique(alpha)) <= {0, 1}
        assert rgb.shape == (64, 64, 3)
    assert not draw_view(np.random.default_rng(0), pool, 64, 0.0, 0.0)[3]


def test_grey_labels_are_made_hard_and_pictures_of_the_views_size_are_cropped(
    tmp_path: Path,
) -> None:
    """What comes from files is framed round its object, also where it has the view's own size."""
    rgb = np.full((64, 64, 3), 90, np.uint8)
    grey = (255 * disc(64, 10, 8)).astype(np.uint8)
    _write(tmp_path / "a.png", rgb)
    _write(tmp_path / "b.png", grey)
    row = {"image": "a.png", "alpha": "b.png"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row | {"kind": "label"}) + "\n" + json.dumps(row))
    mattes, labels = training_samples([tmp_path / "m.jsonl"])
    pool = Pool(mattes, labels)
    for k in range(4):
        _, label, alpha, rigid = draw_view(np.random.default_rng(k), pool, 64, 0.5, 1.0)
        assert rigid
        np.testing.assert_array_equal(alpha, label)
        whole = draw_view(np.random.default_rng(k), pool, 64, 0.0, 0.0)[2]
        assert (whole > 0.5).mean() > 2 * (grey > 127).mean()


def test_the_data_given_are_trained_on_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    _write(tmp_path / "b.png", np.full((8, 8), 255, np.uint8))
    _write(tmp_path / "c.png", np.full((8, 9), 255, np.uint8))
    path, run = tmp_path / "m.jsonl", tmp_path / "run"
    words = ["converter", "--preset", "test", "--data", str(path), "--output", str(run)]
    for row, message in (
        ({"alpha": "b.png", "split": "test"}, "none of 1 samples is a matte for training; --test-"),
        ({"alpha": "b.png", "split": "val"}, "none of 1 samples is a matte for training"),
        ({"alpha": "b.png", "split": "dev"}, "line 1: split 'dev'; expected train, or test or val"),
        ({"alpha": "none.png"}, "none.png does not exist"),
        ({"alpha": "c.png"}, "c.png is 9 x 8, a.png is 8 x 8"),
    ):
        path.write_text(json.dumps({"image": "a.png"} | row), encoding="utf-8")
        assert cli.main([*words, "--device", "cpu"]) == 1
        assert message in capsys.readouterr().err
    path.write_bytes(b"\xff\xfe")
    assert cli.main([*words, "--device", "cpu"]) == 1
    assert "expected JSON lines in UTF-8" in capsys.readouterr().err
    ablate = ["ablate", "--table", "3", "--tiny", "--data", str(path), "--output", str(run)]
    assert cli.main(ablate) == 1
    assert not run.exists()
    assert cli.main([*words, "--init", "hub", "--device", "cpu"]) == 1
    path.write_text(json.dumps({"image": "a.png", "alpha": "b.png"}), encoding="utf-8")
    for flags in (["--init", "hub"], ["--size", "65"], ["--sga", "2"]):
        assert cli.main([*words, *flags, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "no weights are published for the trunk tiny" in error
    assert "--size 65: expected a multiple of 32" in error
    assert cli.main(["eval-converter", str(run), "--size", "65"]) == 2
    assert not run.exists()


def test_empty_mattes_are_passed_over_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for k, value in enumerate((0, 255, 0, 255)):
        _write(tmp_path / f"image/{k}.png", np.zeros((8, 8, 3), np.uint8))
        _write(tmp_path / f"alpha/{k}.png", np.full((8, 8), value, np.uint8))
    mattes, _ = training_samples([tmp_path])
    assert [s.image.name for s in mattes] == ["1.png", "3.png"]
    first = tmp_path / "alpha" / "0.png"
    error = capsys.readouterr().err
    assert error == f"2 empty mattes are passed over, the first is {first}\n"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert training_samples([tmp_path])[0] == mattes
    assert capsys.readouterr().err == ""  # one process speaks
    for k in "13":
        (tmp_path / f"image/{k}.png").unlink()
        (tmp_path / f"alpha/{k}.png").unlink()
    with pytest.raises(
        ConfigError, match=r"none of 2 samples .* training \(2 are empty, the first"
    ):
        training_samples([tmp_path])
    _write(tmp_path / "alpha" / "2.png", np.full((8, 8), 1, np.uint8))
    with pytest.raises(ImageError, match="the object must be 255, not 1"):
        training_samples([tmp_path])


def test_fusion_takes_the_finer_answer_where_the_coarser_is_undecided() -> None:
    coarse = torch.full((1, 1, 64, 64), -20.0)
    coarse[..., 30:34, :] = 0.0  # undecided rows
    middle, fine = torch.full_like(coarse, 2.0), torch.full_like(coarse, 1.0)
    alpha = ConverterOutput(coarse, middle, fine).alpha((15, 7))
    first = (torch.arange(64) >= 30 - 7) & (torch.arange(64) < 34 + 7)
    second = (torch.arange(64) >= 23 - 3) & (torch.arange(64) < 41 + 3)
    rows = torch.where(second, torch.tensor(1.0).sigmoid(), torch.tensor(-20.0).sigmoid())
    torch.testing.assert_close(alpha[0, 0, :, 5], rows)
    torch.testing.assert_close(undecided(coarse.sigmoid(), 15)[0, 0, :, 0], first)


def test_loss_of_a_perfect_answer_is_zero_and_of_a_known_one_is_known() -> None:
    alpha = torch.zeros(1, 1, 32, 32)
    sure = torch.full_like(alpha, -60.0)
    assert converter_loss(ConverterOutput(sure, sure, sure), alpha, 10.0) < 1e-6
    half = torch.zeros_like(alpha)  # alpha 1/2 everywhere: L1 is 1/2 at every level, no gradient
    loss = converter_loss(ConverterOutput(half, half, half), alpha, 10.0)
    assert loss.item() == pytest.approx(0.5 * (2 + 1 + 1) / 5)
    step = sure.clone()
    step[..., 16:] = 60.0  # one column of steps, area one half
    loss = converter_loss(ConverterOutput(step, step, step), alpha, 10.0)
    assert loss.item() == pytest.approx((0.5 + 10 * 1 / 31) * 4 / 5, rel=1e-4)


def test_network_takes_any_multiple_of_32_and_comes_back_from_disk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Converter("tiny").eval()
    image, label = torch.rand(1, 3, 64, 96) * 255, torch.zeros(1, 1, 64, 96)
    label[..., 20:40, 30:60] = 1
    model.save_pretrained(tmp_path)
    again = Converter.from_pretrained(tmp_path)
    with torch.inference_mode():
        one, two = model(image, label), again(image, label)
        assert one.os1.shape == (1, 1, 64, 96)
        torch.testing.assert_close(one.os1, two.os1, rtol=0, atol=0)
        other = model(image, 1 - label)
        assert not torch.allclose(one.os8, other.os8)
    (tmp_path / "converter.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="no usable converter"):
        Converter.from_pretrained(tmp_path)
    (tmp_path / "converter.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"\(converter.safetensors is missing\)"):
        Converter.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"gone does not exist; train one with zim-train"):
        Converter.from_pretrained(tmp_path / "gone")


def test_sizes_of_the_real_trunks() -> None:
    """Parameter counts of SAM 2's trunks, with one input channel more."""
    with torch.device("meta"):
        trunk = Converter("hiera_b+").trunk
    assert sum(p.numel() for p in trunk.parameters()) == pytest.approx(68.7e6, rel=2e-3)


def test_sam2_weights_load_with_a_silent_label_channel(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = Converter("tiny")
    config = model.trunk.config.to_dict() | {"num_channels": 3}
    backbone = transformers.Sam2HieraDetModel(transformers.Sam2HieraDetConfig(**config))
    sam2 = SimpleNamespace(vision_encoder=SimpleNamespace(backbone=backbone))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.Sam2Model, "from_pretrained", lambda *_, **__: sam2)
        assert model.load_trunk(tmp_path) == len(backbone.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        three = backbone(x).intermediate_hidden_states
        four = model.trunk(F.pad(x, (0, 0, 0, 0, 0, 1), value=7.0)).intermediate_hidden_states
    for a, b in zip(three, four, strict=True):
        torch.testing.assert_close(a, b)


def test_short_training_falls_and_ends_below_its_label(collection: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(PRESETS["test"], size=64, steps=60, eval_every=60, save_every=60)
    pool = Pool(collection=collection)
    task = ConverterTask(config, pool, Pool(collection=collection, split="dev"), views=8)
    loop = Loop(task, config, tmp_path, "cpu")
    before = task.evaluate(task.model)[0]
    loop.fit()
    loop.close()
    assert loop.last_scores["rigid_mse"] < 0.5 * before["rigid_mse"]
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [x["loss"] for x in lines if x["kind"] == "train"]
    assert np.mean(losses[-2:]) < np.mean(losses[:2])
    for name in ("config.json", "env.json", "last.pt", "samples/step_0000060.png"):
        assert (tmp_path / name).is_file()
    assert Converter.from_pretrained(tmp_path).config.embed == 16


def test_the_start_may_be_the_best_converter(collection: Path, tmp_path: Path) -> None:
    words = ["converter", "--preset", "test", "--size", "32", "--steps", "1", "--keep-best"]
    words += ["--data-root", str(collection), "--output", str(tmp_path / "run")]
    words += ["--device", "cpu"]
    assert cli.main([*words, "--batch", "2"]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(x)["step"] for x in lines if json.loads(x)["kind"] == "dev"] == [0, 1]


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def test_readers_know_the_public_layouts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rgb = np.zeros((20, 30, 3), np.uint8)
    grey = np.full((20, 30), 200, np.uint8)
    ade = np.ones((20, 30), np.uint8)  # wall, and a person (13), who is no rigid thing
    ade[:10] = 13
    layout = {
        "aim": ["original/a.jpg", "mask/a.png"],
        "am2k": [
            "train/original/m_1.jpg",
            "train/mask/m_1.png",
            "validation/original/m_2.jpg",
            "validation/mask/m_2.png",
        ],
        "p3m": [
            "train/blurred_image/p.jpg",
            "train/mask/p.png",
            "validation/P3M-500-P/blurred_image/q.jpg",
            "validation/P3M-500-P/mask/q.png",
            "validation/P3M-500-NP/original_image/r.jpg",
            "validation/P3M-500-NP/mask/r.png",
        ],
        "rwp": ["image/1.png", "alpha/1.png", "detailmap/1_cloud_trimap.jpg"],
        "him": ["images/natural/7.jpg", "alphas/natural/7/00.png", "alphas/natural/7/01.png"],
        "refmatte": ["train/img_full/x.jpg", "train/mask/x_0.png", "train/mask/x_1.png"],
        "ade": ["images/training/ADE_train_1.jpg", "annotations/training/ADE_train_1.png"],
    }
    for name, files in layout.items():
        for file in files:
            matte = file.endswith(".png") and "image/" not in file
            pixels = (ade if name == "ade" else grey) if matte else rgb
            _write(tmp_path / name / file, pixels)
    counts = {found.name: found.counts() for found in find_sets(tmp_path)}
    assert counts == {
        "AIM-500": {"test matte": 1},
        "AM-2K": {"train matte": 1, "test matte": 1},
        "P3M-10K": {"train matte": 1, "test matte": 2},
        "image + alpha": {"train matte": 1},
        "HIM-2K": {"train matte": 2},
        "RefMatte": {"train matte": 2},
        "ADE20K": {"train label": 1},
    }
    assert cli.main(["data", "check", str(tmp_path)]) == 0
    label = find_sets(tmp_path / "ade")[0].samples[0].read()[1]
    np.testing.assert_array_equal(label, (ade == 1).astype(np.float32))
    assert cli.main(["data", "check", str(tmp_path / "none")]) == 1
    assert "does not exist" in capsys.readouterr().err
