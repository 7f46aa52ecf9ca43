"""What a user asks for: points, a box, a scribble, a mask; checked once, here.

Coordinates are pixels (x, y) of the picture as it is shown (after EXIF rotation), pixel centres at
integers as in SAM; boxes are x0, y0, x1, y1 and may reach the far edges x1 = width, y1 = height.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zim._arrays import as_numpy, to_unit
from zim.errors import PromptError

#: a scribble becomes at most this many positive points (paper, appendix C)
SCRIBBLE_POINTS = 24

POSITIVE, NEGATIVE, BOX_FIRST, BOX_LAST = 1, 0, 2, 3


@dataclass(frozen=True, eq=False)
class Prompt:
    """One object's prompt; build it with :meth:`create`, which checks everything.

    Prompts hold arrays and are compared by identity.

    Attributes:
        points: float32 N x 2 (x, y).
        labels: int64 N, 1 positive, 0 negative.
        box: float32 4 or None.
        mask: float32 h x w or None: an alpha or binary mask of the picture's size, in [0, 1].
        low_res: float32 1 x m x m or None: logits returned by an earlier ``predict``.
    """

    points: np.ndarray
    labels: np.ndarray
    box: np.ndarray | None = None
    mask: np.ndarray | None = None
    low_res: np.ndarray | None = None

    @classmethod
    def create(
        cls,
        size: tuple[int, int],
        *,
        points: Any = None,
        labels: Any = None,
        box: Any = None,
        scribble: Any = None,
        mask: Any = None,
        low_res: Any = None,
    ) -> Prompt:
        """Check raw input and bring it into one form.

        Args:
            size: ``(height, width)`` of the picture.
            points: N x 2 with ``labels``, or rows (x, y) and (x, y, label) without.
            labels: N ones and zeros.
            box: x0, y0, x1, y1.
            scribble: a stroke N x 2, a list of strokes, or a painted mask H x W (array, tensor or
                picture; the brightest of its channels counts).
            mask: H x W alpha or binary mask; its own box is added when no other prompt is given.
            low_res: logits from an earlier call.

        Raises:
            PromptError: anything malformed, not finite, outside the picture or without area.
        """
        xy, kinds = check_points(points, labels, size)
        if scribble is not None:
            extra = scribble_points(scribble, size)
            xy = np.concatenate([xy, extra])
            kinds = np.concatenate([kinds, np.ones(len(extra), np.int64)])
        corners = None if box is None else check_box(box, size)
        alpha = None if mask is None else check_mask(mask, size)
        if alpha is not None and corners is None and not len(xy):
            corners = mask_box(alpha)
        logits = None if low_res is None else check_low_res(low_res)
        return cls(xy, kinds, corners, alpha, logits)

    def checked(self, size: tuple[int, int]) -> Prompt:
        """Return the same prompt, checked against a picture of ``(height, width)``.

        Raises:
            PromptError: it was made for another picture, or by hand and malformed.
        """
        xy, kinds = check_points(self.points, self.labels, size)
        return Prompt(
            xy,
            kinds,
            None if self.box is None else check_box(self.box, size),
            None if self.mask is None else check_mask(self.mask, size),
            None if self.low_res is None else check_low_res(self.low_res),
        )

    @property
    def empty(self) -> bool:
        """Tell whether nothing was asked for."""
        return not len(self.points) and self.box is None and self.mask is None

    @property
    def has_mask(self) -> bool:
        """Tell whether a mask or the logits of an earlier answer are given."""
        return self.mask is not None or self.low_res is not None

    @property
    def single_click(self) -> bool:
        """Tell whether this is one positive point and nothing else (the ambiguous prompt)."""
        one = len(self.points) == 1 and self.labels[0] == POSITIVE
        return one and self.box is None and self.mask is None and self.low_res is None

    def sequence(self) -> tuple[np.ndarray, np.ndarray]:
        """Return points and labels with the box as two labelled corners (2, 3), SAM's order."""
        if self.box is None:
            return self.points, self.labels
        return (
            np.concatenate([self.points, self.box.reshape(2, 2)]),
            np.concatenate([self.labels, np.array([BOX_FIRST, BOX_LAST])]),
        )


def whole_frame(size: tuple[int, int]) -> np.ndarray:
    """Return the box of the whole picture: what is used when nothing is asked for."""
    return np.array([0, 0, size[1], size[0]], np.float32)


