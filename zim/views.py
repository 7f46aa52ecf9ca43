"""Many prompts in many views, in batches: what the predictor does between pictures and logits.

A view is a picture, or a crop of one, scaled to the model's frame. Views are encoded together,
their cues computed side by side, and prompts decoded together whatever view they belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zim.config import ConvEncoderConfig, ZimConfig
from zim.errors import PromptError
from zim.geometry import Frame
from zim.model.matting import ImageFeatures, ZimNetwork
from zim.parallel import each
from zim.prompt_batch import mask_logits, pad_prompts
from zim.prompts import Prompt

#: bytes that the per-prompt maps of one decoder chunk may take
DECODE_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class View:
    """A picture in the model's frame.

    Attributes:
        picture: h x w x 3 uint8 RGB, scaled.
        frame: how it was scaled.
    """

    picture: NDArray[np.uint8]
    frame: Frame

    @classmethod
    def of(cls, rgb: NDArray[np.uint8], side: int) -> View:
        """Scale a picture H x W x 3 to the frame of a model of that side."""
        frame = Frame((rgb.shape[0], rgb.shape[1]), side)
        return cls(frame.resize(np.ascontiguousarray(rgb)), frame)


def encode_views(model: ZimNetwork, views: Sequence[View]) -> ImageFeatures:
    """Encode views, one row of features each; as many at once as pays."""
    if isinstance(model.config.encoder, ConvEncoderConfig):
        step = 16
    else:
        step = 1 if model.device.type == "cpu" else 8
    parts = []
    for start in range(0, len(views), step):
        frames = [
            model.preprocess(torch.tensor(view.picture).to(model.device).permute(2, 0, 1)[None])
            for view in views[start : start + step]
        ]
        parts.append(model.encode_image(torch.cat(frames)))
    if len(parts) == 1:
        return parts[0]
    return ImageFeatures(
        torch.cat([p.embedding for p in parts]),
        tuple(torch.cat(halves) for halves in zip(*(p.halves for p in parts), strict=True)),
        parts[0].frame,
    )


def cues_of(
    views: Sequence[View],
    where: Sequence[int],
    prompts: Sequence[Prompt],
    config: ZimConfig,
    quick: Sequence[bool] | None = None,
) -> NDArray[np.float32] | None:
    """Compute the cue planes of prompts, views side by side on the processors.

    Args:
        views: pictures in the model's frame.
        where: which view each prompt belongs to.
        prompts: in the pixels of their views.
        config: of the network.
        quick: prompts whose cues go without GrabCut (:func:`zim.cues.compute_cues`); none.

    Returns:
        float32 B x planes x S/2 x S/2, or None for a network without cues.
    """
    from zim.cues import compute_cues

    side, planes = config.image_size, config.cue_planes
    if not planes:
        return None
    frames = [views[k].frame for k in where]
    points, labels = pad_prompts(prompts, frames)
    given = np.array([prompt.has_mask for prompt in prompts])
    masks = mask_logits(prompts, frames) if given.any() else None
    without = np.zeros(len(where), bool) if quick is None else np.asarray(quick, bool)
    keys = np.stack([np.asarray(where), given, without], 1)
    groups = [
        (int(k), bool(has), not fast, np.flatnonzero((keys == (k, has, fast)).all(1)))
        for k, has, fast in np.unique(keys, axis=0)
    ]

    def of_view(group: tuple[int, bool, bool, np.ndarray]) -> np.ndarray:
        k, has, grabcut, rows = group
        mask = masks[rows] if has and masks is not None else None
        return compute_cues(
            views[k].picture, points[rows], labels[rows], side, mask, planes, grabcut
        )

    if len(groups) == 1:
        return of_view(groups[0])
    cues = np.empty((len(where), planes, side // 2, side // 2), np.float32)
    for (*_, rows), found in zip(groups, each(of_view, groups), strict=True):
        cues[rows] = found
    return cues


def decode_views(
    model: ZimNetwork,
    features: ImageFeatures,
    views: Sequence[View],
    where: Sequence[int],
    prompts: Sequence[Prompt],
    tokens: slice,
    cues: NDArray[np.float32] | None = None,
) -> tuple[Tensor, Tensor]:
    """Decode prompts, each in its view.

    Args:
        model: the network.
        features: from :func:`encode_views`.
        views: the same views.
        where: which view each prompt belongs to.
        prompts: in the pixels of their views.
        tokens: mask tokens to decode.
        cues: from :func:`cues_of`, which is asked where the network wants some and None are given.

    Returns:
        Low-res logits B x C x S/2 x S/2 and quality B x C, on the model's device.
    """
    config, device = model.config, model.device
    frames = [views[k].frame for k in where]
    points, labels = pad_prompts(prompts, frames)
    given = np.array([prompt.has_mask for prompt in prompts])
    masks = mask_logits(prompts, frames) if given.any() else None
    mixed = None if masks is None or given.all() else torch.from_numpy(given).to(device)
    if cues is None:
        cues = cues_of(views, where, prompts, config)

    def rows_of(array: np.ndarray | None, rows: np.ndarray) -> Tensor | None:
        if array is None:
            return None
        return torch.from_numpy(array[rows]).to(device, model.dtype)

    # Gathering an image's maps for each of its prompts costs more than a pass per image.
    by_image = device.type == "cpu" and len(set(where)) < len(where)
    owner = np.asarray(where)
    groups = (
        [np.flatnonzero(owner == k) for k in np.unique(owner)]
        if by_image
        else [np.arange(len(where))]
    )
    # One widest map per prompt at stride 2, times what is alive around it.
    alive = 4 * (config.image_size // 2) ** 2 * sum(config.decoder.fusion)
    step = max(1, DECODE_BYTES // alive)
    low: Tensor | None = None
    iou: Tensor | None = None
    for group in groups:
        one = len(np.unique(owner[group])) == 1
        maps = features.row(int(owner[group[0]])) if one and len(features) > 1 else features
        for start in range(0, len(group), step):
            rows = group[start : start + step]
            out = model.decode(
                maps,
                torch.from_numpy(points[rows]).to(device),
                torch.from_numpy(labels[rows]).to(device),
                mask_input=rows_of(None if masks is None else masks[:, None], rows),
                has_mask=None if mixed is None else mixed[rows],
                cues=rows_of(cues, rows),
                image_index=None if one else torch.from_numpy(owner[rows]).to(device),
                tokens=tokens,
            )
            if low is None or iou is None:
                if len(rows) == len(where):
                    return out.logits, out.iou
                low = out.logits.new_empty(len(where), *out.logits.shape[1:])
                iou = out.iou.new_empty(len(where), *out.iou.shape[1:])
            low[rows], iou[rows] = out.logits, out.iou
    if low is None or iou is None:
        raise PromptError("the list of prompts is empty; give at least one")
    return low, iou
