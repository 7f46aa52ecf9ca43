"""The second round of a prompt: the mask so far and a click where it is most wrong, as in SAM."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zim.cues import compute_cues
from zim_training.matting.prompting import ABSENT


def lone_clicks(labels: Tensor) -> Tensor:
    """Tell which prompts ``b n`` are one positive click and nothing else, ``b`` bool."""
    return ((labels == 1).sum(1) == 1) & ~((labels == 0) | (labels >= 2)).any(1)


def correct(
    batch: dict[str, Tensor], logits: Tensor, cue_planes: int
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Add a click to every prompt, in the middle of the largest error of an answer.

    Args:
        batch: with ``image`` n 3 S S, ``size`` n 2, ``owner`` b, ``alpha`` b 1 S S, ``points`` and
            ``labels``; prompts without a free slot, or answered without error, get no click.
        logits: b 1 h w, the answers so far.
        cue_planes: how many cue planes to compute again; 0 for none.

    Returns:
        A new batch, the mask input b 1 h w, and which prompts are still lone clicks: none.
    """
    side = batch["alpha"].shape[-1]
    answers = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)[:, 0] > 0
    wrong = (answers != (batch["alpha"][:, 0] > 0.5)).cpu().numpy()
    points, labels = batch["points"].clone(), batch["labels"].clone()
    new: list[Tensor] = []
    for row, error in enumerate(wrong):
        image = int(batch["owner"][row])
        height, width = (int(v) for v in batch["size"][image])
        free = torch.nonzero(labels[row] == ABSENT)[:, 0]
        if (spot := deepest(error[:height, :width])) and len(free):
            x, y = spot
            points[row, free[0]] = points.new_tensor([x, y])
            labels[row, free[0]] = int(batch["alpha"][row, 0, y, x] > 0.5)
        if cue_planes:
            picture = batch["image"][image, :, :height, :width].permute(1, 2, 0).cpu().numpy()
            prompt = points[row][None].cpu().numpy(), labels[row][None].cpu().numpy()
            mask = logits[row].float().cpu().numpy()
            cues = compute_cues(picture, *prompt, side, mask, cue_planes)
            new.append(torch.from_numpy(cues[0]))
    changed = batch | {"points": points, "labels": labels}
    if cue_planes:
        changed["cues"] = torch.stack(new).to(batch["cues"])
    return changed, logits, torch.zeros_like(labels[:, 0], dtype=torch.bool)


def deepest(error: np.ndarray) -> tuple[int, int] | None:
    """Return the pixel (x, y) of a region h x w that is farthest from its edge; None if empty."""
    depth = cv2.distanceTransform(np.pad(error.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    if depth.max() < 1:
        return None
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)
