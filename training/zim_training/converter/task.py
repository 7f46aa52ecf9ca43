"""What the loop needs to train the converter: loss on three scales, evaluation, export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zim import metrics
from zim_training.converter.config import ConverterConfig
from zim_training.converter.model import BAND, Converter, ConverterOutput, undecided
from zim_training.converter.samples import Pool, View, draw_view, stack
from zim_training.loop import Reader, parameter_groups

#: MGMatting's weights of the heads at strides 1, 4 and 8
LEVELS = (2 / 5, 1 / 5, 1 / 5)


class ConverterTask:
    """Trains a converter on a pool; scores it on fixed held-out views."""

    def __init__(
        self, config: ConverterConfig, pool: Pool, held_out: Pool | None, views: int = 48
    ) -> None:
        """Build the network and draw the held-out views (``views`` of each kind)."""
        torch.manual_seed(config.seed)
        self.config, self.pool = config, pool
        self.model: nn.Module = Converter(config.trunk)
        if config.checkpointing:
            self.model.trunk.gradient_checkpointing_enable()
        self.held_out = held_out_views(held_out, config.size, views) if held_out else {}

    @property
    def data_mark(self) -> str:
        """Return a hash of the names of what the pool draws from."""
        return self.pool.mark

    #: views are drawn at random, never read in order
    streams = False

    def stream(self, reader: Reader) -> Iterator[dict[str, Tensor]]:
        """Not for this task."""
        raise NotImplementedError

    def samples(
        self, rngs: Sequence[np.random.Generator], shared: np.random.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draw a batch; its samples share nothing."""
        c = self.config
        return stack([draw_view(rng, self.pool, c.size, c.sga, c.stl) for rng in rngs])

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """L1 and gradient loss (Eq. 1) of the three heads, finer ones where they count."""
        out: ConverterOutput = model(batch["image"], batch["label"])
        loss = converter_loss(out, batch["alpha"], self.config.gradient)
        with torch.no_grad():
            error = (out.alpha() - batch["alpha"]).abs().mean()
        return loss, {"l1": float(error)}

    def groups(self) -> list[dict[str, Any]]:
        """Return the trunk at its own rate, everything else at the full one."""
        return parameter_groups(self.model, self.config.decay, {"trunk.": self.config.trunk_rate})

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], np.ndarray | None]:
        """Score held-out views: ``mse`` against ``mse_label``, the error of the label itself."""
        scores: dict[str, float] = {}
        rows: list[np.ndarray] = []
        for kind, views in self.held_out.items():
            mattes = convert_views(model, [(v[0], v[1]) for v in views])
            if not np.isfinite(mattes).all():
                raise FloatingPointError("an answer on held-out views")
            scores |= {f"{kind}_{k}": v for k, v in score_views(views, mattes).items()}
            rows += [_row(v, m) for v, m in list(zip(views, mattes, strict=True))[:3]]
        return scores, np.vstack(rows) if rows else None

    def rank(self, scores: dict[str, float], first: dict[str, float]) -> float:
        """Rate scores by the error on whole mattes."""
        return scores["matte_mse"] / max(first["matte_mse"], 1e-9)

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the averaged weights."""
        assert isinstance(model, Converter)
        model.save_pretrained(folder)

    def extra_state(self) -> dict[str, Any]:
        """Nothing more to keep."""
        return {}


def converter_loss(out: ConverterOutput, alpha: Tensor, gradient: float) -> Tensor:
    """Sum the level losses; the fused answer is what the finer levels see."""
    coarse = out.os8.sigmoid()
    with torch.no_grad():
        first, second = out.bands(BAND)
        unsure = undecided(alpha, BAND[0])  # early on, the prediction's own band means little
        first, second = first | unsure, second | unsure
    middle = torch.where(first, out.os4.sigmoid(), coarse.detach())
    fine = torch.where(second, out.os1.sigmoid(), middle.detach())
    total = alpha.new_zeros(())
    for weight, predicted in zip(LEVELS, (fine, middle, coarse), strict=True):
        total = total + weight * _l1_and_gradient(predicted, alpha, gradient)
    return total


def _l1_and_gradient(predicted: Tensor, alpha: Tensor, gradient: float) -> Tensor:
    difference = predicted - alpha
    dx = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    dy = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    return difference.abs().mean() + gradient * (dx + dy)


def held_out_views(pool: Pool, size: int, count: int, seed: int = 77) -> dict[str, list[View]]:
    """Draw fixed views: ``matte``, ``part`` (cut by SGA) and ``rigid`` (target is the label)."""
    out: dict[str, list[View]] = {}
    for number, (kind, sga, stl) in enumerate((("matte", 0, 0), ("part", 1, 0), ("rigid", 0, 1))):
        rng = np.random.default_rng((seed, number))
        out[kind] = [draw_view(rng, pool, size, sga, stl) for _ in range(count)]
    return out


@torch.no_grad()
def convert_views(
    model: nn.Module, views: list[tuple[np.ndarray, np.ndarray]], batch: int = 8
) -> list[np.ndarray]:
    """Run the converter on pictures and labels of one size, ``batch`` a pass.

    Returns:
        h x w float32 mattes.
    """
    model.eval()
    device = next(model.parameters()).device
    out: list[np.ndarray] = []
    for start in range(0, len(views), batch):
        part = views[start : start + batch]
        image = torch.from_numpy(np.stack([v[0] for v in part]).transpose(0, 3, 1, 2).copy())
        label = torch.from_numpy(np.stack([v[1] for v in part])[:, None].astype(np.float32))
        answer: ConverterOutput = model(image.to(device), label.to(device))
        out += list(answer.alpha()[:, 0].float().cpu().numpy())
    return out


def score_views(views: list[View], mattes: list[np.ndarray]) -> dict[str, float]:
    """Mean SAD, MSE and Grad (``zim.metrics``) of mattes, and MSE of the labels themselves."""
    rows = []
    for (_, label, alpha, _), matte in zip(views, mattes, strict=True):
        alpha, matte = np.clip(alpha, 0, 1), np.clip(matte, 0, 1)
        rows.append(
            {
                "sad": metrics.sad(matte, alpha),
                "mse": metrics.mse(matte, alpha),
                "grad": metrics.grad(matte, alpha),
                "mse_label": metrics.mse(label.astype(np.float32), alpha),
                "sad_label": metrics.sad(label.astype(np.float32), alpha),
                "grad_label": metrics.grad(label.astype(np.float32), alpha),
            }
        )
    return {k: round(float(np.mean([r[k] for r in rows])), 4) for k in rows[0]} if rows else {}


def _row(view: View, matte: np.ndarray) -> np.ndarray:
    rgb, label, alpha, _ = view
    greys = [(np.clip(x, 0, 1) * 255).astype(np.uint8) for x in (label, alpha, matte)]
    return np.hstack([rgb, *[np.dstack([g] * 3) for g in greys]])
