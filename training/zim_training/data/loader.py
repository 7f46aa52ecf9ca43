"""Read packs: batches of scenes with their prompts, mirrored and tinted on the way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zim.errors import ConfigError
from zim_training.data.pack import CUE_SCALE, GENERATOR_VERSION, MASK_SCALE
from zim_training.prompts import MASK_SIDE


@dataclass
class Batch:
    """Scenes and prompts as tensors.

    Attributes:
        image: ``n 3 S S`` uint8-valued float, zero on padding.
        inside: ``n 1 S/2 S/2``, share of every cell that is picture.
        points, labels: ``b 24 2`` and ``b 24``.
        cues: ``b planes S/2 S/2``.
        mask: ``b 1 64 64`` logits of an earlier answer; rows without one are zero.
        has_mask: ``b`` bool.
        alpha: ``b 1 S S`` in [0, 1].
        scene: ``b`` long, which image.
        kind: ``b`` long, index into ``KINDS``.
        size: ``n 2`` long, height and width of the picture.
        slots: prompts of every image, when all have as many, in order; else 0.
    """

    image: Tensor
    inside: Tensor
    points: Tensor
    labels: Tensor
    cues: Tensor
    mask: Tensor
    has_mask: Tensor
    alpha: Tensor
    scene: Tensor
    kind: Tensor
    size: Tensor
    slots: int = 0

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; pinned memory is copied while other work goes on.

        What is there already is not copied.
        """
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del tensors["slots"]
        if device.type == "cuda":
            tensors = {n: t if t.is_cuda else t.pin_memory() for n, t in tensors.items()}
        moved = {name: t.to(device, non_blocking=True) for name, t in tensors.items()}
        return Batch(**moved, slots=self.slots)

    @property
    def single(self) -> Tensor:
        """Return which prompts are a lone positive click and nothing else."""
        lone = (self.labels == 1).sum(1) == 1
        return lone & ~(self.labels == 0).any(1) & ~(self.labels >= 2).any(1) & ~self.has_mask


def joined(batches: Sequence[Batch]) -> Batch:
    """Put batches into one."""
    parts: dict[str, Tensor] = {}
    for field in dataclasses.fields(Batch):
        if field.name not in ("slots", "scene"):
            parts[field.name] = torch.cat([getattr(batch, field.name) for batch in batches])
    before = np.cumsum([0, *(len(batch.image) for batch in batches)])
    scene = [batch.scene + int(n) for batch, n in zip(batches, before, strict=False)]
    slots = {batch.slots for batch in batches}
    return Batch(**parts, scene=torch.cat(scene), slots=slots.pop() if len(slots) == 1 else 0)


def finished_shards(folder: Path) -> list[Path]:
    """Return the shards of a pack that are complete, in order."""
    return sorted(folder.glob("shard_*"))


def check_pack(folder: Path) -> int:
    """Return the side of a pack's frame in pixels.

    Raises:
        ConfigError: no pack, another generator's pack, or no finished shard.
    """
    info = folder / "pack.json"
    if not info.is_file():
        raise ConfigError(f"{folder} holds no pack; write one with: zim-train data synth")
    about = json.loads(info.read_text())
    if about["version"] != GENERATOR_VERSION:
        raise ConfigError(
            f"{folder} was written by generator {about['version']}, this is {GENERATOR_VERSION}; "
            "write the pack again"
        )
    if not finished_shards(folder):
        raise ConfigError(f"{folder} holds no finished shard yet; wait, or write the pack")
    return about["side"]


