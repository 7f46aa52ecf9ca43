"""Batches of composites that the device draws anew for every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from zim_training.data.loader import Batch
from zim_training.data.pack import EXTRA_KINDS
from zim_training.data.resident import SLOTS, ResidentPack, pictured
from zim_training.data.store import ResidentStore
from zim_training.data.variation import to_device
from zim_training.prompts import KINDS
from zim_training.render.cues import DeviceCues
from zim_training.render.layers import check_layers, layer_rows
from zim_training.render.prompts import CLICKS, draw_prompts
from zim_training.render.scenes import Rendered, draw_scenes, recropped

Array = NDArray[Any]
Rng = np.random.Generator

_BOX = KINDS.index("box")
#: of a GPU's free memory, what layers may take beside a pack
_SHARE = 0.25


class RenderedScenes:
    """Composites of layers that live on the training device; no two batches share a scene."""

    def __init__(self, folder: Path, device: torch.device, side: int, capacity: int = 0) -> None:
        """Take in the layers that are finished.

        Args:
            folder: of the layers (``zim-train data synth --layers``).
            device: where they stay and scenes are drawn.
            side: of the frame in pixels, a multiple of 64.
            capacity: most layers at a time, as for :class:`ResidentStore`; one takes 0.7 MB.

        Raises:
            ConfigError: no layers, none finished, or those of another generator.
        """
        check_layers(folder)
        self.side = side
        self.layers = ResidentStore(folder, device, capacity, layer_rows, _SHARE)
        self.refresh = self.layers.refresh

    def draw(self, count: int, rng: Rng) -> Batch:
        """Draw scenes, each with a box and a click for its framed object and one more prompt."""
        return asked(draw_scenes(self.layers, count, self.side, rng), rng)


class RecroppedScenes:
    """Scenes of a resident pack, cut and asked anew, so that few photographs give many pictures."""

    def __init__(self, pack: ResidentPack) -> None:
        """Take the pack's scenes; its prompts and cues are not used."""
        self.pack = pack

    def draw(self, count: int, rng: Rng) -> Batch:
        """Draw scenes and prompts as :meth:`RenderedScenes.draw` does."""
        return asked(recropped(self.pack.store, count, rng), rng)


def asked(scenes: Rendered, rng: Rng) -> Batch:
    """Ask for what is in scenes: a box and a click for the framed object and one more prompt."""
    count, side, device = len(scenes.image), scenes.image.shape[-1], scenes.image.device
    describe = DeviceCues(scenes.image, scenes.size).describe
    kinds, targets = _questions(rng, scenes)
    number = torch.arange(scenes.alphas.shape[1], device=device)
    columns: dict[str, list[Tensor]] = {}
    for kind, target in zip(kinds, targets, strict=True):
        meant = (number == target[:, None])[..., None, None]
        alpha, others = ((scenes.alphas * which).amax(1) for which in (meant, ~meant))
        drawn = draw_prompts(rng, kind, alpha, others, scenes.size)
        # where there are boxes alone, no click has to be looked for
        used = slice(CLICKS if (kind == _BOX).all() else 0, None)
        points, labels = drawn.points[:, used], drawn.labels[:, used]
        cues = describe(points, labels, drawn.mask, drawn.has_mask)
        for name, values in (vars(drawn) | {"cues": cues, "alpha": alpha[:, None]}).items():
            columns.setdefault(name, []).append(values)
    joined = {name: torch.stack(values, 1).flatten(0, 1) for name, values in columns.items()}
    return Batch(
        image=scenes.image,
        inside=F.avg_pool2d(pictured(scenes.size, side), 2),
        scene=torch.arange(count, device=device).repeat_interleave(SLOTS),
        kind=to_device(np.stack(kinds, 1).reshape(-1), device),
        size=scenes.size,
        slots=SLOTS,
        **joined,
    )


def _questions(rng: Rng, scenes: Rendered) -> tuple[list[Array], list[Tensor]]:
    """Choose what is asked: kinds and targets, slot by slot."""
    count, device = len(scenes.image), scenes.image.device
    names = np.array([KINDS.index(name) for name in EXTRA_KINDS])
    weights = np.array(list(EXTRA_KINDS.values()))
    extra = names[rng.choice(len(names), count, p=weights / weights.sum())]
    kinds = [np.full(count, _BOX), np.full(count, KINDS.index("click")), extra]
    # the third prompt may mean anything that shows; the whole picture means the framed object
    lots = to_device(rng.random(tuple(scenes.shown.shape)), device)
    other = (lots * scenes.shown).argmax(1)
    whole = to_device(extra == KINDS.index("whole"), device)
    return kinds, [scenes.first, scenes.first, torch.where(whole, scenes.first, other)]
