"""Run lengths of masks: the plain form, and the compressed text that COCO files hold.

Both list the lengths of runs in column-major order, starting with a run of zeros (of length 0
where the first pixel is set).
"""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from zim.errors import ImageError

# The text holds six bits per character: five of the number, and whether more follow.
_FIRST = 48
_BITS = 5
_LOW = (1 << _BITS) - 1
_SIGN = 1 << (_BITS - 1)
_MORE = 1 << _BITS


class Rle(TypedDict):
    """A mask as run lengths: ``size`` is [height, width], ``counts`` a list or COCO's text."""

    size: list[int]
    counts: list[int] | str


def encode_rle(mask: NDArray[Any]) -> Rle:
    """Write a mask, H x W bool (or anything that is zero outside), as plain run lengths."""
    if mask.ndim != 2:
        raise ImageError(f"a mask of shape {mask.shape}; expected H x W")
    flat = np.ascontiguousarray((mask != 0).T).reshape(-1)
    height, width = mask.shape
    if not flat.size:
        return {"size": [height, width], "counts": []}
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    stops = np.concatenate([[0], edges, [flat.size]])
    counts = np.diff(stops).tolist()
    return {"size": [height, width], "counts": [0, *counts] if flat[0] else counts}


def encode_coco(mask: NDArray[Any]) -> Rle:
    """Write a mask as COCO's compressed run lengths; ``counts`` is a str, ready for JSON."""
    plain = encode_rle(mask)
    return {"size": plain["size"], "counts": pack_counts(plain["counts"])}


def decode_rle(rle: Any) -> NDArray[np.bool_]:
    """Read a mask back, H x W bool, from either form (``counts`` list, str or bytes).

    Raises:
        ImageError: it is no run lengths, or they do not fill the mask.
    """
    try:
        (height, width), counts = rle["size"], rle["counts"]
    except (KeyError, TypeError, ValueError) as error:
        raise ImageError("run lengths are a dictionary with size [h, w] and counts") from error
    if isinstance(counts, str | bytes):
        counts = unpack_counts(counts)
    lengths = np.asarray(counts, np.int64)
    if lengths.sum() != height * width or (lengths < 0).any():
        raise ImageError(
            f"run lengths add up to {lengths.sum()}; expected {height} x {width} = {height * width}"
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, lengths).reshape(width, height).T)


def rle_area(rle: Any) -> int:
    """Return the number of set pixels without decoding the mask."""
    counts = rle["counts"]
    return int(
        sum(unpack_counts(counts)[1::2] if isinstance(counts, str | bytes) else counts[1::2])
    )


def pack_counts(counts: Any) -> str:
    """Compress run lengths: from the fourth on differences to the one two before, then text."""
    rest = np.asarray(counts, np.int64).copy()
    rest[3:] -= np.asarray(counts, np.int64)[1:-2]
    digits, used = [], []
    alive = np.ones(len(rest), bool)
    while alive.any():
        digit = rest & _LOW
        rest = rest >> _BITS
        # the last digit's top bit is the sign, as in two's complement
        more = alive & (rest != np.where(digit & _SIGN, -1, 0))
        digits.append(digit + np.where(more, _MORE, 0) + _FIRST)
        used.append(alive)
        alive = more
    if not digits:
        return ""
    return np.stack(digits, 1)[np.stack(used, 1)].astype(np.uint8).tobytes().decode("ascii")


def unpack_counts(text: str | bytes) -> list[int]:
    """Undo :func:`pack_counts`.

    Raises:
        ImageError: the text is no run lengths.
    """
    data = text.encode("ascii", "replace") if isinstance(text, str) else text
    digits = np.frombuffer(data, np.uint8).astype(np.int64) - _FIRST
    last = (digits & _MORE) == 0
    if ((digits < 0) | (digits >= 2 * _MORE)).any() or (len(digits) and not last[-1]):
        raise ImageError("the text holds no COCO run lengths; it may be cut short")
    if not len(digits):
        return []
    stops = np.flatnonzero(last)
    starts = np.concatenate([[0], stops[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(starts, stops - starts + 1)
    values = np.add.reduceat((digits & _LOW) << (_BITS * place), starts)
    values -= np.where(digits[stops] & _SIGN, 1 << (_BITS * (place[stops] + 1)), 0)
    counts = values.copy()
    counts[1::2] = np.cumsum(values[1::2])
    counts[2::2] = np.cumsum(values[2::2])
    return counts.tolist()
