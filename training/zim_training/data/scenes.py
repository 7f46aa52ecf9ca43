"""Scenes: a picture in the model frame and the true alpha of everything one could ask for in it.

Two kinds. Composites lay one to four objects over a background; the visible alpha of an object
is its own alpha times what all objects above let through, and parts of objects are targets too.
Natural scenes are crops of outlined photographs. Both are framed as the predictor will frame
them: most tightly around the object, some with the whole surroundings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.errors import ConfigError
from zim_training.data import procedural
from zim_training.data.natural import SegmentReader, read_rgb, soften
from zim_training.data.outlines import outline, read_outlines
from zim_training.data.sources import Source, Split, list_sources

Array = NDArray[Any]  # float32 unless said otherwise
Rng = np.random.Generator

#: a target must show at least this share of the frame
MIN_VISIBLE = 0.008
#: share of scenes that are photographs with labelled regions
NATURAL = 0.45


@dataclass(frozen=True)
class Scene:
    """One training picture.

    Attributes:
        image: h x w x 3 RGB uint8, longest side at most the frame.
        alphas: K x h x w float32 in [0, 1], the framed target first.
        kind: ``composite`` or ``natural``.
    """

    image: NDArray[np.uint8]
    alphas: Array
    kind: str


class SceneMaker:
    """Draws scenes from the sources of one split; a seed gives the same scene for ever."""

    def __init__(
        self,
        root: Path,
        split: Split,
        side: int = 256,
        natural: float = NATURAL,
        outlined: float = 0.0,
    ) -> None:
        """Remember the sources.

        Args:
            root: the image collection.
            split: which sources to use.
            side: of the frame in pixels.
            natural: share of scenes that are photographs with labelled regions.
            outlined: of those, the share taken from ``outlines.json``.

        Raises:
            ConfigError: photographs alone are wanted and there are none.
        """
        self.root, self.side, self.natural = root, side, natural
        self.photos = list_sources(root, "photos", split)
        drawn = read_outlines(root) if outlined else {}
        self.drawn = [s for s in self.photos if s.file in drawn]
        self.outlined = outlined if self.drawn else 0.0
        segments = list_sources(root, "segments/images", split)
        self.segments = {
            "coco": [s for s in segments if "coco" in s.group],
            "ccp": [s for s in segments if s.group.startswith("ccp")],
            "other": [s for s in segments if s.group.startswith("nuclei")],
        }
        if natural >= 1 and not outlined and not any(self.segments.values()):
            raise ConfigError(
                f"{root} has no photographs with labelled regions (segments/images); natural 1 "
                "asks for nothing else"
            )
        objects = list_sources(root, "foregrounds", split)
        self.cuts = [s for s in objects if "/cut_" in s.file]
        self.emojis = [s for s in objects if "/cut_" not in s.file]
        self.reader = SegmentReader(root)

    def make(self, seed: tuple[int, ...]) -> Scene:
        """Draw the scene of a seed."""
        rng = np.random.default_rng(seed)
        while True:
            scene = self._natural(rng) if rng.random() < self.natural else self._composite(rng)
            if scene is not None:
                return scene

    # -- natural scenes

    def _natural(self, rng: Rng) -> Scene | None:
        if self.outlined and rng.random() < self.outlined:
            picture, regions = _outlines(self.root, _pick(rng, self.drawn).file)
            # one large object in the whole picture is what a first look at it sees
            whole = rng.random() < 0.4
            return self._cropped(rng, picture, regions, int(rng.integers(len(regions))), whole)
        kinds, weights = ("coco", "ccp", "other"), np.array([0.62, 0.36, 0.02])
        pool = self.segments[kinds[int(rng.choice(3, p=weights))]]
        if not pool:
            return None
        picture, regions = _segments(self.reader, _pick(rng, pool).file)
        if not regions:
            return None
        person = pool[0].group.startswith("ccp") and rng.random() < 0.65
        chosen = 0 if person else int(rng.integers(len(regions)))
        return self._cropped(rng, picture, regions, chosen)

    def _cropped(
        self,
        rng: Rng,
        picture: NDArray[np.uint8],
        regions: list[NDArray[np.bool_]],
        chosen: int,
        whole: bool = False,
    ) -> Scene | None:
        """Bring a photograph into the frame, cropped around one of its regions unless ``whole``."""
        height, width = picture.shape[:2]
        window = (0, 0, width, height) if whole else _frame_window(rng, regions[chosen])
        x0, y0, x1, y1 = window
        crop = picture[y0:y1, x0:x1]
        scale = self.side / max(crop.shape[:2])
        size = (_scaled(crop.shape[1], scale), _scaled(crop.shape[0], scale))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        crop = cv2.resize(crop, size, interpolation=method)
        order = [chosen, *rng.permutation([i for i in range(len(regions)) if i != chosen])]
        alphas = []
        for index in order[:4]:
            region = regions[index][y0:y1, x0:x1].astype(np.float32)
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            alphas.append(soften(cv2.resize(region, size, interpolation=method), rng))
        return _finish(rng, crop.astype(np.float32) / 255.0, alphas, "natural", strength=0.4)

    # -- composites

    def _composite(self, rng: Rng) -> Scene | None:
        side = self.side
        canvas = self.background(rng)
        draw = rng.random()
        tight, cut = (
            draw < 0.65,
            draw < 0.15,
        )  # cut: larger than the picture allows, as portraits are
        if tight:
            extent = rng.uniform(0.95, 1.4) if cut else rng.uniform(1 / 1.6, 1 / 1.02)
        else:
            extent = rng.uniform(0.15, 0.6)
        count = int(rng.choice([1, 2, 3, 4], p=[0.5, 0.25, 0.15, 0.1]))
        main = int(rng.integers(count))
        layers: list[Array] = []
        owners: list[int] = []
        for k in range(count):
            size = extent * side * (1.0 if k == main else rng.uniform(0.4, 1.2))
            colour, alpha = self.object(rng, max(24, int(size)))
            offset = rng.normal(0, 0.03 if k == main and tight else 0.25, 2) * side
            room = abs(side - size) / 2
            if k == main:
                offset = np.clip(offset, -room, room)
                if cut:  # its top shows, its lower end leaves the picture
                    offset[1] = (alpha.shape[0] - side) / 2 + rng.uniform(0.02, 0.2) * side
            colour, alpha = _place(colour, alpha, side, side / 2 + offset)
            if rng.random() < 0.2:
                colour = _towards(rng, colour, alpha, canvas)
            if rng.random() < 0.3:
                canvas = _shadow(rng, canvas, alpha)
            canvas = canvas * (1 - alpha[..., None]) + colour * alpha[..., None]
            layers = [layer * (1 - alpha) for layer in layers]
            layers.append(alpha)
            owners.append(k)
            if rng.random() < 0.15:  # a patch painted on the object: a part, asked for by itself
                part = _part(rng, alpha)
                paint = rng.random(3).astype(np.float32) * 0.6 + 0.2
                weight = part[..., None] * rng.uniform(0.6, 1.0)
                canvas = canvas * (1 - weight) + weight * paint
                layers.append(part)
                owners.append(-1)
        first = owners.index(main)
        order = [first, *[i for i in range(len(layers)) if i != first]]
        return _finish(rng, canvas, [layers[i] for i in order[:4]], "composite", strength=1.0)

    def background(self, rng: Rng) -> Array:
        """Draw what objects are laid over: side x side x 3 in [0, 1]."""
        draw = rng.random()
        if draw < 0.1:
            return procedural.texture(rng, self.side)
        if draw < 0.18:
            return _backdrop(rng, self.side)
        crop = self._photo_crop(rng, self.side)
        if rng.random() < 0.4:
            crop = cv2.GaussianBlur(crop, (0, 0), rng.uniform(0.8, 8))
        return crop

    def _photo_crop(self, rng: Rng, side: int) -> Array:
        if rng.random() < 0.25:
            pool = self.segments["coco"] + self.segments["ccp"]
            picture = _segments(self.reader, _pick(rng, pool).file)[0]
        else:
            picture = _photo(self.root / _pick(rng, self.photos).file)
        height, width = picture.shape[:2]
        extent = int(min(height, width) * rng.uniform(0.4, 1.0))
        y, x = int(rng.integers(height - extent + 1)), int(rng.integers(width - extent + 1))
        crop = picture[y : y + extent, x : x + extent]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        method = cv2.INTER_AREA if extent > side else cv2.INTER_LINEAR
        resized = cv2.resize(np.ascontiguousarray(crop), (side, side), interpolation=method)
        return resized.astype(np.float32) / 255.0

    def object(self, rng: Rng, side: int) -> tuple[Array, Array]:
        """Colours and alpha of one object, cropped to itself, longest side ``side``."""
        kind = rng.random()
        if kind < 0.4:
            colour, alpha = _cut_out(self.root / _pick(rng, self.cuts).file)
        elif kind < 0.46:
            colour, alpha = _cut_out(self.root / _pick(rng, self.emojis).file)
        elif kind < 0.68:
            return self._outlined(rng, side)
        else:
            picture = self._photo_crop(rng, side)
            return procedural.foreground(rng, side, picture)
        colour, alpha = _spin(rng, colour, alpha)
        return _fit(colour, alpha, side)

    def _outlined(self, rng: Rng, side: int) -> tuple[Array, Array]:
        """Cut an outlined object out of its photograph, one pixel inside its coarse edge."""
        pool = self.segments["coco"] + self.segments["ccp"]
        picture, regions = _segments(self.reader, _pick(rng, pool).file)
        if not regions:
            return procedural.foreground(rng, side, None)
        region = regions[0 if rng.random() < 0.6 else int(rng.integers(len(regions)))]
        mask = cv2.erode(region.astype(np.uint8), np.ones((3, 3), np.uint8))
        alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.0)
        return _fit(*_spin(rng, picture.astype(np.float32) / 255.0, alpha), side)


def _pick(rng: Rng, pool: list[Source]) -> Source:
    return pool[int(rng.integers(len(pool)))]


@lru_cache(maxsize=256)
def _photo(path: Path) -> NDArray[np.uint8]:
    return read_rgb(path)


@lru_cache(maxsize=128)
def _segments(reader: SegmentReader, file: str):
    return reader.read(file)


@lru_cache(maxsize=256)
def _outlines(root: Path, file: str) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    picture = read_rgb(root / file)
    return picture, [outline(picture, drawn) for drawn in read_outlines(root)[file]]


@lru_cache(maxsize=256)
def _cut_out(path: Path) -> tuple[Array, Array]:
    rgba = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if rgba is None or rgba.ndim != 3 or rgba.shape[2] != 4:
        raise OSError(f"{path} is not a readable RGBA image")
    rgba = rgba.astype(np.float32) / 255.0
    return np.ascontiguousarray(rgba[..., 2::-1]), rgba[..., 3]


def _scaled(length: int, scale: float) -> int:
    return max(16, int(length * scale + 0.5))


def _frame_window(rng: Rng, region: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Crop around a region: tight for two thirds, else looser up to the whole picture."""
    height, width = region.shape
    rows, columns = np.nonzero(region)
    x0, x1, y0, y1 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
    extent = max(x1 - x0, y1 - y0, 48)
    draw = rng.random()
    if draw < 0.65:
        grow = rng.uniform(1.25, 1.6)
    elif draw < 0.85:
        grow = rng.uniform(1.6, 4.0)
    else:
        return 0, 0, width, height
    # half of the crops keep the object's own shape, half are squares
    own = rng.random() < 0.5
    half_w = (grow * (x1 - x0) if own else grow * extent) / 2
    half_h = (grow * (y1 - y0) if own else grow * extent) / 2
    half_w, half_h = max(half_w, 24.0), max(half_h, 24.0)
    slack = np.maximum([half_w - (x1 - x0) / 2, half_h - (y1 - y0) / 2], 0) * 0.5
    middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2]) + rng.uniform(-slack, slack)
    left, right = max(0, int(middle[0] - half_w)), min(width, int(middle[0] + half_w) + 1)
    top, bottom = max(0, int(middle[1] - half_h)), min(height, int(middle[1] + half_h) + 1)
    return left, top, right, bottom


