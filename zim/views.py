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

from zim.config import ConvEncoderConfig
from zim.errors import PromptError
from zim.geometry import Frame
from zim.model.matting import ImageFeatures, ZimNetwork
from zim.model.prompt_encoder import ABSENT
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


def _decode_apart(
    model: ZimNetwork,
    features: ImageFeatures,
    views: Sequence[View],
    where: Sequence[int],
    prompts: Sequence[Prompt],
    tokens: slice,
    given: NDArray[np.bool_],
) -> tuple[Tensor, Tensor]:
    """Decode prompts with a mask and those without one after the other."""
    order, lows, scores = [], [], []
    for wanted in (True, False):
        rows = np.flatnonzero(given == wanted).tolist()
        own, some = [where[i] for i in rows], [prompts[i] for i in rows]
        low, iou = decode_views(model, features, views, own, some, tokens)
        order += rows
        lows.append(low)
        scores.append(iou)
    back = torch.from_numpy(np.argsort(order)).to(lows[0].device)
    return torch.cat(lows)[back], torch.cat(scores)[back]


def decode_views(
    model: ZimNetwork,
    features: ImageFeatures,
    views: Sequence[View],
    where: Sequence[int],
    prompts: Sequence[Prompt],
    tokens: slice,
) -> tuple[Tensor, Tensor]:
    """Decode prompts, each in its view.

    Args:
        model: the network.
        features: from :func:`encode_views`.
        views: the same views.
        where: which view each prompt belongs to.
        prompts: in the pixels of their views.
        tokens: mask tokens to decode.

    Returns:
        Low-res logits B x C x S/2 x S/2 and quality B x C, on the model's device.
    """
    given = np.array([p.mask is not None or p.low_res is not None for p in prompts])
    if given.any() and not given.all():  # "no mask" is an embedding of its own: two passes
        return _decode_apart(model, features, views, where, prompts, tokens, given)
    config, device = model.config, model.device
    frames = [views[k].frame for k in where]
    points, labels = _pad(prompts, frames)
    masks = _masks(prompts, frames)
    cues = _cues(views, where, points, labels, masks, config.image_size, config.cue_planes)

    def rows_of(array: np.ndarray | None, rows: np.ndarray) -> Tensor | None:
        if array is None:
            return None
        return torch.from_numpy(array[rows]).to(device, model.dtype)

    # Gathering an image's maps for each of its prompts costs more than a pass per image.
    each = device.type == "cpu" and len(set(where)) < len(where)
    owner = np.asarray(where)
    groups = (
        [np.flatnonzero(owner == k) for k in np.unique(owner)] if each else [np.arange(len(where))]
    )
    # One widest map per prompt at stride 2, times what is alive around it.
    alive = 4 * (config.image_size // 2) ** 2 * sum(config.decoder.fusion)
    step = max(1, DECODE_BYTES // alive)
    low: Tensor | None = None
    iou: Tensor | None = None
    for group in groups:
        one = len(np.unique(owner[group])) == 1
        some = features.row(int(owner[group[0]])) if one and len(features) > 1 else features
        for start in range(0, len(group), step):
            rows = group[start : start + step]
            out = model.decode(
                some,
                torch.from_numpy(points[rows]).to(device),
                torch.from_numpy(labels[rows]).to(device),
                mask_input=rows_of(None if masks is None else masks[:, None], rows),
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


def _pad(prompts: Sequence[Prompt], frames: Sequence[Frame]) -> tuple[np.ndarray, np.ndarray]:
    """Do what ``pad_prompts`` does for prompts of different frames."""
    parts = [pad_prompts([p], f) for p, f in zip(prompts, frames, strict=True)]
    longest = max(labels.shape[1] for _, labels in parts)
    points = np.zeros((len(parts), longest, 2), np.float32)
    labels = np.full((len(parts), longest), ABSENT, np.int64)
    for i, (xy, kinds) in enumerate(parts):
        points[i, : xy.shape[1]], labels[i, : kinds.shape[1]] = xy[0], kinds[0]
    return points, labels


def _masks(prompts: Sequence[Prompt], frames: Sequence[Frame]) -> np.ndarray | None:
    """Do what ``mask_logits`` does for prompts of different frames."""
    if len(set(frames)) == 1:
        return mask_logits(prompts, frames[0])
    parts = [mask_logits([p], f) for p, f in zip(prompts, frames, strict=True)]
    some = [part for part in parts if part is not None]
    return np.concatenate(some) if some else None


def _cues(
    views: Sequence[View],
    where: Sequence[int],
    points: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray | None,
    side: int,
    planes: int,
) -> np.ndarray | None:
    """Compute the cue planes of all prompts, views side by side on the processors."""
    if not planes:
        return None
    from zim.cues import compute_cues

    owner = np.asarray(where)
    groups = [(int(k), np.flatnonzero(owner == k)) for k in np.unique(owner)]

    def of_view(group: tuple[int, np.ndarray]) -> np.ndarray:
        k, rows = group
        mask = None if masks is None else masks[rows]
        return compute_cues(views[k].picture, points[rows], labels[rows], side, mask, planes)

    if len(groups) == 1:
        return of_view(groups[0])
    cues = np.empty((len(where), planes, side // 2, side // 2), np.float32)
    for (_, rows), found in zip(groups, each(of_view, groups), strict=True):
        cues[rows] = found
    return cues
