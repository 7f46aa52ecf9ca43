"""A pack kept on the training device, so that a GPU never waits for a disk or a core.

Threads copy shards to the device as they are finished, where they stay as bytes; a batch is
gathered, mirrored, turned and tinted by the device itself. When the room is used up a shard
takes the place of the oldest, which waits for its turn to come back.
"""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from zim.errors import ConfigError
from zim_training.data.loader import Batch, check_pack, finished_shards
from zim_training.data.pack import CUE_SCALE, MASK_SCALE
from zim_training.prompts import MASK_SIDE

#: prompts per scene; a scene with fewer has some of them twice
SLOTS = 3
#: targets per scene that its prompts can mean
_TARGETS = 2
#: cue planes that come from GrabCut
GRABCUT_PLANES = (0, 6)
#: share of a GPU's free memory that scenes may take
_SHARE = 0.55
#: shards that are read ahead at a time
_AHEAD = 4

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
            capacity: most scenes at a time; 0 takes what 55 % of a GPU's free memory holds (0.7 MB
                a scene at 256 pixels), or on a CPU as many as there are.
            without_grabcut: share of prompts whose GrabCut planes are blanked, so that the network
                cannot lean on them alone.

        Raises:
            ConfigError: as for :class:`zim_training.data.loader.Pack`, or a frame whose side is no
                multiple of 64 pixels.
        """
        side = check_pack(folder)
        if side % MASK_SIDE:
            raise ConfigError(f"{folder} has frames of {side} pixels; expected a multiple of 64")
        self.folder, self.device, self.capacity = folder, device, capacity
        self.without_grabcut = without_grabcut
        self.store: dict[str, Tensor] = {}
        self.count = self._next = 0
        self._readers = ThreadPoolExecutor(_AHEAD, "shards")
        self._listed: set[str] = set()
        self._new: deque[Path] = deque()  # finished, never here
        self._gone: deque[Path] = deque()  # here once, replaced
        self._here: deque[tuple[Path, slice]] = deque()  # with their places, oldest first
        self._coming: deque[tuple[Path, Future[dict[str, Array]]]] = deque()
        self.refresh(wait=True)

    def __len__(self) -> int:
        """Return the number of scenes."""
        return self.count

    def refresh(self, wait: bool = False) -> None:
        """Take in finished shards that threads have read, and let them read on.

        Where not all fit, those that are not there take turns, one at a call.

        Args:
            wait: until everything that is finished, or fits, is on the device.
        """
        for shard in finished_shards(self.folder):
            if shard.name not in self._listed:
                self._listed.add(shard.name)
                self._new.append(shard)
        while True:
            while self._new and len(self._coming) < _AHEAD and not (wait and self._gone):
                self._read(self._new.popleft())
            if self._gone and not self._coming:
                self._read(self._gone.popleft())
                if wait:
                    return
            if not self._coming or not (wait or self._coming[0][1].done()):
                return
            shard, arrays = self._coming.popleft()
            self._take(shard, arrays.result())

    def _read(self, shard: Path) -> None:
        self._coming.append((shard, self._readers.submit(read_shard, shard)))

    def draw(self, count: int, rng: np.random.Generator) -> Batch:
        """Draw scenes at random, each with three prompts, mirrored, turned, tinted and with noise.

        Everything follows from ``rng`` and from what is on the device.
        """
        chosen = rng.integers(self.count, size=count)
        where = torch.from_numpy(chosen).to(self.device, non_blocking=True)
        got = {key: values[where] for key, values in self.store.items()}
        size = got["size"].long()
        image = got["image"].permute(0, 3, 1, 2).float()
        side = image.shape[-1]
        inside = self._pictures(size, side)
        image = _tinted(rng, image) * inside
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
        return torch.from_numpy(rng.random(count) < chance).to(self.device, non_blocking=True)

    def _pictures(self, size: Tensor, side: int) -> Tensor:
        """``n 1 S S``: one where the picture is."""
        line = torch.arange(side, device=self.device)
        rows, columns = line < size[:, :1], line < size[:, 1:]
        return (rows[:, None, :, None] & columns[:, None, None, :]).float()

    def _take(self, shard: Path, arrays: dict[str, Array]) -> None:
        """Copy a shard to the next free places, or to those of the oldest."""
        new = len(arrays["image"])
        if not self.store:
            self._make_room(arrays)
        room = len(self.store["image"])
        if not self.capacity and self._next + new > room:  # on a CPU; doubled, as lists are
            for key, values in self.store.items():
                more = values.new_zeros(max(new, room), *values.shape[1:])
                self.store[key] = torch.cat([values, more])
        elif self.capacity and self._next + new > self.capacity:
            self._next, new = 0, min(new, self.capacity)
        places = slice(self._next, self._next + new)
        for old, where in list(self._here):
            if where.start < places.stop and places.start < where.stop:
                self._here.remove((old, where))
                self._gone.append(old)
        for key, values in arrays.items():
            self.store[key][places] = torch.from_numpy(values[:new]).to(self.device)
        self._here.append((shard, places))
        self._next = places.stop
        self.count = max(self.count, places.stop)

    def _make_room(self, arrays: dict[str, Array]) -> None:
        if not self.capacity and self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            each = sum(a[0].nbytes for a in arrays.values())
            self.capacity = max(1, int(_SHARE * free / each))
        room = self.capacity or len(arrays["image"])
        for key, values in arrays.items():
            kind = torch.from_numpy(values[:1]).dtype
            self.store[key] = torch.zeros((room, *values.shape[1:]), dtype=kind, device=self.device)


def read_shard(shard: Path) -> dict[str, Array]:
    """Read a shard and arrange it scene by scene.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        return by_scene({p.stem: np.load(p) for p in shard.glob("*.npy")})
    except (OSError, ValueError, KeyError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{shard} is damaged ({type(error).__name__}: {reason}); delete it and run "
            "zim-train data synth again"
        ) from error


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


