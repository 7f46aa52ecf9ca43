"""Cross-view self-prompting: from the object so far, rendered into a view, to clicks in it (SA3D).

The rule is that of SA3D's code: the best score first; then again and again the best of what is
left, each place paying for its 3D distance to the nearest click, until nothing positive is left.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.predictor import ZimPredictor
from zim.protocols import Segmenter

Matte = NDArray[np.float32]
_TAKEN = -1e5
#: side of the square by which a mask is widened before its best score is looked up
_WIDEN = 25


def ask(segmenter: Segmenter, points: Any, labels: Any = None, box: Any = None) -> Matte:
    """Return a segmenter's one answer: for a lone click the best of three, else its single mask.

    ZIM models that answer a lone click with their first token do so here too.

    Args:
        segmenter: with its picture set.
        points: N x 2 pixels (x, y).
        labels: N, 1 object or 0 not; all 1 if None.
        box: x0, y0, x1, y1 or None.
    """
    xy = np.asarray(points, np.float32).reshape(-1, 2)
    kinds = np.ones(len(xy), np.int64) if labels is None else np.asarray(labels, np.int64)
    lone = len(xy) == 1 and bool(kinds[0] == 1) and box is None
    if isinstance(segmenter, ZimPredictor):
        lone = lone and segmenter.best_of_three
    mattes, scores, _ = segmenter.predict(
        point_coords=xy if len(xy) else None,
        point_labels=kinds if len(xy) else None,
        box=None if box is None else np.asarray(box, np.float32),
        multimask_output=lone,
    )
    return np.asarray(mattes[int(np.argmax(scores))], np.float32)


def find_points(
    score: NDArray[np.float32],
    depth: NDArray[np.float32],
    count: int,
    segmenter: Segmenter,
    binarize: float,
) -> list[tuple[int, int]]:
    """Choose clicks on the object in a view.

    Args:
        score: H x W, the rendered confidence; what is not positive is not the object.
        depth: H x W, distances.
        count: at most so many clicks (ZIM: 10).
        segmenter: with the view's picture set; its mask bounds where the next price is found.
        binarize: threshold of its mattes.

    Returns:
        Pixels (x, y), best first; none if no score is positive.
    """
    if not score.max() > 0:
        return []
    height, width = score.shape
    place = _places(depth)
    coverage = np.round(np.clip(score, 0, 1) * 255).sum() / 255
    radius = max(int(np.sqrt(coverage / np.pi)) // 2, 2)
    row, col = divmod(int(score.argmax()), width)
    points = [(col, row)]
    taken = np.zeros((height, width), bool)
    best = np.full((height, width), -np.inf, np.float32)
    while len(points) < count:
        x, y = points[-1]
        taken[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = True
        open_score = np.where(taken, np.float32(_TAKEN), score)
        if not open_score.max() > 0:  # no candidate can win: spare the decoding
            break
        mask = (ask(segmenter, points) > binarize).astype(np.uint8)
        widened = cv2.dilate(mask, np.ones((_WIDEN, _WIDEN), np.uint8)) > 0
        price = max(float(open_score[widened].max(initial=_TAKEN)), 0.0)
        distance = np.linalg.norm(place - place[y, x], axis=-1)
        distance = (distance - distance.min()) / max(float(np.ptp(distance)), 1e-9)
        best = np.maximum(best, open_score - distance * price)
        best[taken] = _TAKEN
        winner = int(best.argmax())
        if best.flat[winner] <= 0:
            break
        row, col = divmod(winner, width)
        points.append((col, row))
    return points


def box_around(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Return the box x0, y0, x1, y1 around the largest connected piece of a mask H x W."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    x, y, width, height = (float(v) for v in stats[largest, :4])
    return x, y, x + width, y + height


def _places(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return normalised (row, column, depth) of every pixel, H x W x 3 in [0, 1]."""
    height, width = depth.shape
    rows, cols = np.mgrid[1 : height + 1, 1 : width + 1].astype(np.float32)
    span = max(float(np.ptp(depth)), 1e-9)
    return np.stack([rows / height, cols / width, (depth - depth.min()) / span], -1)
