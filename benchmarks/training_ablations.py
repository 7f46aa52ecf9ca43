"""The rows of Tables 4a, 4b, 8a and 8b on tiny networks: do the switches switch, and what happens.

``zim-train ablate --tiny`` on some 120 pictures of the collection at 128 pixels, 64-pixel networks
from random weights, some hundred steps. Such networks hardly tell objects apart, so the numbers
say that the rows train and differ, not which setting is better.
``python benchmarks/training_ablations.py OUT [--steps 150]`` prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np

from zim_training import cli

TABLES = ("4a", "4b", "8a", "8b")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--tables", default=",".join(TABLES))
    args = parser.parse_args()
    pictures = runpy.run_path(str(Path(__file__).with_name("training_finetune.py")))
    rng = np.random.default_rng(0)
    pairs = pictures["outlined"](args.data_root, "c") + pictures["animals"](args.data_root)
    for kind in ("fluent_", "cut_"):
        pairs += pictures["composites"](args.data_root, kind, rng)
    pairs = [pictures["small"](*pair, side=128) for pair in pairs]
    pictures["write_own"](pairs, args.out / "own")
    result: dict = {"pictures": len(pairs), "steps": args.steps}
    for table in args.tables.split(","):
        text = io.StringIO()
        words = ["ablate", "--table", table, "--tiny", "--max-steps", args.steps]
        words += ["--data", args.out / "own", "--output", args.out / table]
        with contextlib.redirect_stdout(text):
            code = cli.main([*map(str, words), "--device", "cpu", "--threads", "1", "--json"])
        if code:
            raise SystemExit(f"zim-train ablate --table {table} failed: {text.getvalue()}")
        result[table] = json.loads(text.getvalue())["metrics"]
        sys.stderr.write((args.out / table / "table.md").read_text())
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
