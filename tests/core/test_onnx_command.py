"""`zim export`: usage, errors, atomic folders; and its less common graphs (slow)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zim
from zim.cli import main
from zim.errors import CheckpointError, ConfigError
from zim.geometry import Frame
from zim.model.prompt_encoder import ABSENT
from zim.onnx import OnnxZim, export_onnx
from zim.onnx.graphs import enlarge_matrix, shrink_matrix
from zim.testing import TINY_NANO, picture, tiny_model

pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra onnx)")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")

BOX = np.array([10.0, 8, 50, 40])


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return str(tiny_model().save_pretrained(tmp_path / "checkpoint"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a word in place of every graph, where only files and folders matter."""
    monkeypatch.setattr(
        "zim.onnx.export._write", lambda part, path, opset: path.write_text(f"graph {opset}")
    )


@pytest.mark.usefixtures("quick")
def test_the_report_names_everything_written(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    words = ["export", checkpoint, "-o", str(out), "--single", "--fp16", "--opset", "20", "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["outputs"] == {
        "encoder": str(out / "encoder.onnx"),
        "decoder": str(out / "decoder.onnx"),
        "single": str(out / "single.onnx"),
        "metadata": str(out / "metadata.json"),
    }
    assert report["model"] == checkpoint
    assert {"load", "export"} <= set(report["seconds"])
    metadata = json.loads((out / "metadata.json").read_text())
    assert metadata["precision"] == "float16"
    assert (out / "encoder.onnx").read_text() == "graph 20"


@pytest.mark.usefixtures("quick")
def test_an_existing_export_is_replaced_only_on_request(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is as good as none
    words = ["export", checkpoint, "-o", str(out)]
    assert main([*words, "--single"]) == 0
    assert main(words) == 1
    assert "use --overwrite or --skip-existing" in capsys.readouterr().err
    assert (out / "single.onnx").exists()
    assert main([*words, "--skip-existing", "--opset", "19"]) == 0
    assert (out / "encoder.onnx").read_text() == "graph 18"
    assert main([*words, "--overwrite", "--opset", "19"]) == 0
    assert (out / "encoder.onnx").read_text() == "graph 19"
    assert not (out / "single.onnx").exists()  # replaced as a whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "out"]


@pytest.mark.usefixtures("quick")
def test_a_folder_with_other_things_is_never_replaced(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    words = ["export", checkpoint, "-o", str(tmp_path / "out"), "--overwrite"]
    assert main(words) == 1
    assert "holds thesis.txt" in capsys.readouterr().err
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_a_failed_export_leaves_nothing(
    checkpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "encoder.onnx").write_text("before")

    def full(part: Any, path: Path, opset: int) -> None:
        path.write_text("half a graph")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zim.onnx.export._write", full)
    assert main(["export", checkpoint, "-o", str(out), "--overwrite"]) == 1
    assert "No space left" in capsys.readouterr().err
    assert (out / "encoder.onnx").read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "out"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["no_such_model", "-o", "OUT"], 1, "unknown model 'no_such_model'"),
        (["CHECKPOINT"], 2, "--output DIR is needed"),
        (["CHECKPOINT", "-o", "-"], 2, "--output DIR is needed"),
        (["CHECKPOINT", "-o", "OUT", "--dtype", "bfloat16"], 2, "cannot be exported"),
        (["CHECKPOINT", "-o", "OUT", "--opset", "9"], 1, "opset 9 is not supported; expected 18"),
        (["CHECKPOINT", "-o", "CHECKPOINT/config.json"], 2, "is a file"),
        (["CHECKPOINT", "-o", "CHECKPOINT/config.json/out"], 2, "config.json is a file"),
        (["nano", "-o", "OUT", "--single"], 1, "needs cue planes"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_errors_are_one_line(
    words: list[str],
    code: int,
    message: str,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "out")
    filled = [w.replace("CHECKPOINT", checkpoint).replace("OUT", out) for w in words]
    assert main(["export", *filled]) == code
    streams = capsys.readouterr()
    assert streams.out == ""
    assert message in streams.err
    assert streams.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_sams_upscaling_has_no_place_in_the_layout(tmp_path: Path) -> None:
    from dataclasses import replace

    config = tiny_model().config
    config = replace(config, decoder=replace(config.decoder, pixel_decoder="sam"))
    with pytest.raises(ConfigError, match="SAM's upscaling"):
        export_onnx(tiny_model(config), tmp_path / "out")


@pytest.mark.parametrize("size", [(48, 64), (200, 151), (20, 33), (300, 1000)])
def test_scaling_by_matrices_is_the_predictors_scaling(size: tuple[int, int]) -> None:
    """What single.onnx does with a picture and with logits, against Pillow and interpolate."""
    frame = Frame(size, 64)
    rgb = picture(*size)
    rows = shrink_matrix(size[0], torch.tensor(frame.scaled[0]), 64)
    columns = shrink_matrix(size[1], torch.tensor(frame.scaled[1]), 64)
    x = (torch.from_numpy(rgb).permute(2, 0, 1).float() @ columns.T + 0.5).floor()
    x = (rows @ x + 0.5).floor().permute(1, 2, 0)[: frame.scaled[0], : frame.scaled[1]]
    expected = frame.resize(rgb).astype(np.float32)
    assert np.abs(x.numpy() - expected).max() <= 1  # ties: Pillow counts in fixed point
    assert (x.numpy() != expected).mean() < 0.02
    logits = torch.randn(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    down = enlarge_matrix(size[0], torch.tensor(frame.scaled[0]), 64)
    across = enlarge_matrix(size[1], torch.tensor(frame.scaled[1]), 64)
    torch.testing.assert_close(
        down @ logits @ across.T, frame.enlarge(logits), atol=1e-4, rtol=1e-4
    )


@pytest.mark.slow
def test_single_graph_equals_the_predictor(tmp_path: Path) -> None:
    model = tiny_model()
    paths = export_onnx(model, tmp_path / "out", single=True)
    session = ort.InferenceSession(paths["single"])
    predictor = zim.ZimPredictor(model)
    # 64 pixels wide: no resampling, whose one-level ties a random network makes much of
    for size, tolerance in (((48, 64), 1e-3), ((64, 40), 1e-3), ((97, 130), 0.1)):
        rgb = picture(*size)
        predictor.set_image(rgb)
        clicks = np.array([[[20.0, 15], [0, 0]], [[12, 30], [25, 31]]], np.float32)
        kinds = np.array([[1, ABSENT], [1, 0]], np.float32)
        alpha, iou = session.run(
            None, {"image": rgb, "point_coords": clicks, "point_labels": kinds}
        )
        assert alpha.shape == (2, 4, *size)
        mattes, scores, _ = predictor.predict_batch(
            [{"points": [(20, 15, 1)]}, {"points": [(12, 30, 1), (25, 31, 0)]}],
            multimask_output=True,
        )
        np.testing.assert_allclose(alpha[:, 1:], mattes, atol=tolerance)
        np.testing.assert_allclose(iou[:, 1:], scores, atol=max(tolerance, 1e-3))
        both = {
            "image": rgb,
            "point_coords": np.array([[[20, 15], [5, 4], [38, 40]]], np.float32),
            "point_labels": np.array([[1, 2, 3]], np.float32),
        }
        mattes, _, _ = predictor.predict(np.array([[20, 15]]), np.array([1]), [5, 4, 38, 40])
        np.testing.assert_allclose(session.run(None, both)[0][0, 1:], mattes, atol=tolerance)


@pytest.mark.slow
def test_cues_and_masks_are_extra_inputs(tmp_path: Path) -> None:
    """A miniature of nano: cue planes, a second look, and a mask as a prompt."""
    model = tiny_model(TINY_NANO)
    export_onnx(model, tmp_path / "out", mask_input=True)
    backend = OnnxZim(tmp_path / "out")
    assert backend.takes_mask
    ours, theirs = zim.ZimPredictor(model), zim.ZimPredictor(backend)
    for predictor in (ours, theirs):
        predictor.set_image(picture(96, 128))
    low = ours.predict(box=BOX, multimask_output=False)[2]
    calls: list[dict[str, Any]] = [
        {"box": BOX},
        {"point_coords": np.array([[60.0, 50]]), "point_labels": np.array([1])},
        {"box": BOX, "mask_input": low},
        {"mask_input": low},
    ]
    for call in calls:
        for got, expected in zip(theirs.predict(**call), ours.predict(**call), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-3)
    (tmp_path / "out" / "metadata.json").unlink()
    with pytest.raises(CheckpointError, match=r"no metadata\.json, which says how the cues"):
        OnnxZim(tmp_path / "out")


@pytest.mark.slow
def test_half_precision_keeps_float32_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as for ViT-H, whose weights are too large for one file
    monkeypatch.setattr("zim.onnx.export.INLINE_BYTES", 0)
    model = tiny_model()
    paths = export_onnx(model, tmp_path / "half", half=True)
    backend = OnnxZim(tmp_path / "half")
    assert {i.type for i in backend._decoder.get_inputs()} == {"tensor(float)"}
    state = sum(p.numel() for p in model.image_encoder.parameters())
    weights = (tmp_path / "half" / "encoder.onnx.data").stat().st_size
    assert paths["encoder"].stat().st_size + weights < 4 * state
    ours, theirs = zim.ZimPredictor(model), zim.ZimPredictor(backend)
    for predictor in (ours, theirs):
        predictor.set_image(picture(48, 64))
    difference = np.abs(theirs.predict(box=BOX)[0] - ours.predict(box=BOX)[0])
    assert difference.mean() < 0.01  # logits of the random network run to 50
