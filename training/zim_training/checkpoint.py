"""Checkpoints of a run: written atomically, resumed exactly, exported as inference weights."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from zim.config import PREDICTOR_FIELDS, PRESETS, ZimConfig
from zim.errors import CheckpointError, ConfigError, OutputError
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
        reason = " ".join(str(error).split())[:200]
        raise OutputError(
            f"{path} cannot be written ({reason}); free space or choose another --output, the run "
            "goes on from the checkpoint that is there"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """Load a checkpoint of our own.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} does not exist; give the folder of a run that has begun, or leave out --resume"
        ) from error
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from error


def bundle(run: Path, folder: Path, scale: float = 1.0) -> tuple[Path, Path]:
    """Write a run's average weights as ``NAME.safetensors`` (float16) with ``NAME.json``.

    Args:
        run: folder of a run, finished or not, or of a state.
        folder: where to write; NAME is the network's name.
        scale: factor of the mattes' logits, built into the weights: below 1 for a network that is
            surer of itself on new pictures than it has reason to be. Choose it on dev scenes.

    Returns:
        The two paths.

    Raises:
        CheckpointError: there is no readable ``last.pt`` or state.
        ConfigError: the scale is not positive and finite.
    """
    from zim_training.state import is_state, load_state  # which saves with this module

    state = load_state(run) if is_state(run) else read(run / "last.pt")
    network = ZimConfig.from_dict(state["network"])
    if preset := PRESETS.get(network.name):
        # how mattes are framed and enlarged is the predictor's affair, not the trained weights'
        today = {name: getattr(preset, name) for name in PREDICTOR_FIELDS}
        network = dataclasses.replace(network, **today)
    weights = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in _scaled(state["ema"], scale).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    steps = str(state["step"])
    model_path = folder / f"{network.name}.safetensors"
    config_path = folder / f"{network.name}.json"
    atomic_write(model_path, save(weights, metadata={"format": "pt", "steps": steps}))
    atomic_write(config_path, (json.dumps(network.to_dict(), indent=2) + "\n").encode())
    return model_path, config_path


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
