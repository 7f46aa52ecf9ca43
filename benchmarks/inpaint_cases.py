"""Remove the 20 objects of ``inpaint_cases.json`` and lay the results out on one sheet.

    python benchmarks/inpaint_cases.py --data ../shared/data --output DIR

Runs ``zim-inpaint --image FILE --points ...`` once per case, in this process, and writes
``sheet.jpg``: the picture with its clicks and matte beside the result.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from zim import viz
from zim.images import atomic_write, encode_rgb, load_image, read_alpha
from zim_inpaint.cli import main as zim_inpaint


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--output", default="inpaint_cases")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--height", type=int, default=210)
    args = parser.parse_args()
    cases = json.loads(Path(__file__).with_suffix(".json").read_text())
    output = Path(args.output)
    tiles = []
    for number, case in enumerate(cases, 1):
        picture = Path(args.data) / case["image"]
        clicks = [",".join(map(str, point)) for point in case["points"]]
        words = ["--image", str(picture), "--points", *clicks, "--model", args.model]
        code = zim_inpaint([*words, "--output", f"{output}/", "--overwrite"])
        image = load_image(picture).rgb
        result = image
        caption = f"{number} {case['object']}: refused"
        shown = viz.draw_prompts(image, points=case["points"])
        if code == 0:
            alpha = read_alpha(output / f"{picture.stem}.alpha.png")
            shown = viz.overlay(image, alpha, points=case["points"])
            result = load_image(output / f"{picture.stem}.result.png").rgb
            caption = f"{number} {case['object']}"
        tiles.append([(image, caption), (shown, "matte"), (result, "result")])
    rows = [[*a, *b] for a, b in zip(tiles[::2], tiles[1::2], strict=True)]
    sheet = viz.contact_sheet(rows, height=args.height)
    atomic_write(output / "sheet.jpg", encode_rgb(sheet, ".jpg"))


if __name__ == "__main__":
    main()
