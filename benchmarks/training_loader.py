"""Loader against model step: pictures per second each, on SA1B-Matte shards, in one process.

``python benchmarks/training_loader.py SHARDS [--model tiny]`` prints one JSON object. The loader
reads at random (``stream``: in order), decodes, crops and prompts; the step is forward, backward
and optimiser on a ready batch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch

from zim_training.loop import Reader
from zim_training.matting.config import PRESETS
from zim_training.matting.source import open_source
from zim_training.matting.task import MatteTask


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--buffer", type=int, default=8, help="pictures the stream mixes")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = dataclasses.replace(PRESETS["test"], model=args.model, batch=args.batch)
    task = MatteTask(config, open_source(args.shards, 0.1))
    streamed = MatteTask(config, open_source(args.shards, 0.1, stream=args.buffer), task.network)
    numbers = range(args.repeats + 1)
    reader = Reader(numbers, done=0, slot=0, slots=1, count=args.batch, seed=0)
    in_order = streamed.stream(reader)
    optimizer = torch.optim.AdamW(task.groups(), 1e-5)
    seconds: dict[str, list[float]] = {"loader": [], "stream": [], "step": []}
    for k in numbers:
        start = time.perf_counter()
        batch = task.samples([np.random.default_rng((k, i)) for i in range(args.batch)])
        seconds["loader"].append(time.perf_counter() - start)
        start = time.perf_counter()
        next(in_order)
        seconds["stream"].append(time.perf_counter() - start)
        task.model.train()
        start = time.perf_counter()
        task.loss(task.model, batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds["step"].append(time.perf_counter() - start)
    best = {name: min(some[1:]) for name, some in seconds.items()}  # the first pass warms up
    result = {
        "model": args.model,
        "batch": args.batch,
        **{f"{name}_images_per_s": round(args.batch / s, 2) for name, s in best.items()},
        "bottleneck": "loader" if best["loader"] > best["step"] else "model step",
        "workers_to_keep_up": max(1, round(best["loader"] / best["step"] + 0.5)),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
