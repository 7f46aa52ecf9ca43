"""All three modes through a tiny random Stable Diffusion, saved and loaded without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zim.errors import CheckpointError
from zim.testing import disc, picture
from zim_inpaint import inpaint

pytestmark = pytest.mark.filterwarnings("ignore")
IMAGE, ALPHA = picture(96, 128), disc(96, 128, softness=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    diffusers: Any = pytest.importorskip("diffusers")
    transformers: Any = pytest.importorskip("transformers")
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(c) for c in plain] + [chr(256 + n) for n in range(256 - len(plain))]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    config = transformers.CLIPTextConfig(
        vocab_size=514,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    pipe = diffusers.StableDiffusionInpaintPipeline(
        vae=diffusers.AutoencoderKL(
            latent_channels=4,
            block_out_channels=(8,) * 4,
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            sample_size=64,
        ),
        text_encoder=transformers.CLIPTextModel(config),
        tokenizer=transformers.CLIPTokenizer(
            vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77
        ),
        unet=diffusers.UNet2DConditionModel(
            sample_size=16,
            in_channels=9,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
        ),
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    path = tmp_path_factory.mktemp("sd")
    pipe.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "asked", [{}, {"mode": "fill", "text": "a fern"}, {"mode": "replace", "text": "the sea"}]
)
def test_three_modes_repeat_and_keep_the_rest(asked: dict[str, Any], folder: Path) -> None:
    options = {"model": folder, "steps": 2, "device": "cpu", "offline": True, "seed": 1}
    first, again = (
        inpaint(IMAGE, ALPHA, backend="diffusers", **asked, **options) for _ in range(2)
    )
    assert (first.image == again.image).all()
    untouched = first.weight == 0
    assert untouched.any()
    assert (first.image[untouched] == IMAGE[untouched]).all()
    assert np.not_equal(first.image, IMAGE).mean() > 0.05


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        inpaint(IMAGE, ALPHA, backend="diffusers", model=tmp_path, device="cpu")


@pytest.mark.parametrize("text", ["[]", "{bad"])
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    pytest.importorskip("diffusers")
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model_index\.json is damaged"):
        inpaint(IMAGE, ALPHA, "remove", "diffusers", model=str(tmp_path), offline=True)
