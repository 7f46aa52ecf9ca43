"""Run ONNX folders, the official ZIM release among them, behind our own predictor."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zim._extras import require
from zim.config import PRESETS, MaskedAttentionConfig, ZimConfig
from zim.errors import CheckpointError, ConfigError, ImageError, PromptError, one_line
from zim.model.attention import prompt_attention
from zim.model.mask_decoder import TokenState
from zim.model.matting import ImageFeatures
from zim.model.prompt_encoder import ABSENT, PAD
from zim.onnx.layout import (
    CUES,
    DECODER,
    ENCODER,
    FEATURES,
    IMAGE,
    MASK,
    METADATA,
    OUTPUTS,
    PROMPTS,
    check_folder,
    feature_shapes,
    fetch,
    official,
    read_metadata,
)
from zim.pretrained import Zim

logger = logging.getLogger(__name__)

#: official models whose licence was told in this process
_told: set[str] = set()


@dataclass(frozen=True)
class OnnxState(TokenState):
    """Decoded prompts: the graph gives pixels at once, so they are kept here."""

    logits: Tensor

    def select(self, rows: Tensor | slice) -> OnnxState:
        """Keep some of the prompts."""
        kept = super().select(rows)
        return OnnxState(**vars(kept), logits=self.logits[rows])


class OnnxZim(Zim):
    """A network whose encoder and decoder run in ONNX Runtime.

    It stands wherever a :class:`zim.Zim` does for inference: predictor, one-shot matte, automatic
    mattes. It has no weights of its own to train, convert or save.
    """

    def __init__(self, folder: str | Path, *, device: str = "auto") -> None:
        """Open a folder.

        Args:
            folder: with ``encoder.onnx`` and ``decoder.onnx``; ``metadata.json`` of ``zim export``
                if there is one, else the official release is assumed.
            device: ``auto`` (CUDA where ONNX Runtime has it), ``cpu``, ``cuda`` or ``cuda:N``.

        Raises:
            CheckpointError: files are missing, damaged or have other tensors.
            ConfigError: the device cannot be used.
            MissingExtraError: onnxruntime is not installed.
        """
        nn.Module.__init__(self)
        ort = require("onnxruntime", "onnx")
        self.folder = check_folder(Path(folder))
        where = _choose_device(device, ort)
        self._encoder = _open(self.folder / ENCODER, ort, where)
        self._decoder = _open(self.folder / DECODER, ort, where)
        metadata = read_metadata(self.folder)
        self._inputs = {i.name for i in self._decoder.get_inputs()}
        _check_names(self.folder / ENCODER, self._encoder, (IMAGE,), FEATURES)
        _check_names(self.folder / DECODER, self._decoder, (*FEATURES, *PROMPTS), OUTPUTS)
        found = _measure(self.folder, self._encoder)
        if metadata is None and CUES in self._inputs:
            raise CheckpointError(
                f"{self.folder}: no {METADATA}, which says how the cues of this model are made; "
                "copy the whole folder that zim export wrote"
            )
        self.config: ZimConfig = metadata["config"] if metadata else found
        mine = (self.config.image_size, self.config.decoder.dim, self.config.decoder.stem)
        theirs = (found.image_size, found.decoder.dim, found.decoder.stem)
        if mine != theirs:
            raise CheckpointError(
                f"{self.folder}: metadata.json describes another model (frame, width and stem are "
                f"{mine}, {ENCODER} has {theirs}); export it again"
            )
        if self.config.cue_planes and CUES not in self._inputs:
            raise CheckpointError(f"{self.folder / DECODER}: has no input {CUES}; export it again")
        pixel = (self.config.pixel_mean, self.config.pixel_std)
        mean, std = (torch.tensor(v, dtype=torch.float32) for v in pixel)
        self.register_buffer("pixel_mean", mean.view(3, 1, 1).to(where), persistent=False)
        self.register_buffer("pixel_std", std.view(3, 1, 1).to(where), persistent=False)
        self.eval()

    def __reduce__(self) -> Any:
        """Copies and pickles open the folder again; sessions cannot be moved."""
        return _reopened, (self.folder, str(self.device))

    def compile_encoder(self) -> Self:
        """Refuse: ONNX Runtime optimises its graphs itself.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "an ONNX model cannot be compiled by torch; ONNX Runtime has optimised it already"
        )

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: str = "auto", **hub: Any) -> OnnxZim:
        """Load a folder, or an official model by name (``zim_vit_b``) or hub id.

        Args:
            source: the folder, name or id.
            device: as in the constructor.
            **hub: passed on to ``huggingface_hub``.

        Raises:
            CheckpointError: not there or not usable.
        """
        row = official(str(source))
        if row is None:
            return cls(source, device=device)
        require("onnxruntime", "onnx")  # before anything large is fetched
        folder = fetch(row, **hub)
        if row.name not in _told:
            _told.add(row.name)
            logger.warning("%s: weights under %s, by NAVER", row.name, row.licence)
        return cls(folder, device=device)

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> Path:
        """Refuse: an ONNX model is its folder."""
        raise CheckpointError(
            f"{self.folder} is an ONNX model and cannot be saved into {folder} as safetensors; "
            "copy the folder instead"
        )

    @property
    def dtype(self) -> torch.dtype:
        """Return float32: what the graphs take and give."""
        return torch.float32

    @property
    def takes_mask(self) -> bool:
        """Tell whether a mask can be a prompt (``zim export --with-mask-input``)."""
        return MASK[0] in self._inputs

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Run the encoder on normalised images ``b 3 S S``; ``halves`` are feat_D0, D1, D2."""
        size = self.config.image_size
        if tuple(images.shape[1:]) != (3, size, size):
            raise ImageError(
                f"the image tensor has shape {tuple(images.shape)}; this ONNX model was exported "
                f"for b x 3 x {size} x {size}"
            )
        fixed = self._encoder.get_inputs()[0].shape[0] == 1
        shapes = feature_shapes(self.config)
        runs = [
            self._run(
                self._encoder,
                {IMAGE: part},
                {n: (len(part), *s) for n, s in zip(FEATURES, shapes, strict=True)},
            )
            for part in (images.split(1) if fixed else [images])
        ]
        embedding, *stem = (torch.cat(parts) for parts in zip(*runs, strict=True))
        return ImageFeatures(embedding, tuple(stem), (size, size))

    def decode_tokens(
        self,
        features: ImageFeatures,
        points: Tensor,
        labels: Tensor,
        *,
        mask_input: Tensor | None = None,
        has_mask: Tensor | None = None,
        cues: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> OnnxState:
        """Decode prompts; arguments as in the network.

        Prompts are run in groups of one image and one number of points, because the official graph
        knows no places without a point, and those with a mask apart.

        Raises:
            PromptError: the graph takes no mask.
        """
        if mask_input is not None and not self.takes_mask:
            raise PromptError(
                f"{self.config.name} takes no mask_input (an ONNX decoder without one); use "
                "points or a box, or export with --with-mask-input"
            )
        maps = self._attention_maps(points, labels)
        count = len(points)
        side, tokens = self.config.image_size // 2, self.config.decoder.mask_tokens
        logits = points.new_empty(count, tokens, side, side)
        iou = points.new_empty(count, tokens)
        present = labels != ABSENT
        lengths = present.sum(1)
        images = torch.zeros_like(lengths) if image_index is None else image_index.to(lengths)
        masked = torch.full_like(lengths, mask_input is not None)
        if mask_input is not None and has_mask is not None:
            masked = has_mask.to(lengths)
        keys = torch.stack([images, lengths, masked], 1)
        for key in keys.unique(dim=0):
            rows = (keys == key).all(1).nonzero()[:, 0]
            image, length, has = key.tolist()
            keep = present[rows]
            inputs = self._prompt_inputs(
                points[rows][keep].view(len(rows), length, 2),
                labels[rows][keep].view(len(rows), length),
                mask_input[rows] if has and mask_input is not None else None,
                None if cues is None else cues[rows],
            )
            maps_here = {PROMPTS[2]: maps[rows]}
            feats = (features.embedding, *features.halves)
            inputs |= {n: f[image : image + 1] for n, f in zip(FEATURES, feats, strict=True)}
            shapes = {OUTPUTS[0]: (len(rows), tokens, side, side), OUTPUTS[1]: (len(rows), tokens)}
            logits[rows], iou[rows] = self._run(self._decoder, inputs | maps_here, shapes)
        return OnnxState(
            image=logits.new_empty(count, 0),
            weights=logits.new_empty(count, tokens, 0),
            iou=iou,
            tokens=logits.new_empty(count, 0),
            cues=cues,
            image_index=image_index,
            logits=logits,
        )

    def decode_pixels(
        self, features: ImageFeatures, state: TokenState, tokens: slice = slice(None)
    ) -> Tensor:
        """Return the logits of the chosen mask tokens, ``b k S/2 S/2``."""
        assert isinstance(state, OnnxState)
        return state.logits[:, tokens]

    def _attention_maps(self, points: Tensor, labels: Tensor) -> Tensor:
        """Draw the prompts' attention masks, ``b S/16 S/16``: Gaussian times box."""
        side = self.config.image_size // 16
        maps = prompt_attention(points, labels, (side, side), self.config.attention)
        drawn = torch.ones(len(points), side * side, device=points.device, dtype=torch.float32)
        if maps.gain is not None:
            drawn = drawn * maps.gain
        if maps.inside is not None:
            drawn = drawn * maps.inside
        return drawn.view(-1, side, side)

    def _prompt_inputs(
        self, points: Tensor, labels: Tensor, mask: Tensor | None, cues: Tensor | None
    ) -> dict[str, Tensor]:
        # the half pixel that the graph adds brings SAM's padding point to the origin
        points = torch.where((labels == PAD)[..., None], -0.5, points)
        inputs = {PROMPTS[0]: points, PROMPTS[1]: labels}
        if self.takes_mask:
            side = self.config.image_size // 4
            if mask is None:
                inputs[MASK[0]] = points.new_zeros(len(points), 1, side, side)
            else:
                inputs[MASK[0]] = F.interpolate(
                    mask.float(), (side, side), mode="bilinear", align_corners=False, antialias=True
                )
            inputs[MASK[1]] = points.new_full((1,), float(mask is not None))
        if self.config.cue_planes:
            if cues is None:
                raise PromptError(f"{self.config.name} needs cue planes; go through ZimPredictor")
            inputs[CUES] = cues
        return inputs

    def _run(
        self, session: Any, inputs: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]
    ) -> list[Tensor]:
        """Run a session on tensors where they lie, without copies through numpy."""
        device = self.device
        place = (device.type, device.index or 0, np.float32)
        binding = session.io_binding()
        # kept alive until the run is over: the binding holds bare addresses
        held = {k: v.to(device, torch.float32).contiguous() for k, v in inputs.items()}
        results = [
            torch.empty(shape, device=device, dtype=torch.float32) for shape in shapes.values()
        ]
        for name, value in held.items():
            binding.bind_input(name, *place, tuple(value.shape), value.data_ptr())
        for name, value in zip(shapes, results, strict=True):
            binding.bind_output(name, *place, tuple(value.shape), value.data_ptr())
        if device.type == "cuda":  # ONNX Runtime works on a stream of its own
            torch.cuda.current_stream(device).synchronize()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return results


