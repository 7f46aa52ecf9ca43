"""Removal with known truth: paste cut-outs on photographs, remove them, compare.

    python benchmarks/inpaint_truth.py --data ../shared/data --output inpaint_truth.jsonl
    python benchmarks/inpaint_truth.py --report inpaint_truth.jsonl

Every case pastes one cut-out by its true alpha. Its matte is predicted from a box by ``--mattes
nano``, or is the true one (``truth``), and three masks are made of that one matte: *soft* as
``zim_inpaint`` makes it (cover 0.02, growth by the soft band), *hard* (alpha > 0.5) and *k15*
(hard, dilated as Inpaint Anything's examples do). The same backend then fills all three. Measured
against the photograph: inside the former object (true alpha > 0.02) and in the rim, the pixels at
most 8 px from that region's edge, on either side. Cases and seed are fixed; a rerun resumes.

Added after a first run, which showed that the rim mixes two things: its inner half, where the
object was, and its outer half, where whatever is repainted has to be invented; and the *ghost*, how
much of the object's trace is left in the inner half: the regression of (result - photograph) on
(pasted - photograph), 1 where nothing was done. ``--seed`` other than 20 is for choosing
parameters (``--tune``).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from zim.images import load_image
from zim_inpaint import inpaint
from zim_inpaint.finder import load_soft

CASES, SEED, SIDE, RIM = 100, 20, 448, 8
KINDS = ("soft", "k15", "hard")
#: photographs of these sources show people or are flat scans
SKIP = ("ccp_", "portrait_", "cards_", "demo_", "coral_")


def cases(data: Path, seed: int = SEED) -> Iterator[tuple[int, Path, Path, np.random.Generator]]:
    """Choose photographs and cut-outs: every third case is an animal with hand-labelled fur."""
    rng = np.random.default_rng(seed)
    photos = [p for p in sorted((data / "photos").glob("*.jpg")) if not p.name.startswith(SKIP)]
    furry = sorted((data / "foregrounds").glob("am2k_*.png"))
    others = sorted((data / "foregrounds").glob("cut_*.png"))
    chosen = rng.choice(len(photos), CASES, replace=False)
    plain = rng.permutation(len(others))
    for i in range(CASES):
        cut = furry[i // 3 % len(furry)] if i % 3 == 0 else others[plain[i % len(others)]]
        yield i, photos[chosen[i]], cut, np.random.default_rng((seed, i))


def pasted(
    photo: Path, cut: Path, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the photograph, the same with the cut-out on it, and the cut-out's alpha."""
    clean = load_image(photo).rgb
    scale = SIDE / max(clean.shape[:2])
    clean = cv2.resize(clean, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    height, width = clean.shape[:2]
    picture = load_image(cut)
    assert picture.alpha is not None
    size = rng.uniform(0.35, 0.5) * min(height, width)
    fit = size / max(picture.alpha.shape)
    both = np.dstack([picture.rgb * picture.alpha[..., None], picture.alpha * 255])
    small = cv2.resize(both, None, fx=fit, fy=fit, interpolation=cv2.INTER_AREA)
    rows, columns = small.shape[:2]
    top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    alpha = np.zeros((height, width), np.float32)
    # scaling overshoots 1 by a rounding error, which is no alpha any more
    alpha[top : top + rows, left : left + columns] = np.clip(small[..., 3] / 255, 0, 1)
    front = np.zeros((height, width, 3), np.float32)
    front[top : top + rows, left : left + columns] = small[..., :3]
    mixed = front + (1 - alpha[..., None]) * clean
    return clean, np.clip(mixed + 0.5, 0, 255).astype(np.uint8), alpha


def measure(
    clean: np.ndarray, image: np.ndarray, result: np.ndarray, alpha: np.ndarray
) -> dict[str, float]:
    """Compare with the photograph inside the former object and in its rim."""
    inside = alpha > 0.02
    to_edge = np.minimum(
        cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 5) + (~inside) * 1e6,
        cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 5) + inside * 1e6,
    )
    difference = result.astype(np.float64) - clean
    values: dict[str, float] = {}
    rim = to_edge <= RIM
    halves = {"inner": rim & inside, "outer": rim & ~inside}
    for name, region in ({"inside": inside, "rim": rim} | halves).items():
        part = difference[region]
        mse = max(float((part**2).mean()), 1e-6)
        values[f"{name}_residual"] = round(float(np.abs(part).mean()), 4)
        values[f"{name}_psnr"] = round(10 * float(np.log10(255**2 / mse)), 4)
    trace = (image.astype(np.float64) - clean)[halves["inner"]]
    left = (difference[halves["inner"]] * trace).sum() / max((trace**2).sum(), 1e-6)
    values["inner_ghost"] = round(float(left), 5)
    return values