def check_points(points: Any, labels: Any, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 N x 2 points and int64 N labels, or raise PromptError."""
    if points is None:
        if labels is not None and np.size(labels):
            raise PromptError("labels were given without points; give both or neither")
        return np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    rows = _numbers(points, "points")
    if rows.ndim == 1 and rows.size in (2, 3):
        rows = rows[None]
    if rows.size == 0:
        rows = rows.reshape(0, 2)
    if rows.ndim != 2 or rows.shape[1] not in (2, 3):
        raise PromptError(
            f"points have shape {rows.shape}; expected N x 2 (x, y) or N x 3 (x, y, label)"
        )
    if rows.shape[1] == 3:
        if labels is not None:
            raise PromptError("points carry labels (x, y, label) and labels were given; drop one")
        rows, kinds = rows[:, :2], rows[:, 2]
    elif labels is None:
        kinds = np.ones(len(rows))
    else:
        kinds = _numbers(labels, "labels").reshape(-1)
        if len(kinds) != len(rows):
            raise PromptError(f"{len(rows)} points but {len(kinds)} labels; give one per point")
    bad = [k for k in kinds if k not in (POSITIVE, NEGATIVE)]
    if bad:
        raise PromptError(f"label {bad[0]:g} is unknown; expected 1 (object) or 0 (background)")
    height, width = size
    for x, y in rows:
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise PromptError(
                f"point ({x:g}, {y:g}) lies outside the {width} x {height} picture; expected "
                f"0 <= x <= {width - 1}, 0 <= y <= {height - 1}"
            )
    return rows.astype(np.float32), kinds.astype(np.int64)


def check_box(box: Any, size: tuple[int, int]) -> np.ndarray:
    """Return a float32 box cut to the picture, corners in order, or raise PromptError."""
    values = _numbers(box, "box").reshape(-1)
    if values.size != 4:
        raise PromptError(f"a box has {values.size} numbers; expected 4: x0, y0, x1, y1")
    height, width = size
    first = np.minimum(values[:2], values[2:])
    last = np.maximum(values[:2], values[2:])
    text = ",".join(f"{v:g}" for v in values)
    if (last <= first).any():
        raise PromptError(f"box {text} has no area; expected x0 < x1 and y0 < y1")
    first = np.maximum(first, 0)
    last = np.minimum(last, (width, height))
    if (last <= first).any():
        raise PromptError(f"box {text} lies outside the {width} x {height} picture")
    return np.concatenate([first, last]).astype(np.float32)


def check_mask(mask: Any, size: tuple[int, int]) -> np.ndarray:
    """Return a mask as float32 H x W in [0, 1], or raise PromptError."""
    values = _array(mask, "the mask")
    if not values.ndim:
        raise PromptError(
            f"the mask is a {type(mask).__name__}; expected H x W values (zim.images.read_mask "
            "reads them from files)"
        )
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values.squeeze(0 if values.shape[0] == 1 else 2)
    if values.shape != size:
        raise PromptError(
            f"the mask has shape {values.shape}; expected the picture's {size[0]} x {size[1]}"
        )
    if values.dtype.kind in "biu":
        unit = to_unit(values)
        if unit is None:
            raise PromptError(
                f"mask values run from {values.min()} to {values.max()}; expected 0 to 1, 255 or "
                "65535"
            )
        return unit
    values = _numbers(values, "mask").astype(np.float32)
    if values.size and (values.min() < 0 or values.max() > 1):
        raise PromptError(
            f"mask values run from {values.min():g} to {values.max():g}; expected 0 to 1 "
            "(logits of an earlier call go in as mask_input)"
        )
    return values


def check_low_res(mask: Any) -> np.ndarray:
    """Return logits of an earlier call as float32 1 x m x m, or raise PromptError."""
    low = _numbers(mask, "mask_input").astype(np.float32)
    if low.ndim == 2:
        low = low[None]
    if low.ndim != 3 or low.shape[0] != 1 or low.shape[1] != low.shape[2] or not low.size:
        raise PromptError(
            f"mask_input has shape {np.shape(mask)}; expected 1 x m x m logits of one earlier mask"
        )
    return np.clip(low, -100, 100)  # beyond that a sigmoid is 0 or 1, and squares overflow


def mask_box(mask: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Return the tight box of a mask, or raise PromptError if nothing is above the threshold."""
    inside = mask > threshold
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        raise PromptError(f"the mask is empty (nothing above {threshold:g}); paint the object")
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def scribble_points(
    scribble: Any, size: tuple[int, int], limit: int = SCRIBBLE_POINTS
) -> np.ndarray:
    """Turn a scribble into positive points (paper, appendix C).

    Args:
        scribble: one stroke N x 2, several strokes as a list of such, or a painted mask H x W.
        size: ``(height, width)`` of the picture.
        limit: most points to use, over all strokes.

    Returns:
        float32 M x 2: strokes are sampled evenly by arc length, painted masks by farthest points.

    Raises:
        PromptError: malformed, empty or outside the picture.
    """
    painted = _painted(scribble, size)
    if painted is not None:
        return _farthest_points(check_mask(painted, size) > 0.5, limit)
    strokes = _strokes(scribble)
    for stroke in strokes:
        check_points(stroke, None, size)
    lengths = np.array([_lengths(s)[-1] for s in strokes])
    if len(strokes) > limit:  # more strokes than points: the longest ones speak
        keep = np.sort(np.argsort(-lengths, kind="stable")[:limit])
        strokes, lengths = [strokes[i] for i in keep], lengths[keep]
    share = np.ones(len(strokes), np.int64)
    spare = limit - len(strokes)
    if lengths.sum() > 0:
        wanted = spare * lengths / lengths.sum()
        share += np.floor(wanted).astype(np.int64)
        left = limit - int(share.sum())  # what rounding kept back goes to the largest remainders
        share[np.argsort(np.floor(wanted) - wanted, kind="stable")[:left]] += 1
    # a stroke never needs more points than it has pixels
    share = np.minimum(share, np.ceil(lengths).astype(np.int64) + 1)
    sampled = [_sample(s, int(n)) for s, n in zip(strokes, share, strict=True)]
    return np.concatenate(sampled).astype(np.float32)


def _painted(scribble: Any, size: tuple[int, int]) -> np.ndarray | None:
    """Return a painted mask, H x W; None if the scribble is strokes."""
    if isinstance(scribble, Sequence):
        return None
    if hasattr(scribble, "getbands"):  # a PIL image
        if scribble.mode in ("P", "PA", "LA", "RGBA", "RGBa", "CMYK"):
            scribble = scribble.convert("RGBA")
        values = np.asarray(scribble)
        if values.ndim == 3 and values.shape[2] == 4:  # paint on nothing, or an opaque picture
            clear = values[..., 3].min() < 255
            values = values[..., 3] if clear else values[..., :3].max(2)
        elif values.ndim == 3:
            values = values.max(2)
        return values
    values = _array(scribble, "the scribble")
    if values.ndim == 3 and values.shape[:2] == size and values.shape[2] in (1, 3):
        return values.max(2)
    if values.ndim == 3 and values.shape[1:] == size and values.shape[0] in (1, 3):
        return values.max(0)
    return values if values.shape == size and size[1] != 2 else None


def _strokes(scribble: Any) -> list[np.ndarray]:
    several = isinstance(scribble, Sequence) and bool(scribble) and _is_stroke(scribble[0])
    if several:
        strokes = [_numbers(s, "scribble") for s in scribble]
    else:
        values = _numbers(scribble, "scribble")
        strokes = list(values) if values.ndim == 3 else [values]
    for stroke in strokes:
        if stroke.ndim != 2 or stroke.shape[1] != 2 or not len(stroke):
            raise PromptError(
                f"a scribble stroke has shape {stroke.shape}; expected N x 2 points (x, y), "
                "a list of strokes, or a painted mask of the picture's size"
            )
    return strokes


def _is_stroke(value: Any) -> bool:
    """Tell whether a list's first entry is a stroke of its own rather than a point."""
    return isinstance(value, np.ndarray | Sequence) and len(value) > 0 and np.ndim(value[0]) == 1


def _lengths(stroke: np.ndarray) -> np.ndarray:
    steps = np.hypot(*np.diff(stroke, axis=0).T) if len(stroke) > 1 else np.zeros(0)
    return np.concatenate([[0.0], np.cumsum(steps)])


def _sample(stroke: np.ndarray, count: int) -> np.ndarray:
    """Sample ``count`` points evenly along the path, ends included (one: the middle)."""
    length = _lengths(stroke)
    at = np.linspace(0, length[-1], count) if count > 1 else np.array([length[-1] / 2])
    return np.stack([np.interp(at, length, stroke[:, i]) for i in (0, 1)], 1)


def _farthest_points(painted: np.ndarray, limit: int) -> np.ndarray:
    """Spread points over painted pixels: each next one is farthest from those before."""
    ys, xs = np.nonzero(painted)
    if not len(xs):
        raise PromptError("the painted scribble is empty; paint over the object")
    pixels = np.stack([xs, ys], 1).astype(np.float32)
    if len(pixels) > 20000:  # spread is what matters, not every pixel
        pixels = pixels[:: len(pixels) // 20000 + 1]
    centre = pixels.mean(0)
    chosen = [int(((pixels - centre) ** 2).sum(1).argmin())]
    distance = ((pixels - pixels[chosen[0]]) ** 2).sum(1)
    while len(chosen) < limit and distance.max() >= 4:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((pixels - pixels[chosen[-1]]) ** 2).sum(1))
    return pixels[chosen]


def _array(values: Any, what: str) -> np.ndarray:
    try:
        return as_numpy(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PromptError(f"{what}: rows of different lengths or not numbers") from error


def _numbers(values: Any, what: str) -> np.ndarray:
    try:
        array = _array(values, what).astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, PromptError):
            raise
        raise PromptError(f"{what}: not numbers ({error}); expected numbers") from error
    if not np.isfinite(array).all():
        raise PromptError(f"{what} hold NaN or infinity; expected finite numbers")
    return array
