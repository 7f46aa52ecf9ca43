"""Write a model as ONNX: ``encoder.onnx`` and ``decoder.onnx``, on request ``single.onnx``."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import secrets
import shutil
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zim import __version__
from zim._extras import require
from zim.errors import ConfigError, OutputError
from zim.model.matting import ZimNetwork
from zim.onnx.graphs import DecoderGraph, EncoderGraph, SingleGraph
from zim.onnx.layout import (
    CUES,
    DECODER,
    ENCODER,
    FEATURES,
    FILES,
    IMAGE,
    MASK,
    METADATA,
    OUTPUTS,
    PROMPTS,
    SINGLE,
    feature_shapes,
)

#: the first opset the exporter writes without converting, and the last that was tried
OPSETS = (18, 21)
#: a graph beyond this many bytes of weights keeps them in a file beside it (protobuf ends at 2 GB)
INLINE_BYTES = 1_900_000_000


@dataclass(frozen=True)
class _Part:
    file: str
    graph: nn.Module
    args: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    #: names of the free axes of every input
    free: tuple[Any, ...]


def export_onnx(
    model: ZimNetwork,
    folder: str | Path,
    *,
    half: bool = False,
    single: bool = False,
    mask_input: bool = False,
    opset: int = OPSETS[0],
    licence: str = "",
    overwrite: bool = False,
) -> dict[str, Path]:
    """Write a model into a folder that the official client and :class:`OnnxZim` can use.

    Args:
        model: any of ours, with the hierarchical pixel decoder.
        folder: made in one step; parents are created.
        half: compute in float16 inside; inputs and outputs stay float32.
        single: also write ``single.onnx``, from a uint8 picture to mattes of its own size.
        mask_input: give the decoder SAM's ``mask_input`` and ``has_mask_input``; the official
            client does not know them.
        opset: ONNX operator set.
        licence: of the weights, for ``metadata.json``.
        overwrite: replace an earlier export.

    Returns:
        ``encoder``, ``decoder``, ``metadata`` and perhaps ``single`` to their paths.

    Models that need cue planes (``nano``) get the input ``cues``, which :class:`OnnxZim` fills and
    the official client cannot; a ``single`` graph of them is refused.

    Raises:
        ConfigError: the model or the options cannot be exported.
        MissingExtraError: onnx or onnxscript is not installed.
        OutputError: the folder exists or cannot be written.
    """
    _check(model, single=single, opset=opset)
    for package in ("onnx", "onnxscript"):
        require(package, "onnx")
    folder = Path(folder).expanduser()
    _check_folder(folder, overwrite=overwrite)
    work = _frozen(model, half=half)
    parts = [_encoder(work), _decoder(work, mask_input=mask_input)]
    if single:
        parts.append(_single(work))
    metadata = {
        "format": "zim-onnx",
        "zim_version": __version__,
        "opset": opset,
        "precision": "float16" if half else "float32",
        "licence": licence or "that of the weights it was made from",
        "inputs": {part.file: part.inputs for part in parts},
        "outputs": {part.file: part.outputs for part in parts},
        "config": model.config.to_dict(),
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(folder) as new:
            for part in parts:
                _write(part, new / part.file, opset)
            (new / METADATA).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    return {Path(p.file).stem: folder / p.file for p in parts} | {"metadata": folder / METADATA}


def _check(model: ZimNetwork, *, single: bool, opset: int) -> None:
    config = model.config
    if getattr(model, "mask_decoder", None) is None:
        raise ConfigError(f"{config.name} is an ONNX model already; copy its folder instead")
    if config.decoder.pixel_decoder != "hierarchical":
        raise ConfigError(
            f"{config.name} has SAM's upscaling; the ONNX layout needs the features of the "
            "hierarchical pixel decoder"
        )
    if single and config.cue_planes:
        raise ConfigError(
            f"{config.name} needs cue planes, which are computed outside the network; "
            "export it without --single"
        )
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ConfigError(f"opset {opset} is not supported; expected {OPSETS[0]} to {OPSETS[1]}")


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    for place in (folder, *folder.parents):
        if place.is_file():
            raise OutputError(f"{place} is a file; expected a folder to write")
    if not folder.exists():
        return
    foreign = sorted(p.name for p in folder.iterdir() if p.name not in FILES)
    if foreign:  # it is replaced as a whole, so nothing of anyone else's may be inside
        raise OutputError(
            f"{folder} holds {foreign[0]}, which zim export did not write; choose a new folder"
        )
    if any(folder.iterdir()) and not overwrite:
        raise OutputError(f"{folder} exists; use --overwrite or --skip-existing")


def _frozen(model: ZimNetwork, *, half: bool) -> ZimNetwork:
    """Return the model for tracing: on the CPU, evaluating, in the type the graphs compute in."""
    dtype = torch.float16 if half else torch.float32
    return copy.deepcopy(model).to("cpu", dtype).eval().requires_grad_(False)


def _encoder(model: ZimNetwork) -> _Part:
    size = model.config.image_size
    free = ({0: "batch"},)
    # two, because the exporter takes a one for a constant
    return _Part(
        ENCODER, EncoderGraph(model), (torch.zeros(2, 3, size, size),), (IMAGE,), FEATURES, free
    )


def _decoder(model: ZimNetwork, *, mask_input: bool) -> _Part:
    config = model.config
    size, count, points = config.image_size, 3, 4
    names: list[str] = [*FEATURES, *PROMPTS]
    args = [torch.zeros(1, *shape) for shape in feature_shapes(config)]
    args += [
        torch.zeros(count, points, 2),
        torch.ones(count, points),
        torch.ones(count, size // 16, size // 16),
    ]
    both, rows = {0: "prompts", 1: "points"}, {0: "prompts"}
    extra: list[dict[int, str]] = []
    if mask_input:
        names += MASK
        args += [torch.zeros(count, 1, size // 4, size // 4), torch.zeros(1)]
        extra += [rows, {}]
    if config.cue_planes:
        names.append(CUES)
        args.append(torch.zeros(count, config.cue_planes, size // 2, size // 2))
        extra.append(rows)
    graph = DecoderGraph(model, mask_input=mask_input)
    free: tuple[Any, ...] = ({}, {}, {}, {}, both, both, rows)
    if extra:  # *extra is one argument to the exporter
        free += (tuple(extra),)
    return _Part(DECODER, graph, tuple(args), tuple(names), OUTPUTS, free)


def _single(model: ZimNetwork) -> _Part:
    args = (torch.zeros(40, 56, 3, dtype=torch.uint8), torch.zeros(3, 4, 2), torch.ones(3, 4))
    free = (
        {0: "height", 1: "width"},
        {0: "prompts", 1: "points"},
        {0: "prompts", 1: "points"},
    )
    names = (IMAGE, *PROMPTS[:2])
    return _Part(SINGLE, SingleGraph(model), args, names, ("alpha", OUTPUTS[1]), free)


def _write(part: _Part, path: Path, opset: int) -> None:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            part.graph,
            part.args,
            input_names=part.inputs,
            output_names=part.outputs,
            dynamic_shapes=part.free,
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces: paths of the machine that exported
        program.save(path, external_data=_bytes(part.graph) > INLINE_BYTES)


def _bytes(module: nn.Module) -> int:
    tensors = (*module.parameters(), *module.buffers())
    return sum(t.numel() * t.element_size() for t in tensors)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Hold back what the exporter says to its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _replacing(folder: Path) -> Generator[Path]:
    """Give a new folder beside the wanted one that takes its place when the block succeeds."""
    token = secrets.token_hex(4)
    new, old = (folder.parent / f".{folder.name}.{token}.{kind}" for kind in ("new", "old"))
    try:
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():  # what was there is better than nothing
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
