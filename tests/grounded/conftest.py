"""A tiny random GroundingDINO and OWLv2 with tokenizers, built offline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

WORDS = (
    *("the", "dog", "'", "s", "fur", "cat", "red", "ball", "fire", "hydrant", "on", "table"),
    *("glass", "oil", "potted", "plant", "dogs", "##hou", "##se"),
)
LIMIT = 64  # tokens


@pytest.fixture(scope="session")
def vocabulary() -> dict[str, int]:
    """Return 1100 tokens; special ones, "." and "?" have the ids GroundingDINO expects."""
    ids = {
        "[PAD]": 0,
        "[UNK]": 100,
        "[CLS]": 101,
        "[SEP]": 102,
        "[MASK]": 103,
        ".": 1012,
        "?": 1029,
    }
    ids |= {word: 200 + i for i, word in enumerate(WORDS)}
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-,"
    ids |= {c: 300 + i for i, c in enumerate(letters) if c not in ids}
    ids |= {f"##{c}": 400 + i for i, c in enumerate(letters)}
    taken = set(ids.values())
    ids |= {f"[unused{i}]": i for i in range(1100) if i not in taken}
    return dict(sorted(ids.items(), key=lambda item: item[1]))


@pytest.fixture(scope="session")
def gdino_folder(tmp_path_factory: pytest.TempPathFactory, vocabulary: dict[str, int]) -> Path:
    """Write a random GroundingDINO with processor, as `hf download` would leave it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tokenizer = transformers.BertTokenizerFast(vocab=vocabulary, do_lower_case=True)
    assert tokenizer.vocab_size == 1100
    backbone = transformers.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = transformers.BertConfig(
        vocab_size=1100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=37,
        max_position_embeddings=256,
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        num_queries=20,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        d_model=32,
        num_feature_levels=4,
        encoder_n_points=2,
        decoder_n_points=2,
        max_text_len=LIMIT,
        disable_custom_kernels=True,
    )
    model = transformers.GroundingDinoForObjectDetection(config).eval()
    with torch.no_grad():  # random heads put every box in the middle with one score
        for name, value in model.named_parameters():
            if "bbox_embed" in name or "text_projection" in name or "enc_output" in name:
                value.normal_(0, 0.3)
    images = transformers.GroundingDinoImageProcessor(
        size={"shortest_edge": 96, "longest_edge": 160}
    )
    folder = tmp_path_factory.mktemp("weights") / "gdino"
    model.save_pretrained(folder)
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "grounding-dino"
    return folder


@pytest.fixture
def photo() -> np.ndarray:
    """A picture with structure, 96 x 128 x 3 uint8."""
    from zim.testing import picture

    return picture(96, 128)
