"""Matte-Anything without its detector: SAM's mask, a trimap round its rim, ViTMatte.

Trimap rule: pixels within 1 % of the longest side (at least 2 pixels) of the mask's rim are
unknown, inside is 1, outside 0. Known pixels keep their value. The original also asks
GroundingDINO for transparent objects; nothing of that is done here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from zim.prompts import Prompt
from zim.segmenters.base import RivalSegmenter, from_alpha
from zim.segmenters.classical import band_trimap
from zim.segmenters.hub import HubSam, load_hub_sam, load_transformers
from zim.weights.rivals import RIVALS, Rival

TRIMAP_SHARE = 0.01
#: sides that ViTMatte takes
_MULTIPLE = 32


class MatteAnything(RivalSegmenter):
    """SAM finds the object, ViTMatte its edge."""

    def __init__(self, sam: HubSam, vitmatte: Any) -> None:
        """Join a SAM and a ``VitMatteForImageMatting`` on the same device."""
        self.sam = sam
        self.vitmatte = vitmatte.eval()

    def _encode(self, rgb: np.ndarray) -> None:
        self.sam.set_image(rgb)

    def _answer(
        self, rgb: np.ndarray, prompt: Prompt, multimask: bool, logits: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        masks, scores, _ = self.sam._answer(rgb, prompt, multimask, False)
        answers = [
            from_alpha(self._matte(rgb, mask > 0.5), float(score), logits)
            for mask, score in zip(masks, scores, strict=True)
        ]
        mattes, quality, low = (np.concatenate([a[k] for a in answers]) for k in range(3))
        return mattes, quality, low

    @torch.inference_mode()
    def _matte(self, rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
        trimap = band_trimap(mask, max(2, round(TRIMAP_SHARE * max(mask.shape))))
        colour = torch.from_numpy(rgb).permute(2, 0, 1).float() / 127.5 - 1
        stacked = torch.cat([colour, torch.from_numpy(trimap).float()[None]])[None]
        height, width = mask.shape
        pad = (0, -width % _MULTIPLE, 0, -height % _MULTIPLE)
        pixels = F.pad(stacked, pad).to(self.sam.device)
        alpha = self.vitmatte(pixels).alphas[0, 0, :height, :width].float().clamp(0, 1)
        return np.where(trimap == 0.5, alpha.cpu().numpy(), trimap)


def load_matte_anything(
    rival: Rival, *, device: str = "auto", dtype: str = "auto"
) -> MatteAnything:
    """Load SAM ViT-B and ViTMatte, each from ``ZIM_HOME/models`` or the hub.

    Raises:
        ZimError: a package or weights are missing.
    """
    sam = load_hub_sam(RIVALS["sam_vit_b"], device=device, dtype=dtype)
    hub_id = rival.source.split(" ")[0]
    vitmatte = load_transformers("VitMatteForImageMatting", rival.folder(), hub_id, rival.licence)
    return MatteAnything(sam, vitmatte.to(sam.device))
