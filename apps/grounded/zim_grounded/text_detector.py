"""What detectors share that read all phrases in one text: GroundingDINO in any packaging."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from zim.errors import CheckpointError, PromptError
from zim_grounded.candidates import PROPOSED, CandidateDetector, Found, Thresholds, cut_box
from zim_grounded.phrases import batches, plain, token_spans


class Answer(NamedTuple):
    """What a model says about a picture and a text.

    Attributes:
        ids: token ids of the text, special tokens included.
        scores: Q x T in [0, 1], queries by tokens.
        boxes: Q x 4, (cx, cy, w, h) relative to the picture.
    """

    ids: list[int]
    scores: np.ndarray
    boxes: np.ndarray


class TextDetector(CandidateDetector):
    """All phrases in one text, each closed by a dot; one picture per pass.

    Pictures are never put in one batch: padding them to one size changes the scores.
    """

    def __init__(
        self, tokenizer: Any, limit: int, name: str, thresholds: Thresholds | None = None
    ) -> None:
        """Remember the tokenizer and how many tokens the model takes, start and end included."""
        self.tokenizer, self.limit, self.name = tokenizer, limit, name
        self.thresholds = thresholds or Thresholds()
        #: one pass per phrase, so that no phrase can change another's answer; slower
        self.separate = False
        self._delimiters = [
            tokenizer.cls_token_id,
            tokenizer.sep_token_id,
            tokenizer.pad_token_id,
            *tokenizer.convert_tokens_to_ids([".", "?"]),
        ]

    @abstractmethod
    def answer(self, image: np.ndarray, text: str) -> Answer:
        """Run the model on a picture, H x W x 3 uint8 RGB, and a text."""

    def candidates(self, image: np.ndarray, phrases: Sequence[str]) -> list[Found]:
        """Return the best candidates of every phrase.

        Raises:
            PromptError: a phrase is empty, or longer than the text encoder takes.
        """
        return [f for some in self.passes(phrases) for f in self._one_pass(image, some)]

    def passes(self, phrases: Sequence[str]) -> list[list[str]]:
        """Deal phrases out to as few passes as the text encoder's limit allows."""
        limit = self.limit - 2  # start and end
        lengths = []
        for phrase in phrases:
            words = plain(phrase)
            if not words:
                raise PromptError(f"phrase {phrase!r} has no words; leave it out")
            length = len(self.tokenizer(words, add_special_tokens=False)["input_ids"]) + 1
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
        text = " ".join(f"{plain(p)}." for p in phrases)
        ids, scores, relative = self.answer(image, text)
        spans = token_spans(ids, self._delimiters)
        if len(spans) != len(phrases):
            raise CheckpointError(
                f"{self.name}: {len(phrases)} phrases became {len(spans)} runs of tokens in "
                f"{text!r}; its tokenizer does not keep '.' apart"
            )
        boxes = corners(relative, *image.shape[:2])
        tokens = self.tokenizer.convert_ids_to_tokens(ids)
        return assign(scores, boxes, spans, phrases, tokens, image.shape[:2])


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


def corners(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Turn Q x 4 relative (cx, cy, w, h) into pixels x0, y0, x1, y1."""
    middle, half = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate([middle - half, middle + half], 1) * [width, height, width, height]
