"""Fine-tune nano on ten pictures: validation MSE before and after, and the tuned model at work.

The pictures are the seven AM-2K samples of the collection and three cut-outs laid over photographs,
320 pixels a side. ``python benchmarks/training_finetune.py OUT`` prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from pathlib import Path

import cv2
import numpy as np

from zim import cli as zim_cli
from zim.images import load_image, read_alpha
from zim_training import cli
from zim_training.data.sources import list_sources


def ten_pictures(collection: Path, out: Path, side: int = 320) -> None:
    """Write ``image/`` and ``alpha/``."""
    for part in ("image", "alpha"):
        (out / part).mkdir(parents=True, exist_ok=True)
    pairs = []
    for image in sorted((collection / "mattes/images").glob("*.jpg")):
        alpha = read_alpha(collection / "mattes/alphas" / f"{image.stem}.png")
        pairs.append((image.stem, load_image(image).rgb, alpha))
    cuts = [s.file for s in list_sources(collection, "foregrounds") if "/cut_trellis_" in s.file]
    photos = [s.file for s in list_sources(collection, "photos")]
    for k in range(3):
        cut = load_image(collection / cuts[10 * k])
        height, width = cut.rgb.shape[:2]
        behind = cv2.resize(load_image(collection / photos[40 * k]).rgb, (width, height))
        assert cut.alpha is not None
        mixed = cut.rgb * cut.alpha[..., None] + behind * (1 - cut.alpha[..., None])
        pairs.append((f"composite{k}", mixed.astype(np.uint8), cut.alpha))
    for name, rgb, alpha in pairs:
        scale = side / max(alpha.shape)
        size = (round(alpha.shape[1] * scale), round(alpha.shape[0] * scale))
        small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        matte = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(out / "image" / f"{name}.jpg"), small[..., ::-1])
        cv2.imwrite(str(out / "alpha" / f"{name}.png"), (matte * 255 + 0.5).astype(np.uint8))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()
    own, run = args.out / "own", args.out / "run"
    ten_pictures(args.data_root, own)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        words = ["matte", "--data", own, "--init", "nano", "--freeze", "image_encoder"]
        words += [
            "--max-steps",
            args.steps,
            "--held-out",
            0.3,
            "--output",
            run,
            "--device",
            "cpu",
            "--json",
        ]
        code = cli.main([str(w) for w in words])
    result = json.loads(text.getvalue())
    picture = next((own / "image").glob("*.jpg"))
    used = ["matte", picture, "--model", run / "export", "--output", args.out / "cut"]
    result["zim_matte_exit_code"] = zim_cli.main([str(w) for w in [*used, "--overwrite"]])
    print(json.dumps(result, indent=1))
    raise SystemExit(code)


if __name__ == "__main__":
    main()
