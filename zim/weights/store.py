"""Our own checkpoint format: ``config.json`` and ``model.safetensors``, local or from the hub.

A lone ``NAME.safetensors`` with ``NAME.json`` beside it (the bundled models) is read as well.
Weights may be stored in float16; they are always loaded as float32.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import socket
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from zim.config import ZimConfig
from zim.errors import CheckpointError, DownloadError, OutputError, one_line
from zim.output import atomic_write

if TYPE_CHECKING:
    from zim.model.matting import ZimNetwork

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS = "config.json", "model.safetensors"

Model = TypeVar("Model", bound="ZimNetwork")


def load_pretrained(source: str | Path, cls: type[Model], **hub: Any) -> Model:
    """Load a model from a folder, a ``.safetensors`` file or a hub id (see ``Zim``)."""
    config_path, weights_path = locate(source, **hub)
    try:
        data = json.loads(config_path.read_text(encoding="utf-8"))
        config = ZimConfig.from_dict(data)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{config_path}: not a ZIM configuration ({error})") from error
    state = read_state(weights_path)
    with torch.random.fork_rng(devices=[]):  # building draws random numbers; leave the user's alone
        model = cls(config)
    try:
        model.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        )
    except RuntimeError as error:
        reason = one_line(error, 300)
        raise CheckpointError(
            f"{weights_path}: weights do not fit {config_path.name} ({reason})"
        ) from error
    return model.eval()


def save_pretrained(model: ZimNetwork, folder: str | Path, *, half: bool = False) -> Path:
    """Write a model into a folder, each file in one step (see ``Zim``)."""
    folder = Path(folder)
    if model.dtype == torch.bfloat16:
        logger.warning(
            "%s is saved from a model that computes in bfloat16, so its weights are rounded to 8 "
            "bits; load with dtype='float32' to save them as they were",
            folder,
        )
    state = {
        k: (v.half() if half and v.is_floating_point() else v).detach().cpu().contiguous()
        for k, v in model.state_dict().items()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write a checkpoint into {folder}: {error.strerror}") from error
    atomic_write(folder / WEIGHTS, save(state, metadata={"format": "pt"}))
    text = json.dumps(model.config.to_dict(), indent=2) + "\n"
    atomic_write(folder / CONFIG, text.encode())
    return folder


def locate(source: str | Path, **hub: Any) -> tuple[Path, Path]:
    """Find configuration and weights of a checkpoint, downloading from the hub if it is an id."""
    path = Path(source)
    if path.is_dir():
        for name in (CONFIG, WEIGHTS):
            if not (path / name).is_file():
                raise CheckpointError(f"{path}: no {name} here; expected {CONFIG} and {WEIGHTS}")
        return path / CONFIG, path / WEIGHTS
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CheckpointError(
                f"{path}: expected a .safetensors file with its .json beside it, or a folder; "
                "SAM's .pth files go through zim.weights.load_sam"
            )
        beside = (path.with_suffix(".json"), path.parent / CONFIG)
        for config in beside:
            if config.is_file():
                return config, path
        raise CheckpointError(f"{path}: its configuration {beside[0].name} is missing")
    text = str(source)
    if text.count("/") != 1 or text.startswith((".", "/", "~")) or path.suffix:
        raise CheckpointError(f"{source}: no such checkpoint file or folder, and not a hub id")
    return _from_hub(text, **hub)


def offline() -> bool:
    """Tell whether the network is forbidden (``ZIM_OFFLINE`` or ``HF_HUB_OFFLINE``)."""
    return any(os.environ.get(k, "0") not in ("", "0") for k in ("ZIM_OFFLINE", "HF_HUB_OFFLINE"))


def cache_only() -> bool:
    """Tell whether only the hub's cache can be asked: no network, or it is forbidden.

    ``huggingface_hub`` tries for half a minute, and says so line by line, before it gives up.
    """
    if offline():
        return True
    if set(urllib.request.getproxies()) - {"no"}:  # a proxy knows the hub's address, not we
        return False
    try:
        hub = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
        socket.getaddrinfo(hub.hostname, hub.port or 443)
    except ValueError:  # not an address: huggingface_hub says so
        return False
    except OSError:
        return True
    return False


def _from_hub(repo: str, **hub: Any) -> tuple[Path, Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    hub.setdefault("local_files_only", cache_only())
    try:
        config, weights = (hf_hub_download(repo, name, **hub) for name in (CONFIG, WEIGHTS))
    except LocalEntryNotFoundError as error:
        raise DownloadError(
            f"{repo}: not in the local cache and the hub cannot be reached "
            "(or ZIM_OFFLINE is set); give a local folder instead"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = one_line(error, 200)
        raise DownloadError(f"{repo}: cannot be fetched from the hub ({reason})") from error
    return Path(config), Path(weights)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a ``.safetensors`` or ``.pth``/``.pt`` file into a flat state dict on the CPU.

    Pickles are read with ``weights_only=True``; wrappers (``model``, ``state_dict``) and the prefix
    ``module.`` are removed.

    Raises:
        CheckpointError: the file is missing, damaged or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged safetensors file ({error})") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except pickle.UnpicklingError as error:  # torch says in colours how to load what is not safe
        raise CheckpointError(
            f"{path}: not a PyTorch checkpoint (it holds more than tensors, or is damaged); save "
            "the model's state_dict()"
        ) from error
    except Exception as error:  # torch.load raises many types on foreign or broken files
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
        raise CheckpointError(f"{path}: not a PyTorch checkpoint ({reason})") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    tensors = (
        {
            k.removeprefix("module."): v
            for k, v in state.items()
            if isinstance(k, str) and isinstance(v, torch.Tensor)
        }
        if isinstance(state, dict)
        else {}
    )
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors; expected a state dict")
    return tensors