def run(args: argparse.Namespace) -> None:
    """Work through what is not in the output yet."""
    path = Path(args.output)
    lines = path.read_text().splitlines() if path.exists() else []
    done = {(r["case"], r["mattes"]) for r in map(json.loads, lines)}
    nano = None
    for i, photo, cut, rng in itertools.islice(cases(Path(args.data), args.seed), args.limit):
        clean, image, alpha = pasted(photo, cut, rng)
        for source in args.mattes:
            if (i, source) in done:
                continue
            matte = alpha
            if source != "truth":
                nano = nano or load_soft(source)
                ys, xs = np.nonzero(alpha > 0.02)
                box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)
                nano.set_image(image)
                matte = nano.predict(box=box, multimask_output=False)[0][0]
            row: dict[str, Any] = {"case": i, "mattes": source, "photo": photo.name}
            row |= {"cut": cut.name, "sad": round(float(np.abs(matte - alpha).sum()) / 1000, 4)}
            hard = (matte > 0.5).astype(np.float32)
            asked: dict[str, Any] = {
                "soft": (matte, "auto", 0.02),
                "hard": (hard, 0, 0.02),
                "k15": (hard, 7, 0.02),
            }
            if args.tune:
                asked |= {
                    f"{c:g} +{g}": (matte, g, c) for c in (0.02, 0.05, 0.1) for g in (0, 1, 2)
                }
            for kind, (given, grow, cover) in asked.items():
                if not given.max() > 0.02:
                    row[kind] = None
                    continue
                result = inpaint(image, given, backend=args.backend, grow=grow, cover=cover)
                row[kind] = measure(clean, image, result.image, alpha)
                row[kind]["area"] = round(float(result.mask.mean()), 5)
                assert (result.image[result.weight == 0] == image[result.weight == 0]).all()
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            sys.stderr.write(f"{i} {source}\n")


def report(path: Path) -> None:
    """Print means and paired differences with 95 % bootstrap intervals."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for source in sorted({r["mattes"] for r in rows}):
        used = [r for r in rows if r["mattes"] == source and all(r[k] for k in KINDS)]
        kinds = [k for k, v in used[0].items() if isinstance(v, dict)]
        print(f"\nmattes: {source}, {len(used)} cases")
        columns = [name for name in used[0]["soft"] if name != "area"]
        print("| mask | " + " | ".join(c.replace("_", " ") for c in columns) + " | area % |")
        print("|---" * (len(columns) + 2) + "|")
        for kind in kinds:
            mean = {k: float(np.mean([r[kind][k] for r in used])) for k in (*columns, "area")}
            cells = [f"{mean[c]:.{3 if c.endswith('ghost') else 2}f}" for c in columns]
            print(f"| {kind} | " + " | ".join(cells) + f" | {mean['area'] * 100:.2f} |")
        for first, second in (("soft", "k15"), ("k15", "hard"), ("soft", "hard")):
            for key in ("rim_residual", "inside_residual", "inner_residual", "inner_ghost"):
                gaps = np.array([r[second][key] - r[first][key] for r in used])
                low, high = interval(gaps)
                print(
                    f"{second} - {first}, {key}: {gaps.mean():+.3f} [{low:+.3f}, {high:+.3f}], "
                    f"{first} lower in {(gaps > 0).mean():.0%} of cases"
                )


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (10_000, len(values)))].mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--output", default="inpaint_truth.jsonl")
    parser.add_argument("--mattes", nargs="+", default=["nano", "truth"])
    parser.add_argument("--backend", default="patchmatch")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--limit", type=int, default=CASES)
    parser.add_argument("--tune", action="store_true", help="further masks of the same matte")
    parser.add_argument("--report", metavar="FILE")
    args = parser.parse_args()
    if args.report:
        report(Path(args.report))
    else:
        run(args)


if __name__ == "__main__":
    main()
