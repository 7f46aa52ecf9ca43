"""Time per slice and memory of ``zim-medical eval`` on many phantom slices.

    python benchmarks/medical.py --slices 500 --model nano
    python benchmarks/medical.py --slices 2000 --model box      # everything but the model

Prints how much of a slice's time is the model, and the resident memory along the way.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zim.segmenters import load_segmenter
from zim_medical.demo import blob, smooth_noise, soft
from zim_medical.evaluate import Plan, evaluate, open_run
from zim_medical.layouts import REGISTRY
from zim_medical.options import Protocol


def main() -> None:
    """Generate slices, score them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=500)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--model", default="nano")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root / "data", args.slices, args.size)
        plan = Plan(Protocol(), (1, 2, 3, 4, 5), (args.model,))
        inner = Filler() if args.model == "box" else load_segmenter(args.model)
        segmenter: Any = Watched(inner, max(1, args.slices // 5))
        table = open_run(root / "out", plan, {"folder": root / "data"}, False)
        start = time.perf_counter()
        progress = evaluate(
            plan, {"folder": (REGISTRY["folder"], root / "data")}, {args.model: segmenter}, table
        )
        total = time.perf_counter() - start
    print(f"{progress.scored} slices of {args.size} x {args.size}, {args.model}: {total:.1f} s")
    for stage, seconds in sorted(progress.seconds.items(), key=lambda item: -item[1]):
        each = 1000 * seconds / progress.scored
        print(f"  {stage:8} {each:8.2f} ms per slice {100 * seconds / total:6.1f} %")
    print("resident MB after every fifth:", [round(m) for m in segmenter.memory])


class Watched:
    """A segmenter that notes the memory of the process now and then."""

    def __init__(self, inner: Any, every: int) -> None:
        """Wrap a segmenter."""
        self.inner, self.every, self.count = inner, every, 0
        self.memory: list[float] = []
        self.predict = inner.predict
        if hasattr(inner, "predict_batch"):
            self.predict_batch = inner.predict_batch

    def set_image(self, image: Any) -> None:
        """Pass on, and note the memory of every ``every``-th picture."""
        self.count += 1
        if self.count % self.every == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.memory.append(pages * 4096 / 1e6)
        self.inner.set_image(image)


class Filler:
    """No network: fills the box it is given, so that everything but a model can be measured."""

    def set_image(self, image: Any) -> None:
        """Keep the size."""
        self.size = image.shape[:2]

    def predict(self, *_: Any, box: Any = None, **__: Any) -> Any:
        """Answer with the box, or with nothing."""
        matte = np.zeros((1, *self.size), np.float32)
        if box is not None:
            x0, y0, x1, y1 = (int(v) for v in box)
            matte[0, y0 : y1 + 1, x0 : x1 + 1] = 1
        return matte, np.ones(1), matte


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
