"""``set_image`` of a ViT beside ``segment-anything`` in float32: same weights, one process.

Random weights go into Meta's network and from there into ours; both predictors then encode the same
photograph-sized picture, from the array to the embedding. Run as
``python benchmarks/encoder.py [--model vit_b] [--output FILE.json]``; ``--quick`` checks the script
itself on a miniature. ``segment-anything`` comes with the dependency group ``parity``; without it
our reference attention in float32 stands in, and the table says so.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import zim
from zim.api import choose_dtype
from zim.benchmarking import hardware, hardware_line, markdown_table, median_time, provenance
from zim.config import PRESETS, MaskedAttentionConfig, ViTConfig, ZimConfig
from zim.model.fast import plain_forms
from zim.testing import meta_sam, picture

_QUICK = ViTConfig(embed_dim=64, depth=3, heads=2, global_blocks=(1,))


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="vit_b", choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads [all]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="a miniature, to check the script")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    config = PRESETS[args.model]
    if args.quick:
        config = ZimConfig("quick", _QUICK, image_size=256)
        args.repeats = 1
    config = ZimConfig(
        config.name,
        config.encoder,
        image_size=config.image_size,
        attention=MaskedAttentionConfig(mode="none"),
    )
    rows = measure(config, args.repeats, args.device)
    peer = rows[0]
    table = markdown_table(
        ["set_image", "type", "attention", "seconds", "faster", "difference, RMS", "largest"],
        [
            [
                row["name"],
                row["dtype"],
                row["attention"],
                f"{row['seconds']:.3f}",
                f"{peer['seconds'] / row['seconds']:.2f}",
                f"{row['rms']:.1e}",
                f"{row['largest']:.1e}",
            ]
            for row in rows
        ],
    )
    about = f"{config.name}, {config.image_size} pixels a side, median of {args.repeats}"
    print("\n".join([hardware_line(), about, "", *table]))
    if args.output:
        report = {**provenance(), "hardware": hardware(), "model": config.name, "rows": rows}
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(config: ZimConfig, repeats: int, device: str) -> list[dict[str, Any]]:
    """Time every way of encoding; the first row is what the others are compared with."""
    rgb = picture(3 * config.image_size // 4, config.image_size)
    ours = zim.build(config, seed=0).eval()
    randomise(ours)
    rows: list[dict[str, Any]] = []
    expected: torch.Tensor | None = None

    def add(name: str, dtype: str, attention: str, predictor: Any) -> None:
        nonlocal expected
        seconds = median_time(
            lambda: predictor.set_image(rgb), warmup=1, repeats=repeats, device=device
        )
        got = predictor.get_image_embedding().float().cpu()
        expected = got if expected is None else expected
        error = got - expected
        sys.stderr.write(f"{name}, {dtype}, {attention}: {seconds:.3f} s\n")
        rows.append(
            {
                "name": name,
                "dtype": dtype,
                "attention": attention,
                "seconds": seconds,
                "rms": (error.norm() / expected.norm()).item(),
                "largest": (error.abs().max() / expected.abs().max()).item(),
            }
        )

    package = segment_anything()
    if package is not None:
        vit = config.encoder
        assert isinstance(vit, ViTConfig)
        sam = meta_sam(package, vit, config.image_size)
        state = {k: v for k, v in ours.state_dict().items() if "pixel_decoder" not in k}
        missing, unexpected = sam.load_state_dict(state, strict=False)
        assert not unexpected
        assert all("output_upscaling" in key for key in missing)
        sam.to(device)
        add("segment-anything", "float32", "its own", package.SamPredictor(sam))
        del sam
    ours.to(device)
    predictor = zim.ZimPredictor(ours)
    encoder: Any = ours.image_encoder
    with plain_forms():
        add("zim, plain", "float32", "reference", predictor)
    add("zim", "float32", encoder.attention, predictor)
    # a CPU without bfloat16 instructions imitates them: minutes for a picture
    if device != "cpu" or set(hardware()["cpu_flags"]) & {"avx512_bf16", "amx_bf16", "bf16"}:
        ours.to(torch.bfloat16)
        with plain_forms():
            add("zim, plain", "bfloat16", "reference", predictor)
        for form in ("sliced", "folded"):
            encoder.attention = form
            add("zim", "bfloat16", form, predictor)
        encoder.attention = "auto"
    kind = choose_dtype("auto", torch.device(device))
    ours.to(kind)
    add("zim, dtype auto", str(kind).removeprefix("torch."), "auto", predictor)
    return rows


def randomise(model: nn.Module) -> None:
    """Give positions and biases the size they have in trained weights."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
            elif name.endswith("bias"):
                value.copy_(0.05 * torch.randn(value.shape, generator=generator))


def segment_anything() -> Any:
    """Return Meta's package, or None where it or its torchvision is not installed."""
    try:
        return importlib.import_module("segment_anything")
    except ImportError:
        return None


if __name__ == "__main__":
    main()
