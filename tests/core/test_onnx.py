"""ONNX folders: what `zim export` writes, what OnnxZim runs, and the official client between them.

One small network at the official frame of 1024 is exported once, by the command, and used by all.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zim
from zim.cli import main
from zim.config import PRESETS, ViTConfig, ZimConfig
from zim.errors import CheckpointError, ConfigError, MissingExtraError, PromptError
from zim.model.matting import ImageFeatures
from zim.onnx import OnnxZim, export_onnx
from zim.testing import picture, tiny_model

pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra onnx)")
onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")

SMALL_1024 = replace(
    PRESETS["tiny"],
    name="small_1024",
    encoder=ViTConfig(embed_dim=32, depth=2, heads=2, global_blocks=(1,), window=14),
    image_size=1024,
)
H, W = 90, 120
POINTS, LABELS = np.array([[60.0, 40], [30, 70]]), np.array([1, 1])
BOX = np.array([20.0, 15, 100, 80])
#: what the issue allows between torch and ONNX Runtime
LOGITS = MATTES = 1e-3


@pytest.fixture(scope="module")
def model() -> zim.Zim:
    return tiny_model(SMALL_1024)


@pytest.fixture(scope="module")
def folder(model: zim.Zim, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("onnx")
    model.save_pretrained(root / "checkpoint")
    assert main(["export", str(root / "checkpoint"), "--output", str(root / "out" / "onnx")]) == 0
    assert [p.name for p in (root / "out").iterdir()] == ["onnx"]  # nothing temporary stays
    return root / "out" / "onnx"


@pytest.fixture(scope="module")
def twins(model: zim.Zim, folder: Path) -> tuple[zim.ZimPredictor, zim.ZimPredictor]:
    """Return predictors of the torch model and of the exported one, on the same picture."""
    ours, theirs = zim.ZimPredictor(model), zim.ZimPredictor(zim.load(folder))
    for predictor in (ours, theirs):
        predictor.set_image(picture(H, W))
    return ours, theirs


@pytest.fixture(scope="module")
def features(model: zim.Zim, folder: Path) -> tuple[ImageFeatures, list[np.ndarray]]:
    """Return one image's features: of the network, and of the encoder graph."""
    image = model.preprocess(torch.from_numpy(picture(768, 1024)).permute(2, 0, 1)[None])
    session = ort.InferenceSession(folder / "encoder.onnx")
    with torch.inference_mode():
        return model.encode_image(image), session.run(None, {"image": image.numpy()})


def describe(values: Any) -> dict[str, list[int | str]]:
    return {
        v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in values
    }


def test_names_shapes_and_types_are_the_official_ones(folder: Path) -> None:
    encoder = onnx.load(folder / "encoder.onnx").graph
    decoder = onnx.load(folder / "decoder.onnx").graph
    shapes = {
        "image_embeddings": [32, 64, 64],
        "feat_D0": [8, 512, 512],
        "feat_D1": [8, 256, 256],
        "feat_D2": [16, 128, 128],
    }
    assert describe(encoder.input) == {"image": ["batch", 3, 1024, 1024]}
    assert describe(encoder.output) == {name: ["batch", *s] for name, s in shapes.items()}
    assert [o.name for o in encoder.output] == list(shapes)  # the client takes them by place
    assert describe(decoder.input) == {
        **{name: [1, *s] for name, s in shapes.items()},
        "point_coords": ["prompts", "points", 2],
        "point_labels": ["prompts", "points"],
        "attn_mask": ["prompts", 64, 64],
    }
    assert describe(decoder.output) == {
        "masks": ["prompts", 4, 512, 512],
        "iou_predictions": ["prompts", 4],
    }
    assert [o.name for o in decoder.output] == ["masks", "iou_predictions"]
    tensors = [*encoder.input, *encoder.output, *decoder.input, *decoder.output]
    assert {t.type.tensor_type.elem_type for t in tensors} == {onnx.TensorProto.FLOAT}


def test_the_folder_says_what_it_is_and_not_where_it_was_made(folder: Path) -> None:
    metadata = json.loads((folder / "metadata.json").read_text())
    assert ZimConfig.from_dict(metadata["config"]) == SMALL_1024
    assert metadata["zim_version"] == zim.__version__
    assert metadata["opset"] == 18
    assert metadata["licence"]
    here = str(Path(zim.__file__).parent.parent).encode()
    assert all(here not in file.read_bytes() for file in folder.iterdir())


@pytest.mark.parametrize("batch", [1, 2])
def test_encoder_equals_torch(model: zim.Zim, folder: Path, batch: int) -> None:
    images = torch.randn(batch, 3, 1024, 1024, generator=torch.Generator().manual_seed(batch))
    session = ort.InferenceSession(folder / "encoder.onnx")
    got = session.run(None, {"image": images.numpy()})
    with torch.inference_mode():
        embedding = model.image_encoder(images)
        stem = model.mask_decoder.pixel_decoder.features(images)
    for value, expected in zip(got, (embedding, *stem), strict=True):
        np.testing.assert_allclose(value, expected.numpy(), atol=LOGITS)


