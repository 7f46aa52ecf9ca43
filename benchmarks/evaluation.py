"""Does the model limit ``zim eval``, or do reading and metrics? Pictures per second of each.

    python benchmarks/evaluation.py --images 40 --models nano,box --workers 0,1 --threads 2

Writes a set in MicroMat-3K's layout: photographs of the repository's examples, enlarged to the
size of DIV2K pictures with noise added (so that PNG compresses them like photographs), and soft
discs as mattes, small, medium and large. Then it runs the command itself, two prompts
per picture. ``box`` is no network at all: what it takes is everything else. Seconds of the clock
depend on what else the machine does, and so do CPU seconds, less so, of networks: their threads
wait for one another by computing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import zim.segmenters
from zim.benchmarking import hardware_line, markdown_table, provenance
from zim.cli import main as zim_command
from zim.memory import peak_resident, reset_peak
from zim.testing import BoxFiller, disc

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
#: shares of the picture that the objects fill: S, M and L of the paper's Table 7
SHARES = (0.005, 0.05, 0.3)
PAPER = 3000


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--size", default="2040x1356", help="of the pictures, as in DIV2K")
    parser.add_argument("--models", default="nano,box")
    parser.add_argument("--workers", default="0,1", help="worker processes for metrics, a run each")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    width, height = (int(v) for v in args.size.split("x"))
    load = zim.segmenters.load_segmenter

    def load_or_fill(name: str, **options: Any) -> Any:
        """Stand in for ``load_segmenter``: the command asks for its models there."""
        return BoxFiller() if name == "box" else load(name, **options)

    zim.segmenters.load_segmenter = load_or_fill
    rows = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root / "set", args.images, (height, width))
        for model in args.models.split(","):
            for workers in args.workers.split(","):
                output = root / f"{model}-{workers}"
                rows.append(run(root / "set", output, model, workers, args.threads))
    print(f"{hardware_line()}; commit {provenance()['commit']}")
    print(f"{args.images} pictures of {width} x {height}, a click and a box each\n")
    headings = ["model", "workers", "s per picture", "in the model", "model waits", "CPU s"]
    headings += ["peak MB", "load", f"hours for {PAPER}"]
    print("\n".join(markdown_table(headings, rows)))


def run(root: Path, output: Path, model: str, workers: str, threads: int) -> list[str]:
    """Evaluate once and return a line of the table."""
    words = ["eval", "--dataset", "micromat3k", "--root", str(root), "--models", model, "--json"]
    words += ["--output", str(output), "--workers", workers, "--threads", str(threads)]
    reset_peak()
    before = cpu_seconds()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = zim_command(words)
    assert code == 0
    report = json.loads(said.getvalue())
    lines = (output / "results.0.jsonl").read_text(encoding="utf-8").splitlines()
    busy = sum(json.loads(line)["seconds"] for line in lines if line)
    count = report["metrics"]["samples"]
    assert report["metrics"]["scored"] == 2 * count
    score = report["seconds"]["score"]  # start-up and tables do not grow with the set
    return [
        model,
        workers,
        f"{score / count:.3f}",
        f"{busy / count:.3f}",
        f"{100 * (1 - busy / score):.1f} %",
        f"{(cpu_seconds() - before) / count:.3f}",
        f"{(peak_resident() or 0) / 1e6:.0f}",
        f"{os.getloadavg()[0]:.1f}",
        f"{PAPER * score / count / 3600:.2f}",
    ]


def cpu_seconds() -> float:
    """Return what this process and its ended workers have computed."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def write(root: Path, count: int, size: tuple[int, int]) -> None:
    """Write pictures, mattes, prompts and the list."""
    rng = np.random.default_rng(0)
    photos = [cv2.imread(str(path)) for path in sorted(EXAMPLES.glob("*.jpg"))]
    for folder in ("img", "matte/fine", "prompt/fine"):
        (root / folder).mkdir(parents=True)
    lines = []
    for k in range(count):
        photo = photos[k % len(photos)]
        assert photo is not None
        large = cv2.resize(photo, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32)
        grain = rng.normal(0, 4, (*size, 1)).astype(np.float32)
        picture = np.clip(large + grain, 0, 255).astype(np.uint8)
        radius = float(np.sqrt(SHARES[k % len(SHARES)] * size[0] * size[1] / np.pi))
        x, y = (0.5 + rng.uniform(-0.1, 0.1, 2)) * np.array(size[::-1])
        alpha = disc(*size, centre=(x, y), radius=radius, softness=0.2 * radius)
        box = [max(0.0, x - radius), max(0.0, y - radius)]
        box += [min(float(size[1]), x + radius), min(float(size[0]), y + radius)]
        name = f"{k:04d}"
        cv2.imwrite(str(root / f"img/{name}.png"), picture)
        cv2.imwrite(str(root / f"matte/fine/{name}_0.png"), np.rint(255 * alpha).astype(np.uint8))
        prompt = {"point": [[round(x), round(y), 1]], "bbox": box}
        (root / f"prompt/fine/{name}_0.json").write_text(json.dumps(prompt))
        lines.append(f"img/{name}.png matte/fine/{name}_0.png prompt/fine/{name}_0.json")
    (root / "data_list.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
