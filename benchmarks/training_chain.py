"""The whole training chain, small but real: converter, SA-1B tar, shards, matting model, scores.

Every step is a command of ``zim-train``. The tar is written here in SA-1B's format from outlined
photographs of the image collection. ``python benchmarks/training_chain.py OUT`` prints one JSON
object; about five minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np

from zim.rle import encode_coco
from zim_training import cli
from zim_training.data.natural import SegmentReader
from zim_training.data.sources import list_sources


def write_sa1b(collection: Path, tar: Path, pictures: int) -> int:
    """Write outlined photographs as a tar of SA-1B; returns the number of masks."""
    sources = [s for s in list_sources(collection, "segments/images", "train") if "coco" in s.group]
    reader, masks = SegmentReader(collection), 0
    with tarfile.open(tar, "w") as out:
        for number, source in enumerate(sources[:pictures], 1):
            rgb, regions = reader.read(source.file)
            height, width = rgb.shape[:2]
            rows = []
            for k, region in enumerate(regions):
                x, y, w, h = cv2.boundingRect(region.astype(np.uint8))
                rows.append(
                    {
                        "id": number * 1000 + k,
                        "segmentation": encode_coco(region),
                        "bbox": [x, y, w, h],
                        "area": int(region.sum()),
                        "predicted_iou": 1.0,
                        "stability_score": 1.0,
                        "crop_box": [0, 0, width, height],
                        "point_coords": [[x + w / 2, y + h / 2]],
                    }
                )
            masks += len(rows)
            name = f"sa_{number}"
            image = {"image_id": number, "width": width, "height": height}
            meta = {"image": image | {"file_name": f"{name}.jpg"}, "annotations": rows}
            jpeg = (collection / source.file).read_bytes()
            for suffix, data in (("jpg", jpeg), ("json", json.dumps(meta).encode())):
                info = tarfile.TarInfo(f"./{name}.{suffix}")
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
    return masks


def command(*words: object) -> dict:
    """Run a ``zim-train`` command and return its JSON object."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        code = cli.main([*map(str, words), "--device", "cpu", "--json"])
    if code:
        raise SystemExit(f"zim-train {words[0]} failed: {text.getvalue()}")
    return json.loads(text.getvalue())


def losses(run: Path) -> list[float]:
    """Return the training losses of a run, in order."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def chain(
    collection: Path, out: Path, *, converter_steps: int, matte_steps: int, pictures: int
) -> dict:
    """Run the chain and return what came out."""
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    masks = write_sa1b(collection, out / "sa_000000.tar", pictures)
    small = ("--size", 64, "--data-root", collection)
    trained = command(
        "converter", "--preset", "test", *small, "--steps", converter_steps,
        "--eval-every", converter_steps, "--output", out / "converter",
    )  # fmt: skip
    scored = command("eval-converter", out / "converter", *small, "--views", 48)
    shards = command(
        "convert", out / "sa_000000.tar", "--converter", out / "converter", "--size", 64,
        "--output", out / "shards",
    )  # fmt: skip
    model = command(
        "matte", "--preset", "test", "--data", out / "shards", "--steps", matte_steps,
        "--eval-every", matte_steps, "--output", out / "matte",
    )  # fmt: skip
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "seconds_by_step": {
            "converter": trained["seconds"]["train"],
            "convert": shards["seconds"]["convert"],
            "matte": model["seconds"]["train"],
        },
        "masks_in_tar": masks,
        "converter": scored["metrics"],
        "converter_loss": losses(out / "converter"),
        "convert": shards["metrics"],
        "matte": model["metrics"],
        "matte_loss": losses(out / "matte"),
        "model": model["outputs"]["model"],
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--converter-steps", type=int, default=400)
    parser.add_argument("--matte-steps", type=int, default=400)
    parser.add_argument("--pictures", type=int, default=40)
    args = parser.parse_args()
    result = chain(
        args.data_root,
        args.out,
        converter_steps=args.converter_steps,
        matte_steps=args.matte_steps,
        pictures=args.pictures,
    )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
