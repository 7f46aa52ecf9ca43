"""The two-line interface: ``zim.load`` and ``zim.matte``."""

from __future__ import annotations

import functools
import os
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zim.errors import CheckpointError, ConfigError
from zim.images import load_image
from zim.model.matting import ZimNetwork
from zim.onnx.layout import DECODER, ENCODER, METADATA, fetch, is_onnx_folder, official
from zim.predictor import ZimPredictor
from zim.pretrained import Zim
from zim.processor import bfloat16_units
from zim.prompts import Prompt
from zim.weights.names import check_name
from zim.weights.registry import REGISTRY
from zim.weights.rivals import RIVALS
from zim.weights.store import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from zim.result import Matte

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    compile: bool = False,
) -> Zim:
    """Load a model by name, path or hub id.

    Args:
        name: a name from ``zim models``, a checkpoint folder or ``.safetensors`` file, a folder
            with ``encoder.onnx`` and ``decoder.onnx``, or a Hugging Face id.
        device: ``auto`` (CUDA if there is one, else CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto`` (bfloat16 on CUDA and on CPUs with AMX or AVX512-BF16, else float32),
            ``float32``, ``bfloat16``, ``float16``, or torch's own; ONNX models compute as they were
            exported.
        compile: compile the image encoder, see ``Zim.compile_encoder``; worth it for many
            pictures. ONNX models refuse.

    Returns:
        The model in evaluation mode; an :class:`zim.onnx.OnnxZim` for ONNX folders.

    Raises:
        CheckpointError: no such model, or its weights are not there.
        ConfigError: device or dtype cannot be used.
    """
    if not isinstance(name, str | Path):
        raise CheckpointError(
            f"a model name or path was expected, not {type(name).__name__}; see `zim models`"
        )
    device, dtype = str(device), str(dtype).removeprefix("torch.")
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    if official(str(name)) or is_onnx_folder(Path(name)):
        onnx = _load_onnx(name, device, dtype)
        return onnx.compile_encoder() if compile else onnx
    model = Zim.from_pretrained(locate(name)).to(where, kind)
    return model.compile_encoder() if compile else model


def locate(name: str | Path) -> str | Path:
    """Return where the weights of a model are that :func:`load` would read, without reading them.

    Args:
        name: as for :func:`load`; official ONNX models are fetched, other hub ids are not.

    Raises:
        CheckpointError: no such model, or its weights are not there.
    """
    if row := official(str(name)):
        return fetch(row)
    if is_onnx_folder(Path(name)):
        return name
    source: str | Path = name
    row = REGISTRY.get(str(name))
    check_name(str(name))
    if row is not None:
        source = row.path()
        if not row.installed():
            raise CheckpointError(
                f"{row.name}: no weights at {source}; {row.about}. zim.build({row.config!r}) "
                "gives random weights to start from"
            )
    return source


def _load_onnx(name: str | Path, device: str, dtype: str) -> Zim:
    from zim.onnx.runtime import OnnxZim

    if dtype not in ("auto", "float32"):
        raise ConfigError(
            f"dtype {dtype!r}: {name} is an ONNX model, which computes as it was exported; use auto"
        )
    return OnnxZim.from_pretrained(name, device=device)


def choose_device(device: str = "auto") -> torch.device:
    """Return the device to use, or raise ConfigError in one line if it is not there.

    Under torchrun every rank gets the GPU of its number (``LOCAL_RANK``) for ``auto`` and ``cuda``.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"device {device!r} is unknown; expected auto, cpu, cuda, cuda:N or mps"
        ) from error
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(
            f"device {device!r} is not supported; expected auto, cpu, cuda, cuda:N or mps"
        )
    missing = (chosen.type == "cuda" and not torch.cuda.is_available()) or (
        chosen.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ConfigError(f"device {device!r} is not available here; use --device cpu")
    if chosen.type == "cuda" and (chosen.index or 0) >= (count := torch.cuda.device_count()):
        raise ConfigError(f"device {device!r} is not here; there are {count}, numbered from 0")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the type to compute in, or raise ConfigError.

    ``auto`` is bfloat16 where the device multiplies it: on CUDA, and on CPUs with AMX, where
    ViT-B's encoder and nano are several times faster, or AVX512-BF16 (1.6 and 1.2 times;
    ``benchmarks/encoder.py`` and ``decoder.py``). Its price, measured: ViT-B's embedding differs
    by 1 % of its size (random weights), nano's mattes by thousandths, and by up to 0.07 where it
    doubts (a box round most of a picture).
    Fourier positions, softmax and logits are float32 in any case.
    """
    if dtype == "auto":
        half = device.type == "cuda" or (device.type == "cpu" and bfloat16_units() is not None)
        return torch.bfloat16 if half else torch.float32
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown; expected auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