def _spin(rng: Rng, colour: Array, alpha: Array) -> tuple[Array, Array]:
    """Mirror and rotate; colours travel premultiplied so that none leak in at the edge."""
    premultiplied = colour * alpha[..., None]
    if rng.random() < 0.5:
        premultiplied, alpha = premultiplied[:, ::-1], alpha[:, ::-1]
    stack = np.ascontiguousarray(np.dstack([premultiplied, alpha]))
    if rng.random() < 0.4:
        height, width = alpha.shape
        reach = int(np.hypot(height, width)) + 2
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-60, 60), 1.0)
        turn[:, 2] += (reach - width) / 2, (reach - height) / 2
        stack = cv2.warpAffine(stack, turn, (reach, reach), flags=cv2.INTER_LINEAR)
    alpha = stack[..., 3]
    return stack[..., :3] / np.maximum(alpha, 1e-3)[..., None], alpha


def _fit(colour: Array, alpha: Array, side: int) -> tuple[Array, Array]:
    """Crop to the object and scale its longest side to ``side`` (premultiplied, by area)."""
    rows, columns = np.nonzero(alpha > 0.02)
    if len(rows):
        y, x = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
        colour, alpha = colour[y, x], alpha[y, x]
    scale = side / max(alpha.shape)
    size = (max(2, round(alpha.shape[1] * scale)), max(2, round(alpha.shape[0] * scale)))
    stack = np.dstack([colour * alpha[..., None], alpha])
    stack = cv2.resize(stack, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    alpha = np.clip(stack[..., 3], 0, 1)
    return np.clip(stack[..., :3] / np.maximum(alpha, 1e-3)[..., None], 0, 1), alpha


def _place(colour: Array, alpha: Array, side: int, centre: Array) -> tuple[Array, Array]:
    """Put an object on an empty frame with its middle at ``centre`` (x, y)."""
    height, width = alpha.shape
    x0, y0 = round(float(centre[0]) - width / 2), round(float(centre[1]) - height / 2)
    big_colour = np.zeros((side, side, 3), np.float32)
    big_alpha = np.zeros((side, side), np.float32)
    left, top = max(0, x0), max(0, y0)
    right, bottom = min(side, x0 + width), min(side, y0 + height)
    if right > left and bottom > top:
        inner = (slice(top - y0, bottom - y0), slice(left - x0, right - x0))
        big_colour[top:bottom, left:right] = colour[inner]
        big_alpha[top:bottom, left:right] = alpha[inner]
    return big_colour, big_alpha


def _backdrop(rng: Rng, side: int) -> Array:
    """A studio's paper or wall: one colour with a soft fall of light."""
    corners = (
        rng.uniform(0.05, 0.95, 3) + rng.normal(0, 0.08, (2, 2, 3)) + rng.normal(0, 0.08, (2, 2, 1))
    )
    return cv2.resize(np.clip(corners, 0, 1).astype(np.float32), (side, side))


def _towards(rng: Rng, colour: Array, alpha: Array, canvas: Array) -> Array:
    """Shift an object's colours towards those behind it."""
    inside = alpha > 0.5
    if inside.sum() < 16:
        return colour
    shift = canvas[inside].mean(0) - colour[inside].mean(0)
    return np.clip(colour + rng.uniform(0.4, 0.95) * shift, 0, 1)


def _shadow(rng: Rng, canvas: Array, alpha: Array) -> Array:
    side = len(alpha)
    dx, dy = rng.normal(0, 0.05, 2) * side
    move = np.array([[1, 0, dx], [0, 1, abs(dy)]], np.float32)
    soft = cv2.warpAffine(alpha, move, (side, side))
    soft = cv2.GaussianBlur(soft, (0, 0), rng.uniform(0.01, 0.06) * side)
    return canvas * (1 - rng.uniform(0.2, 0.6) * soft[..., None])


def _part(rng: Rng, alpha: Array) -> Array:
    """A patch of the object: its own alpha within a random smaller silhouette."""
    rows, columns = np.nonzero(alpha > 0.5)
    if len(rows) < 64:
        return np.zeros_like(alpha)
    extent = max(int(np.ptp(rows)), int(np.ptp(columns)))
    size = max(12, int(extent * rng.uniform(0.25, 0.6)))
    patch = cv2.resize(procedural.shape(rng, 2 * size), (size, size), interpolation=cv2.INTER_AREA)
    k = int(rng.integers(len(rows)))
    centre = np.array([columns[k], rows[k]], np.float32)
    return alpha * _place(np.zeros((size, size, 3), np.float32), patch, len(alpha), centre)[1]


def _finish(
    rng: Rng, picture: Array, alphas: list[Array], kind: str, strength: float
) -> Scene | None:
    """Damage the picture as cameras and files do, and drop targets that hardly show."""
    first, *rest = alphas
    if not MIN_VISIBLE <= float(first.mean()) <= 0.92:
        return None
    kept = [first, *[a for a in rest if MIN_VISIBLE <= float(a.mean()) <= 0.92]]
    effects: list[tuple[float, Callable[[Rng, Array], Array]]] = [
        (0.35, _tint),
        (0.15, _dim),
        (0.15, _defocus),
        (0.3, _grain),
        (0.4, _jpeg),
    ]
    for chance, effect in effects:
        if rng.random() < chance * strength:
            picture = effect(rng, picture)
    image = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Scene(image, np.stack(kept).astype(np.float32), kind)


def _tint(rng: Rng, picture: Array) -> Array:
    gain = rng.uniform(0.8, 1.2, 3).astype(np.float32) * rng.uniform(0.75, 1.2)
    return np.clip(picture * gain + rng.uniform(-0.06, 0.06), 0, 1)


def _dim(rng: Rng, picture: Array) -> Array:
    dark = np.clip(picture, 0, 1) ** rng.uniform(1.3, 2.2) * rng.uniform(0.3, 0.9)
    return dark + rng.normal(0, 0.02, picture.shape).astype(np.float32)


def _defocus(rng: Rng, picture: Array) -> Array:
    return cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 1.2))


def _grain(rng: Rng, picture: Array) -> Array:
    return picture + rng.normal(0, rng.uniform(0.005, 0.05), picture.shape).astype(np.float32)


def _jpeg(rng: Rng, picture: Array) -> Array:
    raw = (np.clip(picture[..., ::-1], 0, 1) * 255).astype(np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 90))]
    decoded = cv2.imdecode(cv2.imencode(".jpg", raw, quality)[1], cv2.IMREAD_COLOR)
    if decoded is None:
        return picture
    return decoded[..., ::-1].astype(np.float32) / 255.0
