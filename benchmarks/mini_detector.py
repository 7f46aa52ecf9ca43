"""Does the mini detector find the named thing? 300 frozen composites, 3 distractors each.

python benchmarks/mini_detector.py WEIGHTS.safetensors [--data ../shared/data] [--names]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from zim_grounded.detectors import Thresholds
from zim_grounded.mini import BUNDLED, MiniDetector
from zim_training.detector.evaluate import frozen, score


def main() -> None:
    """Print the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", nargs="?", default=str(BUNDLED))
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--names", action="store_true", help="print every name's hits and asks")
    args = parser.parse_args()
    anything = MiniDetector.load(args.weights, thresholds=Thresholds(box=0.0))
    result = score(anything, MiniDetector.load(args.weights), frozen(Path(args.data))).to_dict()
    hits = result.pop("by_name")
    result["names"] = len(hits)
    result["names_never_found"] = sorted(name for name, (right, _) in hits.items() if not right)
    if args.names:
        result["by_name"] = hits
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