class Pack:
    """The finished shards of a pack folder, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        """Open a pack.

        Raises:
            ConfigError: no pack, another generator's pack, or no finished shard.
        """
        check_pack(folder)
        self.folder = folder
        self.shards: dict[str, dict[str, np.ndarray]] = {}
        self.index: list[tuple[str, int]] = []
        self.refresh()

    def refresh(self) -> None:
        """Take in shards that were finished since the last look."""
        for shard in finished_shards(self.folder):
            if shard.name not in self.shards:
                arrays = {p.stem: np.load(p, mmap_mode="r") for p in shard.glob("*.npy")}
                self.shards[shard.name] = arrays
                self.index += [(shard.name, k) for k in range(len(arrays["image"]))]

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.index)

    def draw(self, count: int, rng: np.random.Generator) -> Batch:
        """Gather different scenes at random, at most as many as there are, mirrored and tinted."""
        chosen = rng.choice(len(self), min(count, len(self)), replace=False)
        return self.batch(chosen.tolist(), rng)

    def batch(self, scenes: list[int], rng: np.random.Generator | None = None) -> Batch:
        """Gather scenes with all their prompts; with ``rng`` mirrored and tinted at random."""
        columns: dict[str, list[np.ndarray]] = {}
        images, sizes, owner = [], [], []
        for position, number in enumerate(scenes):
            name, k = self.index[number]
            shard = self.shards[name]
            size = shard["size"][k].astype(int)
            image = shard["image"][k].astype(np.float32)
            rows = np.nonzero(shard["scene"] == k)[0]
            part = {key: np.array(shard[key][rows]) for key in ("points", "labels", "cues", "mask")}
            part["alpha"] = np.array(shard["alpha"][shard["target"][rows]])
            part["kind"] = np.array(shard["kind"][rows])
            if rng is not None:
                if rng.random() < 0.5:
                    image, part = mirror(image, part, int(size[1]))
                image = tint(rng, image)
                image[size[0] :] = 0
                image[:, size[1] :] = 0
            images.append(image.transpose(2, 0, 1))
            sizes.append(size)
            owner += [position] * len(rows)
            for key, values in part.items():
                columns.setdefault(key, []).append(values)
        joined = {key: np.concatenate(values) for key, values in columns.items()}
        mask = joined["mask"].reshape(-1, 1, MASK_SIDE, MASK_SIDE)
        has_mask = mask[:, 0, 0, 0] != -128
        side = images[0].shape[-1]
        inside = np.zeros((len(images), 1, side, side), np.float32)
        for picture, (height, width) in zip(inside, sizes, strict=True):
            picture[:, :height, :width] = 1
        return Batch(
            image=torch.from_numpy(np.stack(images)),
            inside=torch.nn.functional.avg_pool2d(torch.from_numpy(inside), 2),
            points=torch.from_numpy(joined["points"]),
            labels=torch.from_numpy(joined["labels"].astype(np.int64)),
            cues=torch.from_numpy(joined["cues"].astype(np.float32) / CUE_SCALE),
            mask=torch.from_numpy(mask * has_mask[:, None, None, None] / np.float32(MASK_SCALE)),
            has_mask=torch.from_numpy(has_mask),
            alpha=torch.from_numpy(joined["alpha"][:, None].astype(np.float32) / 255.0),
            scene=torch.tensor(owner),
            kind=torch.from_numpy(joined["kind"].astype(np.int64)),
            size=torch.from_numpy(np.stack(sizes)),
        )


def mirror(
    image: np.ndarray, part: dict[str, np.ndarray], width: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Flip left and right within the picture; pictures of an odd or narrow size stay as they are.

    The stride-2 planes can be mirrored exactly only when the width is even, the stride-4 masks
    only when it divides by four.
    """
    if width % 4:
        return image, part
    out = dict(part)
    image = image.copy()
    image[:, :width] = image[:, :width][:, ::-1]
    for key, stride in (("alpha", 1), ("cues", 2), ("mask", image.shape[1] // MASK_SIDE)):
        values = part[key].copy()
        edge = width // stride
        values[..., :edge] = part[key][..., :edge][..., ::-1]
        out[key] = values
    points, labels = part["points"].copy(), part["labels"]
    x = points[..., 0]
    points[..., 0] = np.where(labels >= 0, width - 1 - x, x)
    # the corners stay top-left and bottom-right: their x coordinates change places
    for row, label in zip(points, labels, strict=True):
        first, last = np.nonzero(label == 2)[0], np.nonzero(label == 3)[0]
        if len(first) and len(last):
            row[first[0], 0], row[last[0], 0] = row[last[0], 0], row[first[0], 0]
    out["points"] = points
    return image, out


def tint(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Change brightness, contrast and the balance of colours a little."""
    gain = rng.uniform(0.85, 1.18) * rng.uniform(0.94, 1.06, 3)
    out = image * gain.astype(np.float32) + np.float32(rng.uniform(-12, 12))
    return np.clip(out, 0, 255).astype(np.float32)
