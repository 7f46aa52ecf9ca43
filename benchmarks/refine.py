"""What refining gains on large composites whose true alpha is known to the last strand.

    python benchmarks/refine.py --photos DATA/photos --output runs/refine.json

Each composite is 4000 x 3000: a body with strands of 1 to 2 pixels, rendered at three times the
size and averaged, over an enlarged photograph with grain (every second one, where ``--photos``
names a folder) or over coloured noise. First mattes come from the model with the box as prompt,
and from two oracles: the true alpha averaged over the cells of the model's own stride-2 grid, and
over those of a 1024 frame, enlarged bilinearly. Scores are those of ``zim.metrics`` in the band
0.02 < true alpha < 0.98. Steps are measured between neighbouring pixels on both sides of every
tile border, against the same solve in a single tile. ``--alternatives`` adds what else was tried.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import zim
from zim import metrics
from zim import refine as refining
from zim.benchmarking import hardware_line, markdown_table, provenance
from zim.memory import peak_resident, reset_peak
from zim.prompts import mask_box
from zim.refine import cell_size, refine
from zim.upsample import guided_upsample

Kind = str
KINDS = ("hair", "fur", "mane")
_SUPER = 3  # strands are drawn this many times larger and averaged
_PALETTE = (
    (28, 22, 20),
    (92, 58, 34),
    (205, 168, 110),
    (232, 228, 220),
    (160, 66, 30),
    (96, 98, 104),
)


@dataclass(frozen=True, eq=False)
class Composite:
    """A picture made of known parts.

    Attributes:
        name: kind, background and seed.
        rgb: uint8 H x W x 3.
        alpha: the truth, float32 H x W in [0, 1].
        box: x0, y0, x1, y1 around alpha > 0.1.
    """

    name: str
    rgb: np.ndarray
    alpha: np.ndarray
    box: np.ndarray


def make_composite(
    seed: int, photos: list[Path], width: int = 4000, height: int = 3000
) -> Composite:
    """Render one composite; the same arguments give the same pixels.

    Kinds of object go round with the seed; every second background is a photograph, if there are
    any. Strands are 1 to 2 pixels wide whatever the size of the picture.
    """
    rng = np.random.default_rng([seed, 20251122])
    kind = KINDS[seed % len(KINDS)]
    photo = photos[int(rng.integers(len(photos)))] if photos and seed % 2 == 0 else None
    behind = (
        _texture(rng, height, width) if photo is None else _photograph(rng, photo, height, width)
    )
    strands, body = _strands(rng, kind, height, width)
    alpha = _coverage(strands, body, height, width)
    colour = _object_colour(rng, strands, body, alpha, behind)
    rgb = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, 256):
        rows = slice(top, min(top + 256, height))
        a = alpha[rows, :, None]
        mixed = a * colour[rows] + (1 - a) * behind[rows]
        mixed += rng.normal(0, 1.5, mixed.shape).astype(np.float32)
        rgb[rows] = np.clip(np.rint(mixed), 0, 255)
    behind_name = "texture" if photo is None else photo.stem
    return Composite(f"{kind}-{behind_name}-{seed}", rgb, alpha, mask_box(alpha, 0.1))


def _strands(
    rng: np.random.Generator, kind: Kind, height: int, width: int
) -> tuple[list[tuple[np.ndarray, float]], np.ndarray]:
    """Return curves (N x 2 points, width in pixels) and the outline of the body, M x 2."""
    unit = min(height, width)
    radius = unit * rng.uniform(0.2, 0.26)
    centre = np.array([width, height]) * rng.uniform(0.45, 0.55, 2)
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    waves = np.ones_like(angle)
    for k in range(2, 7):
        waves += rng.uniform(-0.09, 0.09) / k * np.cos(k * angle + rng.uniform(0, 6.3))
    outward = np.stack([np.cos(angle), np.sin(angle)], -1)
    outline = centre + (radius * waves)[:, None] * outward
    # count per radian, length in units of the radius, curl
    count, long, curl = {
        "hair": (350, 0.55, 0.9),
        "fur": (1500, 0.11, 0.5),
        "mane": (700, 0.28, 0.7),
    }[kind]
    count = int(count * 2 * np.pi * unit / 3000)
    drift = rng.uniform(-0.5, 0.5)
    curves = []
    for number in range(2 * count):
        where = rng.uniform(0, 720)
        # every second strand lies on the body, where it shows as texture only
        depth = rng.uniform(0.05, 0.08) if number % 2 else np.sqrt(rng.uniform(0, 1))
        base = outline[int(where)] - outward[int(where)] * depth * radius
        heading = np.arctan2(*outward[int(where)][::-1]) + drift + rng.normal(0, 0.25)
        length = radius * long * rng.uniform(0.3, 1.0)
        bend = rng.normal(0, curl)
        steps = np.linspace(0, 1, 12)
        headings = (
            heading + bend * steps + 0.15 * np.sin(steps * rng.uniform(3, 9) + rng.uniform(0, 6))
        )
        moves = np.stack([np.cos(headings), np.sin(headings)], -1) * length / 11
        curves.append((base + np.cumsum(moves, 0), rng.uniform(1.0, 2.0)))
    return curves, outline


def _coverage(
    strands: list[tuple[np.ndarray, float]], body: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Average a drawing at _SUPER times the size, float32 H x W."""
    canvas = np.zeros((height * _SUPER, width * _SUPER), np.uint8)
    cv2.fillPoly(canvas, [_fixed(body)], 255, cv2.LINE_8, 4)
    for curve, thickness in strands:
        cv2.polylines(
            canvas, [_fixed(curve)], False, 255, round(thickness * _SUPER) - 1, cv2.LINE_8, 4
        )
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32) / 255