def _tinted(rng: np.random.Generator, image: Tensor) -> Tensor:
    """Change light, contrast and the balance of colours, and add a camera's noise to some."""
    n = len(image)

    def column(values: Array) -> Tensor:
        values = values.astype(np.float32).reshape(n, -1, 1, 1)
        return torch.from_numpy(values).to(image.device, non_blocking=True)

    gain = rng.uniform(0.8, 1.25, (n, 1)) * rng.uniform(0.92, 1.08, (n, 3))
    gamma = np.where(rng.random(n) < 0.3, rng.uniform(0.75, 1.3, n), 1.0)
    noise = np.where(rng.random(n) < 0.25, rng.uniform(0.5, 6.0, n), 0.0)
    grain = torch.Generator(image.device).manual_seed(int(rng.integers(2**31)))
    image = _mixed(rng, image)
    image = (image / 255.0).clamp_min(1e-4) ** column(gamma) * 255.0
    image = image * column(gain) + column(rng.uniform(-16, 16, n))
    random = torch.randn(image.shape, generator=grain, device=image.device)
    return (image + random * column(noise)).clamp(0, 255)


def _mixed(rng: np.random.Generator, image: Tensor) -> Tensor:
    """Mix the colours of a third: a little, in another order, or into grey."""
    n = len(image)
    mix = np.broadcast_to(np.eye(3), (n, 3, 3)).copy()
    draw = rng.random(n)
    slight = np.eye(3) + rng.normal(0, 0.15, (n, 3, 3))
    slight /= slight.sum(2, keepdims=True)
    order = np.eye(3)[rng.permuted(np.tile(np.arange(3), (n, 1)), axis=1)]
    grey = np.broadcast_to((0.299, 0.587, 0.114), (3, 3))
    for above, below, matrices in ((0.0, 0.2, slight), (0.2, 0.28, order), (0.28, 0.32, grey)):
        chosen = (above <= draw) & (draw < below)
        mix[chosen] = np.broadcast_to(matrices, (n, 3, 3))[chosen]
    weights = torch.from_numpy(mix.astype(np.float32)).to(image.device, non_blocking=True)
    return torch.einsum("nij,njhw->nihw", weights, image).clamp(0, 255)
