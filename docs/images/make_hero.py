"""Make docs/images/hero.png: prompts, mattes and cut-outs of the example photographs.

Run it from anywhere: python docs/images/make_hero.py
"""

from __future__ import annotations

from pathlib import Path

import zim
from zim import viz
from zim.output import save_rgb

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples"
#: the prompts of `make demo`
PROMPTS = {
    "rabbit.jpg": {"points": [(420, 350, 1), (400, 150, 1)]},
    "hyrax.jpg": {"box": (50, 40, 530, 455)},
    "coffee.jpg": {
        "box": (75, 15, 482, 390),
        "points": [(280, 300, 1), (145, 60, 0), (460, 350, 0)],
    },
}


def main() -> None:
    """Cut the examples out and lay everything out on one sheet."""
    rows = []
    for name, prompt in PROMPTS.items():
        result = zim.matte(EXAMPLES / name, **prompt)
        asked = viz.draw_prompts(result.image, points=prompt.get("points"), boxes=prompt.get("box"))
        rows.append([(asked, "prompt"), (result.alpha, "matte"), (result.rgba(), "cut-out")])
    save_rgb(HERE / "hero.png", viz.contact_sheet(rows, height=220))


if __name__ == "__main__":
    main()
