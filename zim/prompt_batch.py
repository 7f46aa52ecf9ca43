"""Prompts to the arrays the network takes: batches, padding, masks, crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from zim._arrays import as_numpy
from zim.errors import PromptError
from zim.framing import Window, crop_mask
from zim.geometry import Frame
from zim.model.prompt_encoder import ABSENT, PAD
from zim.prompts import BOX_FIRST, BOX_LAST, Prompt, check_box, check_low_res

#: the most an alpha or mask prompt is trusted, as a logit
MASK_LOGIT = 6.0


def pad_prompts(
    prompts: Sequence[Prompt], frames: Sequence[Frame]
) -> tuple[np.ndarray, np.ndarray]:
    """Bring prompts of different lengths into one batch.

    Args:
        prompts: each in the pixels of its view.
        frames: the views' frames, one for each prompt.

    Returns:
        float32 B x N x 2 points in the model frame and int64 B x N labels. As in SAM, a prompt of
        points without a box ends with one padding point (-1); shorter rows are filled with -2.
    """
    rows = []
    for prompt, frame in zip(prompts, frames, strict=True):
        points, labels = prompt.sequence()
        if prompt.box is None and len(points):
            points = np.concatenate([points, np.zeros((1, 2), np.float32)])
            labels = np.concatenate([labels, [PAD]])
        rows.append((frame.to_frame(points), labels))
    longest = max(len(labels) for _, labels in rows)
    points = np.zeros((len(rows), longest, 2), np.float32)
    labels = np.full((len(rows), longest), ABSENT, np.int64)
    for i, (xy, kinds) in enumerate(rows):
        points[i, : len(xy)] = xy
        labels[i, : len(kinds)] = kinds
    return points, labels


def mask_logits(prompts: Sequence[Prompt], frames: Sequence[Frame]) -> np.ndarray:
    """Return mask prompts as float32 B x S/2 x S/2 logits, each in its view's frame.

    Rows of prompts without a mask are zero.
    """
    side = frames[0].size // 2
    maps = np.zeros((len(prompts), side, side), np.float32)
    for i, (prompt, frame) in enumerate(zip(prompts, frames, strict=True)):
        if prompt.low_res is not None:
            low = prompt.low_res
            maps[i] = low if low.shape[-1] == side else _resize_square(low, side)
        elif prompt.mask is not None:
            alpha = np.clip(frame.shrink_mask(prompt.mask, side), 1e-4, 1 - 1e-4)
            maps[i] = np.clip(np.log(alpha / (1 - alpha)), -MASK_LOGIT, MASK_LOGIT)
    return maps


def _resize_square(low: np.ndarray, side: int) -> np.ndarray:
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(low)[None], (side, side), mode="bilinear", align_corners=False
    )
    return resized[0].numpy()


def move_into(prompt: Prompt, window: Window, frame: Frame, inner: Frame) -> Prompt:
    """Express a prompt of the picture in a crop of it."""
    points, labels = window.move_points(prompt.points, prompt.labels)
    keep = labels != ABSENT
    box = None
    if prompt.box is not None:
        corners, _ = window.move_points(prompt.box.reshape(2, 2), np.array([BOX_FIRST, BOX_LAST]))
        box = corners.reshape(4)
    low = None
    if prompt.low_res is not None:
        low = crop_mask(torch.from_numpy(prompt.low_res), window, frame, inner).numpy()
    mask = None if prompt.mask is None else np.ascontiguousarray(window.crop(prompt.mask))
    return Prompt(points[keep], labels[keep], box, mask, low)


def as_prompt(prompt: Any, size: tuple[int, int]) -> Prompt:
    """Return a prompt or a dictionary of :meth:`Prompt.create`'s arguments, checked."""
    if isinstance(prompt, Prompt):
        return prompt.checked(size)
    known = ("points", "labels", "box", "scribble", "mask", "low_res")
    if not isinstance(prompt, dict):
        raise PromptError(
            f"a prompt is a {type(prompt).__name__}; expected zim.Prompt or a dictionary with "
            f"any of {', '.join(known)}"
        )
    if unknown := [k for k in prompt if k not in known]:
        raise PromptError(f"unknown prompt key {unknown[0]!r}; expected any of {', '.join(known)}")
    return Prompt.create(size, **prompt)


def split_batch(
    point_coords: Any, point_labels: Any, box: Any, mask_input: Any, size: tuple[int, int]
) -> tuple[list[Prompt], bool]:
    """Turn SamPredictor's arguments into prompts; tell whether they were a batch."""
    if (point_coords is None) != (point_labels is None):
        given, missing = ("point_coords", "point_labels")
        if point_coords is None:
            given, missing = missing, given
        raise PromptError(f"{given} were given without {missing}; give both or neither")
    batched_points = len(_shape(point_coords, "point_coords")) == 3
    ranks = (
        (point_coords, 3, "point_coords"),
        (point_labels if batched_points else None, 2, "point_labels"),
        (box, 2, "box"),
        (mask_input, 4, "mask_input"),
    )
    lengths: dict[str, int] = {}
    for value, rank, name in ranks:
        if value is None:
            continue
        shape = _shape(value, name)
        if len(shape) == rank:
            lengths[name] = shape[0]
        elif name == "point_labels":
            raise PromptError(
                f"point_labels have shape {shape}; expected B x N beside B x N x 2 points"
            )
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{k} has {v}" for k, v in lengths.items())
        raise PromptError(f"batch sizes differ: {text}; give one row per prompt in each")
    count = next(iter(lengths.values()), 1)

    def row(value: Any, rank: int, i: int) -> Any:
        if value is None:
            return None
        return value[i] if len(np.shape(value)) == rank else value

    prompts = []
    for i in range(count):
        points, labels = _without_padding(row(point_coords, 3, i), row(point_labels, 2, i))
        low = row(mask_input, 4, i)
        prompt = Prompt.create(
            size,
            points=points,
            labels=labels,
            box=None if box is None else check_box(row(box, 2, i), size),
            low_res=None if low is None else check_low_res(low),
        )
        prompts.append(prompt)
    return prompts, bool(lengths)


def _without_padding(points: Any, labels: Any) -> tuple[Any, Any]:
    """Drop points of label -1, with which SAM's batches are filled up."""
    if labels is None:
        return points, labels
    kinds = as_numpy(labels).reshape(-1)
    if not (kinds == PAD).any() or len(points) != len(kinds):
        return points, labels
    return as_numpy(points)[kinds != PAD], kinds[kinds != PAD]


def _shape(value: Any, name: str) -> tuple[int, ...]:
    try:
        return tuple(np.shape(value))
    except (TypeError, ValueError, RuntimeError) as error:  # a list of tensors may be no array
        raise PromptError(
            f"{name}: rows of different lengths or no numbers; expected numbers in rows"
        ) from error
