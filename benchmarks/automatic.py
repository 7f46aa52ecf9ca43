"""Automatic mattes end to end, beside segment-anything's generator with the same random weights.

    python benchmarks/automatic.py --output runs/automatic.json
    python benchmarks/automatic.py --quick

Both search one picture with the same grid of clicks. Encoder, prompt encoder and transformer have
the same random weights (``zim.weights.load_sam``); the pixel decoder is ZIM's, which costs seventy
times SAM's. Random weights rate answers at random, so ``pred_iou_thresh`` is set for each
generator to let through the share of clicks named in the row, and stability is not filtered.

With ``--megapixels`` a picture of that size is searched too (ours only), and the peak of this
process's memory above what it held before is reported. ``--model nano`` adds rows for a model that
``zim.load`` knows, with its own weights and default thresholds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import zim
from zim.api import choose_device, choose_dtype
from zim.benchmarking import hardware, hardware_line, markdown_table, median_time, provenance
from zim.click_search import ClickSearch, Rules
from zim.config import PRESETS, ViTConfig, ZimConfig
from zim.images import load_image
from zim.masks import point_grid
from zim.memory import give_memory_back, peak_resident, reset_peak, resident
from zim.testing import meta_sam, picture
from zim.weights import load_sam

_SMALL = ViTConfig(embed_dim=48, depth=2, heads=3, global_blocks=(1,), window=5)


def main() -> None:
    """Measure and print a table."""
    args = _arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    if args.quick:
        vit, size = _SMALL, 128
        config = replace(PRESETS["vit_b"], encoder=vit, image_size=size)
        args.points_per_side, args.repeats, args.megapixels = 4, 1, [0.2]
    else:
        config = PRESETS[args.config]
        assert isinstance(config.encoder, ViTConfig)
        vit, size = config.encoder, config.image_size
    rgb = load_image(args.image).rgb if args.image else picture(768, 1024)
    rows: list[dict[str, Any]] = []
    measure = partial(_measure, rows, args.repeats, device)

    package = _segment_anything()
    torch.manual_seed(0)
    sam = None if package is None else meta_sam(package, vit, size)
    model = _same_weights(config, sam).to(device, dtype)
    side, total = args.points_per_side, args.points_per_side**2
    for share in args.shares:
        quality = _quality(model, rgb, side, share)
        generator = zim.ZimAutomaticMaskGenerator(
            model, side, pred_iou_thresh=quality, stability_score_thresh=0
        )
        label = f"zim {config.name} {str(dtype).removeprefix('torch.')}"
        measure(label, total, f"{share:.0%}", rgb, generator.generate)
    for megapixels in args.megapixels:
        large = picture(
            round((megapixels * 1e6 * 3 / 4) ** 0.5), round((megapixels * 1e6 * 4 / 3) ** 0.5)
        )
        few = min(side, 4)  # memory is bounded by the batch, not by the number of clicks
        generator = zim.ZimAutomaticMaskGenerator(
            model, few, pred_iou_thresh=0, stability_score_thresh=0
        )
        label = f"zim {config.name} {megapixels:g} MP"
        measure(label, few**2, "100%", large, generator.generate)
        for name in args.model:
            generator = zim.ZimAutomaticMaskGenerator(
                zim.load(name, device=str(device), dtype=args.dtype)
            )
            measure(
                f"{name} {megapixels:g} MP",
                len(generator.point_grids[0]),
                "",
                large,
                generator.generate,
            )
    for name in args.model:
        generator = zim.ZimAutomaticMaskGenerator(
            zim.load(name, device=str(device), dtype=args.dtype)
        )
        measure(name, len(generator.point_grids[0]), "", rgb, generator.generate)
    if package is not None and sam is not None:
        del model
        sam = sam.to(device)
        for share in args.shares:
            quality = _sam_quality(package, sam, rgb, side, share)
            theirs = package.SamAutomaticMaskGenerator(
                sam,
                points_per_side=side,
                points_per_batch=min(64, total),
                pred_iou_thresh=quality,
                stability_score_thresh=0.0,
            )
            measure("segment-anything fp32", total, f"{share:.0%}", rgb, theirs.generate)
    _report(args, rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--config", default="vit_b", choices=("vit_b", "vit_l", "vit_h"))
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 1.0], metavar="S")
    parser.add_argument("--megapixels", type=float, nargs="*", default=[], metavar="MP")
    parser.add_argument("--model", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--image", metavar="FILE", help="default: a made-up picture of 768 x 1024")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    return parser.parse_args()


def _measure(
    rows: list[dict[str, Any]],
    repeats: int,
    device: torch.device,
    name: str,
    clicks: int,
    share: str,
    rgb: np.ndarray,
    generate: Callable[[np.ndarray], list[Any]],
) -> None:
    """Time one generator on one picture; the warm-up also gives memory and the count."""
    give_memory_back()
    reset_peak()
    before = resident() or 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    found = len(generate(rgb))
    peak = peak_resident() or 0
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    seconds = median_time(lambda: generate(rgb), warmup=0, repeats=repeats, device=str(device))
    rows.append(
        {
            "generator": name,
            "picture": f"{rgb.shape[1]} x {rgb.shape[0]}",
            "clicks": clicks,
            "share": share,
            "objects": found,
            "seconds": round(seconds, 3),
            "ms_per_click": round(seconds / clicks * 1e3, 2),
            "peak_mib": round((peak - before) / 2**20),
        }
    )
    sys.stderr.write(f"{rows[-1]}\n")


def _report(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    headings = ["generator", "picture", "clicks", "pass", "objects", "s", "ms / click", "peak MiB"]
    table = markdown_table(headings, [list(row.values()) for row in rows])
    print(hardware_line())
    print("\n".join(table))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        data = {**provenance(), "hardware": hardware(), "rows": rows}
        args.output.write_text(json.dumps(data, indent=2) + "\n")


def _quality(model: Any, rgb: np.ndarray, side: int, share: float) -> float:
    """Return the predicted quality that this share of the clicks reaches with some token."""
    if share >= 1:
        return 0.0
    rules = Rules(-1e9, 0, 0.1, "prob", 0.5, 1.0, slice(1, None))
    search = ClickSearch(model, rgb, (0, 0, rgb.shape[1], rgb.shape[0]), rules)
    points = point_grid(min(side, 8)) * (rgb.shape[1], rgb.shape[0])
    with torch.inference_mode():
        states = [search._clicked(part) for part in np.split(points, 4)]
    best = torch.cat([state.iou[:, 1:].amax(1) for state in states])
    return float(best.float().quantile(1 - share))


def _sam_quality(package: Any, sam: Any, rgb: np.ndarray, side: int, share: float) -> float:
    if share >= 1:
        return 0.0
    predictor = package.SamPredictor(sam)
    predictor.set_image(rgb)
    points = point_grid(min(side, 8)) * (rgb.shape[1], rgb.shape[0])
    best = [float(predictor.predict(p[None], np.array([1]))[1].max()) for p in points]
    return float(np.quantile(best, 1 - share))


def _same_weights(config: ZimConfig, sam: nn.Module | None) -> Any:
    model = zim.build(config, seed=0).eval()
    if sam is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sam.pth"
            torch.save(sam.state_dict(), path)
            load_sam(model, path)
    return model


def _segment_anything() -> Any:
    try:
        return importlib.import_module("segment_anything")
    except ImportError:
        sys.stderr.write("segment-anything is not installed; its rows are left out\n")
        return None


if __name__ == "__main__":
    main()
