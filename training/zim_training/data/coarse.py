"""From a matte to what a segmenter would have said of it, and the paper's two strategies.

``coarse_label`` makes the converter's input. ``spatial_cut`` is Spatial Generalization Augmentation
(Sec. 3.1): the same rectangles are cut out of label and matte, after the label was made, so that
the converter follows its label instead of completing objects. Selective Transformation Learning
(a hard-edged object's target is its own label) is a choice of samples: ``converter/samples.py``.
All randomness comes from the generator handed in.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Mask = NDArray[np.bool_]
Rng = np.random.Generator

_OPERATIONS = ("resample", "blur", "dilate", "erode", "open", "close", "hull", "polygon")
_WEIGHTS = np.array([0.3, 0.15, 0.1, 0.1, 0.08, 0.08, 0.07, 0.12])


def coarse_label(rng: Rng, alpha: Array) -> tuple[Mask, list[str]]:
    """Degrade a matte to a coarse binary label.

    Args:
        rng: the only source of randomness.
        alpha: h x w in [0, 1].

    Returns:
        The label h x w, and the names of what was done, for the record. A label that lost the
        object (IoU with alpha > 0.5 under 0.5) is drawn again, at the fifth failure alpha > 0.5.
    """
    plain = alpha > 0.5
    if rng.random() < 0.05:  # a good label must not be made worse
        return plain, ["plain"]
    for _ in range(5):
        low, high = (0.1, 0.9) if rng.random() < 0.9 else (0.01, 1.0)
        threshold = rng.uniform(low, high)
        label, done = alpha > threshold, [f"threshold {threshold:.2f}"]
        count = int(rng.integers(1, 4))
        for name in rng.choice(_OPERATIONS, count, replace=False, p=_WEIGHTS / _WEIGHTS.sum()):
            label, detail = _apply(rng, str(name), label)
            done.append(detail)
        both, either = (label & plain).sum(), (label | plain).sum()
        if label.any() and either and both / either >= 0.5:
            return label, done
    return plain, ["plain after five failures"]


def _apply(rng: Rng, name: str, label: Mask) -> tuple[Mask, str]:
    side = max(label.shape)
    grey = label.astype(np.uint8)
    if name == "resample":  # SA-1B's masks come from 256 x 256 logits
        factor = float(np.exp(rng.uniform(np.log(2), np.log(16))))
        height, width = label.shape
        small = (max(2, round(width / factor)), max(2, round(height / factor)))
        method = cv2.INTER_LINEAR if rng.random() < 0.7 else cv2.INTER_NEAREST
        soft = cv2.resize(grey.astype(np.float32), small, interpolation=cv2.INTER_AREA)
        return cv2.resize(soft, (width, height), interpolation=method) > 0.5, f"/{factor:.1f}"
    if name == "blur":
        sigma = rng.uniform(1, max(1.5, 0.008 * side))
        soft = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), sigma)
        return soft > rng.uniform(0.3, 0.7), f"blur {sigma:.1f}"
    if name == "hull":
        whole = rng.random() < 0.33
        contours, _ = cv2.findContours(grey, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        if not contours:
            return label, name
        groups = [np.concatenate(contours)] if whole else list(contours)
        out = np.zeros_like(grey)
        for group in groups:
            cv2.fillConvexPoly(out, cv2.convexHull(group), 1)
        return out > 0, "hull of all" if whole else "hull of each"
    if name == "polygon":
        tolerance = rng.uniform(1, 6) * max(0.25, side / 1024)
        contours, _ = cv2.findContours(grey, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        out = np.zeros_like(grey)
        cv2.drawContours(out, [cv2.approxPolyDP(c, tolerance, True) for c in contours], -1, 1, -1)
        return (out > 0) & (cv2.dilate(grey, np.ones((3, 3), np.uint8)) > 0), "polygon"
    rows, columns = np.nonzero(label)
    extent = min(np.ptp(rows), np.ptp(columns)) if len(rows) else 1
    most = int(min(max(5, 0.03 * extent), max(3, 30 * side / 1024)))
    size = int(rng.integers(1, most + 1))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    kinds = {"dilate": cv2.MORPH_DILATE, "erode": cv2.MORPH_ERODE, "open": cv2.MORPH_OPEN}
    out = cv2.morphologyEx(grey, kinds.get(name, cv2.MORPH_CLOSE), kernel)
    return out > 0, f"{name} {size}"


def spatial_cut(rng: Rng, label: Mask, alpha: Array) -> tuple[Mask, Array]:
    """Cut the same rectangles from label and matte (Spatial Generalization Augmentation).

    Args:
        rng: the only source of randomness.
        label: h x w bool, already coarse.
        alpha: h x w float in [0, 1].

    Returns:
        Both, with the same region set to zero; 5 to 95 % of the object survive, or nothing is cut.
    """
    rows, columns = np.nonzero(label)
    if not len(rows):
        return label, alpha
    y0, x0 = rows.min(), columns.min()
    height, width = rows.max() - y0 + 1, columns.max() - x0 + 1
    area = int(label.sum())
    for _ in range(10):
        region = np.zeros(label.shape, bool)
        for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))):
            h, w = rng.uniform(0.2, 0.7, 2) * (height, width)
            cy, cx = rng.uniform(y0, y0 + height), rng.uniform(x0, x0 + width)
            top, left = max(0, round(cy - h / 2)), max(0, round(cx - w / 2))
            region[
                top : max(top + 1, round(cy + h / 2)), left : max(left + 1, round(cx + w / 2))
            ] = 1
        keep = region if rng.random() < 0.5 else ~region
        share = (label & keep).sum() / area
        if 0.05 <= share <= 0.95:
            return label & keep, alpha * keep
    return label, alpha
