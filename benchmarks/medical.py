"""Time per slice and memory of ``zim-medical eval`` on many phantom slices.

    python benchmarks/medical.py --slices 500 --model nano
    python benchmarks/medical.py --slices 2000 --model box      # everything but the model

Runs the command itself, report included, and prints how much of a slice's time is the model, what
the process held on the way (after every fifth of the slices and at the end) and at most.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import zim.segmenters
from zim.benchmarking import hardware_line, provenance
from zim.memory import peak_resident, reset_peak, resident
from zim.testing import BoxFiller
from zim_medical.cli import main as zim_medical
from zim_medical.demo import blob, smooth_noise, soft

STAGES = ("model", "read", "prompts", "score", "write")


def main() -> None:
    """Generate slices, score them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=500)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--modes", default="1-5")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    load, watched = zim.segmenters.load_segmenter, []

    def load_watched(name: str, **options: Any) -> Any:
        """Stand in for ``load_segmenter``: the command asks for its models there."""
        inner = BoxFiller() if args.model == "box" else load(name, **options)
        watched.append(Watched(inner, max(1, args.slices // 5)))
        return watched[0]

    zim.segmenters.load_segmenter = load_watched
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root / "data", args.slices, args.size)
        words = ["eval", "--root", str(root / "data"), "--datasets", "folder", "--json"]
        words += ["--models", args.model, "--modes", args.modes, "--output", str(root / "out")]
        words += ["--threads", str(args.threads)] if args.threads else []
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()) as said:
            code = zim_medical(words)
        total = time.perf_counter() - start
    assert code == 0
    report = json.loads(said.getvalue())
    seconds, count = report["seconds"], report["metrics"]["scored"]
    load_average = ", ".join(f"{v:.1f}" for v in os.getloadavg())
    print(f"{hardware_line()}; load average {load_average}; commit {provenance()['commit']}")
    print(f"{count} slices of {args.size} x {args.size}, {args.model}: {total:.1f} s")
    work = sum(seconds[stage] for stage in STAGES)
    for stage in STAGES:
        each = 1000 * seconds[stage] / count
        print(f"  {stage:8} {each:8.2f} ms per slice {100 * seconds[stage] / work:6.1f} %")
    held, peaks = zip(*watched[0].memory, strict=True)
    print("resident MB after every fifth:", megabytes(held))
    print("most MB in every fifth:", megabytes(peaks))
    print("resident MB at the end, report written:", *megabytes([resident()]))


def megabytes(values: Any) -> list[int]:
    """Return bytes as MB; -1 where the system does not tell."""
    return [-1 if value is None else round(value / 1e6) for value in values]


class Watched:
    """A segmenter that notes the memory of the process now and then."""

    def __init__(self, inner: Any, every: int) -> None:
        """Wrap a segmenter."""
        self.inner, self.every, self.count = inner, every, 0
        self.memory: list[tuple[int | None, int | None]] = []
        self.predict = inner.predict
        if hasattr(inner, "predict_batch"):
            self.predict_batch = inner.predict_batch

    def set_image(self, image: Any) -> None:
        """Pass on, and note the memory of every ``every``-th picture."""
        self.count += 1
        if self.count % self.every == 0:
            self.memory.append((resident(), peak_resident()))
            reset_peak()
        self.inner.set_image(image)


def write(root: Path, count: int, size: int) -> None:
    """Write pictures with two soft objects each, and their masks."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size].astype(float)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        centres = rng.uniform(0.25 * size, 0.75 * size, (2, 2))
        radii = rng.uniform(0.06 * size, 0.16 * size, (2, 2))
        fields = [
            blob((y, x), tuple(c), tuple(r), rng) for c, r in zip(centres, radii, strict=True)
        ]
        field = np.maximum(*fields)
        picture = 90 + 12 * smooth_noise(x.shape, 4, rng) + 70 * soft(field)
        values = np.clip(picture + rng.normal(0, 6, x.shape), 0, 255).astype(np.uint8)
        Image.fromarray(values).save(root / "images" / f"{number:04d}.png")
        Image.fromarray((field > 0).astype(np.uint8) * 255).save(
            root / "masks" / f"{number:04d}.png"
        )


if __name__ == "__main__":
    main()
