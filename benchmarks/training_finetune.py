"""Fine-tune nano on ten own pictures, three times: held-out pictures before and after.

Three draws of ten pictures that share nothing, none of them (nor the things on them) among what
nano was trained on: ``people``, street photographs; ``things``, cut-outs laid over photographs; and
``mixed``, animals, objects, and outlined photographs. Of each draw ``zim-train matte`` with
its defaults sees eight pictures and chooses by the other two; the scores are of further pictures
of the same kinds, by a tight box, a click in the middle, and a click anywhere on the object.
``python benchmarks/training_finetune.py OUT [--draws people,things]`` prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path

import cv2
import numpy as np

import zim
from zim import cli as zim_cli
from zim import metrics
from zim.images import load_image, read_alpha
from zim_training import cli
from zim_training.data.natural import SegmentReader
from zim_training.data.sources import list_sources
from zim_training.matting.corrections import deepest
from zim_training.matting.prompting import box_prompt

Pair = tuple[str, np.ndarray, np.ndarray]
PROMPTS = ("box", "middle_click", "any_click")


def small(name: str, rgb: np.ndarray, alpha: np.ndarray, side: int = 320) -> Pair:
    """Bring a picture and its matte to ``side`` pixels."""
    scale = side / max(alpha.shape)
    size = (round(alpha.shape[1] * scale), round(alpha.shape[0] * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    matte = cv2.resize(alpha.astype(np.float32), size, interpolation=method)
    return name, cv2.resize(rgb, size, interpolation=method), np.clip(matte, 0, 1)


def composites(collection: Path, kind: str, rng: np.random.Generator) -> list[Pair]:
    """Lay held-out cut-outs over held-out photographs, one each."""
    photos = [s.file for s in list_sources(collection, "photos", "dev")]
    photos = [photos[k] for k in rng.permutation(len(photos))]
    cuts = [s.file for s in list_sources(collection, "foregrounds", "dev") if f"/{kind}" in s.file]
    pairs = []
    for k, number in enumerate(rng.permutation(len(cuts))):
        cut = load_image(collection / cuts[number])
        behind = load_image(collection / photos[k % len(photos)]).rgb / 255.0
        assert cut.alpha is not None
        rows, columns = np.nonzero(cut.alpha > 0.02)
        box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
        alpha = cut.alpha[box]
        stack = np.dstack([cut.rgb[box] / 255.0 * alpha[..., None], alpha]).astype(np.float32)
        room = min(behind.shape[0] / alpha.shape[0], behind.shape[1] / alpha.shape[1])
        scale = rng.uniform(0.45, 0.85) * room
        size = (int(alpha.shape[1] * scale), int(alpha.shape[0] * scale))
        stack = cv2.resize(
            stack, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
        y = int(rng.integers(behind.shape[0] - size[1] + 1))
        x = int(rng.integers(behind.shape[1] - size[0] + 1))
        matte = np.zeros(behind.shape[:2], np.float32)
        matte[y : y + size[1], x : x + size[0]] = np.clip(stack[..., 3], 0, 1)
        behind *= 1 - matte[..., None]
        behind[y : y + size[1], x : x + size[0]] += stack[..., :3]
        rgb = (np.clip(behind, 0, 1) * 255 + 0.5).astype(np.uint8)
        pairs.append(small(f"{kind}_{k:02d}", rgb, matte))
    return pairs


def outlined(collection: Path, kind: str) -> list[Pair]:
    """Return held-out photographs with their largest outlined region (of ccp: the person)."""
    reader, pairs = SegmentReader(collection), []
    for source in list_sources(collection, "segments/images", "dev"):
        if source.group.startswith(kind):
            rgb, regions = reader.read(source.file)
            if regions:
                pairs.append(small(source.group, rgb, regions[0]))
    return pairs


def animals(collection: Path) -> list[Pair]:
    """Return the AM-2K samples, with hand-made mattes."""
    folder = collection / "mattes"
    return [
        small(p.stem, load_image(p).rgb, read_alpha(folder / "alphas" / f"{p.stem}.png"))
        for p in sorted((folder / "images").glob("*.jpg"))
    ]


def make_draws(collection: Path, tests: int) -> dict[str, tuple[list[Pair], list[Pair]]]:
    """Return for every draw its ten pictures and at most ``tests`` others to score."""
    rng = np.random.default_rng(0)
    people, fluent = outlined(collection, "ccp"), composites(collection, "fluent_", rng)
    cut, am2k = composites(collection, "cut_", rng), animals(collection)
    coco = outlined(collection, "coco")
    mixed = am2k[:4] + cut[:3] + coco[:3]
    others = [p for trio in zip(am2k[4:], cut[3:6], coco[3:6], strict=True) for p in trio]
    others += [p for pair in zip(cut[6:], coco[6:], strict=False) for p in pair]
    return {
        "people": (people[:10], people[10 : 10 + tests]),
        "things": (fluent[:10], fluent[10 : 10 + tests]),
        "mixed": (mixed, others[:tests]),
    }


def write_own(pairs: list[Pair], folder: Path) -> None:
    """Write ``image/`` and ``alpha/`` as a user would have them."""
    for part in ("image", "alpha"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, rgb, alpha in pairs:
        cv2.imwrite(str(folder / "image" / f"{name}.jpg"), rgb[..., ::-1])
        cv2.imwrite(str(folder / "alpha" / f"{name}.png"), (alpha * 255 + 0.5).astype(np.uint8))


def score(model: str, pairs: list[Pair]) -> np.ndarray:
    """MSE x 1000 of every picture by every prompt, pictures x 3."""
    predictor = zim.ZimPredictor(zim.load(model, device="cpu", dtype="float32"))
    rows = []
    for k, (_, rgb, alpha) in enumerate(pairs):
        rng = np.random.default_rng(k)
        inside = np.argwhere(alpha > 0.5)
        y, x = inside[rng.integers(len(inside))]
        prompts = [
            {"box": box_prompt(rng, alpha, 0.0)[0].reshape(4)},
            {"points": [deepest(alpha > 0.5)], "labels": [1]},
            {"points": [(x, y)], "labels": [1]},
        ]
        predictor.set_image(rgb)
        mattes = predictor.predict_batch(prompts)[0]
        rows.append([metrics.mse(matte[0], alpha) for matte in mattes])
    return np.array(rows)


def tune(own: Path, run: Path, flags: list[str]) -> dict:
    """Run ``zim-train matte`` with its defaults for own pictures."""
    text = io.StringIO()
    words = ["matte", "--data", own, "--init", "nano", "--freeze", "image_encoder", *flags]
    words += ["--output", run, "--device", "cpu", "--json"]
    with contextlib.redirect_stdout(text):
        code = cli.main([str(w) for w in words])
    if code:
        raise SystemExit(f"zim-train matte failed: {text.getvalue()}")
    return json.loads(text.getvalue())


def main() -> None:
    """Run from the command line; flags that are unknown here go to ``zim-train matte``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--draws", default="people,things,mixed")
    parser.add_argument("--tests", type=int, default=12)
    args, flags = parser.parse_known_args()
    draws, result = make_draws(args.data_root, args.tests), {}
    for name in args.draws.split(","):
        ten, others = draws[name]
        own, run = args.out / name / "own", args.out / name / "run"
        write_own(ten, own)
        before = score("nano", others)
        tuned = tune(own, run, flags)
        after = score(str(run / "export"), others)
        result[name] = {
            "pictures": len(others),
            "before": dict(zip(PROMPTS, before.mean(0).round(1).tolist(), strict=True)),
            "after": dict(zip(PROMPTS, after.mean(0).round(1).tolist(), strict=True)),
            "better": dict(zip(PROMPTS, (after < before).sum(0).tolist(), strict=True)),
            "seconds": tuned["seconds"]["train"],
            "validation": tuned["metrics"],
        }
        sys.stderr.write(f"{name}: {json.dumps(result[name])}\n")
        picture = next((own / "image").glob("*.jpg"))
        used = ["matte", picture, "--model", run / "export", "--output", args.out / name / "cut"]
        result[name]["zim_matte_exit_code"] = zim_cli.main([str(w) for w in [*used, "--overwrite"]])
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
