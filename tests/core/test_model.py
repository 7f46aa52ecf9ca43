"""The network's own promises: split equals joint, padding is invisible, switches switch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import zim
from zim.config import (
    PRESETS,
    ConvEncoderConfig,
    DecoderConfig,
    MaskedAttentionConfig,
    ViTConfig,
    ZimConfig,
)
from zim.errors import ConfigError
from zim.model.image_encoder import merge_windows, partition_windows
from zim.model.pixel_decoder import HierarchicalPixelDecoder
from zim.testing import TINY_NANO, tiny_model

POINTS = torch.tensor([[[20.0, 30.0], [0.0, 0.0]]])
LABELS = torch.tensor([[1, -1]])


def frame_of(model: zim.Zim, batch: int = 1) -> torch.Tensor:
    size = model.config.image_size
    generator = torch.Generator().manual_seed(1)
    return model.preprocess(torch.rand(batch, 3, size - 16, size, generator=generator) * 255)


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h", "nano", "tiny"])
def test_every_preset_builds_with_the_promised_size(name: str) -> None:
    with torch.device("meta"):
        model = zim.Zim(PRESETS[name])
    encoder = sum(p.numel() for p in model.image_encoder.parameters())
    # core.md 2.1 counts the encoders; nano may have ten million parameters
    expected = {"vit_b": 89.67e6, "vit_l": 308.28e6, "vit_h": 637.03e6}
    if name in expected:
        assert encoder == pytest.approx(expected[name], abs=5e3)
    if name == "nano":
        assert sum(p.numel() for p in model.parameters()) <= 10e6


def test_pixel_decoder_is_option_a() -> None:
    """Sizes of core.md 2.3: stem 371 k, fusion 775 k parameters."""
    decoder = HierarchicalPixelDecoder(DecoderConfig())
    assert sum(p.numel() for p in decoder.stem.parameters()) == pytest.approx(371e3, abs=1e3)
    assert sum(p.numel() for p in decoder.fuse.parameters()) == pytest.approx(775e3, abs=1e3)


@pytest.mark.parametrize("cues", [0, 3])
@pytest.mark.parametrize("training", [False, True])
def test_split_fusion_equals_the_joint_convolution(cues: int, training: bool) -> None:
    torch.manual_seed(0)
    config = replace(PRESETS["tiny"].decoder, dim=12)
    decoder = HierarchicalPixelDecoder(config, cues).train(training)
    for module in decoder.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_()
    details = decoder.features(torch.randn(1, 3, 32, 32))
    halves = decoder.image_halves(details)
    x = torch.randn(2, 12, 2, 2)
    for step, detail, half in zip(decoder.fuse, reversed(details), halves, strict=True):
        planes = torch.randn(2, cues, *detail.shape[-2:]) if cues else None
        split = step(half, x, planes)
        joint = step.joint(detail, x, planes)  # pyright: ignore[reportCallIssue]
        torch.testing.assert_close(split, joint, atol=1e-5, rtol=1e-5)
        x = split


@torch.inference_mode()
@pytest.mark.parametrize("config", [PRESETS["tiny"], TINY_NANO], ids=["vit", "conv"])
def test_prompts_of_many_images_equal_each_alone(config: ZimConfig) -> None:
    model = tiny_model(config)
    x = frame_of(model, 2)
    points = torch.rand(3, 2, 2) * 64
    labels = torch.tensor([[1, -1], [2, 3], [1, 0]])
    index = torch.tensor([1, 0, 1])
    cues = torch.randn(3, config.cue_planes, 32, 32) if config.cue_planes else None
    together = model.decode(model.encode_image(x), points, labels, None, cues, index)
    for i in range(3):
        features = model.encode_image(x[index[i]][None])
        alone = model.decode(
            features,
            points[i : i + 1],
            labels[i : i + 1],
            None,
            None if cues is None else cues[i : i + 1],
        )
        # logits reach 70 with these weights, so this is 1.5e-5 of the largest
        torch.testing.assert_close(together.logits[i], alone.logits[0], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(together.iou[i], alone.iou[0], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_absent_slots_are_invisible_and_padding_points_are_not() -> None:
    model = tiny_model()
    features = model.encode_image(frame_of(model))
    plain = model.decode(features, POINTS, LABELS)
    points = torch.cat([POINTS, torch.full((1, 3, 2), 17.0)], 1)
    absent = model.decode(features, points, torch.tensor([[1, -1, -2, -2, -2]]))
    torch.testing.assert_close(absent.logits, plain.logits, atol=1e-4, rtol=1e-4)
    padded = model.decode(features, points, torch.tensor([[1, -1, -1, -1, -1]]))
    assert (padded.logits - plain.logits).abs().max() > 1e-3  # SAM's padding point is a token


@torch.inference_mode()
def test_tokens_can_be_dropped_before_the_pixels_are_paid_for() -> None:
    model = tiny_model()
    features = model.encode_image(frame_of(model))
    points = torch.rand(4, 1, 2) * 60
    state = model.decode_tokens(features, points, torch.ones(4, 1, dtype=torch.long))
    everything = model.decode_pixels(features, state)
    assert everything.shape == (4, 4, 32, 32)
    keep = torch.tensor([2, 0])
    some = model.decode_pixels(features, state.select(keep), slice(1, 3))
    torch.testing.assert_close(some, everything[keep, 1:3], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(
    "attention",
    [
        MaskedAttentionConfig(mode="none"),
        MaskedAttentionConfig(mode="log_bias"),
        MaskedAttentionConfig(side="i2t"),
        MaskedAttentionConfig(side="both"),
        MaskedAttentionConfig(final=False),
        MaskedAttentionConfig(sigma=5.0),
    ],
    ids=["none", "log_bias", "i2t", "both", "not final", "sigma"],
)
def test_every_ablation_switch_changes_the_answer(attention: MaskedAttentionConfig) -> None:
    """Tables 4b and 8a are rows of these switches; the weights are the same."""
    base = tiny_model()
    other = tiny_model(replace(PRESETS["tiny"], attention=attention))
    other.load_state_dict(base.state_dict())
    x = frame_of(base)
    points = torch.tensor([[[9.0, 9.0], [10, 12], [40, 44]]])
    labels = torch.tensor([[1, 2, 3]])
    a = base.decode(base.encode_image(x), points, labels)
    b = other.decode(other.encode_image(x), points, labels)
    assert b.logits.isfinite().all()
    assert (a.logits - b.logits).abs().max() > 1e-4


@torch.inference_mode()
def test_sams_decoder_is_the_row_without_the_pixel_decoder() -> None:
    """Table 4a: no stem, no fusion; logits still come at stride 2."""
    decoder = replace(PRESETS["tiny"].decoder, pixel_decoder="sam")
    model = tiny_model(replace(PRESETS["tiny"], decoder=decoder))
    assert not any("pixel_decoder" in k for k in model.state_dict())
    out = model.decode(model.encode_image(frame_of(model)), POINTS, LABELS)
    assert out.logits.shape == (1, 4, 32, 32)


@torch.inference_mode()
def test_other_frame_sizes_work_by_interpolating_positions() -> None:
    model = tiny_model()
    features = model.encode_image(torch.randn(1, 3, 96, 80))
    out = model.decode(features, POINTS, LABELS)
    assert out.logits.shape == (1, 4, 48, 40)
    assert out.logits.isfinite().all()


def test_windows_come_back_where_they_were() -> None:
    x = torch.randn(2, 7, 10, 3)
    windows, padded = partition_windows(x, 4)
    assert windows.shape == (2 * 2 * 3, 4, 4, 3)
    assert torch.equal(windows[1, :, :2], x[0, :4, 4:6])
    assert torch.equal(merge_windows(windows, 4, padded, (7, 10)), x)


def test_gradients_reach_every_weight() -> None:
    model = zim.build(TINY_NANO, seed=0).train()
    x = frame_of(model, 2)
    cues = torch.randn(2, 6, 32, 32)
    mask = torch.randn(2, 1, 32, 32)
    points = torch.rand(2, 4, 2) * 60
    labels = torch.tensor([[1, 0, -1, -2], [1, -1, 2, 3]])
    index = torch.arange(2)
    for mask_input in (mask, None):
        out = model(x, points, labels, mask_input, cues, index)
        (out.logits.square().mean() + out.iou.square().mean()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_configurations_round_trip_and_refuse_nonsense() -> None:
    for config in (*PRESETS.values(), TINY_NANO):
        assert ZimConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="multiple of 16"):
        ZimConfig("x", ViTConfig(), image_size=100)
    with pytest.raises(ConfigError, match="edges 'sharp' is unknown"):
        replace(PRESETS["tiny"], edges="sharp")
    with pytest.raises(ConfigError, match="not divisible"):
        ZimConfig("x", ConvEncoderConfig(), decoder=DecoderConfig(dim=250))
    with pytest.raises(ConfigError, match="encoder kind"):
        ZimConfig.from_dict({"name": "x", "encoder": {"kind": "mamba"}})
    with pytest.raises(ConfigError, match="not a model configuration"):
        ZimConfig.from_dict({"name": "x", "encoder": {"kind": "vit", "colour": 1}})
