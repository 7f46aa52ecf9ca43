"""The original GroundingDINO package (``groundingdino-py``) with its own ``.pth`` files.

It runs on transformers from 4.36 on and below 5, so it lives in an environment of its own: the
extra ``groundingdino``, tested by ``.ci/groundingdino``. Nothing of it needs compiling.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zim._extras import require
from zim.errors import CheckpointError, one_line
from zim.weights.store import read_state
from zim_grounded.candidates import Thresholds
from zim_grounded.text_detector import Answer, TextDetector

NAME = "groundingdino-py"
_SHORT, _LONG = 800, 1333
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class OriginalGroundingDino(TextDetector):
    """A model of the original package; boxes go to phrases by our rule, not by its decoding."""

    def __init__(self, model: Any, device: Any, thresholds: Thresholds | None = None) -> None:
        """Wrap a built model."""
        super().__init__(model.tokenizer, int(model.max_text_len), NAME, thresholds)
        self.model, self.device = model.to(device).eval(), device

    @classmethod
    def load(
        cls,
        config: str | Path,
        weights: str | Path,
        device: str = "auto",
        thresholds: Thresholds | None = None,
    ) -> OriginalGroundingDino:
        """Build the model of a configuration and read its weights.

        Args:
            config: a ``.py`` file of the package; it is executed, so take it from people you trust.
            weights: a ``.pth`` file, read without running code from it.
            device: as for :func:`zim.load`.
            thresholds: what makes a candidate a detection.

        Raises:
            CheckpointError: a file is missing or does not fit, or transformers is too new.
            MissingExtraError: the package is not installed.
        """
        for path in (config, weights):
            if not Path(path).is_file():
                raise CheckpointError(
                    f"{path} does not exist; expected --detector {NAME}:CONFIG.py:WEIGHTS.pth"
                )
        models = require("groundingdino.models", "groundingdino")
        from groundingdino.util.misc import (  # pyright: ignore[reportMissingImports]
            clean_state_dict,
        )
        from groundingdino.util.slconfig import (  # pyright: ignore[reportMissingImports]
            SLConfig,
        )

        from zim.api import choose_device

        where = choose_device(device)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # it prints, and stdout is for results
                args = SLConfig.fromfile(str(config))
                args.device = str(where)
                model = models.build_model(args)
            fit = model.load_state_dict(clean_state_dict(read_state(Path(weights))), strict=False)
        except (AttributeError, OSError, RuntimeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            reason = one_line(error, 200)
            raise CheckpointError(
                f"{config} with {weights} cannot be built ({reason}); {NAME} needs "
                "transformers>=4.36,<5 and, for its text encoder, bert-base-uncased or a folder "
                "named as text_encoder_type"
            ) from error
        # released files carry label_enc and a position buffer that this package does not use
        if fit.missing_keys:
            missing = ", ".join(fit.missing_keys[:3])
            raise CheckpointError(f"{weights} lacks {missing} ...; it does not fit {config}")
        return cls(model, where, thresholds)

    def answer(self, image: np.ndarray, text: str) -> Answer:
        """Run the model on a picture and a text."""
        import torch

        pixels = torch.from_numpy(_resized(image)).permute(2, 0, 1).float().div(255)
        mean, std = (torch.tensor(v)[:, None, None] for v in (_MEAN, _STD))
        with torch.inference_mode():
            outputs = self.model(((pixels - mean) / std)[None].to(self.device), captions=[text])
        return Answer(
            self.tokenizer(text)["input_ids"],
            outputs["pred_logits"][0].float().sigmoid().cpu().numpy(),
            outputs["pred_boxes"][0].float().cpu().numpy(),
        )


def _resized(image: np.ndarray) -> np.ndarray:
    """Scale the short side to 800 pixels, the long one to 1333 at most, as the package does."""
    height, width = image.shape[:2]
    short = min(_SHORT, round(_LONG * min(height, width) / max(height, width)))
    if width < height:
        size = (short, int(short * height / width))
    else:
        size = (int(short * width / height), short)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
