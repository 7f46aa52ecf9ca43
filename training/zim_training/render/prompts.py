"""Draw the prompts of many targets at once, as ``zim_training/prompts.py`` draws one.

Regions are looked at in cells of 2 x 2 pixels. Slots have fixed meanings: clicks first, then SAM's
padding point, then the corners of the box; those that a prompt does not use are absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from zim_training.data.resample import blurring, resampled, rows_to_one
from zim_training.data.resident import pictured
from zim_training.data.variation import to_device
from zim_training.prompts import ABSENT, KINDS, MASK_SIDE, MAX_POINTS, PAD
from zim_training.render.scenes import extent

Array = NDArray[Any]
Rng = np.random.Generator

#: places of the padding point and of the box's corners
_PAD, _FIRST, _LAST = MAX_POINTS - 3, MAX_POINTS - 2, MAX_POINTS - 1
#: places for clicks; a scribble fills them all
CLICKS = _PAD
#: most positive and negative clicks of a prompt of several (RITM)
_POSITIVES, _NEGATIVES = 8, 6


@dataclass(frozen=True)
class Prompts:
    """Prompts of ``b`` targets.

    Attributes:
        points: ``b 24 2`` (x, y) in frame pixels.
        labels: ``b 24`` long as in ``zim_training/prompts.py``.
        mask: ``b 1 64 64`` logits of an earlier answer, zero where there is none.
        has_mask: ``b`` bool.
    """

    points: Tensor
    labels: Tensor
    mask: Tensor
    has_mask: Tensor


def draw_prompts(rng: Rng, kind: Array, alpha: Tensor, others: Tensor, size: Tensor) -> Prompts:
    """Draw a prompt for every target; what none of the kinds needs is not looked for.

    Args:
        rng: source of randomness.
        kind: ``b`` indices into ``KINDS``.
        alpha: ``b S S`` true alpha of the targets.
        others: ``b S S`` union of everything else that could be meant.
        size: ``b 2`` height and width of the pictures in their frames.
    """
    count, device = len(alpha), alpha.device
    is_kind = {name: kind == number for number, name in enumerate(KINDS)}
    corners, boxed = _boxes(rng, is_kind, alpha, size)
    mask = torch.zeros(count, 1, MASK_SIDE, MASK_SIDE, device=device)
    correcting = to_device(is_kind["correction"], device)
    xy = torch.zeros(count, CLICKS, 2, dtype=torch.long, device=device)
    labels = torch.full((count, CLICKS), ABSENT, device=device)
    if not (is_kind["box"] | is_kind["whole"]).all():
        cells, beside = (F.avg_pool2d(a[:, None], 2)[:, 0] for a in (alpha, others))
        peak = cells.flatten(1).amax(1)[:, None, None]
        small = (cells > 0.5).flatten(1).sum(1)[:, None, None] < 4
        inside = torch.where(small, cells > 0.5 * peak, cells > 0.5)
        picture = pictured(size // 2, cells.shape[-1])[:, 0] > 0
        places = Places(rng, cells, beside, inside, picture)
        xy, labels = places.simple(is_kind)
        if is_kind["scribble"].any():
            line, on = places.scribbles(xy[:, :1])
            chosen = to_device(is_kind["scribble"], device)
            xy = torch.where(chosen[:, None, None], line, xy)
            labels = torch.where(chosen[:, None], on, labels)
        if is_kind["correction"].any():
            mask = earlier_answers(rng, alpha, others) * correcting[:, None, None, None]
            answered = F.interpolate(mask, cells.shape[-2:], mode="bilinear")[:, 0] > 0
            fix, fix_labels = places.corrections(answered)
            xy = torch.where(correcting[:, None, None], fix, xy)
            labels = torch.where(correcting[:, None], fix_labels, labels)
        labels = torch.where(_used(rng, is_kind, device), labels, ABSENT)
        xy = _pixels(rng, alpha, xy, labels == 1)
    pad = torch.where(boxed, ABSENT, PAD)
    first, last = torch.where(boxed, 2, ABSENT), torch.where(boxed, 3, ABSENT)
    xy = torch.cat([xy, torch.zeros(count, 1, 2, device=device), corners], 1)
    labels = torch.cat([labels, torch.stack([pad, first, last], 1)], 1)
    return Prompts(xy * (labels >= 0)[..., None], labels, mask, correcting)


def _used(rng: Rng, is_kind: dict[str, Array], device: torch.device) -> Tensor:
    """Tell which of the drawn clicks a prompt uses, ``b CLICKS``."""
    count = len(is_kind["box"])
    number = np.arange(CLICKS)
    used = (number == 0) & ~(is_kind["box"] | is_kind["whole"])[:, None]
    positives, negatives = (_geometric(rng, count, m) for m in (_POSITIVES - 1, _NEGATIVES))
    several = number <= positives[:, None]
    several |= (number >= _POSITIVES) & (number < _POSITIVES + negatives[:, None])
    used |= is_kind["clicks"][:, None] & several
    used[:, _POSITIVES] |= is_kind["box_click"] & (rng.random(count) < 0.4)
    used |= is_kind["scribble"][:, None]
    heeded = rng.choice(4, count, p=(0.34, 0.36, 0.2, 0.1))[:, None]
    used |= is_kind["correction"][:, None] & (number <= heeded)
    return to_device(used, device)


def _geometric(rng: Rng, count: int, most: int, gamma: float = 0.7) -> Array:
    weights = gamma ** np.arange(most + 1)
    return rng.choice(most + 1, count, p=weights / weights.sum())


class Places:
    """Where the clicks of ``b`` prompts may go, in cells; every answer is ``b CLICKS`` long."""

    def __init__(
        self, rng: Rng, cells: Tensor, beside: Tensor, inside: Tensor, picture: Tensor
    ) -> None:
        """Look at the targets.

        Args:
            rng: source of randomness.
            cells: ``b h w`` alpha of the targets.
            beside: ``b h w`` of everything else that could be meant.
            inside: ``b h w`` bool, what counts as the target.
            picture: ``b h w`` bool, what of the frame is picture.
        """
        self.rng, self.cells, self.inside = rng, cells, inside
        self.device = cells.device
        self.outside = (cells < 0.02) & picture
        self.beside = (beside > 0.5) & self.outside

    def simple(self, is_kind: dict[str, Array]) -> tuple[Tensor, Tensor]:
        """Return a deep click, and where wanted more of them and negative ones.

        Returns:
            ``b CLICKS 2`` cells and ``b CLICKS`` labels: eight positive, six negative, the rest
            absent.
        """
        depth = depths(self.inside)
        xy, there = self._deep(self.inside, depth)
        labels = torch.where(there, 1, ABSENT)
        if (is_kind["clicks"] | is_kind["box_click"]).any():
            more, there = chosen_cells(self.rng, self.inside & (depth > 0), _POSITIVES - 1)
            not_meant, not_there = self._negatives()
            xy = torch.cat([xy, more, not_meant], 1)
            others = [torch.where(there, 1, ABSENT), torch.where(not_there, 0, ABSENT)]
            labels = torch.cat([labels, *others], 1)
        return _filled(xy, labels)

    def _deep(self, region: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Choose a place in a region, mostly deep in it: people click on the middle of things."""
        share = self.rng.choice((0.85, 0.5, 0.15), len(depth), p=(0.4, 0.4, 0.2))
        limit = to_device(share, self.device) * depth.flatten(1).amax(1)
        return chosen_cells(self.rng, (depth >= limit[:, None, None]) & region, 1)

    def _negatives(self) -> tuple[Tensor, Tensor]:
        """Clicks on what is not meant: rim 0.5, other objects 0.4, anywhere 0.1 (RITM)."""
        reach = 0.1 * self.cells.sum((1, 2)).sqrt()
        around = depths(self.cells <= 0.05, edge=False) < reach.clamp_min(1)[:, None, None]
        draw = to_device(self.rng.random((len(self.cells), _NEGATIVES)), self.device)
        (rim, rim_there), (other, other_there), (free, free_there) = (
            chosen_cells(self.rng, region, _NEGATIVES)
            for region in (around & self.outside, self.beside, self.outside)
        )
        on_rim = (draw < 0.5) & rim_there
        on_other = (draw >= 0.5) & (draw < 0.9) & other_there
        xy = torch.where(on_rim[..., None], rim, torch.where(on_other[..., None], other, free))
        return xy, on_rim | on_other | free_there

    def scribbles(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return points along bent lines from ``b 1 2`` cells, where they are on the object."""
        ends, _ = chosen_cells(self.rng, self.inside, 2)
        count = self.rng.integers(8, CLICKS + 1, len(start))[:, None]
        steps = np.arange(CLICKS) / (count - 1)
        t = to_device(np.minimum(steps, 1), self.device)[..., None]
        bend, end = ends[:, :1], ends[:, 1:]
        line = ((1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end).round().long()
        drawn = to_device(steps <= 1, self.device)
        return line, torch.where(_at(self.inside, line) & drawn, 1, ABSENT)

    def corrections(self, answered: Tensor) -> tuple[Tensor, Tensor]:
        """Return a click where an earlier answer is most wrong, and three that it has heeded."""
        wrong = answered != (self.cells > 0.5)
        depth = depths(wrong)
        worst = depth.flatten(1).amax(1)
        deep, _ = chosen_cells(self.rng, (depth > 0.5 * worst[:, None, None]) & wrong, 1)
        anywhere, _ = chosen_cells(self.rng, self.inside, 1)
        fix = torch.where((worst > 0)[:, None, None], deep, anywhere)
        heeded = self.inside & answered
        earliest, earliest_there = self._deep(heeded, depths(heeded))
        kept, kept_there = chosen_cells(self.rng, heeded, 2)
        kept = torch.cat([earliest, kept], 1)
        kept_there = torch.cat([earliest_there, kept_there], 1)
        left, left_there = chosen_cells(self.rng, self.outside & ~answered, 3)
        draw = self.rng.random((len(wrong), 3))
        draw[:, 0] = 0  # the first click of all was on the object
        positive = to_device(draw < 0.6, self.device)
        there = torch.where(positive, kept_there, left_there)
        labels = torch.where(there, positive.long(), ABSENT)
        xy = torch.cat([fix, torch.where(positive[..., None], kept, left)], 1)
        return _filled(xy, torch.cat([_at(self.inside, fix).long(), labels], 1))


def _pixels(rng: Rng, alpha: Tensor, cells: Tensor, on: Tensor) -> Tensor:
    """Choose a pixel of every cell ``b n 2``; where it is to be ``on`` the target, one that is."""
    count = len(cells)
    corner = to_device(rng.integers(0, 4, cells.shape[:2]), alpha.device)
    parts = F.pixel_unshuffle(alpha[:, None], 2).flatten(2)  # b 4 cells
    flat = cells[..., 1] * (alpha.shape[-1] // 2) + cells[..., 0]
    values = parts.gather(2, flat[:, None].expand(count, 4, -1))
    most, best = values.max(1)
    good = values.gather(1, corner[:, None])[:, 0] > 0.5 * most
    corner = torch.where(on & ~good, best, corner)
    return 2.0 * cells + torch.stack([corner % 2, corner // 2], -1)


def _filled(xy: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Add absent clicks until there are ``CLICKS``."""
    missing = CLICKS - labels.shape[1]
    return F.pad(xy, (0, 0, 0, missing)), F.pad(labels, (0, missing), value=ABSENT)


def _at(region: Tensor, xy: Tensor) -> Tensor:
    """Look places ``b n 2`` up in ``b h w``."""
    return region.flatten(1).gather(1, xy[..., 1] * region.shape[-1] + xy[..., 0])


def _boxes(
    rng: Rng, is_kind: dict[str, Array], alpha: Tensor, size: Tensor
) -> tuple[Tensor, Tensor]:
    """Boxes of the mattes (alpha > 0.1), every side moved: mostly outwards, by up to 15 %.

    Returns:
        Corners ``b 2 2`` and which prompts have a box, ``b``.
    """
    count, device = len(alpha), alpha.device
    limit = (0.5 * alpha.flatten(1).amax(1)).clamp_max(0.1)[:, None, None]
    low, high = extent(alpha > limit)
    low, high, last = low.flip(1), high.flip(1) - 1, size.flip(1).float() - 1  # x before y
    loose = np.where(rng.random(count) < 0.3, 0.15, 0.06)[:, None]
    before, after = to_device(rng.uniform(-0.4, 1.0, (2, count, 2)) * loose, device)
    length = (high - low).clamp_min(2)
    first = torch.minimum((low - before * length).clamp_min(0), last - 2)
    second = torch.minimum(torch.maximum(high + after * length, first + 2), last)
    whole = to_device(is_kind["whole"], device)[:, None, None]
    frame = torch.stack([torch.zeros_like(last), last], 1)
    boxed = is_kind["box"] | is_kind["box_click"] | is_kind["whole"]
    boxed |= is_kind["correction"] & (rng.random(count) < 0.4)
    return torch.where(whole, frame, torch.stack([first, second], 1)), to_device(boxed, device)


def earlier_answers(rng: Rng, alpha: Tensor, others: Tensor) -> Tensor:
    """Imitate earlier, imperfect answers, ``b 1 64 64`` logits over the frame."""
    count, device = len(alpha), alpha.device

    def coin(chance: float) -> Tensor:
        return to_device(rng.random(count) < chance, device)[:, None, None, None]

    def uniform(low: float, high: float) -> Tensor:
        return to_device(rng.uniform(low, high, count), device)[:, None, None, None]

    shape = (MASK_SIDE, MASK_SIDE)
    small, wrong = (F.adaptive_avg_pool2d(a[:, None], shape) for a in (alpha, others))
    grid = to_device(rng.random((count, 1, 6, 6)), device)
    field = F.interpolate(grid, shape, mode="bicubic")
    small = torch.where(coin(0.5), torch.maximum(small, wrong * (field > 0.6)), small)
    small = torch.where(coin(0.6), small * (field.roll(21, -1) < 0.72), small)
    grown, shrunk = F.max_pool2d(small, 3, 1, 1), -F.max_pool2d(-small, 3, 1, 1)
    small = torch.where(coin(0.5), torch.where(coin(0.5), grown, shrunk), small)
    lines = rows_to_one(blurring(uniform(0.5, 2.0).flatten(), MASK_SIDE))
    soft = resampled(small, lines, lines) * uniform(0.8, 1.0) + uniform(0, 0.08)
    return soft.clamp(0.002, 0.998).logit()


def chosen_cells(rng: Rng, region: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose cells of regions ``b h w`` at random.

    Returns:
        ``b count 2`` (x, y) long, and ``b count`` bool: whether there was one.
    """
    width = region.shape[-1]
    sums = region.flatten(1).float().cumsum(1)
    draw = to_device(rng.random((len(region), count)), region.device)
    # at most a hair below the sum, which rounding could reach
    cell = torch.searchsorted(sums, (draw * sums[:, -1:]).contiguous(), right=True)
    cell = cell.clamp_max(sums.shape[1] - 1)
    there = region.flatten(1).gather(1, cell)
    return torch.stack([cell % width, cell // width], -1), there


def depths(region: Tensor, edge: bool = True) -> Tensor:
    """How deep every cell of ``b h w`` lies in its region, in cells; coarser the deeper.

    Cells next to an edge have depth 0. From the fourth cell on depth is found among blocks of
    2 x 2 cells, then of 4 x 4, and so on.

    Args:
        region: bool.
        edge: whether the picture's edge counts as the region's.
    """
    height, width = region.shape[-2:]
    left = region.float()[:, None]
    depth = torch.zeros_like(left)
    reached, block = 0, 1
    while min(left.shape[-2:]) > 1:
        for _ in range(3):
            left = _shrunk(left, edge)
            reached += block
            found = left if block == 1 else F.interpolate(left, scale_factor=block)
            depth = torch.maximum(depth, found[..., :height, :width] * reached)
        left = -F.max_pool2d(-left, 2, ceil_mode=True)
        block *= 2
    return depth[:, 0]


def _shrunk(region: Tensor, edge: bool) -> Tensor:
    """Take a rim of one cell off regions ``b 1 h w``."""
    if edge:
        return -F.max_pool2d(F.pad(-region, (1, 1, 1, 1)), 3, 1)
    return -F.max_pool2d(-region, 3, 1, 1)
