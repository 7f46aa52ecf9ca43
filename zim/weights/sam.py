"""SAM's weights into our model: the original ``.pth`` layout and transformers' ``SamModel``.

Encoder, prompt encoder and two-way transformer are the same networks, so their weights load as they
are (308 of ViT-B's 314 tensors). SAM's ``output_upscaling`` has no place beside the hierarchical
pixel decoder, whose weights stay as they were: new, to be trained.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from zim.errors import CheckpointError
from zim.model.matting import ZimNetwork
from zim.weights.store import read_state

logger = logging.getLogger(__name__)

#: transformers' SamModel names on the left, SAM's on the right, applied in order
_FROM_TRANSFORMERS: tuple[tuple[str, str], ...] = (
    (r"^vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"^vision_encoder\.layers\.(\d+)\.layer_norm(\d)\.", r"image_encoder.blocks.\1.norm\2."),
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"^vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"^vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"^vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (r"^vision_encoder\.", "image_encoder."),
    (  # one tensor under two names; files carry either or both
        r"^(?:prompt_encoder\.shared_embedding|shared_image_embedding)\.positional_embedding$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^(mask_decoder\.transformer\..*)layer_norm(\d|_final_attn)\.", r"\1norm\2."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"^(mask_decoder\.(?:output_hyp|iou_pred).*)\.proj_out\.", r"\1.layers.LAST."),
    (r"^(mask_decoder\.(?:output_hyp|iou_pred).*)\.layers\.(\d+)\.", r"\1.layers.+\2."),
    (r"^(mask_decoder\.(?:output_hyp|iou_pred).*)\.proj_in\.", r"\1.layers.0."),
)


class LoadReport(int):
    """The number of tensors loaded, with what was new and what was left over.

    Attributes:
        new: our tensors that the file does not have and that keep their values.
        unused: the file's tensors that have no place in our model.
        resized: position tables interpolated to the model's image size.
    """

    new: tuple[str, ...]
    unused: tuple[str, ...]
    resized: tuple[str, ...]

    def __str__(self) -> str:
        """Say it in one line."""
        text = f"{int(self)} tensors loaded, {len(self.new)} new, {len(self.unused)} unused"
        return text + (f", {len(self.resized)} resized" if self.resized else "")


def load_sam(model: ZimNetwork, path: str | Path) -> LoadReport:
    """Load SAM's weights into a ViT model.

    Args:
        model: from ``zim.build("vit_b")`` or larger; changed in place.
        path: SAM's ``.pth``, a ``.safetensors``, or a transformers ``SamModel`` folder or file.

    Returns:
        The number of tensors loaded (an ``int``) with attributes ``new``, ``unused``, ``resized``.

    Raises:
        CheckpointError: the file is missing, damaged, not SAM's, or of another size.
    """
    path = Path(path)
    state = to_sam_layout(read_state(_weights_file(path)))
    own = model.state_dict()
    common = [k for k in state if k in own]
    if not any(k.startswith("image_encoder.blocks.") for k in common):
        raise CheckpointError(
            f"{path}: holds no SAM image encoder for a {model.config.name} model; expected names "
            "like image_encoder.blocks.0.* or vision_encoder.layers.0.*"
        )
    loaded: dict[str, Tensor] = {}
    resized: list[str] = []
    for key in common:
        value = state[key]
        if value.shape != own[key].shape:
            fitted = _resize(key, value, own[key])
            if fitted is None:
                raise CheckpointError(
                    f"{path}: {key} is {tuple(value.shape)}, the {model.config.name} model needs "
                    f"{tuple(own[key].shape)}; choose the configuration of the same size"
                )
            value = fitted
            resized.append(key)
        loaded[key] = value
    blocks = sum(1 for k in own if re.fullmatch(r"image_encoder\.blocks\.\d+\.norm1\.weight", k))
    given = sum(1 for k in state if re.fullmatch(r"image_encoder\.blocks\.\d+\.norm1\.weight", k))
    if blocks != given:
        raise CheckpointError(
            f"{path}: an encoder of {given} blocks, the {model.config.name} model has {blocks}; "
            "choose the configuration of the same size"
        )
    model.load_state_dict(loaded, strict=False)
    report = LoadReport(len(loaded))
    report.new = tuple(k for k in own if k not in loaded)
    report.unused = tuple(k for k in state if k not in loaded)
    report.resized = tuple(resized)
    logger.info("%s: %s", path, report)
    return report


def to_sam_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename transformers' ``SamModel`` tensors to SAM's names; SAM's own pass through."""
    if not any(k.startswith("vision_encoder.") for k in state):
        return state
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, target in _FROM_TRANSFORMERS:
            key = re.sub(pattern, target, key)
        renamed[key] = value
    return _number_mlp_layers(renamed)


def _number_mlp_layers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn ``.layers.+k`` (hidden, counted from 0) and ``.layers.LAST`` into plain numbers."""
    hidden: dict[str, int] = {}
    for key in state:
        if match := re.match(r"(.*)\.layers\.\+(\d+)\.", key):
            hidden[match[1]] = max(hidden.get(match[1], 0), int(match[2]) + 1)
    numbered: dict[str, Tensor] = {}
    for key, value in state.items():
        key = re.sub(r"\.layers\.\+(\d+)\.", lambda m: f".layers.{int(m[1]) + 1}.", key)
        if match := re.match(r"(.*)\.layers\.LAST\.", key):
            key = key.replace(".LAST.", f".{hidden.get(match[1], 0) + 1}.")
        numbered[key] = value
    return numbered


def _resize(key: str, value: Tensor, like: Tensor) -> Tensor | None:
    """Interpolate a position table trained for another image size; None if it is none."""
    if value.dim() != like.dim() or not value.numel():
        return None
    if key == "image_encoder.pos_embed" and value.shape[-1] == like.shape[-1]:
        table = value.permute(0, 3, 1, 2).float()
        table = F.interpolate(table, like.shape[1:3], mode="bicubic", align_corners=False)
        return table.permute(0, 2, 3, 1)
    if key.endswith(("rel_pos_h", "rel_pos_w")) and value.shape[-1] == like.shape[-1]:
        return F.interpolate(value.float().T[None], len(like), mode="linear")[0].T
    return None


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path}: no model.safetensors here; expected a SamModel folder")
