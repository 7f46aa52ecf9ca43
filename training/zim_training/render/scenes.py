"""Lay objects over backgrounds: many composites at once, as ``data/scenes.py`` draws one.

One to four objects and for some a painted part; the visible alpha of a layer is its own times what
all layers above let through. Everything is a tensor over all scenes, and what a scene lacks has
no alpha, so shapes never change and nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zim_training.data.resample import blurring, placing, resampled, rows_to_one
from zim_training.data.resident import pictured
from zim_training.data.scenes import MIN_VISIBLE
from zim_training.data.store import ResidentStore
from zim_training.data.variation import compressed, dimmed, softened, tinted, to_device

Array = NDArray[Any]
Rng = np.random.Generator

#: most objects of a scene; the target after them is a part painted on one of them
OBJECTS = 4


@dataclass(frozen=True)
class Rendered:
    """Composites.

    Attributes:
        image: ``n 3 S S`` RGB, 0 to 255.
        alphas: ``n 5 S S`` visible alphas in [0, 1]; four objects, then a part. What is not there
            is zero.
        first: ``n`` long, the framed object.
        shown: ``n 5`` bool, which show enough to be asked for.
        size: ``n 2`` long, even height and width of the picture in the frame, the longer one S;
            what is beside it is zero.
    """

    image: Tensor
    alphas: Tensor
    first: Tensor
    shown: Tensor
    size: Tensor


@dataclass(frozen=True)
class Layout:
    """Where the objects of scenes go.

    Attributes:
        present: ``n 4`` bool, whether there is such an object.
        main: ``n``, which one the picture is framed on.
        size: ``n 4``, longest side in pixels of the frame.
        offset: ``n 4 2``, (x, y) of its middle from that of the frame in pixels.
        drop: ``n 4``, for objects that are larger than the picture allows, as portraits are, how
            far their top is below the picture's; NaN for the others.
    """

    present: Array
    main: Array
    size: Array
    offset: Array
    drop: Array


def draw_layout(rng: Rng, count: int, side: int) -> Layout:
    """Choose numbers, sizes and places as :class:`zim_training.data.scenes.SceneMaker` does."""
    shape = (count, OBJECTS)
    objects = rng.choice(OBJECTS, count, p=(0.5, 0.25, 0.15, 0.1)) + 1
    main = (rng.random(count) * objects).astype(np.int64)
    number = np.arange(OBJECTS)
    is_main = number == main[:, None]
    draw = rng.random(count)
    cut, tight = draw < 0.15, draw < 0.65
    extent = np.where(tight, rng.uniform(1 / 1.6, 1 / 1.02, count), rng.uniform(0.15, 0.6, count))
    extent = np.where(cut, rng.uniform(0.95, 1.4, count), extent)
    size = extent[:, None] * side * np.where(is_main, 1.0, rng.uniform(0.4, 1.2, shape))
    size = np.maximum(size, 24.0 * side / 256)
    spread = np.where(is_main & tight[:, None], 0.03, 0.25)[..., None]
    offset = rng.normal(0, 1, (*shape, 2)) * spread * side
    room = np.abs(side - size)[..., None] / 2
    offset = np.where(is_main[..., None], np.clip(offset, -room, room), offset)
    drop = np.where(is_main & cut[:, None], rng.uniform(0.02, 0.2, shape) * side, np.nan)
    return Layout(number < objects[:, None], main, size, offset, drop)


def draw_scenes(layers: ResidentStore, count: int, side: int, rng: Rng) -> Rendered:
    """Draw composites from layers; everything follows from ``rng`` and from what is there."""
    device, rows = layers.device, layers.rows
    where = to_device(rng.integers(layers.count, size=(count, OBJECTS + 2)), device)
    layout = draw_layout(rng, count, side)
    objects = _multiplied(rows["object"][where[:, :OBJECTS]].flatten(0, 1))
    heights = rows["size"][where[:, :OBJECTS], 0].float() / rows["object"].shape[1]
    placed = _placed(rng, objects, heights, layout, side)
    ground = _ground(rng, rows["background"][where[:, OBJECTS]], side)
    motif = _multiplied(rows["object"][where[:, OBJECTS + 1]])
    part, host = _painted(rng, placed, motif[:, 3:], layout)
    canvas, alphas = _laid(rng, ground, placed, part, host)
    size = torch.full((count, 2), side, device=device)
    first, shown = _targets(alphas, to_device(layout.main, device), size)
    return Rendered(_taken(rng, canvas * 255.0), alphas, first, shown, size)


def recropped(scenes: ResidentStore, count: int, rng: Rng) -> Rendered:
    """Cut pictures out of the scenes of a pack, most with all of a target.

    Args:
        scenes: of :class:`zim_training.data.resident.ResidentPack`.
        count: how many.
        rng: what everything follows from, beside what is there.
    """
    device, rows = scenes.device, scenes.rows
    where = to_device(rng.integers(scenes.count, size=count), device)
    pictures = rows["image"][where].permute(0, 3, 1, 2).float()
    alphas = rows["alpha"][where].float() / 255.0
    whole, side = rows["size"][where].float(), pictures.shape[-1]
    low, high = extent(alphas[:, 0] > 0.1)
    cut = whole * to_device(rng.uniform(0.6, 1.0, (count, 2)), device)
    keep = to_device(rng.random((count, 1)) < 0.8, device)
    cut = torch.where(keep, torch.maximum(cut, 1.05 * (high - low)), cut)
    cut = torch.minimum(cut.clamp_min(side / 8), whole)
    # anywhere between "its end just shows" and "its start just shows"
    chance = to_device(rng.random((count, 2)), device)
    start = torch.lerp(high - cut, low, chance).clamp_min(0)
    start = torch.minimum(start, whole - cut)
    scale = side / cut.amax(1)
    size = (cut * scale[:, None] / 2 + 1e-3).floor().long().clamp_min(1) * 2
    down, across = start.unbind(1)
    flip = to_device(rng.random(count) < 0.5, device)
    across = torch.where(flip, side - across - cut[:, 1], across)  # first mirrored, then cut
    lines = rows_to_one(placing(-down * scale, scale, side, side, torch.zeros_like(flip)))
    columns = rows_to_one(placing(-across * scale, scale, side, side, flip))
    inside = pictured(size, side)
    pictures = _taken(rng, resampled(pictures, lines, columns), 0.5) * inside
    alphas = resampled(alphas, lines, columns).clamp(0, 1) * inside
    first, shown = _targets(alphas, torch.zeros(count, dtype=torch.long, device=device), size)
    return Rendered(pictures, alphas, first, shown, size)


def extent(region: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first row and column of regions ``n h w``, and those after the last: ``n 2``."""
    low, high = [], []
    for line in (region.any(2), region.any(1)):
        number = torch.arange(line.shape[1], device=region.device)
        low.append(torch.where(line, number, line.shape[1] - 1).amin(1))
        high.append(torch.where(line, number, 0).amax(1) + 1)
    return torch.stack(low, 1).float(), torch.stack(high, 1).float()


