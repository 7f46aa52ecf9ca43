"""From phrases to the boxes that are matted: heads of phrases, parts within their owners.

Detectors tend to answer "the dog's fur" with a box round anything that any of the words fits, the
dog as a whole included. Two remedies: candidates of a phrase with a relation are ranked by the
score of the word the phrase is about, where the detector tells scores of words; and a part is
looked for inside a crop round its owner. If no part is found there, the owner's box stands in,
and the result says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zim.protocols import Detection, Detector
from zim_grounded.candidates import Found, Thresholds, best_of, best_scores, choose
from zim_grounded.phrases import Part, has_relation, head_word, part_of

#: a crop round an owner is this much wider and higher on every side
MARGIN = 0.1


@dataclass(frozen=True)
class Located:
    """What was found for a picture.

    Attributes:
        found: phrases in the order of asking, best first within.
        best: the best score seen for every phrase, below the threshold or not.
        left_out: phrases of which boxes above the threshold were too many for the picture.
    """

    found: list[Found]
    best: dict[str, float]
    left_out: tuple[str, ...] = ()


def locate(
    detector: Detector,
    image: np.ndarray,
    phrases: Sequence[str],
    thresholds: Thresholds,
    *,
    focus: str | None = None,
    parts: bool = True,
    top: int | None = None,
) -> Located:
    """Find boxes for phrases.

    Args:
        detector: any detector; candidates are used where it shows them.
        image: H x W x 3 uint8 RGB.
        phrases: in the order of asking.
        thresholds: what is a detection.
        focus: the word to rank by, instead of the head of each phrase.
        parts: look for parts inside their owners.
        top: at most so many boxes of each phrase, the best.
    """
    owners = {p: part for p in phrases if parts and (part := part_of(p)) is not None}
    whole = [p for p in phrases if p not in owners]
    asked = list(dict.fromkeys([*whole, *(part.owner for part in owners.values())]))
    seen = [_ranked(f, focus) for f in _candidates(detector, image, asked)]
    best = best_scores(seen, asked)
    many = replace(thresholds, most=len(seen) + 1)  # what is too much is cut at the end
    found: list[Found] = choose([f for f in seen if f.phrase in whole], whole, many, top)
    for phrase, part in owners.items():
        boxes = choose([f for f in seen if f.phrase == part.owner], [part.owner], thresholds)
        inside = [_part(detector, image, phrase, part, o, thresholds, focus) for o in boxes]
        own = choose([f for f, _ in inside if not f.fallback], [phrase], many)
        found += [*own, *(f for f, _ in inside if f.fallback)][:top]
        best[phrase] = max([score for _, score in inside], default=best[part.owner])
    found = [f for p in dict.fromkeys(phrases) for f in found if f.phrase == p]
    kept = best_of(found, thresholds.most)
    cut = {f.phrase for f in found} - {f.phrase for f in kept}
    return Located(kept, {p: best[p] for p in phrases}, tuple(p for p in best if p in cut))


def _part(
    detector: Detector,
    image: np.ndarray,
    phrase: str,
    part: Part,
    owner: Found,
    thresholds: Thresholds,
    focus: str | None,
) -> tuple[Found, float]:
    """Look for a part in a crop round its owner; return it, or the owner, and the score seen."""
    x0, y0, x1, y1 = crop_round(owner.box, (image.shape[0], image.shape[1]))
    crop = np.ascontiguousarray(image[y0:y1, x0:x1])
    seen = [_ranked(f, focus) for f in _candidates(detector, crop, [part.part])]
    chosen = choose(seen, [part.part], thresholds)
    score = best_scores(seen, [part.part])[part.part]
    if not chosen:
        return replace(owner, phrase=phrase, fallback="owner", owner=owner.box), score
    a, b, c, d = chosen[0].box
    moved = (a + x0, b + y0, c + x0, d + y0)
    return replace(chosen[0], box=moved, phrase=phrase, owner=owner.box), score


def crop_round(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a window of whole pixels round a box, :data:`MARGIN` wider, cut to the picture."""
    height, width = size
    x_more, y_more = MARGIN * (box[2] - box[0]), MARGIN * (box[3] - box[1])
    x0, y0 = max(0, int(box[0] - x_more)), max(0, int(box[1] - y_more))
    return x0, y0, min(width, int(box[2] + x_more) + 1), min(height, int(box[3] + y_more) + 1)


def _candidates(detector: Detector, image: np.ndarray, phrases: Sequence[str]) -> list[Found]:
    if not phrases:
        return []
    ask: Any = getattr(detector, "candidates", detector.detect)
    found: list[Detection] = ask(image, phrases)
    return [f if isinstance(f, Found) else Found(f.box, f.phrase, f.score) for f in found]


def _ranked(found: Found, focus: str | None) -> Found:
    """Replace the score by that of the word the phrase is about, where words have scores."""
    if not found.tokens or (focus is None and not has_relation(found.phrase)):
        return found
    score = word_score(found.tokens, (focus or head_word(found.phrase)).lower())
    return found if score is None else replace(found, score=score)


def word_score(tokens: Sequence[tuple[str, float]], word: str) -> float | None:
    """Return the best score among the pieces of a word; None if the tokens do not spell it."""
    for i in range(len(tokens)):
        spelled, scores = "", list[float]()
        for token, score in tokens[i:]:
            spelled += token.removeprefix("##")
            scores.append(score)
            if spelled == word:
                return max(scores)
            if not word.startswith(spelled):
                break
    return None