#: what a folder's answers depend on
_FILES = (CONFIG, WEIGHTS, ENCODER, DECODER, METADATA)


@functools.lru_cache(maxsize=2)
def _loaded(name: str, state: Hashable) -> Zim:
    """Load a model; ``state`` differs when its files do."""
    return load(name)


def _state_of(name: str) -> Hashable:
    """Return sizes and times of the files of a local model; nothing of other names."""
    if name in REGISTRY or name in RIVALS or official(name):
        return ()
    path = Path(name)
    beside = [path, path.with_suffix(".json"), path.parent / CONFIG]
    files = [path / file for file in _FILES] if path.is_dir() else beside
    state: list[tuple[int, int] | None] = []
    for file in files:
        try:
            about = file.stat()
            state.append((about.st_size, about.st_mtime_ns))
        except OSError:
            state.append(None)
    return tuple(state)


def matte(
    image: Any,
    points: Any = None,
    box: Any = None,
    scribble: Any = None,
    mask: Any = None,
    *,
    labels: Any = None,
    model: str | Path | ZimNetwork | ZimPredictor = "nano",
    refine: bool = False,
) -> Matte:
    """Cut one object out of a picture.

    Args:
        image: path, bytes, PIL image, H x W x 3 array or CHW tensor.
        points: clicks in pixels, (x, y) or (x, y, label) each; label 1 object, 0 background.
        box: x0, y0, x1, y1 in pixels.
        scribble: a stroke N x 2, several strokes, or a painted mask H x W.
        mask: an alpha or binary mask H x W to start from.
        labels: of the points, when they carry none.
        model: name, path, hub id, model, or a predictor (whose own picture is replaced).
        refine: sharpen the soft parts with the picture at full resolution
            (:func:`zim.refine.refine`); for large pictures of hair, fur and thin things.

    Returns:
        The matte with ``alpha`` float32 H x W in [0, 1] and ``score``. Nothing asked for means
        the whole picture is the box. One click alone is ambiguous: the alternative with the best
        predicted score is taken, or the first token (``ZimConfig.lone_click``; so does nano).

    Raises:
        ImageError: the picture cannot be read.
        PromptError: the prompt is malformed or outside the picture.
        CheckpointError: the model cannot be loaded.
    """
    loaded = load_image(image)
    size = (loaded.rgb.shape[0], loaded.rgb.shape[1])
    prompt = Prompt.create(
        size, points=points, labels=labels, box=box, scribble=scribble, mask=mask
    )
    predictor = as_predictor(model)
    predictor.set_image(loaded.rgb)
    return best_matte(predictor, prompt, refine=refine, within=loaded.alpha)


def as_predictor(model: str | Path | ZimNetwork | ZimPredictor) -> ZimPredictor:
    """Return a predictor for a name, path, hub id, model or predictor."""
    if isinstance(model, ZimPredictor):
        return model
    if isinstance(model, ZimNetwork):
        return ZimPredictor(model)
    return ZimPredictor(_loaded(str(model), _state_of(str(model))))


def best_matte(
    predictor: ZimPredictor,
    prompt: Prompt,
    *,
    refine: bool = False,
    within: np.ndarray | None = None,
) -> Matte:
    """Answer one prompt on the predictor's picture with one matte (see :func:`matte`).

    ``within`` is the picture's own transparency, float32 H x W: what was cut away stays away.
    """
    from zim.result import Matte

    single = prompt.single_click and predictor.best_of_three
    mattes, scores, low_res = predictor.predict_batch([prompt], multimask_output=single)
    best = int(np.argmax(scores[0]))
    assert predictor.image is not None
    alpha = mattes[0, best]
    if refine:
        from zim.refine import refine as sharpen

        alpha = sharpen(predictor.image, alpha, predictor)
    return Matte(
        image=predictor.image.copy(),  # what is done to it must not reach the predictor
        alpha=alpha if within is None else alpha * within,
        box=prompt.box,
        score=float(scores[0, best]),
        low_res=low_res[0, best],
    )
