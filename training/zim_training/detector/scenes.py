"""Composites of named cut-outs with their boxes: what the mini detector learns from.

A seed gives the same composite for ever. Training and test use the same cut-outs, because a name
has one or two of them; backgrounds are split by photograph, placements by seed. So what is tested
is finding a known thing in a new place, not recognising another kind of dog.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim_training.data.natural import read_rgb
from zim_training.data.procedural import texture
from zim_training.data.sources import Split, list_sources
from zim_training.detector.names import COLOURS, named_files

Array = NDArray[Any]

#: longest side cut-outs are kept at
KEPT = 128
#: things in a composite: the one asked for and its distractors
THINGS = 4
#: a colour is said of a thing if this share of it has the colour
COLOUR_SHARE = 0.25
#: a new thing may hide at most this share of one below it
HIDDEN = 0.25


@dataclass(frozen=True)
class CutOut:
    """A named thing: premultiplied RGB and alpha, h x w x 4 uint8, cropped to itself."""

    name: str
    rgba: NDArray[np.uint8]
    colours: tuple[str, ...]


@dataclass(frozen=True)
class Composite:
    """A picture, side x side x 3 uint8 RGB, and the things in it (boxes in pixels, exclusive)."""

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    things: tuple[CutOut, ...]


class CompositeMaker:
    """Draws composites on the backgrounds of one split."""

    def __init__(self, root: Path, split: Split, side: int = 192) -> None:
        """Read all cut-outs and backgrounds into memory (about 60 MB)."""
        self.side = side
        self.things = {
            name: [_cut_out(name, file) for file in files]
            for name, files in named_files(root).items()
        }
        self.names = tuple(self.things)
        self.backgrounds = [
            _shrink(read_rgb(root / s.file), 400) for s in list_sources(root, "photos", split)
        ]

    def make(self, seed: tuple[int, ...], names: tuple[str, ...] | None = None) -> Composite:
        """Draw the composite of a seed.

        Args:
            seed: any integers.
            names: what shall be in it; by default different names at random.
        """
        rng = np.random.default_rng(seed)
        if names is None:
            names = tuple(rng.choice(self.names, THINGS, replace=False))
        for attempt in range(50):
            made = self._try(rng, names, shrink=0.98**attempt)
            if made is not None:
                return made
        raise RuntimeError("no room for the things")  # 50 smaller and smaller attempts

    def _try(self, rng: np.random.Generator, names: tuple[str, ...], shrink: float) -> Any:
        side = self.side
        canvas = self._background(rng)
        owner = np.full((side, side), -1, np.int32)
        boxes, things, areas = [], [], []
        for k, name in enumerate(names):
            thing = self.things[name][int(rng.integers(len(self.things[name])))]
            extent = rng.uniform(0.2, 0.5) * side * shrink
            rgba = _turn(rng, thing.rgba, extent)
            height, width = rgba.shape[:2]
            x, y = int(rng.integers(side - width + 1)), int(rng.integers(side - height + 1))
            at = (slice(y, y + height), slice(x, x + width))
            solid = rgba[..., 3] > 100
            if not solid.any():
                return None
            hidden = np.bincount(owner[at][solid] + 1, minlength=k + 1)[1:]
            if k and (hidden > HIDDEN * np.array(areas)).any():
                return None
            owner[at][solid] = k
            areas.append(int(solid.sum()))
            light = rng.uniform(0.75, 1.15)
            alpha = rgba[..., 3:].astype(np.float32) / 255
            front = np.minimum(rgba[..., :3] * light, 255 * alpha)
            canvas[at] = canvas[at] * (1 - alpha) + front
            rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
            boxes.append([x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1])
            things.append(thing)
        if rng.random() < 0.3:
            canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 1.0))
        canvas = canvas * rng.uniform(0.8, 1.15) + rng.uniform(-12, 12)
        if rng.random() < 0.5:
            canvas += rng.normal(0, rng.uniform(1, 8), canvas.shape)
        image = np.clip(canvas, 0, 255).astype(np.uint8)
        return Composite(image, np.array(boxes, np.float32), tuple(things))

    def _background(self, rng: np.random.Generator) -> Array:
        if rng.random() < 0.1:
            return np.asarray(texture(rng, self.side), np.float32) * 255
        photo = self.backgrounds[int(rng.integers(len(self.backgrounds)))]
        extent = int(min(photo.shape[:2]) * rng.uniform(0.5, 1.0))
        y = int(rng.integers(photo.shape[0] - extent + 1))
        x = int(rng.integers(photo.shape[1] - extent + 1))
        crop = photo[y : y + extent, x : x + extent]
        if rng.random() < 0.5:
            crop = np.ascontiguousarray(crop[:, ::-1])
        return cv2.resize(crop, (self.side, self.side), interpolation=cv2.INTER_AREA).astype(
            np.float32
        )


def colours_of(rgb: Array, alpha: Array) -> tuple[str, ...]:
    """Name the colours that cover a quarter of a thing or more, by hue, strength and brightness.

    Args:
        rgb: h x w x 3 uint8, straight colours.
        alpha: h x w uint8.
    """
    pixels = rgb[alpha > 128].astype(np.float32)[None] / 255
    if not pixels.size:
        return ()
    hue, strength, bright = (
        c[0] for c in np.moveaxis(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV), 2, 0)
    )
    grey = strength < 0.2
    vivid = ~grey & (bright >= 0.2)
    brown = vivid & (hue >= 8) & (hue < 50) & (bright < 0.62)
    pale_red = ((hue >= 320) | (hue < 12)) & (strength < 0.55) & (bright > 0.7)
    pink = vivid & (((hue >= 290) & (hue < 345) & (bright > 0.5)) | pale_red)
    plain = vivid & ~brown & ~pink
    masks = {
        "red": plain & ((hue < 15) | (hue >= 345)),
        "orange": plain & (hue >= 15) & (hue < 40),
        "yellow": plain & (hue >= 40) & (hue < 68),
        "green": plain & (hue >= 68) & (hue < 165),
        "blue": plain & (hue >= 165) & (hue < 258),
        "purple": plain & (hue >= 258) & (hue < 345),
        "pink": pink,
        "brown": brown,
        "black": (bright < 0.2) | (grey & (bright < 0.25)),
        "white": grey & (bright > 0.82),
        "grey": grey & (bright >= 0.25) & (bright <= 0.82),
    }
    return tuple(c for c in COLOURS if masks[c].mean() >= COLOUR_SHARE)


def _cut_out(name: str, file: Path) -> CutOut:
    bgra = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    if bgra is None or bgra.ndim != 3 or bgra.shape[2] != 4:
        raise OSError(f"{file} is not a readable RGBA image")
    rows, columns = np.nonzero(bgra[..., 3] > 8)
    bgra = bgra[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    colours = colours_of(bgra[..., 2::-1], bgra[..., 3])
    alpha = bgra[..., 3:].astype(np.float32) / 255
    stack = np.dstack([bgra[..., 2::-1] * alpha, bgra[..., 3]]).astype(np.uint8)
    return CutOut(name, _shrink(stack, KEPT), colours)


def _shrink(picture: Array, longest: int) -> NDArray[np.uint8]:
    scale = longest / max(picture.shape[:2])
    if scale >= 1:
        return np.ascontiguousarray(picture)
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _turn(rng: np.random.Generator, rgba: NDArray[np.uint8], extent: float) -> NDArray[np.uint8]:
    """Mirror, tilt and scale a cut-out so that its longest side is about ``extent``."""
    if rng.random() < 0.5:
        rgba = np.ascontiguousarray(rgba[:, ::-1])
    scale = extent / max(rgba.shape[:2])
    size = (max(4, round(rgba.shape[1] * scale)), max(4, round(rgba.shape[0] * scale)))
    small = cv2.resize(rgba, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        angle = rng.uniform(-25, 25)
        height, width = small.shape[:2]
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
        reach = np.abs(turn[:, :2])
        new = (reach @ [width, height]).astype(int) + 1
        turn[:, 2] += (new - [width, height]) / 2
        small = cv2.warpAffine(small, turn, (int(new[0]), int(new[1])))
    return np.asarray(small, np.uint8)
