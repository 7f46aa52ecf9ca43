"""What inference computes differently gives what the plain network gives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zim
from zim.config import PRESETS, MaskedAttentionConfig, ZimConfig
from zim.model import mask_decoder, matting
from zim.model.fast import (
    Strip,
    allowed,
    cached,
    forget,
    fuse_twice,
    plain_forms,
    to_phases,
    twice_kernels,
)
from zim.model.layers import ConvNormAct, ResidualBlock
from zim.testing import TINY_NANO, tiny_model

#: largest difference over the largest value, float32
RELATIVE = 5e-5


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def difference(ours: Tensor, plain: Tensor) -> float:
    return ((ours - plain).abs().max() / plain.abs().max()).item()


def normed(module: nn.Module) -> nn.Module:
    """Give batch norms statistics that matter."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for i, value in enumerate((norm.running_mean, norm.running_var, norm.weight)):
                assert value is not None
                value.data = 0.5 + torch.rand(len(value), generator=torch.manual_seed(i))
            norm.bias.data.normal_()
    return module.eval()


def from_phases(x: Tensor) -> Tensor:
    """Undo :func:`to_phases` cell by cell."""
    b, c, h, w = x.shape
    phases = x.view(b, 2, 2, c // 4, h, w)
    out = x.new_empty(b, c // 4, 2 * h, 2 * w)
    for p in range(2):
        for q in range(2):
            out[:, :, p::2, q::2] = phases[:, p, q]
    return out


def enlarged_and_convolved(x: Tensor, weight: Tensor, half: Tensor) -> Tensor:
    large = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return (F.conv2d(large, weight, padding=1) + from_phases(half)).relu()


def put_together(strips: Iterable[Strip], like: Tensor) -> Tensor:
    got = torch.full_like(like, float("nan"), dtype=torch.float32)
    for prompts, rows, maps in strips:
        assert got[prompts, :, rows].isnan().all()
        got[prompts, :, rows] = maps.float()
    return from_phases(got)


@pytest.mark.parametrize(("h", "w"), [(2, 2), (3, 5), (8, 6)])
def test_one_kernel_enlarges_and_convolves(h: int, w: int) -> None:
    x, weight, half = noise(2, 5, h, w), noise(7, 5, 3, 3, seed=1), noise(2, 28, h, w, seed=2)
    for some in (half, half[:1]):
        got = put_together(fuse_twice(x, twice_kernels(weight), some), half)
        expected = enlarged_and_convolved(x, weight, some)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("strip", [1, 20_000, 1 << 30], ids=["rows", "strips", "whole"])
@pytest.mark.parametrize("case", ["own", "kept", "shared"])
def test_adding_and_clipping_in_the_same_pass(
    monkeypatch: pytest.MonkeyPatch, there: bool, strip: int, case: str
) -> None:
    if not there:
        monkeypatch.setattr("zim.model.onednn.bfloat16_accumulate", lambda: None)
    monkeypatch.setattr("zim.model.fast.STRIP_BYTES", strip)
    x, weight, half = noise(2, 16, 20, 24), noise(8, 16, 3, 3, seed=1), noise(2, 32, 20, 24, seed=2)
    given = [t.bfloat16().contiguous(memory_format=torch.channels_last) for t in (x, weight, half)]
    x, weight, half = given
    half = half[:1] if case == "shared" else half
    expected = enlarged_and_convolved(x.float(), weight.float(), half.float())
    before = half.clone()
    strips = fuse_twice(x, twice_kernels(weight), half, own=case == "own")
    got = put_together(strips, x.new_empty(2, 32, 20, 24))
    assert difference(got, expected) <= 1e-2
    assert case == "own" or torch.equal(half, before)


def test_phases_by_hand() -> None:
    x = torch.arange(4.0).view(1, 1, 2, 2)
    assert to_phases(x).flatten().tolist() == [0, 1, 2, 3]
    x = torch.stack([x[0, 0], x[0, 0] + 10])[None]  # two channels: phases first, then channels
    assert to_phases(x).flatten().tolist() == [0, 10, 1, 11, 2, 12, 3, 13]
    assert torch.equal(from_phases(to_phases(x)), x)


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_batch_norm_folds_into_the_convolution(kind: str) -> None:
    module = normed(ConvNormAct(6, 6, stride=2) if kind == "conv" else ResidualBlock(6))
    x = noise(2, 6, 9, 8)
    expected = module(x)  # gradients are on: plain
    names = list(module.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)
    assert list(module.state_dict()) == names
    module.train()
    with torch.no_grad():
        batch = module(x)
    assert (batch - expected).abs().max() > 1e-2  # training uses the batch's own statistics


ATTENTION = {
    "paper": MaskedAttentionConfig(),
    "none": MaskedAttentionConfig(mode="none"),
    "log_bias": MaskedAttentionConfig(mode="log_bias"),
    "i2t": MaskedAttentionConfig(side="i2t"),
    "both": MaskedAttentionConfig(side="both"),
}
POINTS = torch.rand(5, 4, 2, generator=torch.Generator().manual_seed(4)) * 64
LABELS = torch.tensor(
    [[1, -1, -2, -2], [2, 3, -2, -2], [1, 0, -1, -2], [1, 0, 2, 3], [2, 3, -1, -1]]
)


@torch.inference_mode()
@pytest.mark.parametrize("attention", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("config", [PRESETS["tiny"], TINY_NANO], ids=["vit", "conv"])
def test_whole_decoder(config: ZimConfig, attention: MaskedAttentionConfig) -> None:
    model = tiny_model(replace(config, attention=attention))
    x = model.preprocess(torch.rand(2, 3, 48, 64) * 255)
    cues = noise(5, config.cue_planes, 32, 32) if config.cue_planes else None
    for mask in (None, noise(5, 1, 32, 32)):
        for index in (None, torch.tensor([1, 0, 0, 1, 1])):
            frames = x[:1] if index is None else x
            given = (POINTS, LABELS, mask, cues, index)
            with plain_forms():
                plain = model.decode(model.encode_image(frames), *given)
            ours = model.decode(model.encode_image(frames), *given)
            assert difference(ours.logits, plain.logits) <= RELATIVE
            assert difference(ours.iou, plain.iou) <= RELATIVE


@torch.inference_mode()
def test_boxes_alone_need_no_gaussian_and_agree() -> None:
    model = tiny_model()
    features = model.encode_image(model.preprocess(torch.rand(1, 3, 64, 64) * 255))
    boxes = torch.tensor([[[3.0, 4], [40, 50]], [[20, 2], [60, 60]]])
    labels = torch.tensor([[2, 3], [2, 3]])
    ours = model.decode(features, boxes, labels)
    with plain_forms():
        plain = model.decode(model.encode_image(torch.zeros(1, 3, 64, 64)), boxes, labels)
        assert difference(ours.logits, plain.logits) > RELATIVE  # another picture, another answer
    joined = model.decode(features, torch.cat([boxes, POINTS[:1, :2]]), LABELS[[1, 1, 0], :2])
    assert difference(joined.logits[:2], ours.logits) <= RELATIVE


@torch.no_grad()
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [PRESETS["tiny"], TINY_NANO], ids=["vit", "conv"])
def test_decoding_under_autocast(config: ZimConfig, kind: torch.dtype) -> None:
    model, exact = tiny_model(config).to(kind), tiny_model(config).to(kind).float()
    cues = noise(5, config.cue_planes, 32, 32).to(kind) if config.cue_planes else None
    errors = {1: torch.zeros(2), 5: torch.zeros(2)}
    for seed in range(6):  # of a single picture either form may be nearer by chance
        x = model.preprocess(128 + 60 * noise(1, 3, 64, 64, seed=seed))
        with torch.autocast("cpu", torch.bfloat16):
            ours = model.encode_image(x)
            with plain_forms():
                plain = model.encode_image(x)
        with plain_forms():
            right = exact.encode_image(x.float())
        for count, sums in errors.items():
            given = (POINTS[:count], LABELS[:count], None)
            some = None if cues is None else cues[:count]
            with torch.autocast("cpu", torch.bfloat16):
                found = [model.decode(ours, *given, some).logits]
                with plain_forms():
                    found.append(model.decode(plain, *given, some).logits)
            with plain_forms():
                truth = exact.decode(right, *given, None if some is None else some.float()).logits
            sums += torch.stack([(logits - truth).abs().mean() for logits in found])
    for count, (mine, theirs) in errors.items():
        assert mine <= 1.5 * theirs, count  # rounded as often as the plain form


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_gradients_through_features_made_without(
    monkeypatch: pytest.MonkeyPatch, kind: torch.dtype
) -> None:
    monkeypatch.setattr(mask_decoder, "CACHED_BYTES", 1)
    gradients = []
    for plain in (False, True):
        model = tiny_model(TINY_NANO).to(kind)
        cues = noise(5, model.config.cue_planes, 32, 32).to(kind)
        x = model.preprocess(noise(1, 3, 64, 64) * 50 + 120)
        with plain_forms() if plain else contextlib.nullcontext():
            with torch.no_grad():
                features = model.encode_image(x)
            model.decode(features, POINTS, LABELS, None, cues).logits.square().mean().backward()
        weights = dict(model.named_parameters())
        names = [f"mask_decoder.pixel_decoder.fuse.{i}.conv.weight" for i in range(3)]
        # the picture's own half of a step was made without gradients
        gradients.append([weights[n].grad[:, -8:].float() for n in names])  # pyright: ignore
    for ours, plain in zip(*gradients, strict=True):
        assert difference(ours, plain) <= (0.1 if kind == torch.bfloat16 else 1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("threads", [1, 2])
def test_chunks_of_one_prompt_give_the_same(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(matting, "THREAD_BYTES", 1 if threads > 1 else 1 << 40)
    model = tiny_model(TINY_NANO)
    features = model.encode_image(model.preprocess(torch.rand(1, 3, 64, 64) * 255))
    cues = noise(5, model.config.cue_planes, 32, 32)
    whole = model.decode(features, POINTS, LABELS, None, cues)
    monkeypatch.setattr(mask_decoder, "CACHED_BYTES", 1)
    monkeypatch.setattr(matting, "CACHED_BYTES", 1)
    single = model.decode(features, POINTS, LABELS, None, cues)
    assert difference(single.logits, whole.logits) <= RELATIVE


def test_derived_weights_follow_their_sources_and_stay_out_of_checkpoints() -> None:
    model = tiny_model(TINY_NANO)
    other = tiny_model(TINY_NANO, seed=1)
    x = model.preprocess(torch.rand(1, 3, 64, 64) * 255)
    names = list(model.state_dict())
    given = (POINTS[:1], LABELS[:1], None, noise(1, 6, 32, 32))
    with torch.inference_mode():
        model.decode(model.encode_image(x), *given)
    assert list(model.state_dict()) == names
    model.load_state_dict(other.state_dict())
    with torch.inference_mode():
        ours = model.decode(model.encode_image(x), *given).logits
        with plain_forms():
            plain = other.decode(other.encode_image(x), *given).logits
    assert difference(ours, plain) <= RELATIVE


def test_what_is_kept_and_when_it_is_made_again() -> None:
    module, source = nn.Linear(1, 1), torch.ones(3)
    calls: list[int] = []

    def make() -> float:
        calls.append(1)
        return float(source.sum())

    with torch.no_grad():
        assert [cached(module, "sum", (source,), make) for _ in range(2)] == [3, 3]
        assert len(calls) == 1
        source.add_(1)
        assert cached(module, "sum", (source,), make) == 6
        forget(module)
        cached(module, "sum", (source,), make)
        assert len(calls) == 3
    cached(module, "sum", (source,), make)  # with gradients nothing is kept
    assert len(calls) == 4


def test_inference_forms_are_for_inference() -> None:
    module = nn.Linear(1, 1)
    with torch.no_grad():
        assert not allowed(module)  # fresh modules train
        assert allowed(module.eval())
        with plain_forms():
            assert not allowed(module)
    assert not allowed(module)
    model = tiny_model()
    with torch.inference_mode():
        features = model.encode_image(torch.zeros(1, 3, 64, 64))
    model.train()
    with torch.no_grad(), pytest.raises(RuntimeError, match="training mode"):
        model.decode(features, POINTS[:1], LABELS[:1])


@torch.inference_mode()
@pytest.mark.parametrize("config", [PRESETS["tiny"], TINY_NANO], ids=["vit", "conv"])
def test_half_precision_keeps_what_must_be_exact(config: ZimConfig) -> None:
    model = zim.build(config, seed=0).eval()
    mean = model.pixel_mean.clone()
    matrix = model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.clone()
    x = torch.rand(1, 3, 64, 64) * 255
    cues = noise(5, config.cue_planes, 32, 32) if config.cue_planes else None
    full = model.decode(model.encode_image(model.preprocess(x)), POINTS, LABELS, None, cues)
    model.to(torch.bfloat16)
    assert torch.equal(model.pixel_mean, mean)
    assert torch.equal(model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix, matrix)
    cues = None if cues is None else cues.bfloat16()
    half = model.decode(model.encode_image(model.preprocess(x)), POINTS, LABELS, None, cues)
    assert half.logits.dtype == torch.float32
    # alpha within 2 % of float32 nearly everywhere
    error = (half.logits.sigmoid() - full.logits.sigmoid()).abs()
    assert error.mean() <= 5e-3
    assert error.max() <= 5e-2


@torch.inference_mode()
def test_group_norm_and_tiny_frames_take_the_plain_way() -> None:
    decoder = replace(PRESETS["tiny"].decoder, norm="gn")
    model = tiny_model(replace(PRESETS["tiny"], decoder=decoder))
    features = model.encode_image(torch.zeros(1, 3, 64, 64))
    assert not model.mask_decoder.pixel_decoder.in_phases(features.halves)
    assert model.decode(features, POINTS, LABELS).logits.shape == (5, 4, 32, 32)
    model = tiny_model()
    features = model.encode_image(torch.zeros(1, 3, 16, 48))  # one row of cells
    assert model.decode(features, POINTS, LABELS).logits.shape == (5, 4, 8, 24)
