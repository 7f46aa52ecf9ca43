"""Winograd's convolutions against torch's, in double precision."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zim.model import winograd
from zim.model.fast import conv_norm, plain_forms


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("b", "c", "out", "h", "w"),
    [(1, 128, 128, 32, 32), (5, 256, 256, 16, 16), (3, 64, 128, 4, 20), (2, 3, 5, 72, 8)],
)
def test_rounds_like_the_direct_convolution(
    b: int, c: int, out: int, h: int, w: int, biased: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(b, c, h, w, generator=generator)
    weight = torch.randn(out, c, 3, 3, generator=generator) / (3 * c**0.5)
    bias = torch.randn(out, generator=generator) if biased else None
    true = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    got = winograd.convolve(x, winograd.make_kernel(weight, bias))
    assert got.shape == true.shape
    assert (got - true).square().mean().sqrt() < 5e-6  # of values around 1
    assert (got - true).abs().max() < 5e-5


@pytest.mark.usefixtures("one_thread")
def test_a_convolution_with_its_norm_stays_what_it_was() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(64, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128).eval()
    assert norm.running_mean is not None
    norm.running_mean.normal_()
    x = torch.randn(2, 64, 8, 12)
    with torch.inference_mode():
        assert winograd.suits(x, 128) == torch.backends.mkl.is_available()
        with plain_forms():
            expected = conv_norm(conv, norm, x)
        torch.testing.assert_close(conv_norm(conv, norm, x), expected, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        conv.weight.mul_(2)  # what was derived from the weight is derived again
    with torch.inference_mode():
        torch.testing.assert_close(conv_norm(conv, norm, x), norm(conv(x)), atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("one_thread")
def test_maps_that_do_not_divide_into_tiles_are_left_to_torch() -> None:
    assert not winograd.suits(torch.zeros(1, 128, 6, 8), 128)
    assert not winograd.suits(torch.zeros(1, 128, 8, 8, dtype=torch.bfloat16), 128)
    assert not winograd.suits(torch.zeros(1, 16, 8, 8), 128)


@pytest.mark.parametrize(
    ("threads", "shape", "suits"),
    [
        (1, (1, 128, 16, 16), True),
        (2, (1, 128, 16, 16), False),  # narrow
        (2, (1, 256, 16, 16), False),  # few tiles of a single map
        (2, (2, 256, 16, 16), True),
        (2, (1, 256, 64, 64), True),
        (3, (1, 256, 64, 64), False),
    ],
)
def test_few_threads_share_long_products(
    threads: int, shape: tuple[int, ...], suits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert winograd.suits(torch.zeros(shape), 128) is suits
