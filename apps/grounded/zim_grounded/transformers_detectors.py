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
from zim.errors import CheckpointError, PromptError
from zim_grounded.candidates import PROPOSED, CandidateDetector, Found, Thresholds, cut_box
from zim_grounded.phrases import batches, plain, token_spans

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
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder}: cannot be loaded as a detector ({reason})") from error
    return kind(model.to(where).float().eval(), processor, name, thresholds)


class GroundingDetector(CandidateDetector):
    """GroundingDINO and MM-GroundingDINO: all phrases in one text, one picture per pass.

    Pictures are never put in one batch: padding them to one size changes the scores.
    """

    def __init__(
        self, model: Any, processor: Any, name: str, thresholds: Thresholds | None = None
    ) -> None:
        """Wrap a loaded model and its processor."""
        self.model, self.processor, self.name = model, processor, name
        self.thresholds = thresholds or Thresholds()
        #: one pass per phrase, so that no phrase can change another's answer; slower
        self.separate = False
        tokenizer = processor.tokenizer
        self._delimiters = [
            tokenizer.cls_token_id,
            tokenizer.sep_token_id,
            tokenizer.pad_token_id,
            *tokenizer.convert_tokens_to_ids([".", "?"]),
        ]

    def candidates(self, image: np.ndarray, phrases: Sequence[str]) -> list[Found]:
        """Return the best candidates of every phrase.

        Raises:
            PromptError: a phrase is empty, or longer than the text encoder takes.
        """
        return [f for some in self.passes(phrases) for f in self._one_pass(image, some)]

    def passes(self, phrases: Sequence[str]) -> list[list[str]]:
        """Deal phrases out to as few passes as the text encoder's limit allows."""
        tokenizer = self.processor.tokenizer
        limit = int(self.model.config.max_text_len) - 2  # start and end
        lengths = []
        for phrase in phrases:
            words = plain(phrase)
            if not words:
                raise PromptError(f"phrase {phrase!r} has no words; leave it out")
            length = len(tokenizer(words, add_special_tokens=False)["input_ids"]) + 1
            if length > limit:
                raise PromptError(
                    f"phrase {words[:40] + '...'!r} has {length} tokens; {self.name} takes at "
                    f"most {limit}; shorten it"
                )
            lengths.append(length)
        if self.separate:
            return [[phrase] for phrase in phrases]
        return [[phrases[i] for i in some] for some in batches(lengths, limit)]

    def _one_pass(self, image: np.ndarray, phrases: Sequence[str]) -> list[Found]:
        import torch

        text = " ".join(f"{plain(p)}." for p in phrases)
        inputs = self.processor(images=image, text=text, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        ids = inputs["input_ids"][0].tolist()
        spans = token_spans(ids, self._delimiters)
        if len(spans) != len(phrases):
            raise CheckpointError(
                f"{self.name}: {len(phrases)} phrases became {len(spans)} runs of tokens in "
                f"{text!r}; its tokenizer does not keep '.' apart"
            )
        scores = outputs.logits[0].float().sigmoid().cpu().numpy()
        boxes = _corners(outputs.pred_boxes[0].float().cpu().numpy(), *image.shape[:2])
        tokens = self.processor.tokenizer.convert_ids_to_tokens(ids)
        return assign(scores, boxes, spans, phrases, tokens, image.shape[:2])


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
        boxes = _corners(outputs.pred_boxes[0].float().cpu().numpy(), *frame)
        spans = [(i, i + 1) for i in range(len(phrases))]
        return assign(scores, boxes, spans, phrases, [plain(p) for p in phrases], (height, width))


def assign(
    scores: np.ndarray,
    boxes: np.ndarray,
    spans: Sequence[tuple[int, int]],
    phrases: Sequence[str],
    tokens: Sequence[str],
    size: tuple[int, ...],
) -> list[Found]:
    """Give every box to the phrase whose tokens answer it best.

    A box belongs to one phrase, whole: the score is the best of the phrase's tokens, the first
    phrase wins a tie.

    Args:
        scores: Q x T in [0, 1], boxes by tokens.
        boxes: Q x 4 pixels.
        spans: tokens of each phrase, half-open.
        phrases: as they were asked for.
        tokens: T pieces of text.
        size: ``(height, width)`` that boxes are cut to.

    Returns:
        At most :data:`PROPOSED` candidates per phrase, best first.
    """
    per_phrase = np.stack([scores[:, a:b].max(1) for a, b in spans], 1)
    winner = per_phrase.argmax(1)
    found: list[Found] = []
    for k, (phrase, (a, b)) in enumerate(zip(phrases, spans, strict=True)):
        mine = np.flatnonzero(winner == k)
        mine = mine[np.argsort(-per_phrase[mine, k], kind="stable")][:PROPOSED]
        for i in mine.tolist():
            box = cut_box(boxes[i].tolist(), (size[0], size[1]))
            if box is not None:
                said = zip(tokens[a:b], scores[i, a:b].tolist(), strict=True)
                pieces = tuple((token, round(value, 4)) for token, value in said)
                found.append(Found(box, phrase, float(per_phrase[i, k]), pieces))
    return found


def _corners(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Turn Q x 4 relative (cx, cy, w, h) into pixels x0, y0, x1, y1."""
    middle, half = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate([middle - half, middle + half], 1) * [width, height, width, height]


_KINDS: dict[str, Any] = {
    "grounding-dino": GroundingDetector,
    "mm-grounding-dino": GroundingDetector,
    "owlv2": OwlDetector,
    "owlvit": OwlDetector,
}
