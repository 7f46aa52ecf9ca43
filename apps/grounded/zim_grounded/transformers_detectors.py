"""Open-vocabulary detectors of transformers: GroundingDINO, MM-GroundingDINO, OWLv2.

Boxes and scores are read from the raw outputs. The library's own post-processing decodes labels
from single tokens, which merges phrases ("glass oil") and loses words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zim._extras import require
from zim.errors import CheckpointError, PromptError, one_line
from zim_grounded.candidates import CandidateDetector, Found, Thresholds
from zim_grounded.phrases import plain
from zim_grounded.text_detector import Answer, TextDetector, assign, corners

#: OWLv2's least score of a detection; its scores are lower than GroundingDINO's
OWL_BOX = 0.1


def load_folder(
    folder: Path, name: str, device: str = "auto", thresholds: Thresholds | None = None
) -> CandidateDetector:
    """Load a detector from a folder in the layout of transformers.

    Raises:
        CheckpointError: the folder holds another kind of model, or is damaged.
    """
    transformers = require("transformers", "grounded")
    from zim.api import choose_device

    where = choose_device(device)
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()  # a bar for two seconds of loading is noise
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = _KINDS.get(config.model_type)
        if kind is None:
            raise CheckpointError(
                f"{folder} holds a {config.model_type!r} model; expected one of {', '.join(_KINDS)}"
            )
        processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = one_line(error, 200)
        raise CheckpointError(f"{folder}: cannot be loaded as a detector ({reason})") from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    return kind(model.to(where).float().eval(), processor, name, thresholds)


class GroundingDetector(TextDetector):
    """GroundingDINO and MM-GroundingDINO."""

    def __init__(
        self, model: Any, processor: Any, name: str, thresholds: Thresholds | None = None
    ) -> None:
        """Wrap a loaded model and its processor."""
        super().__init__(processor.tokenizer, int(model.config.max_text_len), name, thresholds)
        self.model, self.processor = model, processor

    def answer(self, image: np.ndarray, text: str) -> Answer:
        """Run the model on a picture and a text."""
        import torch

        inputs = self.processor(images=image, text=text, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        return Answer(
            inputs["input_ids"][0].tolist(),
            outputs.logits[0].float().sigmoid().cpu().numpy(),
            outputs.pred_boxes[0].float().cpu().numpy(),
        )


class OwlDetector(CandidateDetector):
    """OWLv2 and OWL-ViT: every phrase is its own query, scores do not depend on one another."""

    def __init__(
        self, model: Any, processor: Any, name: str, thresholds: Thresholds | None = None
    ) -> None:
        """Wrap a loaded model and its processor."""
        self.model, self.processor, self.name = model, processor, name
        self.thresholds = thresholds or Thresholds(box=OWL_BOX)

    def candidates(self, image: np.ndarray, phrases: Sequence[str]) -> list[Found]:
        """Return the best candidates of every phrase.

        Raises:
            PromptError: a phrase is empty, or longer than the text encoder takes.
        """
        import torch

        limit = int(self.model.config.text_config.max_position_embeddings)
        for phrase in phrases:
            count = len(self.processor.tokenizer(plain(phrase))["input_ids"])
            if not plain(phrase) or count > limit:
                raise PromptError(
                    f"phrase {phrase[:40]!r} has {count} tokens; {self.name} takes 3 to {limit}, "
                    "start and end included; shorten it"
                )
        inputs = self.processor(
            images=image, text=[[plain(p) for p in phrases]], return_tensors="pt"
        ).to(self.model.device)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        scores = outputs.logits[0].float().sigmoid().cpu().numpy()
        height, width = image.shape[:2]
        # OWLv2 pads pictures to squares, to the right and below; OWL-ViT squeezes them
        padded = self.model.config.model_type == "owlv2"
        frame = (max(height, width),) * 2 if padded else (height, width)
        boxes = corners(outputs.pred_boxes[0].float().cpu().numpy(), *frame)
        spans = [(i, i + 1) for i in range(len(phrases))]
        return assign(scores, boxes, spans, phrases, [plain(p) for p in phrases], (height, width))


_KINDS: dict[str, Any] = {
    "grounding-dino": GroundingDetector,
    "mm-grounding-dino": GroundingDetector,
    "owlv2": OwlDetector,
    "owlvit": OwlDetector,
}
