"""A run between machines: weights in float16 and where the schedule stands, small enough to commit.

``last.pt`` resumes a run exactly, optimiser included, and is three times as large. A state keeps
raw and average weights and the position; the optimiser's moments start anew after a warm-up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from zim.errors import CheckpointError, one_line
from zim.output import atomic_write
from zim_training import checkpoint

#: the file that makes a folder a state; written last
STATE = "state.json"
_WEIGHTS = {"model": "raw.safetensors", "ema": "ema.safetensors"}


def save_state(run: Path, folder: Path) -> list[Path]:
    """Write a run's state, replacing an older one.

    Args:
        run: folder of a run of ``zim-train matte --preset nano``.
        folder: where to; receives ``raw.safetensors``, ``ema.safetensors`` and ``state.json``.

    Returns:
        The three paths.

    Raises:
        CheckpointError: there is no readable ``last.pt``.
        OutputError: the folder cannot be written.
    """
    kept = checkpoint.read(run / "last.pt")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STATE).unlink(missing_ok=True)
    paths = []
    for key, name in _WEIGHTS.items():
        weights = {
            name: (value.half() if value.is_floating_point() else value).contiguous()
            for name, value in kept[key].items()
        }
        paths.append(folder / name)
        atomic_write(paths[-1], save(weights, metadata={"format": "pt"}))
    about = {key: kept[key] for key in ("step", "seconds", "ema_steps", "config", "network")}
    paths.append(folder / STATE)
    atomic_write(paths[-1], (json.dumps(about, indent=1) + "\n").encode())
    return paths


def is_state(path: str | Path) -> bool:
    """Tell whether a folder holds a state."""
    return (Path(path) / STATE).is_file()


def load_state(folder: Path) -> dict[str, Any]:
    """Read a state: ``model`` and ``ema`` in float32, ``step``, ``seconds``, ``ema_steps``, ...

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        for key, name in _WEIGHTS.items():
            weights = load((folder / name).read_bytes())
            state[key] = {
                k: v.float() if v.dtype == torch.float16 else v for k, v in weights.items()
            }
    except (OSError, ValueError, SafetensorError) as error:
        reason = one_line(error, 200)
        raise CheckpointError(f"{folder} holds no readable state ({reason})") from error
    return state
