"""CPU and CUDA agree, and half precision stays close to float32; one tolerance table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zim
from zim.config import PRESETS, ZimConfig
from zim.testing import TINY_NANO, picture, tiny_model

#: largest difference of a matte, in alpha, from float32 on the CPU
TOLERANCE = {
    ("cpu", torch.float32): 0.0,
    ("cpu", torch.bfloat16): 0.08,
    ("cuda", torch.float32): 1e-3,
    ("cuda", torch.bfloat16): 0.08,
    ("cuda", torch.float16): 0.02,
}


def _cases() -> list[object]:
    return [
        pytest.param(
            device,
            dtype,
            id=f"{device}-{str(dtype).removeprefix('torch.')}",
            marks=[pytest.mark.gpu] if device == "cuda" else [],
        )
        for device, dtype in TOLERANCE
    ]


@pytest.mark.parametrize(("device", "dtype"), _cases())
@pytest.mark.parametrize("config", [PRESETS["tiny"], TINY_NANO], ids=["vit", "conv"])
def test_mattes_agree_across_devices_and_types(
    config: ZimConfig, device: str, dtype: torch.dtype
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rgb = picture(96, 128)
    mattes = []
    for where, kind in (("cpu", torch.float32), (device, dtype)):
        # a calm model: the loud one of the other tests turns rounding into a flipped sign
        model = zim.build(config, seed=0).eval().to(where, kind)
        predictor = zim.ZimPredictor(model)
        predictor.set_image(rgb)
        mattes.append(
            predictor.predict(np.array([[60.0, 50.0]]), np.array([1]), np.array([20, 20, 90, 80]))
        )
    (exact, score, _), (other, other_score, low) = mattes
    assert other.dtype == low.dtype == other_score.dtype == np.float32
    tolerance = TOLERANCE[device, dtype]
    np.testing.assert_allclose(other, exact, atol=tolerance)
    np.testing.assert_allclose(other_score, score, atol=max(tolerance, 1e-6))


def test_attention_with_a_box_survives_half_precision() -> None:
    """Minus infinity outside the box must not become NaN in bfloat16."""
    model = tiny_model().to(torch.bfloat16)
    predictor = zim.ZimPredictor(model)
    predictor.set_image(picture())
    mattes, _, _ = predictor.predict(box=np.array([30.0, 20, 33, 22]))
    assert np.isfinite(mattes).all()


@pytest.mark.slow
@pytest.mark.parametrize("config", [PRESETS["tiny"], TINY_NANO], ids=["vit", "conv"])
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_encoder_gives_the_same_embedding(config: ZimConfig) -> None:
    plain, compiled = (zim.build(config, seed=0).eval() for _ in range(2))
    keys = list(compiled.state_dict())
    compiled.compile_encoder()
    assert list(compiled.state_dict()) == keys
    size = config.image_size
    with torch.inference_mode():
        for seed in range(2):
            images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))
            expected = plain.encode_image(images).embedding
            got = compiled.encode_image(images).embedding
            torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
    assert compiled.image_encoder._compiled_call_impl is not None


@pytest.mark.gpu
def test_a_captured_encoder_keeps_earlier_embeddings() -> None:
    """CUDA graphs write every answer to the same place; what was returned must stay."""
    model = zim.build("tiny", seed=0).eval().cuda().compile_encoder()
    images = torch.randn(3, 1, 3, 64, 64, device="cuda")
    with torch.inference_mode():
        for image in images:  # record
            model.encode_image(image)
        first = model.encode_image(images[0]).embedding
        copy = first.clone()
        model.encode_image(images[1])
    torch.testing.assert_close(first, copy)
