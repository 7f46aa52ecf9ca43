"""A pack kept on the training device, which gathers, mirrors, turns and tints batches itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from zim.errors import ConfigError
from zim_training.data.loader import Batch, check_pack
from zim_training.data.pack import CUE_SCALE, MASK_SCALE
from zim_training.data.store import ResidentStore
from zim_training.data.variation import tinted, to_device
from zim_training.prompts import MASK_SIDE

#: prompts per scene; a scene with fewer has some of them twice
SLOTS = 3
#: targets per scene that its prompts can mean
_TARGETS = 2
#: cue planes that come from GrabCut
GRABCUT_PLANES = (0, 6)

Array = NDArray[Any]


class ResidentPack:
    """The scenes of a pack in device memory."""

    def __init__(
        self, folder: Path, device: torch.device, capacity: int = 0, without_grabcut: float = 0.15
    ) -> None:
        """Open a pack and take in what is finished.

        Args:
            folder: of the pack.
            device: where the scenes stay and batches are made.
            capacity: as for :class:`zim_training.data.store.ResidentStore`; a scene of 256 pixels
                takes 0.7 MB.
            without_grabcut: share of prompts whose GrabCut planes are blanked, so that the network
                cannot lean on them alone.

        Raises:
            ConfigError: as for :class:`zim_training.data.loader.Pack`, or a frame whose side is no
                multiple of 64 pixels.
        """
        side = check_pack(folder)
        if side % MASK_SIDE:
            raise ConfigError(f"{folder} has frames of {side} pixels; expected a multiple of 64")
        self.device, self.without_grabcut = device, without_grabcut
        self.store = ResidentStore(folder, device, capacity, by_scene)
        self.refresh = self.store.refresh

    def __len__(self) -> int:
        """Return the number of scenes."""
        return self.store.count

    def draw(self, count: int, rng: np.random.Generator) -> Batch:
        """Draw scenes at random, each with three prompts, mirrored, turned, tinted and with noise.

        Everything follows from ``rng`` and from what is on the device.
        """
        chosen = rng.integers(len(self), size=count)
        where = to_device(chosen, self.device)
        got = {key: values[where] for key, values in self.store.rows.items()}
        size = got["size"].long()
        image = got["image"].permute(0, 3, 1, 2).float()
        side = image.shape[-1]
        inside = pictured(size, side)
        image = tinted(rng, image) * inside
        per_prompt = {
            "cues": got["cues"].flatten(0, 1),
            "mask": got["mask"].flatten(0, 1)[:, None],
            "alpha": got["alpha"].flatten(0, 1)[_alpha_rows(got["target"])][:, None],
        }
        points, labels = got["points"].flatten(0, 1), got["labels"].flatten(0, 1).long()
        scene = torch.arange(count, device=self.device).repeat_interleave(SLOTS)
        # only these widths can be mirrored exactly in cues and masks as well
        step = math.lcm(2, side // MASK_SIDE)
        flip = self._coin(rng, count, 0.5) & (size[:, 1] % step == 0)
        turn = self._coin(rng, count, 0.15)
        image = _turned(_mirrored(image, flip, size[:, 1]), turn)
        inside = _turned(inside, turn)
        widths = size[:, 1][scene]
        for key, values in per_prompt.items():
            stride = side // values.shape[-1]
            values = _mirrored(values, flip[scene], widths // stride)
            per_prompt[key] = _turned(values, turn[scene])
        points = _mirrored_points(points, labels, flip[scene], widths)
        points = torch.where(turn[scene][:, None, None], points.flip(-1), points)
        size = torch.where(turn[:, None], size.flip(-1), size)
        cues = per_prompt["cues"].float() / CUE_SCALE
        if self.without_grabcut:
            kept = ~self._coin(rng, len(cues), self.without_grabcut)
            for plane in GRABCUT_PLANES:
                cues[:, plane] *= kept[:, None, None]
        mask = per_prompt["mask"].float()
        has_mask = mask[:, 0, 0, 0] != -128
        return Batch(
            image=image,
            inside=F.avg_pool2d(inside, 2),
            points=points,
            labels=labels,
            cues=cues,
            mask=mask * has_mask[:, None, None, None] / MASK_SCALE,
            has_mask=has_mask,
            alpha=per_prompt["alpha"].float() / 255.0,
            scene=scene,
            kind=got["kind"].flatten().long(),
            size=size,
            slots=SLOTS,
        )

    def _coin(self, rng: np.random.Generator, count: int, chance: float) -> Tensor:
        return to_device(rng.random(count) < chance, self.device)


def pictured(size: Tensor, side: int) -> Tensor:
    """``n 1 S S``: one where pictures of ``size`` (``n 2``, height and width) are in the frame."""
    line = torch.arange(side, device=size.device)
    rows, columns = line < size[:, :1], line < size[:, 1:]
    return (rows[:, None, :, None] & columns[:, None, None, :]).float()


def by_scene(shard: dict[str, Array]) -> dict[str, Array]:
    """Arrange a shard's scenes that have prompts, ``SLOTS`` prompts and two alphas each."""
    asked = np.flatnonzero(np.isin(np.arange(len(shard["image"])), shard["scene"]))
    rows = np.zeros((len(asked), SLOTS), np.int64)
    alphas = np.zeros((len(asked), _TARGETS), np.int64)
    target = np.zeros((len(asked), SLOTS), np.int8)
    for k, scene in enumerate(asked):
        rows[k] = np.resize(np.nonzero(shard["scene"] == scene)[0], SLOTS)
        known, which = np.unique(shard["target"][rows[k]], return_inverse=True)
        alphas[k] = np.resize(known, _TARGETS)
        target[k] = which.reshape(-1)
    out = {key: shard[key][rows] for key in ("points", "labels", "kind", "cues", "mask")}
    out |= {key: shard[key][asked] for key in ("image", "size")}
    return out | {"alpha": shard["alpha"][alphas], "target": target}


def _alpha_rows(target: Tensor) -> Tensor:
    """Row of every prompt's alpha among those of all scenes, ``n * SLOTS``."""
    first = torch.arange(len(target), device=target.device)[:, None] * _TARGETS
    return (first + target.long()).flatten()


def _mirrored(planes: Tensor, flip: Tensor, width: Tensor) -> Tensor:
    """Flip some of ``n c h w`` left and right within their own widths."""
    columns = torch.arange(planes.shape[-1], device=planes.device)
    turned = (width[:, None] - 1 - columns).clamp_min(0)
    source = torch.where(flip[:, None] & (columns < width[:, None]), turned, columns)
    return planes.gather(-1, source[:, None, None, :].expand(planes.shape))


def _turned(planes: Tensor, turn: Tensor) -> Tensor:
    """Swap height and width of some of ``n c s s``."""
    return torch.where(turn[:, None, None, None], planes.transpose(-1, -2), planes)


def _mirrored_points(points: Tensor, labels: Tensor, flip: Tensor, width: Tensor) -> Tensor:
    """Mirror ``b n 2`` points; corners stay top-left and bottom-right."""
    x = torch.where(labels >= 0, width[:, None] - 1 - points[..., 0], points[..., 0])
    first, last = labels == 2, labels == 3
    left, right = ((x * which).sum(1, keepdim=True) for which in (last, first))
    x = torch.where(first, left, torch.where(last, right, x))
    x = torch.where(flip[:, None], x, points[..., 0])
    return torch.stack([x, points[..., 1]], -1)
