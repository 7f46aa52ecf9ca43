"""Composites drawn by the training device: against OpenCV, zim.cues and the pictures themselves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import zim
from zim.cues import CUE_PLANES, compute_cues
from zim.errors import ConfigError
from zim.testing import TINY_NANO
from zim_training import cli
from zim_training.data import pack as packing
from zim_training.data.resample import blurring, placing, resampled
from zim_training.data.resident import SLOTS, ResidentPack
from zim_training.data.variation import jpeg
from zim_training.matte import MatteConfig, MatteTrainer, drawn_scenes, forward
from zim_training.prompts import KINDS
from zim_training.render import layers as layering
from zim_training.render.batches import RecroppedScenes, RenderedScenes
from zim_training.render.prompts import chosen_cells, depths, draw_prompts
from zim_training.render.scenes import _laid, draw_layout, draw_scenes, recropped

SIDE = 64
NETWORK = replace(TINY_NANO, cue_planes=CUE_PLANES)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("render")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SHARD", 4)
        patch.setattr(layering, "SHARD", 4)
        list(layering.write_layers(collection, folder / "layers", "train", 12, side=SIDE))
        list(packing.write_pack(collection, folder / "train", "train", 4, side=SIDE, natural=1))
    return folder


@pytest.fixture(scope="module")
def rendered(folder: Path) -> RenderedScenes:
    return RenderedScenes(folder / "layers", CPU, SIDE)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """256 x 256 x 3 uint8 with smooth and sharp parts."""
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 255, (9, 9, 3), np.uint8), (256, 256))
    cv2.circle(picture, (90, 120), 50, (200, 40, 60), -1)
    cv2.rectangle(picture, (150, 60), (220, 200), (20, 180, 220), 3)
    return picture


def _full(count: int) -> torch.Tensor:
    return torch.full((count, 2), SIDE)


def _planes(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None]


def _placed(picture: np.ndarray, scale: float, start: float, outer: int, flip: bool) -> np.ndarray:
    lines = placing(
        torch.tensor([start]), torch.tensor([scale]), len(picture), outer, torch.tensor([False])
    )
    columns = placing(
        torch.tensor([start]), torch.tensor([scale]), len(picture), outer, torch.tensor([flip])
    )
    return resampled(_planes(picture), lines, columns)[0].permute(1, 2, 0).numpy()


def test_placing_is_opencvs_resize(photo: np.ndarray) -> None:
    exact = photo.astype(np.float32)
    for side, method in ((64, cv2.INTER_AREA), (100, cv2.INTER_AREA)):
        small = cv2.resize(exact, (side, side), interpolation=method)
        found = _placed(photo, side / 256, 0.0, side, False)
        np.testing.assert_allclose(found, small, atol=0.05)
    grown = cv2.resize(exact, (384, 384), interpolation=cv2.INTER_LINEAR)
    found = _placed(photo, 1.5, 0.0, 384, False)
    np.testing.assert_allclose(found[1:-1, 1:-1], grown[1:-1, 1:-1], atol=0.05)
    # moved, mirrored, and nothing beyond its ends
    moved = _placed(photo, 0.25, 10.0, 96, True)
    small = cv2.resize(exact, (64, 64), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(moved[10:74, 10:74], small[:, ::-1], atol=0.05)
    moved[10:74, 10:74] = 0
    assert not moved.any()


def test_blurring_is_opencvs_away_from_the_edge(photo: np.ndarray) -> None:
    sigma = torch.tensor([3.0])
    across = blurring(sigma, 256, torch.tensor([7.0]))
    found = resampled(_planes(photo), blurring(sigma, 256), across)[0].permute(1, 2, 0).numpy()
    wanted = cv2.GaussianBlur(photo.astype(np.float32), (0, 0), 3.0)
    np.testing.assert_allclose(found[20:-20, 27:-20], wanted[20:-20, 20:-27], atol=0.3)


@pytest.mark.parametrize("quality", [25, 60, 89])
def test_jpeg_is_libjpegs(photo: np.ndarray, quality: int) -> None:
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
    written = cv2.imencode(".jpg", photo[..., ::-1], flags)[1]
    decoded = cv2.imdecode(written, cv2.IMREAD_COLOR)
    assert decoded is not None
    wanted = decoded[..., ::-1].astype(np.float32)
    found = jpeg(_planes(photo), torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy()
    damage = np.abs(wanted - photo).mean()
    # libjpeg rounds chrominance once more, to whole numbers
    assert np.abs(found - wanted).mean() < 0.25 * damage + 0.3


def test_depth_never_exceeds_the_true_one_and_keeps_half_of_it() -> None:
    rng = np.random.default_rng(1)
    for _ in range(6):
        field = cv2.resize(
            rng.random((7, 7), np.float32), (128, 128), interpolation=cv2.INTER_CUBIC
        )
        region = (field > 0.45).astype(np.uint8)
        # the chessboard distance to the nearest cell outside; ours counts from 0
        true = cv2.distanceTransform(np.pad(region, 1), cv2.DIST_C, 3)[1:-1, 1:-1]
        found = depths(torch.from_numpy(region > 0)[None])[0].numpy()
        assert (found <= np.maximum(true - 1, 0)).all()
        assert (found >= np.minimum(true - 1, 3))[region > 0].all()
        assert (found >= 0.35 * true - 1).all()
    odd = torch.ones(1, 24, 10, dtype=torch.bool)
    assert 3 <= float(depths(odd).max()) <= 4
    everything = torch.ones(1, 16, 16, dtype=torch.bool)
    assert float(depths(everything)[0, 0, 0]) == 0
    assert float(depths(everything, edge=False)[0, 0, 0]) > 3


def test_cells_are_chosen_in_their_region_and_everywhere_in_it() -> None:
    region = torch.zeros(3, 8, 8, dtype=torch.bool)
    region[0, 2:4, 5:8] = True
    region[1, 7, 7] = True
    xy, there = chosen_cells(np.random.default_rng(0), region, 200)
    assert there[:2].all()
    assert not there[2].any()
    assert set(map(tuple, xy[0].tolist())) == {(x, y) for x in (5, 6, 7) for y in (2, 3)}
    assert set(map(tuple, xy[1].tolist())) == {(7, 7)}


@pytest.mark.parametrize("size", [None, (64, 40), (26, 64)])
def test_cues_are_those_of_the_predictor(
    folder: Path, rendered: RenderedScenes, size: tuple[int, int] | None
) -> None:
    source: RenderedScenes | RecroppedScenes = rendered
    if size:
        pack = ResidentPack(folder / "train", CPU)
        pack.store.rows["size"][:] = torch.tensor(size, dtype=torch.int16)
        source = RecroppedScenes(pack)
    seen, box_first, ratios, shapes = set(), False, [], set()
    for seed in range(12):
        batch = source.draw(4, np.random.default_rng(seed))
        # what the first of the third prompts is must not decide about the others
        thirds = [KINDS[int(k)] for k in batch.kind[2::SLOTS]]
        box_first |= thirds[0] == "box" and len(set(thirds)) > 1
        for b in range(len(batch.points)):
            height, width = batch.size[batch.scene[b]].tolist()
            shapes.add((height, width))
            picture = batch.image[batch.scene[b], :, :height, :width].round()
            picture = picture.permute(1, 2, 0).numpy().astype(np.uint8)
            mask = batch.mask[b].numpy() if batch.has_mask[b] else None
            points, labels = batch.points[b][None].numpy(), batch.labels[b][None].numpy()
            wanted = compute_cues(picture, points, labels, SIDE, mask, grabcut=False)[0]
            found = batch.cues[b].numpy()
            assert not found[[0, 6]].any()
            np.testing.assert_allclose(found[3:6], wanted[3:6], atol=2e-3)
            # edges are repeated here and mirrored there
            inside = (slice(0, height // 2 - 2), slice(0, width // 2 - 2))
            np.testing.assert_allclose(found[2][inside], wanted[2][inside], atol=0.06)
            assert not found[:, height // 2 :].any()
            assert not found[:, :, width // 2 :].any()
            # a colour at the border of two bins may fall into the other one
            ratios.append(float(np.abs(found[1] - wanted[1]).mean()))
            seen.add(KINDS[int(batch.kind[b])])
    assert {"box", "click", "clicks", "correction"} <= seen
    assert box_first or size
    assert max(ratios) < 0.06
    assert np.mean(ratios) < 0.01
    assert all(max(shape) == SIDE and min(shape) % 2 == 0 for shape in shapes)
    assert (len(shapes) > 3) == (size is not None)


def test_colours_and_alphas_belong_together() -> None:
    """Red things over blue ground: as much red as there is visible alpha."""
    rng = np.random.default_rng(3)
    calm = SimpleNamespace(  # no shadow, no colour shifted
        random=lambda shape: np.full(shape, 0.99), uniform=rng.uniform, normal=rng.normal
    )
    alpha = torch.rand(5, 4, 1, 16, 16)
    placed = torch.cat([alpha, torch.zeros(5, 4, 2, 16, 16), alpha], 2)
    ground = torch.zeros(5, 3, 16, 16)
    ground[:, 2] = 1
    none = torch.zeros(5, 1, 16, 16)
    canvas, alphas = _laid(calm, ground, placed, none, torch.zeros(5))  # type: ignore[arg-type]
    assert alphas.shape == (5, 5, 16, 16)
    torch.testing.assert_close(canvas[:, 0], alphas.sum(1))
    torch.testing.assert_close(canvas[:, 2], 1 - alphas.sum(1))
    torch.testing.assert_close(alphas[:, 3], alpha[:, 3, 0])
    # a part of the second object is covered by the third and the fourth, and not by the first
    part = torch.rand(5, 1, 16, 16)
    _, alphas = _laid(calm, ground, placed, part, torch.ones(5))  # type: ignore[arg-type]
    left = (1 - alpha[:, 2, 0]) * (1 - alpha[:, 3, 0])
    torch.testing.assert_close(alphas[:, 4], part[:, 0] * left)


def test_layouts_are_drawn_like_the_generators() -> None:
    layout = draw_layout(np.random.default_rng(0), 4000, 256)
    objects = layout.present.sum(1)
    assert abs((objects == 1).mean() - 0.5) < 0.03
    assert (layout.main < objects).all()
    size = layout.size[np.arange(4000), layout.main]
    assert abs((size > 0.95 * 256).mean() - 0.15 - 0.5 * 0.03 / 0.355) < 0.06
    assert size.min() >= 24
    assert layout.size.max() <= 1.4 * 1.2 * 256
    assert abs((~np.isnan(layout.drop)).any(1).mean() - 0.15) < 0.03


def test_prompts_stay_on_their_object(rendered: RenderedScenes) -> None:
    seen = dict.fromkeys(KINDS, 0)
    for seed in range(30):
        batch = rendered.draw(6, np.random.default_rng(seed))
        assert batch.image.shape == (6, 3, SIDE, SIDE)
        assert batch.slots == SLOTS
        for b, number in enumerate(batch.kind.tolist()):
            kind, alpha = KINDS[number], batch.alpha[b, 0]
            seen[kind] += 1
            peak = float(alpha.max())
            assert peak > 0
            labels = batch.labels[b].tolist()
            marks = list(zip(batch.points[b].tolist(), labels, strict=True))
            assert bool(batch.has_mask[b]) == (kind == "correction")
            for (x, y), label in marks:
                around = alpha[max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2]
                if label == 1:
                    assert float(around.max()) > min(0.4, 0.4 * peak)
                if label == 0 and kind != "correction":
                    assert float(alpha[int(y), int(x)]) < 0.09
            if kind == "click":
                assert sorted(set(labels)) == [-2, -1, 1]
                assert labels.count(1) == 1
            boxed = {label: point for point, label in marks if label >= 2}
            assert boxed or -1 in labels
            if kind == "whole":
                assert boxed == {2: [0, 0], 3: [SIDE - 1, SIDE - 1]}
            elif boxed:
                rows, columns = torch.nonzero(alpha > min(0.1, 0.5 * peak)).T
                for axis, line in ((0, columns), (1, rows)):
                    low, high = int(line.min()), int(line.max())
                    loose = 0.16 * max(high - low, 2) + 3
                    assert abs(boxed[2][axis] - low) <= loose
                    assert abs(boxed[3][axis] - high) <= loose
    assert min(seen.values()) > 0, seen


def test_clicks_hit_a_line_of_one_pixel() -> None:
    alpha = torch.zeros(40, SIDE, SIDE)
    alpha[:, 8:60, 21] = 1
    for name in ("click", "clicks", "scribble"):
        kind = np.full(40, KINDS.index(name))
        drawn = draw_prompts(
            np.random.default_rng(0), kind, alpha, torch.zeros_like(alpha), _full(len(alpha))
        )
        on = drawn.labels == 1
        assert on.any(1).all()
        x, y = drawn.points.long().unbind(-1)
        values = alpha.flatten(1).gather(1, y * SIDE + x)
        assert values[on].all(), name


def test_a_correction_goes_to_the_mistake() -> None:
    alpha = torch.zeros(200, SIDE, SIDE)
    alpha[:, 10:50, 8:56] = 1
    kind = np.full(200, KINDS.index("correction"))
    drawn = draw_prompts(
        np.random.default_rng(0), kind, alpha, torch.zeros_like(alpha), _full(len(alpha))
    )
    cells = (SIDE // 2, SIDE // 2)
    answered = torch.nn.functional.interpolate(drawn.mask, cells, mode="bilinear")[:, 0] > 0
    wrong = answered != (torch.nn.functional.avg_pool2d(alpha[:, None], 2)[:, 0] > 0.5)
    deep = depths(wrong).flatten(1).amax(1) > 0
    assert deep.sum() > 60
    for b in range(200):
        x, y = drawn.points[b, 0].long().tolist()
        assert int(drawn.labels[b, 0]) == int(alpha[b, y, x] > 0.5)
        if deep[b]:
            assert wrong[b, y // 2, x // 2]


def test_targets_show(rendered: RenderedScenes) -> None:
    for seed in range(10):
        scenes = draw_scenes(rendered.layers, 16, SIDE, np.random.default_rng(seed))
        assert float(scenes.alphas.min()) >= 0
        assert float(scenes.alphas[:, :4].sum(1).max()) <= 1 + 1e-5
        area = scenes.alphas.mean((2, 3))
        row = torch.arange(16)
        assert (area[row, scenes.first] > 0).all()
        assert scenes.shown[row, scenes.first].all()
        assert float(scenes.image.min()) >= 0
        assert float(scenes.image.max()) <= 255
        assert scenes.image.flatten(1).std(1).min() > 0


@pytest.mark.parametrize("size", [(64, 64), (64, 22), (40, 64)])
def test_cut_scenes_keep_pictures_and_mattes_together(folder: Path, size: tuple[int, int]) -> None:
    pack = ResidentPack(folder / "train", CPU)
    rows = pack.store.rows
    height, width = size
    rows["size"][:] = torch.tensor(size, dtype=torch.int16)
    rows["image"][:] = 0  # what is beside the picture
    rows["image"][:, :height, :width] = 90
    rows["alpha"][:] = 0
    spot = (slice(4, 14), slice(5, 15))
    rows["image"][:, spot[0], spot[1]] = 200
    rows["alpha"][:, :, spot[0], spot[1]] = 255
    kept = []
    for seed in range(12):
        scenes = recropped(pack.store, 6, np.random.default_rng(seed))
        alpha = scenes.alphas[torch.arange(6), scenes.first]
        for k, (picture, matte) in enumerate(zip(scenes.image, alpha, strict=True)):
            h, w = scenes.size[k].tolist()
            assert max(h, w) == SIDE
            light, beside = picture.mean(0), torch.ones(SIDE, SIDE, dtype=torch.bool)
            beside[:h, :w] = False
            assert not light[beside].any()
            assert not matte[beside].any()
            on, off = light[matte > 0.99], light[(matte < 0.01) & ~beside]
            assert float(on.mean()) > float(off.mean()) + 10
            assert float(off.quantile(0.02)) > 1  # nothing of what was beside the picture
            rows, columns = (int((matte > 0.5).any(axis).sum()) for axis in (1, 0))
            kept.append(abs(rows - columns) <= 2)  # all of the square target
    assert np.mean(kept) > 0.75


def test_the_same_seed_draws_the_same_batch_and_another_another(rendered: RenderedScenes) -> None:
    first, again, other = (rendered.draw(3, np.random.default_rng(k)) for k in (1, 1, 2))
    for name in ("image", "alpha", "points", "labels", "cues", "mask"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert not torch.equal(first.image, other.image)
    logits, quality = forward(zim.build(NETWORK, seed=1).eval(), first, half=False)
    assert logits.isfinite().all()
    assert quality.isfinite().all()


def test_layers_are_the_same_whoever_draws_them(folder: Path, collection: Path) -> None:
    lost = folder / "layers" / "shard_00001"
    before = {p.name: p.read_bytes() for p in lost.iterdir()}
    lost.rename(folder / "gone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layering, "SHARD", 4)
        write = layering.write_layers(
            collection, folder / "layers", "train", 12, side=SIDE, workers=2
        )
        assert list(write) == [1]
    assert {p.name: p.read_bytes() for p in lost.iterdir()} == before
    shard = {p.stem: np.load(p) for p in lost.iterdir()}
    assert shard["object"].shape == (4, SIDE, SIDE, 4)
    assert shard["background"].shape == (4, 96, 96, 3)
    for picture, (height, width) in zip(shard["object"], shard["size"], strict=True):
        rows, columns = np.nonzero(picture[..., 3])
        assert np.ptp(rows) < height
        assert np.ptp(columns) < width
        assert max(height, width) == SIDE


def test_a_run_that_renders_resumes_exactly(folder: Path, tmp_path: Path) -> None:
    def trainer(run: str, resume: bool = False) -> MatteTrainer:
        config = MatteConfig(
            steps=4,
            scenes=4,
            render=0.5,
            recrop=0.5,
            resident=True,
            precision="float32",
            warm_up=1,
        )
        return MatteTrainer(config, folder, tmp_path / run, resume, NETWORK)

    whole = trainer("whole")
    batch = whole._batch(0)
    assert len(batch.image) == 4
    assert batch.scene.tolist() == [k for k in range(4) for _ in range(SLOTS)]
    assert batch.slots == SLOTS
    whole.fit()
    part = trainer("part")
    for _ in range(2):
        part.train_step()
    part.save()
    rest = trainer("part", resume=True)
    rest.fit()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[key]), key


def test_what_is_missing_or_out_of_range_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished layers"):
        RenderedScenes(tmp_path / "layers", CPU, SIDE)
    for wrong, message in (
        (MatteConfig(render=1.5, resident=True), "share from 0 to 1"),
        (MatteConfig(render=0.5), "resident"),
        (MatteConfig(recrop=-0.1, resident=True), "recrop -0.1"),
        (MatteConfig(render=0.05, scenes=2, resident=True), "0.05 of 2 scenes is none"),
        (MatteConfig(render=1, recrop=0.5, resident=True), "recrop 0.5 of 0 scenes"),
    ):
        with pytest.raises(ConfigError, match=message):
            MatteTrainer(wrong, folder, tmp_path / "run", network=NETWORK)


def test_shares_of_a_step_are_rounded_once() -> None:
    for scenes in range(1, 12):
        for render in (0.5, 0.55, 1):
            for recrop in (0, 0.5, 0.9) if scenes > 2 and render < 1 else (0,):
                config = MatteConfig(scenes=scenes, render=render, recrop=recrop)
                rendering, recropping = drawn_scenes(config)
                assert rendering + recropping <= scenes
                assert abs(rendering - render * scenes) <= 0.5
                assert abs(recropping - recrop * (scenes - rendering)) <= 0.5


def test_what_is_no_layer_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished layers"):
        RenderedScenes(folder / "train", CPU, SIDE)  # a pack
    shutil.copytree(folder / "layers", tmp_path / "layers")
    info = tmp_path / "layers" / "pack.json"
    about = json.loads(info.read_text())
    info.write_text(json.dumps(about | {"version": -1}))
    with pytest.raises(ConfigError, match="generator -1"):
        RenderedScenes(tmp_path / "layers", CPU, SIDE)
    info.write_text(json.dumps(about))
    (tmp_path / "layers" / "shard_00002" / "size.npy").unlink()
    with pytest.raises(ConfigError, match="shard_00002 is damaged"):
        RenderedScenes(tmp_path / "layers", CPU, SIDE)


def test_commands_write_layers_and_refuse_wrong_shares(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["data", "synth", str(tmp_path / "pack"), "--data-root", str(collection)]
    small = ["--scenes", "1", "--dev-scenes", "1", "--natural", "1", "--layers", "2"]
    assert cli.main([*base, *small]) == 0
    layers = tmp_path / "pack" / "layers"
    assert len(np.load(layers / "shard_00000" / "object.npy")) == 2
    assert np.load(tmp_path / "pack" / "train" / "shard_00000" / "natural.npy").all()
    pictures = ["matte", "--data", str(collection), "--output", str(tmp_path / "run")]
    assert cli.main([*pictures, "--render", "0.5"]) == 2
    assert "--render is for packs" in capsys.readouterr().err
    assert cli.main([*base, "--natural", "2"]) == 2
    assert "--natural: '2' is not a number from 0 to 1" in capsys.readouterr().err
    assert cli.main([*base, "--layers", "-1"]) == 2
    assert "--layers: -1: expected a whole number" in capsys.readouterr().err
