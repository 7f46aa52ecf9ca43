"""Many prompts on one picture: how close decoding comes to its convolutions, and what batches save.

Three questions, one process:

1. ViT-B: 64 boxes decoded to stride-2 logits. How many GFLOP/s is that, counted as the split
   network's multiplications, beside the three fusion convolutions run alone at their own sizes, and
   how much faster than the undivided decoder (``FusionStep.joint``, batch norms apart)?
2. nano: one ``predict_batch`` of 64 boxes beside 64 calls of ``predict`` on the same embedding.
3. How much memory 64 mattes of a 12-megapixel picture take beside the mattes themselves.

The encoder's blocks play no part in 1 and 3 and are left out. Run as
``python benchmarks/decoder.py [--output FILE.json]``; ``--quick`` checks the script in seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zim
from zim.api import choose_dtype
from zim.benchmarking import hardware, hardware_line, markdown_table, median_time, provenance
from zim.config import PRESETS, ZimConfig
from zim.memory import give_memory_back, peak_resident, reset_peak, resident
from zim.model.fast import plain_forms
from zim.model.matting import ImageFeatures
from zim.testing import TINY_NANO, picture, tiny_model


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads [all]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="miniatures, to check the script")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.prompts, args.repeats = 3, 1
    config = PRESETS["tiny" if args.quick else "vit_b"]
    auto = choose_dtype("auto", torch.device(args.device))
    kinds = list(dict.fromkeys([auto, torch.float32]))
    decode = [decoding(config, kind, args) for kind in kinds]
    batches = [batching(kind, args) for kind in kinds]
    memory = enlarging(config, auto, args)
    print(hardware_line())
    print(f"\n{config.name}, {args.prompts} boxes, per prompt\n")
    print("\n".join(_decode_table(decode)))
    print(f"\nnano, {args.prompts} boxes\n")
    print("\n".join(_batch_table(batches)))
    print(
        f"\n{args.prompts} mattes of {memory['pixels'] / 1e6:.1f} MP: the result takes "
        f"{memory['result_gib']:.2f} GiB, everything else {memory['beside_gib']:.2f} GiB at its "
        f"peak, {memory['seconds']:.1f} s"
    )
    if args.output:
        report = {**provenance(), "hardware": hardware(), "prompts": args.prompts}
        report |= {"decode": decode, "batch": batches, "enlarge": memory}
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def decoding(config: ZimConfig, kind: torch.dtype, args: argparse.Namespace) -> dict[str, Any]:
    """Time decoding, its convolutions and the undivided decoder."""
    model = _without_blocks(config, kind, args.device)
    size, count = config.image_size, args.prompts
    points, labels = _boxes(count, size, args.device)
    token = slice(0, 1)
    with torch.inference_mode():
        images = torch.randn(1, 3, size, size, device=args.device, dtype=kind)
        features = model.encode_image(images)

        def timed(work: Any, repeats: int = args.repeats) -> float:
            return median_time(work, repeats=repeats, device=args.device)

        ours = timed(lambda: model.decode(features, points, labels, tokens=token)) / count
        state = model.decode_tokens(features, points[:8], labels[:8])
        tokens = timed(lambda: model.decode_tokens(features, points[:8], labels[:8])) / len(state)
        pixels = timed(lambda: model.decode_pixels(features, state, token)) / len(state)
        convolutions = fusion_convolutions(model, kind, args)
        with plain_forms():
            stem = model.mask_decoder.pixel_decoder.features(images)
            whole = model.encode_image(images)
            few = min(4, count)
            joint = (
                timed(
                    lambda: undivided(model, whole, stem, points[:few], labels[:few], token),
                    repeats=max(1, args.repeats // 2),
                )
                / few
            )
            expected = undivided(model, whole, stem, points[:few], labels[:few], token)
        got = model.decode(features, points[:few], labels[:few], tokens=token).logits
    flops = split_flops(config)
    rates = {"decode": sum(flops.values()) / ours, "convolutions": convolutions["rate"]}
    return {
        "dtype": str(kind).removeprefix("torch."),
        "seconds": ours,
        "tokens_seconds": tokens,
        "pixels_seconds": pixels,
        "gflop": sum(flops.values()) / 1e9,
        "gflops": rates["decode"] / 1e9,
        "convolution_seconds": convolutions["seconds"],
        "convolution_gflops": rates["convolutions"] / 1e9,
        "share": rates["decode"] / rates["convolutions"],
        "undivided_seconds": joint,
        "faster": joint / ours,
        "alpha_difference": (got.sigmoid() - expected.sigmoid()).abs().max().item(),
    }


def undivided(
    model: zim.Zim,
    features: ImageFeatures,
    stem: tuple[Tensor, ...],
    points: Tensor,
    labels: Tensor,
    tokens: slice,
) -> Tensor:
    """Decode as the paper draws it: enlarge, concatenate, convolve, all of it per prompt."""
    decoder = model.mask_decoder
    state = model.decode_tokens(features, points, labels)
    x = state.image
    for step, detail in zip(decoder.pixel_decoder.fuse, reversed(stem), strict=True):
        x = step.joint(detail, x, None)  # pyright: ignore[reportCallIssue]
    b, _, h, w = x.shape
    return (state.weights[:, tokens] @ x.flatten(2)).view(b, -1, h, w).float()


def split_flops(config: ZimConfig) -> dict[str, float]:
    """Count the operations one prompt is decoded with, two per multiplication.

    Only what is carried out counts: the prompt's half of the three 3 x 3 convolutions, and the
    products of tokens and image cells in the transformer (7 tokens: quality, four masks, a box).
    The projections of the image that the plain transformer needs besides are not counted.
    """
    decoder, cells = config.decoder, (config.image_size // 16) ** 2
    widths = (decoder.dim, *decoder.fusion)
    fusion = sum(9 * widths[i] * widths[i + 1] * cells * 4 ** (i + 1) for i in range(3))
    rows = decoder.heads * (1 + decoder.mask_tokens + 2)
    attention = (2 * decoder.depth + 1) * 2 * rows * decoder.dim * cells
    return {"fusion": 2.0 * fusion, "transformer": 2.0 * attention}


def fusion_convolutions(
    model: zim.Zim, kind: torch.dtype, args: argparse.Namespace
) -> dict[str, float]:
    """Time the prompt's three convolutions alone, on maps that are already enlarged."""
    config = model.config
    widths = (config.decoder.dim, *config.decoder.fusion)
    total, flops = 0.0, 0.0
    for i in range(3):
        side = config.image_size // 16 * 2 ** (i + 1)
        best = float("inf")
        for batch in (1, 2, 4):
            x = torch.randn(batch, widths[i], side, side, device=args.device, dtype=kind)
            weight = torch.randn(widths[i + 1], widths[i], 3, 3, device=args.device, dtype=kind)
            x = x.contiguous(memory_format=torch.channels_last)
            weight = weight.contiguous(memory_format=torch.channels_last)
            seconds = median_time(
                lambda x=x, w=weight: F.conv2d(x, w, padding=1),
                warmup=2,
                repeats=3 * args.repeats,
                device=args.device,
            )
            best = min(best, seconds / batch)
        total += best
        flops += 2 * 9 * widths[i] * widths[i + 1] * side**2
    return {"seconds": total, "rate": flops / total}


