"""Settings of the converter's network and of its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zim_training.options import setting


@dataclass(frozen=True)
class TrunkConfig:
    """Shape of a Hiera trunk (transformers' ``Sam2HieraDetConfig``) and of the decoder above it.

    ``decoder`` are the widths at strides 32, 16, 8, 4, 2 and 1.
    """

    embed: int
    heads: int
    blocks: tuple[int, int, int, int]
    windows: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    background: tuple[int, int]
    decoder: tuple[int, int, int, int, int, int] = (512, 256, 128, 64, 32, 32)
    #: where SAM 2.1's weights of this trunk are published
    hub: str = ""
    #: logit of the softened label that the heads add to; 0 (the paper) learns everything
    start: float = 0.0


TRUNKS = {
    "hiera_t": TrunkConfig(
        96, 1, (1, 2, 7, 2), (8, 4, 14, 7), (5, 7, 9), (7, 7), hub="facebook/sam2.1-hiera-tiny"
    ),
    "hiera_b+": TrunkConfig(
        112, 2, (2, 3, 16, 3), (8, 4, 14, 7), (12, 16, 20), (14, 14),
        hub="facebook/sam2.1-hiera-base-plus",
    ),
    "hiera_l": TrunkConfig(
        144, 2, (2, 6, 36, 4), (8, 4, 16, 8), (23, 33, 43), (7, 7),
        hub="facebook/sam2.1-hiera-large",
    ),
    "tiny": TrunkConfig(
        16, 1, (1, 1, 2, 1), (8, 4, 4, 4), (3,), (4, 4), decoder=(64, 48, 32, 24, 16, 16), start=6.0
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ConverterConfig:
    """Training of the converter; the preset ``paper`` is Sec. 5.1."""

    trunk: str = setting("hiera_b+", "trunk: hiera_b+, hiera_l, hiera_t or tiny", "Sec. 3.1")
    size: int = setting(
        1024, "side of the square view in pixels, a multiple of 32", "Sec. 5.1", low=32, multiple=32
    )
    batch: int = setting(16, "samples per step, over all processes", "Sec. 5.1", low=1)
    steps: int = setting(500_000, "optimiser steps", "Sec. 5.1", low=1)
    rate: float = setting(1e-3, "peak learning rate, AdamW, cosine", "Sec. 5.1", low=0)
    trunk_rate: float = setting(0.1, "learning rate of a pretrained trunk, times rate", low=0)
    warm_up: int = setting(5000, "steps of linear warm-up", low=0)
    decay: float = setting(0.01, "weight decay", low=0)
    clip: float = setting(1.0, "largest gradient norm", low=0)
    gradient: float = setting(10.0, "lambda of the gradient loss", "Eq. 1, Table 8b", low=0)
    sga: float = setting(
        0.5, "probability of Spatial Generalization Augmentation", "Sec. 5.1: p", low=0, high=1
    )
    stl: float = setting(
        0.5, "probability of a non-transformable sample", "Sec. 5.1: p", low=0, high=1
    )
    test_splits: bool = setting(False, "train on the sets' official test splits as well")
    ema: float = setting(0.9999, "decay of the averaged weights", low=0, high=1)
    accumulate: int = setting(1, "micro-batches per step", low=1)
    precision: Literal["auto", "bf16", "float32"] = setting("auto", "auto is bf16 on GPUs")
    workers: int = setting(4, "processes that prepare samples; 0 prepares in line", low=0)
    checkpointing: bool = setting(False, "trade time for memory in the trunk")
    save_every: int = setting(5000, "steps between checkpoints", low=1)
    eval_every: int = setting(10_000, "steps between evaluations", low=1)
    keep: int = setting(3, "checkpoints kept besides the last", low=0)
    keep_best: bool = setting(False, "export the best evaluated average, be it the start's")
    log_every: int = setting(50, "steps between lines of metrics.jsonl", low=1)
    seed: int = setting(0, "random seed of everything", low=0)


PRESETS = {
    "paper": ConverterConfig(trunk_rate=1.0),
    "default": ConverterConfig(),
    "test": ConverterConfig(
        trunk="tiny", size=96, batch=4, steps=300, rate=2e-3, trunk_rate=1.0, warm_up=20,
        ema=0.98, workers=0, save_every=100, eval_every=150, log_every=10,
    ),
}  # fmt: skip
