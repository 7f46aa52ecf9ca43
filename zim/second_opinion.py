"""A second opinion: what a model says about the mirrored view where it doubts its own answer.

A small network contradicts itself where it is wrong: the mean of its answers to a view and to the
mirrored view errs less than either. Where its predicted quality is high there is nothing to gain,
so most prompts pay nothing. A model asks for this with ``ZimConfig.mirror_below``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from zim.config import ZimConfig
from zim.model.matting import ImageFeatures, ZimNetwork
from zim.prompts import Prompt
from zim.views import View, decode_views, encode_views

#: how far below ``mirror_below`` the predicted quality has to be for both to count the same;
#: in between the second counts less, so that rounding never decides about a whole opinion
FADE = 0.05

#: mirrored views that were encoded before, by the place of the view
Kept = dict[int, tuple[View, ImageFeatures]]


def second_opinion(
    model: ZimNetwork,
    views: Sequence[View],
    where: Sequence[int],
    prompts: Sequence[Prompt],
    tokens: slice,
    low: Tensor,
    iou: Tensor,
    kept: Kept | None = None,
    cues: Sequence[NDArray[np.float32] | None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Temper doubtful single answers with those to the mirrored views.

    Args:
        model: the network.
        views: of the prompts.
        where: which view each prompt belongs to.
        prompts: in the pixels of their views.
        tokens: mask tokens that were decoded.
        low: float32 B x C x S/2 x S/2 logits, from :func:`zim.views.decode_views`.
        iou: float32 B x C predicted quality.
        kept: remembers the mirrored view of a picture that is asked by itself.
        cues: what :func:`zim.views.cues_of` said about the doubtful prompts, planes x S/2 x S/2
            each (the others may be None); in a mirror it serves the second opinion. Computed anew
            where none are given.

    Returns:
        Both, with rows below ``ZimConfig.mirror_below`` replaced: alphas and qualities are means.
        Alternatives (C > 1) are returned as they are: they are there to differ.
    """
    doubt = doubts(model.config, iou)
    rows = torch.nonzero(doubt).flatten().tolist()
    if not rows:
        return low, iou
    asked = sorted({where[i] for i in rows})
    turned, features = _mirrored(model, views, asked, kept)
    second, quality = decode_views(
        model,
        features,
        turned,
        [asked.index(where[i]) for i in rows],
        [mirrored_prompt(prompts[i], views[where[i]]) for i in rows],
        tokens,
        cues=_turned_cues(cues, rows, [views[where[i]] for i in rows]),
    )
    low, iou = low.clone(), iou.clone()
    for logits, score, i in zip(second, quality, rows, strict=True):
        weight = float(doubt[i]) / 2
        back = mirrored_logits(logits, views[where[i]].frame.scaled[1])
        low[i] = torch.logit(torch.lerp(low[i].sigmoid(), back.sigmoid(), weight), 1e-6)
        iou[i] = torch.lerp(iou[i], score, weight)
    return low, iou


def doubts(config: ZimConfig, iou: Tensor) -> Tensor:
    """Return how much a second opinion about each answer counts.

    Args:
        config: of the network.
        iou: B x C predicted quality.

    Returns:
        float32 B on the CPU, from 0 (it is not asked) to 1 (it counts as much as the first).
    """
    limit = config.mirror_below
    if not limit or iou.shape[1] != 1:
        return torch.zeros(len(iou), dtype=torch.float32)
    return ((limit - iou[:, 0]) / FADE).clamp(0, 1).nan_to_num(0).float().cpu()


def _turned_cues(
    cues: Sequence[NDArray[np.float32] | None] | None, rows: list[int], views: list[View]
) -> NDArray[np.float32] | None:
    """Mirror cue planes; GrabCut, which makes two of them, takes a while, and in a mirror too."""
    if cues is None:
        return None
    turned = []
    for i, view in zip(rows, views, strict=True):
        plane = cues[i]
        if plane is None:
            return None
        turned.append(mirrored_logits(torch.from_numpy(plane), view.frame.scaled[1]).numpy())
    return np.stack(turned)


def _mirrored(
    model: ZimNetwork, views: Sequence[View], asked: Sequence[int], kept: Kept | None
) -> tuple[list[View], ImageFeatures]:
    """Mirror and encode views, one of a kept picture only once."""
    if kept is not None and len(asked) == 1 and asked[0] in kept:
        view, features = kept[asked[0]]
        return [view], features
    turned = [View(_left_is_right(views[k].picture), views[k].frame) for k in asked]
    features = encode_views(model, turned)
    if kept is not None and len(asked) == 1:
        kept[asked[0]] = turned[0], features
    return turned, features


def mirrored_prompt(prompt: Prompt, view: View) -> Prompt:
    """Express a prompt in the mirrored view: left becomes right."""
    width = view.frame.original[1]
    points = prompt.points.copy()
    points[:, 0] = width - 1 - points[:, 0]
    box, mask, low = prompt.box, prompt.mask, prompt.low_res
    if box is not None:
        box = np.array([width - box[2], box[1], width - box[0], box[3]], box.dtype)
    if mask is not None:
        mask = _left_is_right(mask)
    if low is not None:
        pixels = 2 * low.shape[-1] / view.frame.size * view.frame.scaled[1]
        low = mirrored_logits(torch.from_numpy(low), round(pixels)).numpy()
    return replace(prompt, points=points, box=box, mask=mask, low_res=low)


def mirrored_logits(logits: Tensor, width: int) -> Tensor:
    """Mirror low-res maps of a view; what lies beyond it is as good as any value, and stays.

    Args:
        logits: ``c m m`` at stride 2, logits or cues, of which the first ``width / 2`` columns are
            the view.
        width: of the view in the frame, in pixels; where it is odd, columns come to lie half way
            between columns, and are interpolated.

    Returns:
        ``c m m``, a new tensor.
    """
    columns = -(-width // 2)
    turned = logits[..., :columns].flip(-1)
    if width % 2 and columns > 1:
        turned = (turned + F.pad(turned[..., 1:], (0, 1), mode="replicate")) / 2
    result = logits.clone()
    result[..., :columns] = turned
    return result


def _left_is_right(values: np.ndarray) -> np.ndarray:
    return values[:, ::-1].copy()  # torch takes no negative strides, not even of single columns