def gaussian(points: np.ndarray) -> np.ndarray:
    """Draw the point map of one prompt cell by cell (core facts 1.3)."""
    grid = np.zeros((64, 64), np.float32)
    for x, y in points:
        for row in range(64):
            for column in range(64):
                d = (row - int(y / 16)) ** 2 + (column - int(x / 16)) ** 2
                grid[row, column] = max(grid[row, column], math.exp(-d / (2 * 21**2)))
    return grid


def box_cells(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    grid = np.zeros((64, 64), np.float32)
    grid[int(y0 / 16) : int(y1 / 16) + 1, int(x0 / 16) : int(x1 / 16) + 1] = 1
    return grid


def prompts(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return point_coords, point_labels and attn_mask as a client would send them."""
    box = np.array([[200.0, 100], [900, 700]], np.float32)
    clicks = np.random.default_rng(0).uniform(250, 690, (3, 2, 2)).astype(np.float32)
    if kind == "one box":
        return box[None], np.array([[2, 3]], np.float32), box_cells(*box.ravel().tolist())[None]
    if kind == "three times two points":
        pad = np.full((3, 1, 2), -0.5, np.float32)
        labels = np.tile(np.array([1, 1, -1], np.float32), (3, 1))
        return np.concatenate([clicks, pad], 1), labels, np.stack([gaussian(c) for c in clicks])
    both = np.concatenate([clicks, np.tile(box, (3, 1, 1))], 1)
    labels = np.tile(np.array([1, 1, 2, 3], np.float32), (3, 1))
    return both, labels, np.stack([gaussian(c) * box_cells(*box.ravel().tolist()) for c in clicks])


@pytest.mark.parametrize("kind", ["one box", "three times two points", "three times both"])
def test_decoder_equals_torch(
    model: zim.Zim, folder: Path, features: tuple[ImageFeatures, list[np.ndarray]], kind: str
) -> None:
    mine, exported = features
    points, labels, attn_mask = prompts(kind)
    names = ("image_embeddings", "feat_D0", "feat_D1", "feat_D2")
    session = ort.InferenceSession(folder / "decoder.onnx")
    inputs = dict(zip(names, exported, strict=True))
    inputs |= {"point_coords": points, "point_labels": labels, "attn_mask": attn_mask}
    masks, iou = session.run(None, inputs)
    with torch.inference_mode():
        out = model.decode(mine, torch.from_numpy(points), torch.from_numpy(labels).long())
    assert masks.shape == (len(points), 4, 512, 512)
    assert np.ptp(masks) > 1  # not a flat matte, on which anything would agree
    np.testing.assert_allclose(masks, out.logits.numpy(), atol=LOGITS, rtol=0)
    np.testing.assert_allclose(iou, out.iou.numpy(), atol=LOGITS, rtol=0)


def test_a_mask_of_zeros_means_no_preference(
    folder: Path, features: tuple[ImageFeatures, list[np.ndarray]]
) -> None:
    """The official client sends one when every point lies outside; -1e4 everywhere is uniform."""
    names = ("image_embeddings", "feat_D0", "feat_D1", "feat_D2")
    inputs = dict(zip(names, features[1], strict=True))
    points, labels, attn_mask = prompts("one box")
    inputs |= {"point_coords": points, "point_labels": labels, "attn_mask": attn_mask * 0}
    masks, iou = ort.InferenceSession(folder / "decoder.onnx").run(None, inputs)
    assert np.isfinite(masks).all()
    assert np.isfinite(iou).all()


@pytest.mark.parametrize(
    "call",
    [
        {"point_coords": POINTS, "point_labels": LABELS},
        {"point_coords": POINTS, "point_labels": np.array([1, 0])},
        {"box": BOX},
        {"point_coords": POINTS, "point_labels": LABELS, "box": BOX},
        {},
    ],
    ids=["points", "negative", "box", "both", "nothing"],
)
def test_the_predictor_gives_the_same_mattes(
    twins: tuple[zim.ZimPredictor, zim.ZimPredictor], call: dict[str, Any]
) -> None:
    for multimask in (True, False):
        expected = twins[0].predict(**call, multimask_output=multimask)
        got = twins[1].predict(**call, multimask_output=multimask)
        np.testing.assert_allclose(got[0], expected[0], atol=MATTES)
        np.testing.assert_allclose(got[1], expected[1], atol=LOGITS)
        np.testing.assert_allclose(got[2], expected[2], atol=LOGITS)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_the_default_type_is_not_that_of_the_graphs(folder: Path, kind: torch.dtype) -> None:
    predictor = zim.ZimPredictor(zim.load(folder))
    answers = []
    for default in (torch.float32, kind):
        torch.set_default_dtype(default)
        try:
            predictor.set_image(picture(H, W))
            answers.append(predictor.predict(box=BOX))
        finally:
            torch.set_default_dtype(torch.float32)
    for a, b in zip(*answers, strict=True):
        np.testing.assert_array_equal(a, b)


def test_copies_and_pickles_open_the_folder_again(folder: Path) -> None:
    model = zim.load(folder)
    predictor = zim.ZimPredictor(model)
    predictor.set_image(picture(H, W))
    wanted = predictor.predict(box=BOX)[0]
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(again, OnnxZim)
        twin = zim.ZimPredictor(again)
        twin.set_image(picture(H, W))
        np.testing.assert_array_equal(twin.predict(box=BOX)[0], wanted)


def test_prompts_of_different_lengths_in_one_batch(
    twins: tuple[zim.ZimPredictor, zim.ZimPredictor],
) -> None:
    batch: list[dict[str, Any]] = [
        {"points": [(60, 40, 1)]},
        {"box": BOX},
        {"points": [(60, 40, 1), (30, 70, 0), (62, 44, 1)]},
        {"points": [(60, 40, 1)], "box": BOX},
    ]
    expected, got = (predictor.predict_batch(batch) for predictor in twins)
    np.testing.assert_allclose(got[0], expected[0], atol=MATTES)
    np.testing.assert_allclose(got[1], expected[1], atol=LOGITS)


def test_several_pictures_at_once(twins: tuple[zim.ZimPredictor, zim.ZimPredictor]) -> None:
    answers = []
    for twin in twins:
        predictor = zim.ZimPredictor(twin.model)
        predictor.set_image_batch([picture(H, W), picture(96, 80, seed=1)])
        asked: list[list[dict[str, Any]]] = [[{"box": BOX}], [{"points": [(40, 50, 1)]}]]
        answers.append(predictor.predict_batch(asked))
    for expected, got in zip(*answers, strict=True):
        np.testing.assert_allclose(got[0], expected[0], atol=MATTES)


def test_several_images_in_one_call(model: zim.Zim, folder: Path) -> None:
    backend = zim.load(folder)
    images = torch.randn(2, 3, 1024, 1024, generator=torch.Generator().manual_seed(5))
    points = torch.tensor([[[300.0, 300], [0, 0]], [[500, 200], [0, 0]], [[400, 900], [0, 0]]])
    labels, index = torch.tensor([[1, -1]] * 3), torch.tensor([1, 0, 1])
    with torch.inference_mode():
        mine = model(images, points, labels, image_index=index)
        theirs = backend(images, points, labels, image_index=index)
    torch.testing.assert_close(theirs.logits, mine.logits, atol=LOGITS, rtol=0)
    torch.testing.assert_close(theirs.iou, mine.iou, atol=LOGITS, rtol=0)


def test_automatic_code_can_drop_candidates_before_pixels(model: zim.Zim, folder: Path) -> None:
    backend = zim.load(folder)
    image = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(6))
    points, labels = torch.tensor([[[300.0, 300]], [[700, 500]]]), torch.tensor([[1], [1]])
    with torch.inference_mode():
        features = backend.encode_image(image)
        state = backend.decode_tokens(features, points, labels)
        kept = state.select(torch.tensor([1]))
        logits = backend.decode_pixels(features, kept, slice(1, 3))
        whole = model(image, points, labels).logits
    assert len(state) == 2
    assert len(kept) == 1
    torch.testing.assert_close(logits, whole[1:, 1:3], atol=LOGITS, rtol=0)


def test_a_mask_prompt_is_refused_in_one_line(
    twins: tuple[zim.ZimPredictor, zim.ZimPredictor],
) -> None:
    with pytest.raises(PromptError, match="takes no mask_input"):
        twins[1].predict(box=BOX, mask_input=np.zeros((1, 256, 256), np.float32))


def test_threads_are_those_of_torch(folder: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        backend = OnnxZim(folder)
        assert backend._encoder.get_session_options().intra_op_num_threads == 1
    finally:
        torch.set_num_threads(before)


def test_zim_matte_runs_a_folder(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture(H, W)).save(tmp_path / "a.png")
    words = ["matte", str(tmp_path / "a.png"), "--box", "20,15,100,80", "--format", "alpha"]
    assert main([*words, "--model", str(folder), "--output", str(tmp_path / "out")]) == 0
    written = np.asarray(Image.open(tmp_path / "out" / "a.alpha.png"))
    predictor = zim.ZimPredictor(zim.load(folder))
    predictor.set_image(picture(H, W))
    expected = predictor.predict(box=BOX, multimask_output=False)[0][0]
    np.testing.assert_allclose(written / 255, expected, atol=0.51 / 255)


@pytest.fixture
def official(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Place the graphs where the official ones are looked for, without our metadata."""
    monkeypatch.setenv("ZIM_HOME", str(tmp_path))
    monkeypatch.setenv("ZIM_OFFLINE", "1")
    home = tmp_path / "models" / "zim_vit_b_2043"
    home.mkdir(parents=True)
    for name in ("encoder.onnx", "decoder.onnx"):
        shutil.copy(folder / name, home / name)
    return home


@pytest.mark.parametrize("name", ["zim_vit_b", "naver-iv/zim-anything-vitb"])
def test_the_official_folder_by_name(
    official: Path, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zim.onnx.runtime._told", set())
    with caplog.at_level(logging.WARNING, "zim"):
        backend = zim.load(name)
        zim.load(name)
    told = [r.getMessage() for r in caplog.records if "CC BY-NC 4.0" in r.getMessage()]
    assert len(told) == 1  # on first load
    assert isinstance(backend, OnnxZim)
    assert backend.config.image_size == 1024
    assert backend.config.decoder.stem == (8, 8, 16)  # read off the graph
    assert backend.config.attention.negative_points  # as the official client does


def test_the_official_folder_from_the_hubs_own_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZIM_OFFLINE", "1")
    revision = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--naver-iv--zim-anything-vitl"
    shutil.copytree(folder, repo / "snapshots" / revision / "zim_vit_l_2092")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    backend = OnnxZim.from_pretrained("zim_vit_l", cache_dir=tmp_path)
    assert backend.config == SMALL_1024


def test_missing_official_weights_are_one_complete_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIM_HOME", str(tmp_path))
    monkeypatch.setenv("ZIM_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(CheckpointError) as caught:
        zim.load("zim_vit_l")
    text = str(caught.value)
    assert "\n" not in text
    place = str(tmp_path / "models" / "zim_vit_l_2092")
    for part in ("naver-iv/zim-anything-vitl", "CC BY-NC 4.0", "1.3 GB", "ZIM_OFFLINE", place):
        assert part in text


def test_broken_folders_say_what_is_wrong(
    folder: Path, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="computes as it was exported"):
        zim.load(folder, dtype="bfloat16")
    (official / "metadata.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not written by zim export"):
        zim.load("zim_vit_b")
    other = json.loads((folder / "metadata.json").read_text())
    other["config"]["image_size"] = 512
    (official / "metadata.json").write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match="describes another model"):
        zim.load("zim_vit_b")
    (official / "metadata.json").unlink()
    shutil.copy(folder / "encoder.onnx", official / "decoder.onnx")
    with pytest.raises(CheckpointError, match=r"decoder\.onnx: takes image; expected"):
        zim.load("zim_vit_b")
    (official / "decoder.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match="cannot be loaded by ONNX Runtime"):
        zim.load("zim_vit_b")
    (official / "decoder.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"no decoder\.onnx here"):
        zim.load("zim_vit_b")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"\[onnx\]"):
        zim.load(folder)


def test_what_an_onnx_model_cannot_do(folder: Path, tmp_path: Path) -> None:
    backend = zim.load(folder)
    with pytest.raises(CheckpointError, match="copy the folder"):
        backend.save_pretrained(tmp_path / "again")
    with pytest.raises(ConfigError, match="ONNX model already"):
        export_onnx(backend, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.fixture(scope="module")
def client(zim_anything: Any, folder: Path) -> Any:
    """Return the official predictor on the folder we wrote."""
    package = sys.modules["zim_anything"]
    predictor = package.ZimPredictor(package.build_zim_model(str(folder)))
    predictor.set_image(picture(H, W))
    return predictor


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["points", "negative", "box"])
@pytest.mark.usefixtures("official")
def test_the_official_client_runs_what_we_export(client: Any, model: zim.Zim, kind: str) -> None:
    call: dict[str, Any] = {"point_coords": POINTS, "point_labels": LABELS}
    if kind == "negative":
        call["point_labels"] = np.array([1, 0])
    if kind == "box":
        call = {"box": BOX}
    alternatives, scores, _ = client.predict(**call, multimask_output=True)  # all four tokens
    single, _, _ = client.predict(**call, multimask_output=False)
    ours = [zim.load("zim_vit_b")]
    if kind != "negative":  # there our models differ from the client on purpose
        ours.append(model)
    for network in ours:
        predictor = zim.ZimPredictor(network)
        predictor.set_image(picture(H, W))
        mattes, quality, _ = predictor.predict(**call)
        np.testing.assert_allclose(mattes, alternatives[1:], atol=MATTES)
        np.testing.assert_allclose(quality, scores[1:], atol=LOGITS)
        token0 = predictor.predict(**call, multimask_output=False)[0]
        np.testing.assert_allclose(token0, single, atol=MATTES)