def _fixed(points: np.ndarray, scale: int = _SUPER) -> np.ndarray:
    """Scale picture coordinates to the drawing's, in sixteenths of its pixels."""
    return np.rint(((points + 0.5) * scale - 0.5) * 16).astype(np.int32).reshape(-1, 1, 2)


def _object_colour(
    rng: np.random.Generator,
    strands: list[tuple[np.ndarray, float]],
    body: np.ndarray,
    alpha: np.ndarray,
    behind: np.ndarray,
) -> np.ndarray:
    """Return the object's own colours everywhere, float32 H x W x 3: every strand has its own."""
    height, width = alpha.shape
    seen = behind[::16, ::16][alpha[::16, ::16] == 0].mean(0)
    choices = [c for c in np.array(_PALETTE, float) if np.linalg.norm(c - seen) > 60]
    base = choices[int(rng.integers(len(choices)))]
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = np.uint8(base)
    shades = np.clip(
        base * rng.uniform(0.8, 1.25, (len(strands), 1)) + rng.normal(0, 4, (len(strands), 3)),
        0,
        255,
    )
    for (curve, _), shade in zip(strands, shades, strict=True):
        cv2.polylines(canvas, [_fixed(curve, 1)], False, shade.tolist(), 4, cv2.LINE_8, 4)
    light = cv2.resize(
        rng.normal(0, 12, (9, 12)).astype(np.float32),
        (width, height),
        interpolation=cv2.INTER_CUBIC,
    )
    return canvas.astype(np.float32) + light[..., None]


