"""A pack kept on the training device, so that a GPU never waits for a disk or a core.

Shards are copied to the device as they are finished and stay there as bytes; a batch is gathered,
mirrored, turned and tinted by the device itself. When the room is used up the newest shard takes
the place of the oldest.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from zim_training.data.loader import Batch, Pack, finished_shards
from zim_training.data.pack import CUE_SCALE, MASK_SCALE

#: prompts per scene; a scene with fewer has some of them twice
SLOTS = 3
#: targets per scene that its prompts can mean
_TARGETS = 2
#: cue planes that come from GrabCut
GRABCUT_PLANES = (0, 6)
#: share of the device's free memory that scenes may take
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
            capacity: most scenes at a time; 0 takes half of a GPU's free memory, or on a CPU as
                many as are finished.
            without_grabcut: share of prompts whose GrabCut planes are blanked, so that the network
                cannot lean on them alone.

        Raises:
            ConfigError: as for :class:`Pack`.
        """
        self.folder, self.device, self.capacity = folder, device, capacity
        self.without_grabcut = without_grabcut
        self.store: dict[str, Tensor] = {}
        self.taken: set[str] = set()
        self.count = self._next = 0
        self._readers = ThreadPoolExecutor(_AHEAD, "shards")
        self._coming: list[Future[dict[str, Array]]] = []
        finished = Pack(folder)  # says what is wrong with the folder
        if not capacity and device.type != "cuda":
            self.capacity = len(finished)
        self.refresh(wait=True)

    def __len__(self) -> int:
        """Return the number of scenes."""
        return self.count

    def refresh(self, wait: bool = False) -> None:
        """Take in finished shards that threads have read, and let them read on.

        Args:
            wait: until everything that is finished is on the device.
        """
        new = [s for s in finished_shards(self.folder) if s.name not in self.taken]
        while True:
            while new and len(self._coming) < _AHEAD:
                shard = new.pop(0)
                self.taken.add(shard.name)
                self._coming.append(self._readers.submit(_read, shard))
            if not self._coming or not (wait or self._coming[0].done()):
                return
            self._take(self._coming.pop(0).result())

    def batch(self, count: int, rng: np.random.Generator) -> Batch:
        """Draw scenes at random, each with three prompts, mirrored, turned and tinted.

        The choice and every random number but the camera's noise come from ``rng``.
        """
        chosen = rng.integers(self.count, size=count)
        where = torch.from_numpy(chosen).to(self.device, non_blocking=True)
        got = {key: values[where] for key, values in self.store.items()}
        size = got["size"].long()
        image = got["image"].permute(0, 3, 1, 2).float()
        side = image.shape[-1]
        inside = self._pictures(size, side)
        image = _tinted(rng, image, int(chosen[0])) * inside
        per_prompt = {
            "cues": got["cues"].flatten(0, 1),
            "mask": got["mask"].flatten(0, 1)[:, None],
            "alpha": got["alpha"].flatten(0, 1)[_alpha_rows(got["target"])][:, None],
        }
        points, labels = got["points"].flatten(0, 1), got["labels"].flatten(0, 1).long()
        scene = torch.arange(count, device=self.device).repeat_interleave(SLOTS)
        # only widths that divide by four can be mirrored exactly in planes of every stride
        flip = self._coin(rng, count, 0.5) & (size[:, 1] % 4 == 0)
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
            planes = torch.zeros(cues.shape[1], dtype=torch.bool, device=self.device)
            planes[list(GRABCUT_PLANES)] = True
            cues = cues * (kept[:, None] | ~planes).float()[:, :, None, None]
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
        )

    def _coin(self, rng: np.random.Generator, count: int, chance: float) -> Tensor:
        return torch.from_numpy(rng.random(count) < chance).to(self.device, non_blocking=True)

    def _pictures(self, size: Tensor, side: int) -> Tensor:
        """``n 1 S S``: one where the picture is."""
        line = torch.arange(side, device=self.device)
        rows, columns = line < size[:, :1], line < size[:, 1:]
        return (rows[:, None, :, None] & columns[:, None, None, :]).float()

    def _take(self, arrays: dict[str, Array]) -> None:
        """Copy a shard to the next free places."""
        if not self.store:
            if not self.capacity:
                free, _ = torch.cuda.mem_get_info(self.device)
                each = sum(a[0].nbytes for a in arrays.values())
                self.capacity = max(1, int(_SHARE * free / each))
            for key, values in arrays.items():
                shape = (self.capacity, *values.shape[1:])
                kind = torch.from_numpy(values[:1]).dtype
                self.store[key] = torch.zeros(shape, dtype=kind, device=self.device)
        new = len(arrays["image"])
        if self._next + new > self.capacity:
            self._next = 0
        new = min(new, self.capacity)
        places = slice(self._next, self._next + new)
        for key, values in arrays.items():
            self.store[key][places] = torch.from_numpy(values[:new]).to(self.device)
        self._next = places.stop
        self.count = max(self.count, places.stop)


def _read(shard: Path) -> dict[str, Array]:
    return by_scene({p.stem: np.load(p) for p in shard.glob("*.npy")})


def by_scene(shard: dict[str, Array]) -> dict[str, Array]:
    """Arrange a shard scene by scene, ``SLOTS`` prompts and two alphas each."""
    scenes = len(shard["image"])
    rows = np.zeros((scenes, SLOTS), np.int64)
    for k in range(scenes):
        own = np.nonzero(shard["scene"] == k)[0]
        rows[k] = np.resize(own, SLOTS)
    alphas = np.zeros((scenes, _TARGETS), np.int64)
    target = np.zeros((scenes, SLOTS), np.int8)
    for k in range(scenes):
        known, which = np.unique(shard["target"][rows[k]], return_inverse=True)
        alphas[k] = np.resize(known, _TARGETS)
        target[k] = which.reshape(-1)
    out = {key: shard[key][rows] for key in ("points", "labels", "kind", "cues", "mask")}
    out |= {key: shard[key] for key in ("image", "size")}
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


def _tinted(rng: np.random.Generator, image: Tensor, seed: int) -> Tensor:
    """Change light, contrast and the balance of colours, and add a camera's noise to some."""
    n = len(image)

    def column(values: Array) -> Tensor:
        values = values.astype(np.float32).reshape(n, -1, 1, 1)
        return torch.from_numpy(values).to(image.device, non_blocking=True)

    gain = rng.uniform(0.8, 1.25, (n, 1)) * rng.uniform(0.92, 1.08, (n, 3))
    gamma = np.where(rng.random(n) < 0.3, rng.uniform(0.75, 1.3, n), 1.0)
    noise = np.where(rng.random(n) < 0.25, rng.uniform(0.5, 6.0, n), 0.0)
    grain = torch.Generator(image.device).manual_seed(seed)
    image = (image / 255.0).clamp_min(1e-4) ** column(gamma) * 255.0
    image = image * column(gain) + column(rng.uniform(-16, 16, n))
    random = torch.randn(image.shape, generator=grain, device=image.device)
    return (image + random * column(noise)).clamp(0, 255)
