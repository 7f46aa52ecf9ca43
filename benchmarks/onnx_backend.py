"""ONNX Runtime beside torch: how much mattes differ and how long encoder and decoder take.

Exports a model with random weights (or a checkpoint), runs both engines on the same picture and
prints a table. Run as ``python benchmarks/onnx_backend.py [--model vit_b] [--output FILE.json]``;
``--quick`` checks the script itself on a miniature in seconds of computing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zim
from zim.benchmarking import (
    hardware,
    hardware_line,
    markdown_table,
    median_time,
    provenance,
)
from zim.config import PRESETS
from zim.onnx import OnnxZim, export_onnx
from zim.testing import picture, tiny_model


def measure(
    name: str, folder: Path, *, repeats: int, prompts: int, half: bool
) -> dict[str, float | str]:
    """Export a model and compare the two engines on one picture."""
    known = name in PRESETS and name != "nano"
    model: zim.Zim = tiny_model(name) if known else zim.load(name, device="cpu", dtype="float32")
    start = time.perf_counter()
    export_onnx(model, folder, half=half)
    row: dict[str, float | str] = {"model": name, "export_s": time.perf_counter() - start}
    row["bytes"] = sum(file.stat().st_size for file in folder.iterdir())
    engines = {"torch": zim.ZimPredictor(model), "onnx": zim.ZimPredictor(OnnxZim(folder))}
    rgb = picture(480, 640)
    x = np.linspace(20, 300, prompts)
    boxes = np.stack([x, x * 0.5, x + 300, x * 0.5 + 200], 1)
    clicks, ones = boxes[:, None, :2] + 100, np.ones((prompts, 1))
    answers: dict[str, list[np.ndarray]] = {}
    for engine, predictor in engines.items():
        row[f"{engine}_set_image_s"] = median_time(
            lambda p=predictor: p.set_image(rgb), repeats=repeats
        )
        row[f"{engine}_{prompts}_boxes_s"] = median_time(
            lambda p=predictor: p.predict(box=boxes, multimask_output=False), repeats=repeats
        )
        kinds: list[dict[str, Any]] = [
            {"box": boxes},
            {"point_coords": clicks, "point_labels": ones},
            {"box": boxes, "point_coords": clicks, "point_labels": ones},
        ]
        answers[engine] = [predictor.predict(**kind)[0] for kind in kinds]
    for kind, ours, theirs in zip(("box", "points", "both"), *answers.values(), strict=True):
        row[f"matte_difference_{kind}"] = float(np.abs(ours - theirs).max())
    return row


def main() -> int:
    """Run, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_b", help="preset (random weights) or checkpoint")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fp16", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a miniature, once")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.model, args.repeats, args.prompts = "tiny", 1, 2
    with tempfile.TemporaryDirectory() as folder:
        row = measure(
            args.model,
            Path(folder) / "onnx",
            repeats=args.repeats,
            prompts=args.prompts,
            half=args.fp16,
        )
    about = provenance() | {"onnxruntime": importlib.metadata.version("onnxruntime")}
    print(f"{about['date']}, commit {about['commit']}, onnxruntime {about['onnxruntime']}")
    print(f"{hardware_line()}\n")
    cells = [(k, v if isinstance(v, str) else f"{v:.4g}") for k, v in row.items()]
    print("\n".join(markdown_table(("measure", "value"), cells)))
    if args.output:
        args.output.write_text(
            json.dumps(about | {"hardware": hardware(), "results": row}, indent=2) + "\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
