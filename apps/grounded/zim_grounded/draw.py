"""The annotated picture: every matte in a colour of its own, its box, phrase and score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from zim.object_map import ObjectMap
from zim.viz import draw_prompts


def annotate(
    rgb: NDArray[np.uint8],
    alphas: Sequence[NDArray[np.float32]],
    boxes: Sequence[tuple[float, float, float, float] | None],
    captions: Sequence[str],
    points: NDArray[np.float32] | None = None,
    labels: NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """Draw what was found on a darkened copy of a picture.

    Args:
        rgb: H x W x 3 uint8.
        alphas: mattes H x W in [0, 1].
        boxes: one per matte, or None for mattes from points.
        captions: one per matte.
        points: N x 2 points that were asked with.
        labels: of the points.

    Returns:
        H x W x 3 uint8.
    """
    painted = ObjectMap(rgb, longest=max(rgb.shape[:2]))
    colours = [painted.add(alpha) for alpha in alphas]
    canvas = painted.picture()
    if points is not None:
        canvas = draw_prompts(canvas, points=points, labels=labels)
    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    height = max(11, round(max(rgb.shape[:2]) / 40))
    font, line = ImageFont.load_default(height), max(1, height // 8)
    for colour, box, caption in zip(colours, boxes, captions, strict=True):
        if box is None:
            continue
        x0, y0, x1, y1 = box
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=line)
        wide = font.getlength(caption) + height // 2
        # above the box where there is room, else inside it; never past the picture's sides
        top = y0 - height * 1.4 if y0 >= height * 1.4 else y0
        left = max(0.0, min(x0, image.width - wide))
        pen.rectangle((left, top, left + wide, top + height * 1.4), fill=colour)
        pen.text((left + height // 4, top + height * 0.1), caption, fill=(0, 0, 0), font=font)
    return np.asarray(image)