def _reopened(folder: Path, device: str) -> OnnxZim:
    return OnnxZim(folder, device=device)


def _choose_device(device: str, ort: Any) -> torch.device:
    have = "CUDAExecutionProvider" in ort.get_available_providers() and torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda" if have else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is unknown; expected auto, cpu or cuda:N") from error
    if chosen.type == "cuda" and not have:
        raise ConfigError(
            f"device {device!r}: this onnxruntime has no CUDA; install onnxruntime-gpu in place "
            "of onnxruntime, or use --device cpu"
        )
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"ONNX models do not run on {device!r}; use --device cpu or cuda")
    return chosen


def _open(path: Path, ort: Any, device: torch.device) -> Any:
    """Open a session with as many threads as torch has.

    Raises:
        CheckpointError: not a graph this runtime can load.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    try:
        session = ort.InferenceSession(str(path), sess_options=options, providers=providers)
    except Exception as error:  # the runtime raises a type of its own per kind of failure
        reason = one_line(error, 200)
        raise CheckpointError(f"{path}: cannot be loaded by ONNX Runtime ({reason})") from error
    if device.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise ConfigError("onnxruntime cannot use CUDA here (see its log); use --device cpu")
    return session


def _check_names(
    path: Path, session: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    theirs = {i.name for i in session.get_inputs()}
    known = {*inputs, *MASK, CUES} if path.name == DECODER else set(inputs)
    if not (set(inputs) <= theirs <= known):
        raise CheckpointError(
            f"{path}: takes {', '.join(sorted(theirs))}; expected {', '.join(inputs)}"
        )
    names = [o.name for o in session.get_outputs()]
    if set(names) != set(outputs):
        raise CheckpointError(f"{path}: gives {', '.join(names)}; expected {', '.join(outputs)}")


def _measure(folder: Path, encoder: Any) -> ZimConfig:
    """Read frame and widths off the encoder graph; the rest is as in the official release."""
    by_name = {o.name: o.shape for o in encoder.get_outputs()}
    size = encoder.get_inputs()[0].shape[-1]
    size = size if isinstance(size, int) else 1024
    official_shapes = (256, 64, 128, 256)
    dim, s2, s4, s8 = (
        by_name[n][1] if isinstance(by_name[n][1], int) else usual
        for n, usual in zip(FEATURES, official_shapes, strict=True)
    )
    base = PRESETS["vit_l" if "vit_l" in folder.name else "vit_b"]
    return replace(
        base,
        name=folder.name,
        image_size=size,
        decoder=replace(base.decoder, dim=dim, stem=(s2, s4, s8)),
        # the official client draws every point; same weights, same mattes
        attention=MaskedAttentionConfig(negative_points=True),
    )
