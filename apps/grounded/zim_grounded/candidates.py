"""Boxes that a detector proposes, and the choice among them: thresholds and overlap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zim.masks import nms
from zim.protocols import Detection

#: candidates kept per phrase before the choice; what a person could want to see the score of
PROPOSED = 50


@dataclass(frozen=True)
class Thresholds:
    """What makes a candidate a detection.

    Attributes:
        box: least score.
        text: least score of a token for it to be shown with its box; decides nothing.
        nms: boxes of one phrase that overlap by a larger IoU are one thing.
        most: detections kept per picture, the best.
    """

    box: float = 0.3
    text: float = 0.25
    nms: float = 0.7
    most: int = 20


@dataclass(frozen=True)
class Found(Detection):
    """A detection that knows how it came about.

    Attributes:
        tokens: pieces of the phrase and how strongly each answers this box, in reading order.
        fallback: "owner" if a part was asked for, not found, and its owner's box stands in.
        owner: the owner's box, for parts that were looked for in one.
    """

    tokens: tuple[tuple[str, float], ...] = ()
    fallback: str | None = None
    owner: tuple[float, float, float, float] | None = None


class CandidateDetector(ABC):
    """A detector that shows its candidates too, so that a miss can be explained."""

    #: what ``--detector`` calls it
    name: str
    thresholds: Thresholds

    @abstractmethod
    def candidates(self, image: np.ndarray, phrases: Sequence[str]) -> list[Found]:
        """Return the best candidates of every phrase whatever their score, boxes cut to the image.

        Args:
            image: H x W x 3 uint8 RGB.
            phrases: what to look for.
        """

    def detect(self, image: np.ndarray, phrases: Sequence[str]) -> list[Detection]:
        """Find boxes; see :class:`zim.protocols.Detector`."""
        return [*choose(self.candidates(image, phrases), phrases, self.thresholds)]


def choose(
    found: Sequence[Found],
    phrases: Sequence[str],
    thresholds: Thresholds,
    top: int | None = None,
) -> list[Found]:
    """Keep what is above the threshold, once: phrases in the order of asking, best first within.

    Args:
        found: candidates.
        phrases: in the order of asking; candidates of others are dropped.
        thresholds: what is a detection.
        top: at most so many of each phrase.
    """
    chosen: list[Found] = []
    for phrase in dict.fromkeys(phrases):
        mine = [f for f in found if f.phrase == phrase and f.score >= thresholds.box]
        kept = nms(
            np.array([f.box for f in mine]), np.array([f.score for f in mine]), thresholds.nms
        )
        chosen += [mine[i] for i in kept[:top]]
    return best_of(chosen, thresholds.most)


def best_of(found: Sequence[Found], most: int) -> list[Found]:
    """Keep the best in their order; what stands in for a part that was not found is the worst."""
    order = sorted(range(len(found)), key=lambda i: (bool(found[i].fallback), -found[i].score))
    return [found[i] for i in sorted(order[:most])]


def best_scores(found: Sequence[Detection], phrases: Sequence[str]) -> dict[str, float]:
    """Return the best score seen for every phrase, 0 where there was no candidate at all."""
    scores = dict.fromkeys(phrases, 0.0)
    for f in found:
        if f.phrase in scores:
            scores[f.phrase] = max(scores[f.phrase], f.score)
    return scores


def cut_box(
    box: Sequence[float], size: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """Cut a box to a picture of ``(height, width)``; None if less than a pixel is left."""
    height, width = size
    x0, x1 = max(0.0, float(box[0])), min(float(width), float(box[2]))
    y0, y1 = max(0.0, float(box[1])), min(float(height), float(box[3]))
    return (x0, y0, x1, y1) if x1 - x0 >= 1 and y1 - y0 >= 1 else None