def _multiplied(pictures: Tensor) -> Tensor:
    """``n h w 4`` bytes to ``n 4 h w`` in [0, 1], colours times alpha."""
    pictures = pictures.permute(0, 3, 1, 2).float() / 255.0
    colour, alpha = pictures[:, :3], pictures[:, 3:]
    return torch.cat([colour * alpha, alpha], 1)


def _placed(rng: Rng, objects: Tensor, heights: Tensor, layout: Layout, side: int) -> Tensor:
    """Put ``n*4 4 s s`` objects on frames of their own: ``n 4 4 S S``."""
    device, inner = objects.device, objects.shape[-1]
    size, offset = to_device(layout.size, device), to_device(layout.offset, device)
    drop = to_device(layout.drop, device)
    below = (heights * size - side) / 2 + drop
    across, down = offset[..., 0], torch.where(drop.isnan(), offset[..., 1], below)
    scale = (size / inner).flatten()
    flip = to_device(rng.random(scale.shape) < 0.5, device)
    left, top = (((side - size) / 2 + move).flatten() for move in (across, down))
    columns = placing(left, scale, inner, side, flip)
    rows = placing(top, scale, inner, side, torch.zeros_like(flip))
    placed = resampled(objects, rows, columns).clamp_max(1.0).unflatten(0, size.shape)
    return placed * to_device(layout.present, device)[..., None, None, None]


def _ground(rng: Rng, backgrounds: Tensor, side: int) -> Tensor:
    """Cut windows out of ``n s s 3`` bytes: ``n 3 S S`` in [0, 1]."""
    count, inner, device = len(backgrounds), backgrounds.shape[1], backgrounds.device
    zoom = rng.uniform(1.0, 1.35, count)
    scale = zoom * side / inner
    start = -rng.random((2, count)) * (zoom - 1) * side
    flips = rng.random((2, count)) < np.array([[0.5], [0.1]])
    columns, rows = (
        placing(to_device(s, device), to_device(scale, device), inner, side, to_device(f, device))
        for s, f in zip(start, flips, strict=True)
    )
    pictures = backgrounds.permute(0, 3, 1, 2).float() / 255.0
    return resampled(pictures, rows_to_one(rows), rows_to_one(columns))


