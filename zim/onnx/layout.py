"""What lies in an ONNX folder, and where the official ones come from.

=================  ==========================  =================================================
tensor             shape (float32)             meaning
=================  ==========================  =================================================
image              b 3 S S                     normalised RGB, zero-padded right and below
image_embeddings   b dim S/16 S/16             encoder output; the decoder takes batch 1
feat_D0, D1, D2    b c S/2, S/4, S/8 squared   the conv stem's features
point_coords       B N 2                       x, y in the model frame; half a pixel is added inside
point_labels       B N                         1, 0 points; 2, 3 box corners; -1 SAM's padding point
attn_mask          B S/16 S/16                 Gaussian of the points, 1 / 0 of the box, or both
masks              B 4 S/2 S/2                 logits of all four mask tokens
iou_predictions    B 4                         their predicted quality
=================  ==========================  =================================================

Only folders written by ``zim export`` may have more: ``mask_input`` (B 1 S/4 S/4 logits) with
``has_mask_input`` (1), and ``cues`` (B planes S/2 S/2) for models that need cue planes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zim.config import ZimConfig
from zim.errors import CheckpointError, ConfigError, reason
from zim.weights.registry import REGISTRY, Checkpoint
from zim.weights.store import cache_only, offline

ENCODER, DECODER, SINGLE, METADATA = "encoder.onnx", "decoder.onnx", "single.onnx", "metadata.json"
#: everything ``zim export`` may write; beyond 2 GB the weights lie beside a graph in ``.data``
FILES = (ENCODER, DECODER, SINGLE, METADATA, *(f"{n}.data" for n in (ENCODER, DECODER, SINGLE)))

IMAGE = "image"
FEATURES = ("image_embeddings", "feat_D0", "feat_D1", "feat_D2")
PROMPTS = ("point_coords", "point_labels", "attn_mask")
MASK = ("mask_input", "has_mask_input")
CUES = "cues"
OUTPUTS = ("masks", "iou_predictions")

#: size of the official folders, from their parameter counts in float32
_ABOUT_BYTES = {"vit_b": "0.4 GB", "vit_l": "1.3 GB"}


def is_onnx_folder(path: Path) -> bool:
    """Tell whether a folder is meant to hold an ONNX model."""
    return any((path / name).is_file() for name in (ENCODER, DECODER))


def check_folder(path: Path) -> Path:
    """Return the folder, or raise CheckpointError naming the file that is missing."""
    for name in (ENCODER, DECODER):
        if not (path / name).is_file():
            raise CheckpointError(f"{path}: no {name} here; expected {ENCODER} and {DECODER}")
    return path


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """Return what ``zim export`` wrote about the model, None in folders of other people.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / METADATA
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {**data, "config": ZimConfig.from_dict(data["config"])}
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path}: not written by zim export ({reason(error)})") from error


def official(name: str) -> Checkpoint | None:
    """Return the row of an official model given by name (``zim_vit_b``) or hub id."""
    for row in REGISTRY.values():
        if row.kind == "onnx" and name in (row.name, row.source):
            return row
    return None


def fetch(row: Checkpoint, **hub: Any) -> Path:
    """Return the folder of an official model: ``ZIM_HOME/models``, else the hub (or its cache).

    Args:
        row: from :func:`official`.
        **hub: passed on to ``huggingface_hub``; nothing is fetched while ``ZIM_OFFLINE`` is set.

    Raises:
        CheckpointError: not there and not to be had; says how large it is, its licence, where to
            get it and where to put it.
    """
    path = row.path()
    if path.exists():
        return check_folder(path)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub.setdefault("local_files_only", cache_only())
    try:
        files = [
            Path(hf_hub_download(row.source, f"{row.file}/{name}", **hub))
            for name in (ENCODER, DECODER)
        ]
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        why = "ZIM_OFFLINE is set" if offline() else "the hub cannot be reached"
        size = _ABOUT_BYTES.get(row.config, "an unknown size")
        raise CheckpointError(
            f"{row.name}: not at {path}, and not fetched ({why}); {row.about}, about {size}, "
            f"licence {row.licence}; get the folder {row.file} of the hub's {row.source} and put "
            f"its {ENCODER} and {DECODER} into {path}"
        ) from error
    return check_folder(files[0].parent)


def feature_shapes(config: ZimConfig) -> tuple[tuple[int, int, int], ...]:
    """Return channels, height and width of image_embeddings, feat_D0, feat_D1, feat_D2."""
    size, decoder = config.image_size, config.decoder
    channels = (decoder.dim, *decoder.stem)
    return tuple((c, size // k, size // k) for c, k in zip(channels, (16, 2, 4, 8), strict=True))
