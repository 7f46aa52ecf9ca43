"""Classical hints for a small network: what colour, distance and GrabCut say about a prompt.

A network with a few million parameters cannot know every object, but it can correct a classical
segmentation. ``compute_cues`` turns an image and its prompts into planes at stride 2 of the model
frame; plane 0 is a complete classical answer, so a network that does nothing is still as good as
GrabCut with soft edges. numpy and OpenCV only. Every result is a pure function of its
arguments: OpenCV's random generator is seeded in the thread that runs GrabCut.

The classical answer itself is made in :mod:`zim.classical`.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.classical import (
    Marks,
    border_strip,
    classical_matte,
    guess_from_clicks,
    matte_of_discs,
)
from zim.errors import PromptError
from zim.parallel import each

#: names of the planes, in order
CUE_NAMES = ("prior", "colour_ratio", "click_colour", "positive", "negative", "box", "discs")
#: number of planes ``compute_cues`` returns when it is not asked for fewer
CUE_PLANES = len(CUE_NAMES)
#: planes 0 and 6 are ``logit(alpha) / PRIOR_SCALE``: multiplying recovers the classical mattes
PRIOR_SCALE = 4.0

_BINS = 16

Array = NDArray[Any]  # float32 unless said otherwise


def compute_cues(
    image: NDArray[np.uint8],
    points: NDArray[np.floating],
    labels: NDArray[np.integer],
    image_size: int,
    mask: NDArray[np.floating] | None = None,
    planes: int = CUE_PLANES,
    grabcut: bool = True,
) -> Array:
    """Describe prompts as planes a network can read.

    Args:
        image: h x w x 3 RGB uint8, the un-padded picture in the model frame; h, w <= image_size.
        points: B x N x 2 pixel coordinates (x, y) in the same frame, pixel centres as in SAM.
        labels: B x N; 1 positive, 0 negative, 2 and 3 box corners, -1 padding. A prompt without
            any label or mask means the whole picture as the box.
        image_size: side S of the square model frame, even.
        mask: optional B x m x m logits of an earlier pass over the whole square frame.
        planes: how many of the planes, from the first on; 6 or all 7.
        grabcut: False leaves planes 0 and 6, which take most of the time, at 0, as training does
            for some prompts.

    Returns:
        float32 B x planes x S/2 x S/2: 0 the classical matte as ``logit / 4`` in [-1, 1] (-1
        outside the picture), 1 log-likelihood ratio of smoothed Lab histograms in [-1, 1], 2 colour
        likeness to the nearest positive click, 3 and 4 closeness to positive and negative clicks,
        5 box interior (ones without a box), planes 2 to 5 in [0, 1]; 6 the classical matte of one
        large object around the clicks, as plane 0, and 0 for prompts with a box or a mask. Planes
        1 to 6 are 0 outside the picture.

    Raises:
        PromptError: a shape does not fit.
    """
    _check(image, points, labels, image_size, mask)
    half = _half_size(image)
    height, width = half.shape[:2]
    lab = _lab(half)
    side = image_size // 2
    prompts = [
        _prompt(points[b], labels[b], None if mask is None else mask[b], (height, width), side)
        for b in range(len(points))
    ]
    cues = np.zeros((len(prompts), planes, side, side), np.float32)
    cues[:, 0] = -1.0
    inside = cues[..., :height, :width]
    if not grabcut:
        cues[:, 0] = 0
        for plane, prompt in zip(inside, prompts, strict=True):
            plane[1:6] = _simple_planes(lab, prompt)
        return cues

    def fill(job: tuple[int, bool]) -> None:
        b, discs = job
        if discs:
            inside[b, 6] = _scaled_logit(matte_of_discs(half, prompts[b]))
        else:
            inside[b, :6] = _planes(half, lab, prompts[b])

    # two runs of GrabCut for one prompt go side by side as well
    jobs = [(b, False) for b in range(len(prompts))]
    if planes > 6:
        jobs += [(b, True) for b, p in enumerate(prompts) if p.box is None and p.mask is None]
    each(fill, jobs)
    return cues


def prior_alpha(
    image: NDArray[np.uint8],
    points: NDArray[np.floating],
    labels: NDArray[np.integer],
    mask: NDArray[np.floating] | None = None,
) -> Array:
    """Matte with classical means alone: plane 0 of the cues as alpha.

    Args:
        image: h x w x 3 RGB uint8, best at most 256 pixels a side (the result is that coarse).
        points: B x N x 2 as in :func:`compute_cues`.
        labels: B x N as in :func:`compute_cues`.
        mask: optional B x m x m logits over the square frame of side ``max(h, w)`` made even.

    Returns:
        float32 B x h x w in [0, 1].
    """
    height, width = image.shape[:2]
    frame = max(height, width) + max(height, width) % 2
    prior = compute_cues(image, points, labels, frame, mask, planes=6)[:, 0]
    alphas = [
        cv2.resize(plane, (frame, frame), interpolation=cv2.INTER_LINEAR)[:height, :width]
        for plane in prior
    ]
    logits = PRIOR_SCALE * np.stack(alphas) if alphas else np.zeros((0, height, width), np.float32)
    return (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)


def _check(image, points, labels, image_size, mask) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise PromptError(f"cues need an H x W x 3 uint8 image, got {image.shape} {image.dtype}")
    if image_size % 2 or max(image.shape[:2]) > image_size or min(image.shape[:2]) < 1:
        raise PromptError(
            f"an image of {image.shape[1]} x {image.shape[0]} does not fit a frame of side "
            f"{image_size}; the side must be even and no smaller than the image"
        )
    if points.ndim != 3 or points.shape[2] != 2 or labels.shape != points.shape[:2]:
        raise PromptError(
            f"points {points.shape} and labels {labels.shape} do not fit; "
            "expected B x N x 2 and B x N"
        )
    if mask is not None and (mask.ndim != 3 or len(mask) != len(points)):
        raise PromptError(
            f"mask {mask.shape} does not fit {len(points)} prompts; expected B x m x m"
        )


def _half_size(image: Array) -> Array:
    height, width = image.shape[:2]
    even = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    size = (even.shape[1] // 2, even.shape[0] // 2)
    return cv2.resize(even, size, interpolation=cv2.INTER_AREA)


def _lab(image: NDArray[np.uint8]) -> Array:
    """Lab with L in 0..100, a and b in about -128..127, float32."""
    return cv2.cvtColor(image.astype(np.float32) / 255.0, cv2.COLOR_RGB2Lab)


def _prompt(points, labels, mask, shape: tuple[int, int], side: int) -> Marks:
    height, width = shape
    half = (np.asarray(points, np.float32) + 0.5) / 2 - 0.5
    limit = np.array([width - 1, height - 1], np.float32)
    positive = np.clip(half[labels == 1], 0, limit)
    negative = np.clip(half[labels == 0], 0, limit)
    probability = None
    if mask is not None:
        full = cv2.resize(
            np.asarray(mask, np.float32), (side, side), interpolation=cv2.INTER_LINEAR
        )
        probability = 1.0 / (1.0 + np.exp(-np.clip(full[:height, :width], -30, 30)))
    corners = half[(labels == 2) | (labels == 3)]
    box = None
    if len(corners):
        low, high = corners.min(0), corners.max(0)
        x0, y0 = np.clip(low, 0, limit)
        x1, y1 = np.clip(high, 0, limit)
        box = (float(x0), float(y0), float(x1), float(y1))
    elif not len(positive) and probability is None:
        box = (0.0, 0.0, float(width - 1), float(height - 1))
    return Marks(box, positive, negative, probability)


def _planes(half: NDArray[np.uint8], lab: Array, prompt: Marks) -> Array:
    """Return the first six cue planes of one prompt, 6 x h x w of the half-size picture."""
    simple = _simple_planes(lab, prompt)
    ratio, inside = simple[0], simple[4]
    if prompt.mask is not None:
        start = prompt.mask
    elif prompt.box is not None:
        start = None
    else:
        start = guess_from_clicks(lab, prompt, ratio)
    prior = _scaled_logit(classical_matte(half, prompt, inside, start))
    return np.concatenate([prior[None], simple])


def _simple_planes(lab: Array, prompt: Marks) -> Array:
    """Return planes 1 to 5 of one prompt, 5 x h x w of the half-size picture."""
    shape = lab.shape[:2]
    inside = _box_plane(prompt.box, shape)
    ratio = _colour_ratio(lab, prompt, inside)
    likeness = _click_colour(lab, prompt.positive)
    closeness = [_closeness(points, shape) for points in (prompt.positive, prompt.negative)]
    return np.stack([ratio, likeness, *closeness, inside])


def _scaled_logit(alpha: Array) -> Array:
    alpha = np.clip(alpha, 1e-4, 1 - 1e-4)
    return np.clip(np.log(alpha / (1 - alpha)) / PRIOR_SCALE, -1, 1)


def _closeness(points: Array, shape: tuple[int, int]) -> Array:
    """Gaussian bumps on the clicks, 3 cells wide, joined by the maximum."""
    plane = np.zeros(shape, np.float32)
    ys = np.arange(shape[0], dtype=np.float32)[:, None]
    xs = np.arange(shape[1], dtype=np.float32)[None]
    for x, y in points:
        plane = np.maximum(plane, np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 3.0**2)))
    return plane


def _box_plane(box: tuple[float, float, float, float] | None, shape: tuple[int, int]) -> Array:
    """Share of every cell that lies in the box; ones without a box."""
    if box is None:
        return np.ones(shape, np.float32)
    x0, y0, x1, y1 = box
    xs = np.arange(shape[1], dtype=np.float32)
    ys = np.arange(shape[0], dtype=np.float32)
    in_x = np.clip(np.minimum(xs - x0, x1 - xs) + 1, 0, 1)
    in_y = np.clip(np.minimum(ys - y0, y1 - ys) + 1, 0, 1)
    return np.minimum(in_y[:, None], in_x[None])


def _colour_ratio(lab: Array, prompt: Marks, inside: Array) -> Array:
    """Log-likelihood ratio of smoothed Lab histograms, object against surroundings."""
    shape = lab.shape[:2]
    border = border_strip(shape)
    if prompt.mask is not None:
        object_weight = prompt.mask.astype(np.float32)
        outside_weight = 1.0 - object_weight
    elif prompt.box is not None:
        object_weight = inside
        outside_weight = 1.0 - inside
        if outside_weight.sum() < 0.05 * outside_weight.size:
            outside_weight = border
    else:
        reach = 0.04 * max(shape)
        object_weight = _closeness_wide(prompt.positive, shape, reach)
        outside_weight = border * (1.0 - object_weight)
    if len(prompt.positive):
        object_weight = object_weight * 0.5 + _closeness_wide(prompt.positive, shape, 4.0)
    if len(prompt.negative):
        outside_weight = outside_weight + 4 * _closeness_wide(prompt.negative, shape, 4.0)
    bins = _bin_index(lab)
    share_in = _histogram(bins, object_weight)[bins]
    share_out = _histogram(bins, outside_weight)[bins]
    floor = 1e-4
    ratio = np.log((share_in + floor) / (share_out + floor))
    return cv2.GaussianBlur(np.clip(ratio / 4.0, -1, 1).astype(np.float32), (3, 3), 0)


def _closeness_wide(points: Array, shape: tuple[int, int], sigma: float) -> Array:
    plane = np.zeros(shape, np.float32)
    for x, y in points:
        plane[round(float(y)), round(float(x))] = 1.0
    plane = cv2.GaussianBlur(plane, (0, 0), max(1.0, sigma))
    return plane / max(float(plane.max()), 1e-8)


def _bin_index(lab: Array) -> NDArray[np.int64]:
    scaled = np.stack(
        [lab[..., 0] / 100.0, (lab[..., 1] + 80) / 160.0, (lab[..., 2] + 80) / 160.0], -1
    )
    index = np.clip((scaled * _BINS).astype(np.int64), 0, _BINS - 1)
    return (index[..., 0] * _BINS + index[..., 1]) * _BINS + index[..., 2]


def _histogram(bins: NDArray[np.int64], weight: Array) -> NDArray[np.float64]:
    """Normalised histogram over Lab bins, smoothed with (1, 2, 1) twice along every axis."""
    counts = np.bincount(bins.ravel(), weight.ravel(), minlength=_BINS**3)
    cube = counts.reshape(_BINS, _BINS, _BINS)
    for axis in (0, 1, 2):
        for _ in range(2):
            padded = np.pad(cube, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
            lower = np.take(padded, range(_BINS), axis)
            upper = np.take(padded, range(2, _BINS + 2), axis)
            cube = (lower + 2 * cube + upper) / 4
    return cube.ravel() / max(cube.sum(), 1e-8)


def _click_colour(lab: Array, positive: Array) -> Array:
    """Likeness of every colour to that of the most similar positive click, in [0, 1]."""
    smooth = cv2.GaussianBlur(lab, (5, 5), 0)
    plane = np.zeros(lab.shape[:2], np.float32)
    for x, y in positive:
        colour = smooth[round(float(y)), round(float(x))]
        distance = ((lab - colour) ** 2).sum(-1)
        plane = np.maximum(plane, np.exp(-distance / (2 * 14.0**2)))
    return plane