def _painted(rng: Rng, placed: Tensor, motif: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Choose parts: the silhouette of another object on one that is there, for some scenes.

    Returns:
        ``n 1 S S`` alpha of the part, zero for scenes without one, and ``n`` the object it is on.
    """
    count, side, device = len(placed), placed.shape[-1], placed.device
    objects = layout.present.sum(1)
    host = (rng.random(count) * objects).astype(np.int64)
    wanted = rng.random(count) < 1 - 0.85**objects
    on = to_device(host, device)
    alpha = placed[torch.arange(count, device=device), on, 3:]
    # its middle is a place on the object
    weight = (alpha > 0.5).flatten(1).float().cumsum(1)
    place = weight[:, -1:] * to_device(rng.random((count, 1)), device)
    cell = torch.searchsorted(weight, place, right=True).clamp_max(side * side - 1)[:, 0]
    own = to_device(layout.size[np.arange(count), host], device)
    size = own * to_device(rng.uniform(0.25, 0.6, count), device)
    scale, straight = size / motif.shape[-1], torch.zeros_like(on, dtype=torch.bool)
    columns, rows = (
        placing(at + 0.5 - size / 2, scale, motif.shape[-1], side, straight)
        for at in (cell % side, cell // side)
    )
    there = to_device(wanted, device)[:, None, None, None]
    return alpha * resampled(motif, rows, columns).clamp_max(1.0) * there, on


def _laid(
    rng: Rng, canvas: Tensor, placed: Tensor, part: Tensor, host: Tensor
) -> tuple[Tensor, Tensor]:
    """Lay objects over each other, with shadows, and paint the part on its object.

    Returns:
        ``n 3 S S`` in [0, 1] and ``n 5 S S`` visible alphas.
    """
    count, device = len(canvas), canvas.device

    def column(values: Array) -> Tensor:
        return to_device(values.reshape(count, -1, 1, 1), device)

    like = rng.uniform(0.4, 0.95, (OBJECTS, count)) * (rng.random((OBJECTS, count)) < 0.2)
    paint = column(rng.random((count, 3)) * 0.6 + 0.2)
    cover = part * column(rng.uniform(0.6, 1.0, count))
    visible: list[Tensor] = []
    painted = torch.zeros_like(part)
    for k in range(OBJECTS):
        colour, alpha = placed[:, k, :3], placed[:, k, 3:]
        colour = _towards(colour, alpha, canvas, column(like[k]))
        canvas = _shadowed(rng, canvas, alpha)
        canvas = canvas * (1 - alpha) + colour
        visible = [above * (1 - alpha) for above in visible]
        visible.append(alpha)
        here = (host == k)[:, None, None, None]
        painted = torch.where(here, part, painted * (1 - alpha))
        canvas = torch.where(here, canvas * (1 - cover) + paint * cover, canvas)
    return canvas, torch.cat([*visible, painted], 1)


def _towards(colour: Tensor, alpha: Tensor, canvas: Tensor, share: Tensor) -> Tensor:
    """Shift an object's colours (times alpha) towards those behind it."""
    inside = (alpha > 0.5).float()
    shift = ((canvas * alpha - colour) * inside).sum((2, 3), keepdim=True)
    shift = shift / (alpha * inside).sum((2, 3), keepdim=True).clamp_min(16.0)
    return torch.minimum((colour + share * shift * alpha).clamp_min(0), alpha)


def _shadowed(rng: Rng, canvas: Tensor, alpha: Tensor) -> Tensor:
    """Darken the canvas of some scenes beside and below an object."""
    count, side, device = len(canvas), canvas.shape[-1], canvas.device
    across, down = rng.normal(0, 0.05 * side, (2, count))
    sigma = to_device(rng.uniform(0.01, 0.06, count) * side, device)
    dark = rng.uniform(0.2, 0.6, count) * (rng.random(count) < 0.3)
    rows = blurring(sigma, side, to_device(np.abs(down), device))
    columns = blurring(sigma, side, to_device(across, device))
    soft = resampled(alpha, rows, columns)
    return canvas * (1 - to_device(dark, device)[:, None, None, None] * soft)


def _targets(alphas: Tensor, main: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Find out what shows enough, and what to ask for where the main object does not.

    The generator draws such a scene again; here another object is framed, and where nothing shows
    enough what shows most.
    """
    area = alphas.sum((2, 3)) / size.prod(1, keepdim=True)
    shown = (area >= MIN_VISIBLE) & (area <= 0.92)
    number = torch.arange(alphas.shape[1], device=alphas.device)
    # the largest that may be asked for, after the main object
    rank = area.clamp_max(0.92) + shown * (1 + (number == main[:, None]).float())
    first = rank.argmax(1)
    return first, shown | (number == first[:, None])


def _taken(rng: Rng, image: Tensor, strength: float = 1.0) -> Tensor:
    """Damage pictures as cameras and files do; those that are photographs already less often."""
    image = dimmed(rng, image, 0.15 * strength)
    image = softened(rng, image, 0.15 * strength)
    image = tinted(rng, image)
    return compressed(rng, image, 0.4 * strength)
