"""Settings of ZIM's training; the preset ``paper`` is Sec. 5.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zim_training.options import setting


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; every field is a flag of ``zim-train matte``."""

    model: str = setting("vit_b", "network: nano, vit_b, vit_l, vit_h or tiny", "Sec. 5.1")
    init: str = setting("none", "weights to start from: a model, a path, sam:PATH, or none")
    freeze: str = setting("", "parts that stay, comma-separated: image_encoder, prompt_encoder")
    freeze_norm: bool = setting(False, "keep the statistics of batch normalisation")
    batch: int = setting(16, "pictures per step, over all processes", "Sec. 5.1", low=1)
    masks_per_image: int = setting(1, "mattes drawn of a picture", low=1)
    steps: int = setting(500_000, "optimiser steps", "Sec. 5.1", low=1)
    rate: float = setting(1e-5, "peak learning rate, AdamW, cosine", "Sec. 5.1", low=0)
    new_rate: float = setting(1.0, "learning rate of the pixel decoder, times rate", low=0)
    warm_up: int = setting(1000, "steps of linear warm-up", low=0)
    decay: float = setting(0.1, "weight decay", low=0)
    clip: float = setting(1.0, "largest gradient norm", low=0)
    gradient: float = setting(10.0, "lambda of the gradient loss", "Eq. 1, Table 8b", low=0)
    entropy: float = setting(0.0, "weight of cross-entropy; the paper has none", low=0)
    overlap: float = setting(0.0, "weight of 1 - soft IoU; the paper has none", low=0)
    prompts: Literal["paper", "people"] = setting(
        "paper", "jittered boxes and RITM points, or what people give: loose boxes, deep clicks"
    )
    box: float = setting(0.5, "probability of a box prompt, else points", low=0, high=1)
    jitter: float = setting(
        0.1, "largest move of a box's side, as a share", "Sec. 5.1", low=0, high=1
    )
    single: float = setting(
        0.25, "of the point prompts, probability of a lone positive", low=0, high=1
    )
    corrections: float = setting(
        0.0,
        "share of the steps that train a second round: the mask so far, a click on its error",
        low=0,
        high=1,
    )
    hold: float = setting(
        0.0,
        "of a box prompt's loss, the share that asks for the starting weights' answer",
        low=0,
        high=1,
    )
    resolution: Literal["full", "stride2"] = setting("full", "size at which the loss is taken")
    multimask: float = setting(1.0, "weight of the best of tokens 1 to 3, lone clicks only", low=0)
    quality: float = setting(1.0, "weight of the predicted IoU's error", low=0)
    sigma: float = setting(
        0.0, "sigma of the point Gaussian, 0 for the model's 21", "Table 8a", low=0
    )
    attention: str = setting("", "masked attention: paper, none; empty for the model's", "Eq. 5")
    side: str = setting("", "where it acts: t2i, i2t, both; empty for the model's", "Table 4b")
    decoder: str = setting("", "pixel decoder: hierarchical, sam; empty: model's", "Table 4a")
    held_out: float = setting(0.1, "share of the pictures kept for validation", low=0, high=1)
    eval_samples: int = setting(32, "mattes scored at an evaluation, at most", low=0)
    ema: float = setting(0.9999, "decay of the averaged weights, 0 for none", low=0, high=1)
    accumulate: int = setting(1, "micro-batches per step", low=1)
    precision: Literal["auto", "bf16", "float32"] = setting(
        "auto", "arithmetic; auto is bf16 on GPUs, for packs also on CPUs that multiply it"
    )
    stream: int = setting(
        0, "shards: read in order, mixing so many pictures; 0 reads at random", low=0
    )
    workers: int = setting(4, "processes that prepare samples; 0 prepares in line", low=0)
    checkpointing: bool = setting(False, "trade time for memory in the image encoder")
    save_every: int = setting(5000, "steps between checkpoints", low=1)
    eval_every: int = setting(10_000, "steps between evaluations", low=1)
    keep_best: bool = setting(False, "export the best evaluated average, be it the start's")
    keep: int = setting(3, "checkpoints kept besides the last", low=0)
    log_every: int = setting(50, "steps between lines of metrics.jsonl", low=1)
    seed: int = setting(0, "random seed of everything", low=0)


PRESETS = {
    "paper": TrainConfig(init="sam", multimask=0.0, quality=0.0),
    "default": TrainConfig(init="sam", new_rate=10.0, corrections=0.25),
    "finetune": TrainConfig(
        model="nano", init="nano", freeze_norm=True, batch=4, steps=60, rate=3e-5, warm_up=5,
        decay=0.02, ema=0.95, workers=0, save_every=20, eval_every=10, log_every=10, held_out=0.2,
        # prompts and losses nano was trained with, and boxes held: they are good at the start
        prompts="people", hold=0.5, keep_best=True,
        gradient=2.0, entropy=0.3, overlap=0.3, resolution="stride2", multimask=0.3, quality=0.1,
    ),
    "test": TrainConfig(
        model="tiny", batch=4, steps=200, rate=1e-3, warm_up=10, decay=0.01, ema=0.97,
        workers=0, save_every=50, eval_every=100, log_every=10, held_out=0.2, eval_samples=12,
    ),
}  # fmt: skip
