"""Loader against model step: pictures per second each, on SA1B-Matte shards, in one process.

``python benchmarks/training_loader.py SHARDS [--model tiny]`` prints one JSON object. The loader
reads, decodes, crops, prompts; the step is forward, backward and optimiser on a ready batch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch

from zim_training.matting.config import PRESETS
from zim_training.matting.source import open_source
from zim_training.matting.task import MatteTask


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = dataclasses.replace(PRESETS["test"], model=args.model, batch=args.batch)
    task = MatteTask(config, open_source(args.shards, 0.1))
    optimizer = torch.optim.AdamW(task.groups(), 1e-5)
    loading, stepping = [], []
    for k in range(args.repeats + 1):
        start = time.perf_counter()
        batch = task.samples([np.random.default_rng((k, i)) for i in range(args.batch)])
        loading.append(time.perf_counter() - start)
        task.model.train()
        start = time.perf_counter()
        task.loss(task.model, batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        stepping.append(time.perf_counter() - start)
    load, step = min(loading[1:]), min(stepping[1:])  # the first pass warms up
    result = {
        "model": args.model,
        "batch": args.batch,
        "loader_images_per_s": round(args.batch / load, 2),
        "step_images_per_s": round(args.batch / step, 2),
        "bottleneck": "loader" if load > step else "model step",
        "workers_to_keep_up": max(1, round(load / step + 0.5)),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
