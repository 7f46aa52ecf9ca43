"""SAM, SAM 2 and HQ-SAM through ``transformers``.

Masks are binary, logit > 0, as their authors' predictors return them and as the paper scores them.
Boxes and clicks stay float32: in bfloat16 a coordinate of 1000 is rounded to a multiple of 4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from zim._extras import require
from zim.api import choose_device, choose_dtype
from zim.errors import CheckpointError, DownloadError, one_line
from zim.geometry import Frame
from zim.prompt_batch import MASK_LOGIT
from zim.prompts import Prompt
from zim.segmenters.base import RivalSegmenter
from zim.weights.rivals import Rival
from zim.weights.store import cache_only

_CLASSES = {"sam": "SamModel", "sam2": "Sam2Model", "sam_hq": "SamHQModel"}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class HubSam(RivalSegmenter):
    """One ``transformers`` model of the SAM family behind our protocol."""

    def __init__(self, model: Any, *, dtype: torch.dtype = torch.float32) -> None:
        """Wrap a ``SamModel``, ``Sam2Model`` or ``SamHQModel``.

        Args:
            model: float32, on its device.
            dtype: the image encoder computes in it.
        """
        self.model = model.eval()
        self.dtype = dtype
        self.stretched = type(model).__name__ == "Sam2Model"
        vision = model.config.vision_config
        size = getattr(vision, "image_size", None)
        if size is None:
            size = model.config.prompt_encoder_config.image_size
        self.size = int(size if isinstance(size, int) else size[0])
        self._embedding: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        """Return the model's device."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def _encode(self, rgb: np.ndarray) -> None:
        device = self.device
        half = self.dtype != torch.float32
        with torch.autocast(device.type, self.dtype, enabled=half):
            found = self.model.get_image_embeddings(self._pixels(rgb).to(device))
        if type(self.model).__name__ == "SamHQModel":
            self._embedding = {
                "image_embeddings": found[0].float(),
                "intermediate_embeddings": [part.float() for part in found[1]],
            }
        elif self.stretched:
            self._embedding = {"image_embeddings": [part.float() for part in found]}
        else:
            self._embedding = {"image_embeddings": found.float()}

    def _pixels(self, rgb: np.ndarray) -> torch.Tensor:
        """Scale and normalise: SAM pads the right and bottom with zeros, SAM 2 stretches."""
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (_MEAN, _STD))
        if self.stretched:
            whole = torch.from_numpy(rgb).permute(2, 0, 1)[None].float()
            small = (
                F.interpolate(
                    whole,
                    (self.size, self.size),
                    mode="bilinear",
                    antialias=True,
                    align_corners=False,
                )[0]
                .round()
                .clamp(0, 255)
            )
            return ((small / 255 - mean) / std)[None]
        small = torch.from_numpy(self._frame(rgb.shape).resize(rgb).copy()).permute(2, 0, 1).float()
        pixels = (small / 255 - mean) / std
        return F.pad(pixels, (0, self.size - pixels.shape[2], 0, self.size - pixels.shape[1]))[None]

    def _frame(self, shape: tuple[int, ...]) -> Frame:
        return Frame((shape[0], shape[1]), self.size)

    def _to_frame(self, xy: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
        if self.stretched:
            moved = np.asarray(xy, np.float64) * (self.size / shape[1], self.size / shape[0])
        else:
            moved = self._frame(shape).to_frame(xy)
        return torch.from_numpy(np.asarray(moved, np.float32)).to(self.device)

    @torch.inference_mode()
    def _answer(
        self, rgb: np.ndarray, prompt: Prompt, multimask: bool, logits: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        asked: dict[str, Any] = {}
        if len(prompt.points):
            asked["input_points"] = self._to_frame(prompt.points, rgb.shape)[None, None]
            labels = torch.from_numpy(prompt.labels).to(self.device)
            asked["input_labels"] = labels.to(torch.int32)[None, None]
        if prompt.box is not None:
            corners = self._to_frame(prompt.box.reshape(2, 2), rgb.shape)
            asked["input_boxes"] = corners.reshape(1, 1, 4)
        mask = self._mask(prompt, rgb.shape)
        if mask is not None:
            asked["input_masks"] = mask.to(self.device)
        out = self.model(**self._embedding, **asked, multimask_output=multimask)
        low = out.pred_masks[0, :1].float()  # 1 C h w
        if self.stretched:
            size = (rgb.shape[0], rgb.shape[1])
            full = F.interpolate(low, size, mode="bilinear", align_corners=False)[0]
        else:
            full = self._frame(rgb.shape).enlarge(low)[0]
        mattes = full if logits else (full > 0).float()
        scores = out.iou_scores[0, 0].float()
        return mattes.cpu().numpy(), scores.cpu().numpy(), low[0].cpu().numpy()

    def _mask(self, prompt: Prompt, shape: tuple[int, ...]) -> torch.Tensor | None:
        """Return a mask prompt as 1 x 1 x m x m logits, m a quarter of the frame."""
        side = self.size // 4
        if prompt.low_res is not None:
            low = torch.from_numpy(prompt.low_res)[None].float()
            return F.interpolate(low, (side, side), mode="bilinear", align_corners=False)
        if prompt.mask is None:
            return None
        alpha = torch.from_numpy(prompt.mask)[None, None].float()
        if self.stretched:
            small = F.interpolate(alpha, (side, side), mode="bilinear", antialias=True)
        else:
            small = torch.from_numpy(self._frame(shape).shrink_mask(prompt.mask, side))[None, None]
        return torch.logit(small, 1e-4).clamp(-MASK_LOGIT, MASK_LOGIT)


def load_hub_sam(rival: Rival, *, device: str = "auto", dtype: str = "auto") -> HubSam:
    """Load one of the SAM family from ``ZIM_HOME/models/<name>`` or the hub.

    Raises:
        ZimError: transformers or the weights are missing, or the device or type is unknown.
    """
    where = choose_device(device)
    kind = torch.float32 if dtype == "auto" else choose_dtype(dtype, where)
    model = load_transformers(_CLASSES[rival.family], rival.folder(), rival.source, rival.licence)
    return HubSam(model.to(where), dtype=kind)


def load_transformers(class_name: str, folder: Path, hub_id: str, licence: str) -> Any:
    """Load a ``transformers`` model from a local folder, else from the hub.

    Raises:
        CheckpointError: the folder holds something else.
        DownloadError: it is not here and cannot be fetched.
    """
    cls = getattr(require("transformers", "eval"), class_name)
    if folder.is_dir():
        try:
            return cls.from_pretrained(folder, local_files_only=True).float()
        except (OSError, ValueError, RuntimeError) as error:
            reason = one_line(error, 200)
            raise CheckpointError(
                f"{folder}: not a {class_name} folder of transformers ({reason})"
            ) from error
    try:
        return cls.from_pretrained(hub_id, local_files_only=cache_only()).float()
    except (OSError, ValueError) as error:
        raise DownloadError(
            f"{folder.name}: no folder {folder}, and {hub_id} (licence {licence}) cannot be "
            "fetched from the Hugging Face hub; download that repository there, or use the network "
            "without ZIM_OFFLINE"
        ) from error
