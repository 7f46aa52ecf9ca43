"""Make the picture that ``zim-grounded`` runs on without ``--image``, and the one in the docs.

    python docs/images/make_grounded.py [--data ../shared/data] [--figure]

A cut-out dog and an umbrella (threestudio, Apache-2.0; Fluent Emoji, MIT) on a wallpaper of the
Budgie project (CC0). The wallpaper is held out from the training of the mini detector.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parents[1] / "apps" / "grounded" / "zim_grounded" / "dog.jpg"
BACKGROUND = "photos/wall_budgie_tea-gardens.jpg"
#: cut-out, longest side, left, top
THINGS = (
    ("foregrounds/cut_threestudio_dog1_rgba_239.png", 210, 90, 175),
    ("foregrounds/fluent_2602.png", 150, 420, 190),
)


def main() -> None:
    """Write the picture, or the figure made from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--figure", action="store_true", help="the docs' figure instead")
    args = parser.parse_args()
    if args.figure:
        figure()
        return
    root = Path(args.data)
    canvas = read(root / BACKGROUND, cv2.IMREAD_COLOR).astype(np.float32)
    for file, longest, x, y in THINGS:
        rgba = read(root / file, cv2.IMREAD_UNCHANGED).astype(np.float32)
        rgba[..., :3] *= rgba[..., 3:] / 255
        scale = longest / max(rgba.shape[:2])
        small = cv2.resize(rgba, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        part = canvas[y : y + small.shape[0], x : x + small.shape[1]]
        part[:] = part * (1 - small[..., 3:] / 255) + small[..., :3]
    cv2.imwrite(str(PICTURE), canvas.round().astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 88])


def figure() -> None:
    """Run the command on the picture and lay its results side by side."""
    import tempfile

    from zim.images import load_image, save_rgb
    from zim.viz import contact_sheet
    from zim_grounded.cli import main as grounded

    with tempfile.TemporaryDirectory() as folder:
        assert grounded(["the dog's fur . purple umbrella", "-o", folder]) == 0
        table = json.loads((Path(folder) / "dog.json").read_text())
        row = [(load_image(PICTURE).rgb, "picture")]
        row.append((load_image(Path(folder) / "dog.overlay.jpg").rgb, "boxes and mattes"))
        for found in table["detections"]:
            rgba = read(Path(found["files"]["rgba"]), cv2.IMREAD_UNCHANGED)
            row.append((cv2.cvtColor(rgba, cv2.COLOR_BGRA2RGBA), found["phrase"]))
        save_rgb(HERE / "grounded.jpg", contact_sheet([row], height=200))


def read(path: Path, mode: int) -> np.ndarray:
    """Read a picture with OpenCV's channel order."""
    pixels = cv2.imread(str(path), mode)
    if pixels is None:
        raise SystemExit(f"{path} cannot be read")
    return pixels


if __name__ == "__main__":
    main()
