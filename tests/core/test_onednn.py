"""oneDNN's fused convolutions against torch's, and when they are used."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zim.model import onednn
from zim.model.fast import conv_norm, fuse_twice, plain_forms, prepared, twice_kernels
from zim.model.matting import ZimNetwork
from zim.testing import TINY_NANO, tiny_model

THERE = onednn._operators() is not None
needs_operators = pytest.mark.skipif(not THERE, reason="this build of torch has no oneDNN")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needs_operators
@torch.inference_mode()
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize(("stride", "biased"), [(1, True), (2, True), (1, False)])
def test_adds_and_clips_as_torch_does(stride: int, biased: bool, added: bool, relu: bool) -> None:
    x, weight = noise(1, 7, 12, 10), noise(9, 7, 3, 3, seed=1)
    bias = noise(9, seed=2) if biased else None
    expected = F.conv2d(x, weight, bias, stride, 1)
    add = noise(*expected.shape, seed=3) if added else None
    expected = expected if add is None else expected + add
    kernel = onednn.prepare(weight, bias, x, stride, 1)
    before = None if add is None else add.clone()
    got = onednn.convolve(x, kernel, add, relu)
    torch.testing.assert_close(got, expected.relu() if relu else expected, atol=1e-5, rtol=1e-5)
    assert before is None or torch.equal(add, before)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "how",
    [
        {"kernel_size": 1},
        {"kernel_size": 7, "padding": 3},
        {"kernel_size": 3, "padding": 1, "stride": (2, 1)},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 1, "groups": 4},
    ],
    ids=["small", "large", "uneven", "dilated", "grouped"],
)
def test_other_convolutions_are_left_to_torch(how: dict[str, Any]) -> None:
    conv, norm = nn.Conv2d(8, 8, bias=False, **how), nn.BatchNorm2d(8).eval()
    x = noise(1, 8, 12, 12)
    with torch.inference_mode():
        torch.testing.assert_close(conv_norm(conv, norm, x), norm(conv(x)), atol=1e-5, rtol=1e-5)


@needs_operators
@torch.inference_mode()
@pytest.mark.parametrize("own", [True, False])
def test_a_fusion_step_with_a_prepared_kernel(own: bool) -> None:
    x, weight = noise(1, 5, 8, 6), noise(7, 5, 3, 3, seed=1)
    half = noise(1, 28, 8, 6, seed=2).contiguous(memory_format=torch.channels_last)
    twice = twice_kernels(weight)
    assert isinstance(twice.merged, Tensor)
    (plain,) = fuse_twice(x, twice, half)
    kernel = onednn.prepare(twice.merged, None, x, 1, 1)
    before = half.clone()
    (ours,) = fuse_twice(x, twice._replace(merged=kernel), half, own=own)
    torch.testing.assert_close(ours.maps, plain.maps, atol=1e-5, rtol=1e-5)
    assert torch.equal(half, before) is not own


def test_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 8, 8, 8)
    assert onednn.suits(x) == (THERE and torch.backends.mkl.is_available())
    assert not onednn.suits(x.expand(2, -1, -1, -1))
    assert not onednn.suits(x.bfloat16())
    assert not onednn.suits(x.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not onednn.suits(x)
    with monkeypatch.context() as switched_off:
        switched_off.setattr(torch.backends.mkldnn, "enabled", False)
        assert not onednn.suits(x)
    torch.set_num_threads(1)
    assert not onednn.suits(x)
    torch.set_num_threads(2)
    monkeypatch.setattr(onednn, "_operators", lambda: None)  # another torch
    assert not onednn.suits(x)


@needs_operators
def test_kernels_are_prepared_once_for_a_shape_and_a_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    original = onednn.prepare

    def spy(*given: Any) -> onednn.Kernel:
        calls.append(torch.get_num_threads())
        return original(*given)

    monkeypatch.setattr(onednn, "prepare", spy)
    module, weight, x = nn.Identity(), nn.Parameter(noise(8, 8, 3, 3)), noise(1, 8, 12, 12)

    def answer(x: Tensor) -> None:
        kernel = prepared(module, (weight,), x, lambda: (weight, None))
        torch.testing.assert_close(
            onednn.convolve(x, kernel), F.conv2d(x, weight, padding=1), atol=1e-5, rtol=1e-5
        )

    with torch.no_grad():
        for _ in range(2):
            answer(x)
        assert calls == [2]
        answer(x[..., :8])
        torch.set_num_threads(3)
        answer(x[..., :8])
        assert calls == [2, 2, 3]
        weight.mul_(2)
        answer(x[..., :8])
        assert calls == [2, 2, 3, 3]


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="used on x86 only")
@needs_operators
def test_a_convolution_with_its_norm_stays_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False)
    norm = nn.BatchNorm2d(128).eval()
    assert norm.running_mean is not None
    norm.running_mean.normal_()
    x, add = noise(1, 64, 8, 12), noise(1, 128, 4, 6, seed=1)
    used: list[bool] = []
    original = onednn.convolve

    def spy(*given: Any) -> Tensor:
        used.append(True)
        return original(*given)

    monkeypatch.setattr(onednn, "convolve", spy)
    with torch.inference_mode():
        for given in ((None, False), (add, True)):
            with plain_forms():
                expected = conv_norm(conv, norm, x, *given)
            assert not used
            got = conv_norm(conv, norm, x, *given)
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
            assert used.pop()


def test_a_model_that_has_answered_can_be_copied_and_pickled() -> None:
    torch.manual_seed(0)
    model = tiny_model(TINY_NANO)
    x = model.preprocess(torch.rand(1, 3, 64, 64) * 255)
    points, labels = torch.tensor([[[8.0, 8], [40, 50]]]), torch.tensor([[2, 3]])
    cues = noise(1, model.config.cue_planes, 32, 32)

    def answer(model: ZimNetwork, kind: torch.dtype = torch.float32) -> Tensor:
        with torch.inference_mode():
            features = model.encode_image(x.to(kind))
            return model.decode(features, points.to(kind), labels, None, cues.to(kind)).logits

    expected = answer(model)
    with plain_forms():  # which rounds too, by how much depends on the processor
        plain, truth = answer(model), answer(copy.deepcopy(model).double(), torch.float64)
    assert (expected - truth).abs().max() < 4 * (plain - truth).abs().max() < 1e-3
    other = copy.deepcopy(model)
    assert torch.equal(answer(other), expected)
    with torch.no_grad():
        other.mask_decoder.pixel_decoder.fuse[0].norm.bias.add_(1)  # pyright: ignore
    assert not torch.equal(answer(other), expected)
    assert torch.equal(answer(model), expected)  # each keeps its own
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(answer(torch.load(file, weights_only=False)), expected)


@needs_operators
@pytest.mark.parametrize("change", ["gone", "other arguments", "other results"])
def test_another_torch_is_left_to_itself(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operators = onednn._operators()
    assert operators is not None
    assert onednn._right(operators)
    if change == "gone":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    elif change == "other arguments":
        monkeypatch.setattr(onednn, "_right", lambda operators: operators.convolve("x"))
    else:
        wrong = operators._replace(convolve=lambda x, *how: operators.convolve(x, *how) + 1)
        assert not onednn._right(wrong)
        monkeypatch.setattr(onednn, "_right", lambda operators: False)
    assert onednn._operators.__wrapped__() is None


@torch.inference_mode()
def test_features_of_another_type_are_decoded() -> None:
    model = tiny_model()
    features = model.encode_image(model.preprocess(torch.rand(1, 3, 64, 64) * 255))
    points, labels = torch.tensor([[[8.0, 8], [40, 50]]]), torch.tensor([[2, 3]])
    expected = model.decode(features, points, labels).logits
    halves = tuple(half.bfloat16() for half in features.halves)
    got = model.decode(replace(features, halves=halves), points, labels).logits
    torch.testing.assert_close(got, expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_compiled_encoder_of_convolutions_is_one_graph(device: str) -> None:
    encoder = tiny_model(TINY_NANO).image_encoder.to(device)
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    stem = next(encoder.parameters()).shape[1]
    with torch.inference_mode():
        x = noise(1, stem, 8, 8).to(device)
        ours, plain = compiled(x), encoder(x)
    assert ours.shape == plain.shape
    if device == "cpu":
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_what_training_changes_behind_torch_is_seen() -> None:
    model = tiny_model(TINY_NANO)
    x = model.preprocess(torch.rand(2, 3, 64, 64) * 255)

    def embedding() -> Tensor:
        with torch.inference_mode():
            return model.encode_image(x).embedding

    before = embedding()
    model.train()
    with torch.no_grad():
        model.encode_image(x * 3 + 1)  # batch norms write their statistics uncounted
    model.eval()
    with plain_forms():
        expected = embedding()
    assert not torch.allclose(before, expected, atol=1e-3)
    torch.testing.assert_close(embedding(), expected, atol=1e-4, rtol=1e-4)