def _photograph(rng: np.random.Generator, path: Path, height: int, width: int) -> np.ndarray:
    """Enlarge a photograph to cover the frame and give back fine detail, float32 H x W x 3."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise SystemExit(f"cannot read {path}")
    scale = max(height / picture.shape[0], width / picture.shape[1])
    size = (
        max(width, round(picture.shape[1] * scale)),
        max(height, round(picture.shape[0] * scale)),
    )
    large = cv2.resize(picture[..., ::-1], size, interpolation=cv2.INTER_CUBIC)
    return large[:height, :width].astype(np.float32) + _grain(rng, height, width, 3.0)[..., None]


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return coloured noise with detail at every scale, float32 H x W x 3."""
    out = np.empty((height, width, 3), np.float32)
    out[:] = rng.uniform(60, 190, 3)
    tint = rng.uniform(0.4, 1.0, 3)
    strength = rng.uniform(12, 30)
    cells = 4
    while cells < max(height, width) / 2:
        shape = (max(2, cells * height // max(height, width)), max(2, cells))
        noise = rng.normal(0, strength, shape).astype(np.float32)
        out += tint * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
        cells, strength = cells * 2, strength * 0.72
    return np.clip(out, 0, 255) + _grain(rng, height, width, 2.0)[..., None]


def _grain(rng: np.random.Generator, height: int, width: int, sigma: float) -> np.ndarray:
    """Return grain of about 1.5 pixels, float32 H x W."""
    noise = cv2.GaussianBlur(rng.standard_normal((height, width), np.float32), (0, 0), 0.7)
    return noise * (sigma / noise.std())


# Measuring.


def oracle(alpha: np.ndarray, cell: float) -> np.ndarray:
    """Average the truth over cells of that many pixels and enlarge it again."""
    height, width = alpha.shape
    grid = (max(1, round(width / cell)), max(1, round(height / cell)))
    low = cv2.resize(alpha, grid, interpolation=cv2.INTER_AREA)
    return cv2.resize(low, (width, height), interpolation=cv2.INTER_LINEAR).clip(0, 1)


def border_step(rgb: np.ndarray, alpha: np.ndarray, cell: float, tiled: np.ndarray) -> float:
    """Return the largest step across a tile's border beyond the un-tiled result's, in 1/255."""
    side, refining._TILE = refining._TILE, 1 << 20
    try:
        whole = refine(rgb, alpha, cell=cell)
    finally:
        refining._TILE = side
    # Tiles start where the crop does, on a multiple of the coarsest neighbourhood.
    wrong = tiled - whole
    step = 0.0
    for axis in (0, 1):
        change = np.abs(np.diff(wrong, axis=axis))
        at = np.arange(refining._ALIGN, tiled.shape[axis], refining._ALIGN) - 1
        step = max(step, float(np.take(change, at, axis=axis).max(initial=0)))
    return step * 255


def on_tiles(
    predictor: zim.ZimPredictor, rgb: np.ndarray, alpha: np.ndarray, side: int
) -> np.ndarray:
    """Let the model itself look again: half-overlapping tiles, the first matte as mask prompt."""
    total, weight = np.zeros_like(alpha), np.zeros_like(alpha)
    again = zim.ZimPredictor(predictor.model)
    for top in range(0, max(1, alpha.shape[0] - side // 2), side // 2):
        for left in range(0, max(1, alpha.shape[1] - side // 2), side // 2):
            tile = (slice(top, top + side), slice(left, left + side))
            part = alpha[tile]
            if part.max() <= 0.5 or part.min() >= 0.97:
                continue
            again.set_image(np.ascontiguousarray(rgb[tile]))
            answer = again.predict_batch([{"mask": part}])[0][0, 0]
            ramps = (np.bartlett(n + 2)[1:-1] for n in part.shape)
            share = np.outer(*ramps).astype(np.float32)
            total[tile] += share * answer
            weight[tile] += share
    return np.where(weight > 0, total / np.maximum(weight, 1e-6), alpha).clip(0, 1)


def gains(first: np.ndarray, second: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Score both mattes in the band; ``*_cut`` is the share of the error that is gone."""
    band = (truth > 0.02) & (truth < 0.98)
    x0, y0, x1, y1 = (int(v) for v in mask_box(band.astype(np.float32)))
    # The same numbers as on the whole picture, sooner: gradients reach one pixel.
    near = (slice(max(0, y0 - 4), y1 + 4), slice(max(0, x0 - 4), x1 + 4))
    out: dict[str, float] = {}
    for name, measure in (("mse", metrics.mse), ("grad", metrics.grad)):
        before, after = (
            measure(matte[near], truth[near], mask=band[near]) for matte in (first, second)
        )
        out |= {f"{name}_before": before, f"{name}_after": after, f"{name}_cut": 1 - after / before}
    errors = [float(np.square(m - truth).mean()) * 1000 for m in (first, second)]
    return out | {"mse_picture_before": errors[0], "mse_picture_after": errors[1]}


def measure(
    composite: Composite,
    predictor: zim.ZimPredictor,
    *,
    oracles: bool = True,
    alternatives: bool = False,
    seams: bool = True,
) -> list[dict[str, Any]]:
    """Refine every first matte of one composite."""
    rgb, truth = composite.rgb, composite.alpha
    predictor.set_image(rgb)
    answer = predictor.predict(box=composite.box, multimask_output=False)[0][0]
    own = cell_size(predictor, answer)
    frame = max(truth.shape) / 512
    sources = {"model": (answer, own)}
    if oracles:
        sources["oracle, model's grid"] = (oracle(truth, own), own)
        sources["oracle, 1024 frame"] = (oracle(truth, frame), frame)
    records = []
    for source, (first, cell) in sources.items():
        reset_peak()
        start = time.perf_counter()
        second = refine(rgb, first, cell=cell)
        record = {"composite": composite.name, "source": source, "method": "refine", "cell": cell}
        record |= {"seconds": time.perf_counter() - start, "peak_bytes": peak_resident()}
        record |= gains(first, second, truth)
        if seams:
            record["border_step_255"] = border_step(rgb, first, cell, second)
        records.append(record)
        if not alternatives:
            continue
        others: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "colour lines": lambda a, c=cell: guided_upsample(_cells(a, c), rgb, 2).clip(0, 1),
            "model on tiles of its frame": lambda a: on_tiles(
                predictor, rgb, a, predictor.model.config.image_size
            ),
            "model on tiles of twice its frame": lambda a: on_tiles(
                predictor, rgb, a, 2 * predictor.model.config.image_size
            ),
        }
        for method, work in others.items():
            start = time.perf_counter()
            second = work(first)
            record = {"composite": composite.name, "source": source, "method": method}
            record |= {"seconds": time.perf_counter() - start, **gains(first, second, truth)}
            records.append(record)
    return records


def _cells(alpha: np.ndarray, cell: float) -> np.ndarray:
    grid = (max(1, round(alpha.shape[1] / cell)), max(1, round(alpha.shape[0] / cell)))
    return cv2.resize(alpha, grid, interpolation=cv2.INTER_AREA)


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean cuts, the least of them, and how many composites gain 30 % in both scores."""
    rows = []
    for source, method in dict.fromkeys((r["source"], r["method"]) for r in records):
        mine = [r for r in records if (r["source"], r["method"]) == (source, method)]
        row: dict[str, Any] = {"source": source, "method": method, "n": len(mine)}
        for name in ("mse", "grad"):
            before, after = (float(np.mean([r[f"{name}_{w}"] for r in mine])) for w in _WHEN)
            row |= {f"{name}_before": before, f"{name}_after": after}
            row[f"{name}_cut"] = float(np.mean([r[f"{name}_cut"] for r in mine]))
            row[f"{name}_cut_least"] = float(np.min([r[f"{name}_cut"] for r in mine]))
        row["both_30"] = sum(min(r["mse_cut"], r["grad_cut"]) >= 0.3 for r in mine)
        for when in _WHEN:
            row[f"mse_picture_{when}"] = float(np.mean([r[f"mse_picture_{when}"] for r in mine]))
        row["seconds"] = float(np.median([r["seconds"] for r in mine]))
        steps = [r["border_step_255"] for r in mine if "border_step_255" in r]
        row["border_step_255"] = max(steps) if steps else None
        rows.append(row)
    return rows


_WHEN = ("before", "after")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the summary as a Markdown table."""
    head = ("first matte", "method", "n", "MSE", "Grad", "MSE cut", "Grad cut", "least (MSE, Grad)")
    head += ("both >= 30 %", "MSE, picture", "s", "border step /255")
    cells = [
        (
            r["source"],
            r["method"],
            r["n"],
            f"{r['mse_before']:.1f} -> {r['mse_after']:.1f}",
            f"{r['grad_before']:.0f} -> {r['grad_after']:.0f}",
            f"{r['mse_cut']:.0%}",
            f"{r['grad_cut']:.0%}",
            f"{r['mse_cut_least']:.0%}, {r['grad_cut_least']:.0%}",
            f"{r['both_30']}/{r['n']}",
            f"{r['mse_picture_before']:.2f} -> {r['mse_picture_after']:.2f}",
            f"{r['seconds']:.1f}",
            "" if r["border_step_255"] is None else f"{r['border_step_255']:.2f}",
        )
        for r in rows
    ]
    return "\n".join(markdown_table(head, cells))


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="nano", help="name or path for zim.load [nano]")
    parser.add_argument("--photos", type=Path, help="folder of pictures for backgrounds")
    parser.add_argument("--count", type=int, default=20, help="number of composites [20]")
    parser.add_argument("--first", type=int, default=0, help="seed of the first one [0]")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--alternatives", action="store_true", help="score other methods too")
    parser.add_argument("--no-oracles", action="store_true", help="only the model's own mattes")
    parser.add_argument("--no-seams", action="store_true", help="leave the un-tiled solve out")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads [2]")
    parser.add_argument("--quick", action="store_true", help="one composite of 800 x 600")
    args = parser.parse_args(argv)

    import torch

    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    photos = sorted(args.photos.glob("*.jpg")) if args.photos else []
    if args.photos and not photos:
        parser.error(f"--photos {args.photos} holds no .jpg; give a folder of photographs, or none")
    size = (800, 600) if args.quick else (4000, 3000)
    predictor = zim.ZimPredictor(zim.load(args.model))
    records: list[dict[str, Any]] = []
    for seed in range(args.first, args.first + (1 if args.quick else args.count)):
        composite = make_composite(seed, photos, *size)
        new = measure(
            composite,
            predictor,
            oracles=not args.no_oracles,
            alternatives=args.alternatives,
            seams=not args.no_seams,
        )
        records += new
        for r in new:
            print(
                f"{r['composite']}, {r['source']}, {r['method']}: MSE {r['mse_cut']:.0%}, "
                f"Grad {r['grad_cut']:.0%}, {r['seconds']:.1f} s",
                file=sys.stderr,
            )
    rows = summary(records)
    facts = {**provenance(), "hardware": hardware_line(), "model": args.model, "size": size}
    print(f"{facts['commit']}, {facts['date']}, {facts['hardware']}, {facts['command']}\n")
    print(table(rows))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        report = {"conditions": facts, "summary": rows, "composites": records}
        args.output.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
