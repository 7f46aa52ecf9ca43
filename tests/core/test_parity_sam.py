"""Same weights, same outputs as segment-anything and transformers' SamModel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zim
from zim.config import PRESETS, MaskedAttentionConfig, ViTConfig, ZimConfig
from zim.testing import meta_sam
from zim.weights.sam import load_sam

pytestmark = pytest.mark.parity

#: the bound asked for: largest difference relative to the largest value, float32
RELATIVE = 2e-5

SMALL = ViTConfig(embed_dim=48, depth=4, heads=3, global_blocks=(1, 3), window=5)


def with_plain_attention(config: ZimConfig, **changes: Any) -> ZimConfig:
    return replace(config, attention=MaskedAttentionConfig(mode="none"), **changes)


def sam_decoder_config(config: ZimConfig) -> ZimConfig:
    decoder = replace(config.decoder, pixel_decoder="sam")
    return with_plain_attention(config, decoder=decoder)


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give every tensor, relative positions included, values that matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in list(module.named_parameters()) + list(module.named_buffers()):
        if "pixel_" in name:
            continue
        scale = 0.3 if "rel_pos" in name or "pos_embed" in name else 0.05
        noise = torch.randn(value.shape, generator=generator) * scale
        is_norm_weight = value.dim() == 1 and name.endswith("weight")
        value.data = noise + 1 if is_norm_weight else noise
        if "gaussian" in name:
            value.data = torch.randn(value.shape, generator=generator)


def build_sam(package: Any, vit: ViTConfig, size: int) -> nn.Module:
    """Build Meta's network with weights of the size of trained ones."""
    sam = meta_sam(package, vit, size)
    randomise(sam)
    return sam


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def save(sam: nn.Module, path: Path) -> Path:
    torch.save(sam.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def small(segment_anything: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    sam = build_sam(segment_anything, SMALL, 256)
    return sam, save(sam, tmp_path_factory.mktemp("sam") / "sam_small.pth")


@pytest.fixture(scope="module")
def picture() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (1, 3, 171, 256), generator=generator).float()


PROMPTS = {
    "one point": (torch.tensor([[[40.0, 30.0]]]), torch.tensor([[1]]), None),
    "points": (torch.tensor([[[40.0, 30.0], [200.5, 111.0]]]), torch.tensor([[1, 0]]), None),
    "boxes": (None, None, torch.tensor([[10.0, 20, 100, 120], [60, 3, 250, 99]])),
    "point and box": (
        torch.tensor([[[40.0, 30.0]]]),
        torch.tensor([[1]]),
        torch.tensor([[10.0, 20, 100, 120]]),
    ),
}


def as_sequence(
    points: Tensor | None, labels: Tensor | None, boxes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Write the prompt as one labelled sequence, as our decoder takes it."""
    parts, kinds = [], []
    if points is not None and labels is not None:
        parts.append(points)
        kinds.append(labels)
    if boxes is not None:
        parts.append(boxes.view(-1, 2, 2))
        kinds.append(torch.tensor([[2, 3]]).expand(len(boxes), -1))
    elif parts:
        parts.append(torch.zeros(1, 1, 2))
        kinds.append(torch.tensor([[-1]]))
    return torch.cat(parts, 1), torch.cat(kinds, 1)


@torch.inference_mode()
def compare(sam: Any, ours: zim.Zim, picture: Tensor, prompts: dict[str, Any]) -> None:
    x = sam.preprocess(picture)
    assert relative_difference(ours.preprocess(picture), x) <= RELATIVE
    embedding = sam.image_encoder(x)
    features = ours.encode_image(x)
    assert relative_difference(features.embedding, embedding) <= RELATIVE
    image_pe = sam.prompt_encoder.get_dense_pe()
    mask = torch.randn(1, 1, 4 * embedding.shape[-1], 4 * embedding.shape[-1])
    for name, (points, labels, boxes) in prompts.items():
        for mask_input in (None, mask):
            given = None if points is None else (points, labels)
            b = len(points) if points is not None else len(boxes)
            masks = None if mask_input is None else mask_input.expand(b, -1, -1, -1)
            sparse, dense = sam.prompt_encoder(given, boxes, masks)
            decoder = sam.mask_decoder
            own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
            tokens = torch.cat([own.expand(b, -1, -1), sparse], 1)
            image = embedding.expand(b, -1, -1, -1) + dense
            theirs, image_after = decoder.transformer(image, image_pe.expand_as(image), tokens)
            masks_out, iou = decoder.predict_masks(embedding, image_pe, sparse, dense)

            state = ours.decode_tokens(
                features, *as_sequence(points, labels, boxes), mask_input=masks
            )
            assert relative_difference(state.tokens, theirs) <= RELATIVE, name
            cells = state.image.flatten(2).transpose(1, 2)
            assert relative_difference(cells, image_after) <= RELATIVE, name
            assert relative_difference(state.iou, iou) <= RELATIVE, name
            if ours.mask_decoder.stride == 4:
                features4 = ours.mask_decoder.output_upscaling(state.image)
                n, c, h, w = features4.shape
                logits = (state.weights @ features4.view(n, c, h * w)).view(n, -1, h, w)
                assert relative_difference(logits, masks_out) <= 5 * RELATIVE, name


def test_small_sam_agrees_tensor_by_tensor(small: tuple[Any, Path], picture: Tensor) -> None:
    sam, path = small
    ours = zim.build(with_plain_attention(ZimConfig("small", SMALL, image_size=256))).eval()
    report = load_sam(ours, path)
    assert int(report) == len(sam.state_dict()) - 6
    assert {k.split(".")[1] for k in report.unused} == {"output_upscaling"}
    assert all(k.startswith("mask_decoder.pixel_decoder.") for k in report.new)
    compare(sam, ours, picture, PROMPTS)


def test_with_sams_own_decoder_even_the_masks_agree(
    small: tuple[Any, Path], picture: Tensor
) -> None:
    sam, path = small
    ours = zim.build(sam_decoder_config(ZimConfig("small", SMALL, image_size=256))).eval()
    report = load_sam(ours, path)
    assert int(report) == len(sam.state_dict())
    assert not report.new
    assert not report.unused
    compare(sam, ours, picture, PROMPTS)


def test_predictor_equals_sam_predictor(
    segment_anything: Any, small: tuple[Any, Path], picture: Tensor
) -> None:
    """Pictures, coordinates, resizing and padding agree, not only the network."""
    sam, path = small
    ours = zim.build(sam_decoder_config(ZimConfig("small", SMALL, image_size=256))).eval()
    load_sam(ours, path)
    rgb = np.random.default_rng(0).integers(0, 256, (150, 333, 3), dtype=np.uint8)
    theirs = segment_anything.SamPredictor(sam)
    theirs.set_image(rgb)
    predictor = zim.ZimPredictor(ours)
    predictor.set_image(rgb)
    torch.testing.assert_close(
        predictor.get_image_embedding(), theirs.get_image_embedding(), atol=1e-4, rtol=1e-4
    )
    calls: list[dict[str, Any]] = [
        {"point_coords": np.array([[50.0, 60.0]]), "point_labels": np.array([1])},
        {"point_coords": np.array([[50.0, 60], [300, 10]]), "point_labels": np.array([1, 0])},
        {"box": np.array([20.0, 30, 200, 140])},
        {
            "point_coords": np.array([[50.0, 60.0]]),
            "point_labels": np.array([1]),
            "box": np.array([20.0, 30, 200, 140]),
        },
    ]
    for call in calls:
        for multimask in (True, False):
            a, sa, la = predictor.predict(**call, multimask_output=multimask, return_logits=True)
            b, sb, lb = theirs.predict(**call, multimask_output=multimask, return_logits=True)
            assert a.shape == b.shape
            np.testing.assert_allclose(sa, sb, rtol=1e-4, atol=1e-5)
            # SAM returns stride 4, we return stride 2 (the same logits enlarged)
            twice = torch.nn.functional.interpolate(
                torch.from_numpy(lb)[None], scale_factor=2, mode="bilinear"
            )[0]
            np.testing.assert_allclose(la, twice.numpy(), atol=1e-3 * np.abs(lb).max())
            # enlarging to the picture is SAM's own function on the same logits
            full = sam.postprocess_masks(
                torch.from_numpy(la)[None], theirs.input_size, theirs.original_size
            )
            np.testing.assert_allclose(a, full[0].numpy(), atol=1e-5)
            # and both see the same shape in them
            assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.95


@pytest.mark.slow
def test_vit_b_agrees_at_1024(segment_anything: Any, tmp_path: Path) -> None:
    sam = build_sam(segment_anything, ViTConfig(), 1024)
    ours = zim.build(with_plain_attention(PRESETS["vit_b"])).eval()
    report = load_sam(ours, save(sam, tmp_path / "sam_vit_b.pth"))
    assert int(report) == 308
    assert len(report.unused) == 6
    picture = torch.randint(0, 256, (1, 3, 683, 1024)).float()
    prompts = {
        name: tuple(None if v is None else (v * 4 if v.is_floating_point() else v) for v in prompt)
        for name, prompt in PROMPTS.items()
    }
    compare(sam, ours, picture, prompts)


def tiny_transformers_sam() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.SamConfig(
        attn_implementation="eager",
        vision_config={
            "hidden_size": SMALL.embed_dim,
            "num_hidden_layers": SMALL.depth,
            "num_attention_heads": SMALL.heads,
            "global_attn_indexes": list(SMALL.global_blocks),
            "window_size": SMALL.window,
            "image_size": 256,
            "mlp_dim": 4 * SMALL.embed_dim,
        },
        prompt_encoder_config={"image_size": 256, "image_embedding_size": 16},
        # SAM's transformer normalises with torch's default eps; transformers chose 1e-6
        mask_decoder_config={"layer_norm_eps": 1e-5},
    )
    model = transformers.SamModel(config).eval()
    randomise(model, seed=5)
    # the two position matrices are one tensor in real checkpoints
    shared = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.data = shared.data
    return model


@torch.inference_mode()
def test_transformers_sam_agrees(tmp_path: Path, picture: Tensor) -> None:
    theirs = tiny_transformers_sam()
    theirs.save_pretrained(tmp_path / "hf")
    ours = zim.build(sam_decoder_config(ZimConfig("small", SMALL, image_size=256))).eval()
    report = load_sam(ours, tmp_path / "hf")
    assert not report.new
    assert not report.unused
    x = ours.preprocess(picture)
    features = ours.encode_image(x)
    theirs_embedding = theirs.get_image_embeddings(x)
    if not isinstance(theirs_embedding, Tensor):
        theirs_embedding = theirs_embedding.last_hidden_state
    assert relative_difference(features.embedding, theirs_embedding) <= RELATIVE
    # from here on both start from the same embedding, so that errors do not add up
    features = replace(features, embedding=theirs_embedding)
    boxes = torch.tensor([[10.0, 20, 100, 120], [60, 3, 250, 99]])
    captured: list[Tensor] = []
    hook = theirs.mask_decoder.transformer.register_forward_hook(
        lambda _module, _inputs, output: captured.append(output[0])
    )
    out = theirs(image_embeddings=theirs_embedding, input_boxes=boxes[None], multimask_output=True)
    hook.remove()
    points, labels = as_sequence(None, None, boxes)
    state = ours.decode_tokens(features, points, labels)
    assert relative_difference(state.tokens, captured[0][0]) <= RELATIVE
    # the heads add float32 noise of their own on these small random outputs
    assert relative_difference(state.iou[:, 1:], out.iou_scores[0]) <= 5 * RELATIVE
    logits = ours.decode_pixels(features, state, slice(1, None))
    twice = torch.nn.functional.interpolate(out.pred_masks[0], scale_factor=2, mode="bilinear")
    assert relative_difference(logits, twice) <= 5 * RELATIVE
