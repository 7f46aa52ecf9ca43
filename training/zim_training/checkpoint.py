"""Checkpoints of a run: written atomically, resumed exactly, exported as inference weights."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from zim.config import PREDICTOR_FIELDS, PRESETS, ZimConfig
from zim.errors import CheckpointError, ConfigError, OutputError, one_line
from zim.output import atomic_write


class Ema:
    """Exponential moving average of a model's weights and buffers."""

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        """Start from the model as it is."""
        self.decay, self.steps = decay, 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model; young averages move faster."""
        self.steps += 1
        if not self.decay:
            self.model.load_state_dict(model.state_dict())
            return
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        source = model.state_dict()
        averages, values = [], []
        for key, value in self.model.state_dict().items():
            if value.is_floating_point():
                averages.append(value)
                values.append(source[key].to(value.dtype))
            else:
                value.copy_(source[key])
        get_ema_multi_avg_fn(decay)(averages, values, 0)  # all at once: few kernels on a GPU


def write_atomically(path: Path, payload: dict[str, Any]) -> None:
    """Save with ``torch.save`` under a temporary name, then rename.

    Raises:
        OutputError: it cannot be written; an older file stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(payload, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or "writing broke off, as on a full disk"
        raise OutputError(
            f"{path} cannot be written ({reason}); free space or choose another --output, the run "
            "goes on from the checkpoint that is there"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, advice: str = "give the folder of a run that has begun") -> dict[str, Any]:
    """Load a checkpoint of our own; ``advice`` is given where there is none.

    Raises:
        CheckpointError: the file is missing or damaged; says what can take its place.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; {advice}") from error
    except Exception as error:
        found = sorted((path.parent / "checkpoints").glob("step_*.pt"))
        older = [p for p in found if not p.samefile(path)]  # the newest is a link
        advice = "start anew with --overwrite or another --output"
        if older:
            advice = f"delete it and copy an older one to its place ({older[-1]})"
        why = one_line(error, 120)
        raise CheckpointError(f"{path} is damaged ({why}); {advice}") from error


def start_over(run: Path) -> None:
    """Remove an earlier run's checkpoints, logs and sheets; its export stays until the next."""
    names = ("checkpoints/step_*.pt", "samples/step_*.png", "sheet_*.png", "tensorboard/events.*")
    found = [path for name in names for path in run.glob(name)]
    for path in [*found, *(run / name for name in ("best.pt", "metrics.jsonl", "last.pt"))]:
        path.unlink(missing_ok=True)


def clear_stale(run: Path) -> None:
    """Remove what a process that was killed while it saved has left."""
    for path in run.glob(".*.pt.*"):
        if re.fullmatch(r"\.(last|best)\.pt\.\d+", path.name):
            path.unlink(missing_ok=True)


def bundle(
    run: Path, folder: Path, scale: float = 1.0, overwrite: bool = True
) -> tuple[Path, Path]:
    """Write a run's average weights as ``NAME.safetensors`` (float16) with ``NAME.json``.

    Args:
        run: folder of a run, finished or not, of which the best average is taken where it keeps one
            (``keep_best``), else the last; one of its ``checkpoints/``; or folder of a state.
        folder: where to write; NAME is the network's name.
        scale: factor of the mattes' logits, built into the weights: below 1 for a network that is
            surer of itself on new pictures than it has reason to be. Choose it on dev scenes.
        overwrite: whether to replace files that are there.

    Returns:
        The two paths.

    Raises:
        CheckpointError: there is no readable ``last.pt`` or state, or one of something else.
        ConfigError: the scale is not positive and finite.
        OutputError: a file is there.
    """
    from zim_training.state import is_state, load_state  # which saves with this module

    state = load_state(run) if is_state(run) else _averages(run)
    if "network" not in state:
        raise CheckpointError(f"{run} trained no matting network; its result is {run / 'export'}")
    network = ZimConfig.from_dict(state["network"])
    if preset := PRESETS.get(network.name):
        # how mattes are framed and enlarged is the predictor's affair, not the trained weights'
        today = {name: getattr(preset, name) for name in PREDICTOR_FIELDS}
        network = dataclasses.replace(network, **today)
    weights = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in _scaled(state["ema"], scale).items()
    }
    steps = str(state["step"])
    model_path = folder / f"{network.name}.safetensors"
    config_path = folder / f"{network.name}.json"
    if not overwrite and (there := [p for p in (model_path, config_path) if p.exists()]):
        raise OutputError(f"{there[0]} exists; use --overwrite or another --output")
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(model_path, save(weights, metadata={"format": "pt", "steps": steps}))
    atomic_write(config_path, (json.dumps(network.to_dict(), indent=2) + "\n").encode())
    return model_path, config_path


def _averages(run: Path) -> dict[str, Any]:
    """Read a checkpoint, or a run's last one with the best averages where it keeps them."""
    if run.is_file():
        return read(run)
    state = read(run / "last.pt")
    if state.get("config", {}).get("keep_best") and (run / "best.pt").is_file():
        best = read(run / "best.pt")
        state |= {"ema": best["ema"], "step": best["step"]}
    return state


def _scaled(weights: dict[str, Any], scale: float) -> dict[str, Any]:
    """Multiply the logits that weights give: the hypernetworks' last layers and the prior's."""
    if not 0 < scale < math.inf:
        raise ConfigError(f"scale {scale}: expected a positive number, for example 0.8")
    if scale == 1:
        return weights
    last = re.compile(r".*\.(output_hypernetworks_mlps\.\d+\.layers\.2\..*|prior_gain)")
    return {key: value * scale if last.fullmatch(key) else value for key, value in weights.items()}


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line to a log."""
    with path.open("a") as handle:
        handle.write(json.dumps(record) + "\n")


def cut_log(path: Path, step: int) -> None:
    """Drop the lines of a log that are past a step, or were cut off when they were written."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line + "\n")
        except (ValueError, KeyError, TypeError):  # the line that was being written
            continue
    atomic_write(path, "".join(lines).encode())


def names_mark(*groups: Iterable[object]) -> str:
    """Hash names, group by group, so that a run can tell whether its data are the same."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(b"\1")
        for name in group:
            digest.update(str(name).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:16]
