"""Train the mini detector on composites made on the fly."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from zim.model.named_objects import STRIDE, Grid, NamedObjects, NamedObjectsConfig, boxes_of
from zim.output import atomic_write
from zim_training.detector.names import COLOURS
from zim_training.detector.scenes import Composite, CompositeMaker


@dataclass(frozen=True)
class DetectorConfig:
    """How to train.

    Attributes:
        minutes: length of the schedule; the learning rate is 0 at its end.
        batch: composites per step.
        rate: peak learning rate.
        seed: of weights and composites.
        side: of the composites in pixels.
        width: of the network.
    """

    minutes: float = 30.0
    batch: int = 16
    rate: float = 2e-3
    seed: int = 0
    side: int = 192
    width: int = 64


class DetectorTrainer:
    """One run: a folder with ``log.jsonl`` and ``model.safetensors`` with its ``model.json``."""

    def __init__(self, config: DetectorConfig, data: Path, run: Path) -> None:
        """Read the cut-outs and build the network."""
        torch.manual_seed(config.seed)
        self.config, self.run = config, run
        self.maker = CompositeMaker(data, "train", config.side)
        sizes = NamedObjectsConfig(self.maker.names, COLOURS, side=config.side, width=config.width)
        self.model = NamedObjects(sizes).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.rate, weight_decay=1e-2
        )
        self.step = 0
        run.mkdir(parents=True, exist_ok=True)

    def fit(self) -> None:
        """Train until the time is up; save about every five minutes and at the end."""
        start, saved, losses = time.monotonic(), time.monotonic(), dict[str, float]()
        length = self.config.minutes * 60
        for pictures, targets in self._batches():
            done = (time.monotonic() - start) / length
            if done >= 1:
                break
            rate = self.config.rate * min(1.0, (self.step + 1) / 100, 1.02 * (1 - done) ** 0.9)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            parts = losses_of(self.model(pictures), targets)
            self.optimizer.zero_grad(set_to_none=True)
            torch.stack(list(parts.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.optimizer.step()
            self.step += 1
            for key, value in parts.items():
                losses[key] = losses.get(key, value.item()) * 0.98 + value.item() * 0.02
            if self.step % 100 == 0:
                row = {"step": self.step, "done": round(done, 4)}
                row |= {k: round(v, 4) for k, v in losses.items()}
                with (self.run / "log.jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
            if time.monotonic() - saved > 300:
                self.save()
                saved = time.monotonic()
        self.save()

    def save(self) -> None:
        """Write the weights in float16 and the configuration, each in one step."""
        state = {
            k: (v.half() if v.is_floating_point() else v).contiguous()
            for k, v in self.model.state_dict().items()
        }
        atomic_write(self.run / "model.safetensors", save(state, metadata={"format": "pt"}))
        text = json.dumps(self.model.config.to_dict(), indent=1) + "\n"
        atomic_write(self.run / "model.json", text.encode())

    def _batches(self) -> Iterator[tuple[Tensor, Targets]]:
        index = 0
        while True:
            made = [
                self.maker.make((self.config.seed, 1, index + i)) for i in range(self.config.batch)
            ]
            index += self.config.batch
            pixels = torch.from_numpy(np.stack([m.image for m in made]))
            pictures = pixels.permute(0, 3, 1, 2).float().div(255)
            yield (
                pictures.contiguous(memory_format=torch.channels_last),
                targets_of(made, self.maker.names, self.config.side // STRIDE),
            )


@dataclass(frozen=True)
class Targets:
    """What the grid should say.

    Attributes:
        centre: B x 1 x h x w, 1 in the cell of a thing's middle, falling off around it.
        cells: K x 3 (picture, row, column): cells near a middle, where box and words are learnt.
        boxes: K x 4 in input pixels.
        names: K indices.
        colours: K x C of ones and zeros.
    """

    centre: Tensor
    cells: Tensor
    boxes: Tensor
    names: Tensor
    colours: Tensor


def targets_of(made: list[Composite], names: tuple[str, ...], grid: int) -> Targets:
    """Return the targets of a batch of composites."""
    index = {name: i for i, name in enumerate(names)}
    centre = np.zeros((len(made), 1, grid, grid), np.float32)
    rows, columns = np.mgrid[:grid, :grid]
    cells, boxes, kinds, colours = [], [], [], []
    for b, composite in enumerate(made):
        for box, thing in zip(composite.boxes, composite.things, strict=True):
            cx, cy = (box[0] + box[2]) / 2 / STRIDE, (box[1] + box[3]) / 2 / STRIDE
            sigma = max(0.6, float(np.sqrt((box[2] - box[0]) * (box[3] - box[1]))) / STRIDE / 8)
            x, y = min(int(cx), grid - 1), min(int(cy), grid - 1)
            peak = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
            centre[b, 0] = np.maximum(centre[b, 0], peak)
            near = [(x, y), (x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)]
            for column, row in near:
                if 0 <= column < grid and 0 <= row < grid:
                    cells.append((b, row, column))
                    boxes.append(box)
                    kinds.append(index[thing.name])
                    colours.append([float(c in thing.colours) for c in COLOURS])
    return Targets(
        torch.from_numpy(centre),
        torch.tensor(cells),
        torch.from_numpy(np.array(boxes, np.float32)),
        torch.tensor(kinds),
        torch.tensor(colours),
    )


def losses_of(grid: Grid, targets: Targets) -> dict[str, Tensor]:
    """Return the losses of middles, boxes, names and colours.

    Penalty-reduced focal loss, GIoU, cross-entropy and binary cross-entropy, in this order.
    """
    b, y, x = targets.cells.unbind(1)
    truth, said = targets.centre, grid.centre.float()
    log_p, log_q = F.logsigmoid(said), F.logsigmoid(-said)
    p = said.sigmoid()
    middle = truth >= 0.999
    focal = torch.where(middle, (1 - p) ** 2 * log_p, (1 - truth) ** 4 * p**2 * log_q)
    boxes = boxes_of(grid.sides)[b, :, y, x]
    return {
        "centre": -focal.sum() / middle.sum().clamp(min=1),
        "box": (1 - _giou(boxes, targets.boxes)).mean(),
        "name": F.cross_entropy(grid.names[b, :, y, x], targets.names),
        "colour": F.binary_cross_entropy_with_logits(grid.colours[b, :, y, x], targets.colours),
    }


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """Return the generalised IoU of boxes, row by row."""
    inner = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    outer = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    both, hull = inner.prod(1), outer.clamp(min=1e-6).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - both
    return both / union - (hull - union) / hull
