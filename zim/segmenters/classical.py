"""Baselines without weights: GrabCut, and closed-form matting in a band round its rim."""

from __future__ import annotations

import cv2
import numpy as np

from zim._extras import require
from zim.errors import PromptError
from zim.grabcut import grabcut
from zim.prompts import Prompt
from zim.segmenters.base import RivalSegmenter, from_alpha

GRABCUT_ITERATIONS = 5
#: radius of the certain disc round a click, as a share of the longest side
SEED_SHARE = 0.02
#: radius of the probable disc
GUESS_SHARE = 0.25
#: half width of the unknown band round GrabCut's rim
BAND_SHARE = 0.02


def grabcut_mask(rgb: np.ndarray, prompt: Prompt) -> np.ndarray:
    """Five iterations of GrabCut at full size. Bool H x W.

    From a box everything outside is background. From clicks a small disc round each is certain, a
    larger one round positive ones probable, the rest probable background.

    Args:
        rgb: H x W x 3 uint8.
        prompt: clicks and a box; at least one of them.

    Raises:
        PromptError: the prompt has neither, or only negative clicks.
    """
    height, width = rgb.shape[:2]
    positive, negative = prompt.points[prompt.labels == 1], prompt.points[prompt.labels == 0]
    if prompt.box is None and not len(positive):
        raise PromptError("GrabCut needs a box or a positive click; it takes no mask or logits")
    labels = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
    side = max(height, width)
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box.astype(int)
        labels[:] = cv2.GC_BGD
        labels[y0:y1, x0:x1] = cv2.GC_PR_FGD
    else:
        for x, y in positive:
            centre, radius = (int(x), int(y)), max(2, round(GUESS_SHARE * side))
            cv2.circle(labels, centre, radius, cv2.GC_PR_FGD, -1)
    for points, kind in ((positive, cv2.GC_FGD), (negative, cv2.GC_BGD)):
        for x, y in points:
            cv2.circle(labels, (int(x), int(y)), max(1, round(SEED_SHARE * side)), kind, -1)
    if not ((labels & 1) == 0).any():
        return np.ones((height, width), dtype=bool)  # the box is the frame: nothing to learn from
    return grabcut(rgb, labels, GRABCUT_ITERATIONS)


def band_trimap(mask: np.ndarray, radius: int) -> np.ndarray:
    """1 inside, 0 outside and 0.5 within ``radius`` of a bool mask's rim. Float64 H x W."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    trimap = np.full(mask.shape, 0.5)
    trimap[cv2.erode(mask.view(np.uint8), kernel) == 1] = 1.0
    trimap[cv2.dilate(mask.view(np.uint8), kernel) == 0] = 0.0
    return trimap


def closed_form_alpha(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Closed-form matting (Levin et al. 2008) in a band round a mask's rim. H x W in [0, 1].

    Args:
        rgb: H x W x 3 uint8.
        mask: bool H x W.
    """
    trimap = band_trimap(mask, max(2, round(BAND_SHARE * max(mask.shape))))
    if not (trimap == 1).any() or not (trimap == 0).any():
        return mask.astype(np.float32)  # too thin for a band: nothing for the solver to hold on to
    alpha = require("pymatting", "eval").estimate_alpha_cf(rgb / 255.0, trimap)
    return np.clip(alpha, 0, 1).astype(np.float32)


class GrabCut(RivalSegmenter):
    """GrabCut (Rother et al. 2004); binary."""

    def _answer(
        self, rgb: np.ndarray, prompt: Prompt, multimask: bool, logits: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return from_alpha(grabcut_mask(rgb, prompt), 1.0, logits)


class ClosedForm(RivalSegmenter):
    """GrabCut softened by closed-form matting."""

    def _answer(
        self, rgb: np.ndarray, prompt: Prompt, multimask: bool, logits: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return from_alpha(closed_form_alpha(rgb, grabcut_mask(rgb, prompt)), 1.0, logits)