def batching(kind: torch.dtype, args: argparse.Namespace) -> dict[str, Any]:
    """Time nano on many boxes, together and one after the other."""
    if args.quick:
        model = tiny_model(TINY_NANO)
    else:
        model = zim.load("nano", device=args.device, dtype="float32")
    predictor = zim.ZimPredictor(model.to(args.device, kind))
    rgb = picture(600, 800)
    predictor.set_image(rgb)
    rng = np.random.default_rng(0)
    corner = rng.uniform([0, 0], [500, 350], (args.prompts, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(100, 250, (args.prompts, 2))], 1)
    prompts = [{"box": box} for box in boxes]
    ways: tuple[Callable[[], Any], Callable[[], Any]] = (
        lambda: predictor.predict_batch(prompts),
        lambda: [predictor.predict(box=box, multimask_output=False) for box in boxes],
    )
    times: list[list[float]] = []
    for repeat in range(args.repeats):  # in turns: what else the machine does hits both
        times.append([median_time(way, warmup=repeat == 0, repeats=1) for way in ways])
    together, alone = np.median(times, 0)
    return {
        "dtype": str(kind).removeprefix("torch."),
        "batch_seconds": float(together),
        "single_seconds": float(alone),
        "faster": float(alone / together),
    }


def enlarging(config: ZimConfig, kind: torch.dtype, args: argparse.Namespace) -> dict[str, float]:
    """Measure the memory that many large mattes take beside themselves."""
    model = _without_blocks(config, kind, args.device)
    predictor = zim.ZimPredictor(model)
    predictor.set_image(picture(300, 400) if args.quick else picture(3000, 4000))
    boxes = np.array([[i, i, 200 + i, 150 + i] for i in range(args.prompts)], float)
    give_memory_back()
    before = resident() or 0
    reset_peak()
    result: list[Any] = []
    seconds = median_time(
        lambda: result.append(predictor.predict(box=boxes, multimask_output=False)),
        warmup=0,
        repeats=1,
        device=args.device,
    )
    own = sum(array.nbytes for array in result[0])
    peak = (peak_resident() or 0) - before
    return {
        "pixels": float(np.prod(result[0][0].shape[2:])),
        "result_gib": own / 2**30,
        "beside_gib": (peak - own) / 2**30,
        "seconds": seconds,
    }


def _without_blocks(config: ZimConfig, kind: torch.dtype, device: str) -> zim.Zim:
    encoder = replace(config.encoder, depth=0, global_blocks=())  # pyright: ignore
    model = zim.build(replace(config, encoder=encoder), seed=0).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean.normal_(0, 0.1)
    return model.to(device, kind)


def _boxes(count: int, size: int, device: str) -> tuple[Tensor, Tensor]:
    points = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(0)) * size
    return points.to(device), torch.tensor([[2, 3]], device=device).expand(count, -1)


def _decode_table(rows: list[dict[str, Any]]) -> list[str]:
    headings = ["type", "ms", "tokens ms", "pixels ms", "GFLOP/s", "convolutions alone", "share"]
    return markdown_table(
        [*headings, "undivided ms", "faster", "alpha difference"],
        [
            [
                row["dtype"],
                f"{1e3 * row['seconds']:.1f}",
                f"{1e3 * row['tokens_seconds']:.1f}",
                f"{1e3 * row['pixels_seconds']:.1f}",
                f"{row['gflops']:.0f}",
                f"{row['convolution_gflops']:.0f}",
                f"{row['share']:.2f}",
                f"{1e3 * row['undivided_seconds']:.1f}",
                f"{row['faster']:.2f}",
                f"{row['alpha_difference']:.1e}",
            ]
            for row in rows
        ],
    )


def _batch_table(rows: list[dict[str, Any]]) -> list[str]:
    return markdown_table(
        ["type", "predict_batch s", "predict calls s", "faster"],
        [
            [
                row["dtype"],
                f"{row['batch_seconds']:.2f}",
                f"{row['single_seconds']:.2f}",
                f"{row['faster']:.2f}",
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
