"""How far a predicted matte is from the true one: SAD, MSE, MAE, Grad and Conn.

Two families live here and must not be mixed in one table (core definitions: paper section 5.1):

- :func:`sad`, :func:`mse`, :func:`mae`, :func:`grad`, :func:`conn` follow the evaluation behind
  the ZIM paper's tables: the whole image, no trimap, MSE, MAE and Grad times 1000, SAD and Conn
  divided by 1000.
- :func:`grad_dim`, :func:`conn_dim` are the classic alphamatting.com forms as the Python ports
  behind Deep Image Matting style tables compute them. They rank methods differently from
  ``grad`` and ``conn`` and cannot be converted into them. (Classic SAD is :func:`sad`; classic
  MSE is :func:`mse` with ``scale=False``.)

Every metric takes ``(pred, target, *, scale=True, mask=None)`` and returns a float; 0 is perfect.

- ``pred``, ``target``: H x W alpha, numpy array or torch tensor; float in [0, 1], or uint8
  (divided by 255), uint16 (divided by 65535) or bool. A binary mask stored as uint8 0/1 would be
  read as nearly empty: pass it as bool.
- ``scale``: ``False`` returns the plain mean or sum, without the factor of 1000.
- ``mask``: bool H x W; only these pixels are averaged or summed (``trimap == 128`` gives the
  classic unknown-region scores). Gradients and connected components are still taken on the whole
  image, so cutting a region out adds no false edges.

Anything unusable raises :class:`zim.errors.ImageError`. All arithmetic is float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import cv2
import numpy as np

from zim.errors import ImageError

if TYPE_CHECKING:
    import torch

    Alpha: TypeAlias = np.ndarray | torch.Tensor

__all__ = [
    "conn",
    "conn_dim",
    "evaluate",
    "grad",
    "grad_dim",
    "mae",
    "mse",
    "sad",
    "size_bucket",
]

_LEVELS = 10  # connectivity thresholds 0.1, 0.2 ... 1.0
_CONN_TOLERANCE = 0.15  # a pixel this far above its level counts as disconnected
_GRAD_EPSILON = 1e-8  # keeps the magnitude's root away from zero, as in the ZIM evaluation
_DIM_SIGMA = 1.4
_DIM_CUTOFF = 1e-2  # the Gaussian is cut where its density falls below this


class _Matte(NamedTuple):
    """A checked alpha and the float type its caller used."""

    alpha: np.ndarray  # float64 H x W in [0, 1]
    dtype: np.dtype  # thresholds are rounded to it, so that a float32 0.7 reaches 0.7


class _Pair(NamedTuple):
    """Checked inputs of one comparison."""

    pred: _Matte
    target: _Matte
    mask: np.ndarray | None  # bool H x W


def sad(pred: Alpha, target: Alpha, *, scale: bool = True, mask: Alpha | None = None) -> float:
    """Sum of absolute differences, in thousands of pixels.

    ``sum |p - g| / 1000``. See the module's docstring for the arguments.

    Raises:
        ImageError: Shapes differ, values are not in [0, 1] or not finite, or the mask is unusable.

    >>> sad(np.full((2, 2), 0.75), np.full((2, 2), 0.25), scale=False)
    2.0
    """
    return _sad(_pair(pred, target, mask)) * (1e-3 if scale else 1.0)


def mse(pred: Alpha, target: Alpha, *, scale: bool = True, mask: Alpha | None = None) -> float:
    """Mean squared difference, times 1000.

    ``mean (p - g)^2 * 1000``. See the module's docstring for the arguments.

    Raises:
        ImageError: Shapes differ, values are not in [0, 1] or not finite, or the mask is unusable.
    """
    return _mse(_pair(pred, target, mask)) * (1e3 if scale else 1.0)


def mae(pred: Alpha, target: Alpha, *, scale: bool = True, mask: Alpha | None = None) -> float:
    """Mean absolute difference, times 1000 (also called MAD).

    ``mean |p - g| * 1000``. See the module's docstring for the arguments.

    Raises:
        ImageError: Shapes differ, values are not in [0, 1] or not finite, or the mask is unusable.
    """
    return _mae(_pair(pred, target, mask)) * (1e3 if scale else 1.0)


def grad(pred: Alpha, target: Alpha, *, scale: bool = True, mask: Alpha | None = None) -> float:
    """Mean difference of edge strength (3 x 3 Sobel), times 1000: the ZIM paper's Grad.

    Edge strength is ``sqrt(gx^2 + gy^2 + 1e-8)`` with unnormalised 3 x 3 Sobel filters (weights
    1, 2, 1) and one pixel of zero padding; the score is ``mean |strength_p - strength_g| * 1000``.
    See the module's docstring for the arguments.

    Raises:
        ImageError: Shapes differ, values are not in [0, 1] or not finite, or the mask is unusable.
    """
    return _grad(_pair(pred, target, mask)) * (1e3 if scale else 1.0)


def conn(pred: Alpha, target: Alpha, *, scale: bool = True, mask: Alpha | None = None) -> float:
    """Difference of connectedness to the main body, in thousands: the ZIM paper's Conn.

    For t = 0.1 ... 1.0 take the largest 4-connected component of ``(p >= t) & (g >= t)``. A
    pixel's level is the last t up to which it was in that component without a break (0 for never,
    1 for always); once nothing reaches t, everything leaves. With ``d = alpha - level``, its
    connectedness is 1 where ``d < 0.15`` and ``1 - d`` elsewhere; the score is the summed absolute
    difference of connectedness, / 1000. Of equally large components the one whose first pixel in
    row-major order comes first is taken. See the module's docstring for the arguments.

    Raises:
        ImageError: Shapes differ, values are not in [0, 1] or not finite, or the mask is unusable.
    """
    return _conn(_pair(pred, target, mask)) * (1e-3 if scale else 1.0)


def grad_dim(pred: Alpha, target: Alpha, *, scale: bool = True, mask: Alpha | None = None) -> float:
    """Classic alphamatting gradient error (Gaussian derivatives, sigma 1.4), in thousands.

    ``sum (strength_p - strength_g)^2 / 1000`` with ``strength = sqrt(gx^2 + gy^2)``. Of the
    variants in use this is the one with the original hand-made kernel: a 9 x 9 Gaussian derivative
    (cut where the density falls below 0.01) scaled to unit L2 norm, and borders repeated outwards.
    Alphas are not stretched to [0, 1] first, as the original Matlab script does. Papers that use
    scipy's ``gaussian_filter(order=1)`` and divide by 10 report different numbers.
    See the module's docstring for the arguments.

    Raises:
        ImageError: Shapes differ, values are not in [0, 1] or not finite, or the mask is unusable.
    """
    return _grad_dim(_pair(pred, target, mask)) * (1e-3 if scale else 1.0)


def conn_dim(pred: Alpha, target: Alpha, *, scale: bool = True, mask: Alpha | None = None) -> float:
    """Classic connectivity error as the AIM, GFM and P3M evaluations compute it, in thousands.

    Like :func:`conn` with one difference: a threshold that no pixel reaches in both mattes is
    skipped, so pixels still in the component keep level 1 and count as connected, where
    :func:`conn` gives them the last level reached. The two agree whenever some pixel is fully
    opaque in both mattes. See the module's docstring for the arguments.

    Raises:
        ImageError: Shapes differ, values are not in [0, 1] or not finite, or the mask is unusable.
    """
    return _conn(_pair(pred, target, mask), skip_empty=True) * (1e-3 if scale else 1.0)


def evaluate(
    pred: Alpha, target: Alpha, *, scale: bool = True, mask: Alpha | None = None
) -> dict[str, float]:
    """All five ZIM metrics at once: ``{"sad", "mse", "mae", "grad", "conn"}``, ZIM's units.

    Raises:
        ImageError: Shapes differ, values are not in [0, 1] or not finite, or the mask is unusable.
    """
    pair = _pair(pred, target, mask)
    up, down = (1e3, 1e-3) if scale else (1.0, 1.0)
    return {
        "sad": _sad(pair) * down,
        "mse": _mse(pair) * up,
        "mae": _mae(pair) * up,
        "grad": _grad(pair) * up,
        "conn": _conn(pair) * down,
    }


def size_bucket(target: Alpha) -> str:
    """How much of the picture the object fills: ``"S"`` (< 1 %), ``"M"`` (< 10 %) or ``"L"``.

    Counts pixels with alpha strictly above 0.3, as in the ZIM paper's Table 7.

    Raises:
        ImageError: The matte has the wrong shape, type or values.
    """
    matte = _matte(target, "target")
    share = float(np.mean(matte.alpha > _rounded(0.3, matte.dtype)))
    return "S" if share < 0.01 else "M" if share < 0.1 else "L"


def _sad(pair: _Pair) -> float:
    return float(_chosen(np.abs(pair.pred.alpha - pair.target.alpha), pair.mask).sum())


def _mae(pair: _Pair) -> float:
    return float(_chosen(np.abs(pair.pred.alpha - pair.target.alpha), pair.mask).mean())


def _mse(pair: _Pair) -> float:
    return float(np.square(_chosen(pair.pred.alpha - pair.target.alpha, pair.mask)).mean())


def _grad(pair: _Pair) -> float:
    difference = _sobel(pair.pred.alpha)
    difference -= _sobel(pair.target.alpha)
    return float(_chosen(np.abs(difference, out=difference), pair.mask).mean())


def _grad_dim(pair: _Pair) -> float:
    difference = _gaussian_gradient(pair.pred.alpha)
    difference -= _gaussian_gradient(pair.target.alpha)
    return float(_chosen(np.square(difference, out=difference), pair.mask).sum())


def _conn(pair: _Pair, *, skip_empty: bool = False) -> float:
    level = _levels(pair, skip_empty=skip_empty) / _LEVELS
    # |phi_p - phi_g| = |d_p [d_p >= 0.15] - d_g [d_g >= 0.15]|: the ones of phi = 1 - d cancel.
    difference = _detached(pair.pred.alpha, level)
    difference -= _detached(pair.target.alpha, level)
    return float(_chosen(np.abs(difference, out=difference), pair.mask).sum())


def _detached(alpha: np.ndarray, level: np.ndarray) -> np.ndarray:
    """How far a pixel rises above its level, 0 within the tolerance. Float64 H x W."""
    rise = alpha - level
    rise[rise < _CONN_TOLERANCE] = 0.0
    return rise


def _levels(pair: _Pair, *, skip_empty: bool) -> np.ndarray:
    """For each pixel the number of thresholds, from 0.1 up, that it stayed in the main body.

    Returns uint8 H x W, 0 to 10.
    """
    (pred, pred_dtype), (target, target_dtype), _ = pair
    level = np.zeros(pred.shape, dtype=np.uint8)

    def reaching(step: int) -> np.ndarray:
        threshold = step / _LEVELS  # a division of integers: no error builds up as in a sum
        both = pred >= _rounded(threshold, pred_dtype)
        both &= target >= _rounded(threshold, target_dtype)
        return both

    both = reaching(1)
    rows, columns = np.flatnonzero(both.any(1)), np.flatnonzero(both.any(0))
    if not len(rows):
        if skip_empty:
            level[:] = _LEVELS
        return level
    # Nothing outside this box is ever in the main body: most of a picture, for most objects.
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    pred, target, both, within = pred[box], target[box], both[box], level[box]
    inside = np.ones(both.shape, dtype=bool)
    before = -1
    for step in range(1, _LEVELS + 1):
        if step > 1:
            both = reaching(step)
        count = int(np.count_nonzero(both))
        # Thresholds are nested: an empty one stays empty, an equal count is the same region.
        if count == 0:
            if skip_empty:
                within[inside] = _LEVELS
            break
        if count != before:
            inside &= _largest_component(np.ascontiguousarray(both), count)
        within += inside
        before = count
    return level


def _largest_component(binary: np.ndarray, count: int) -> np.ndarray:
    """The largest 4-connected region of a bool H x W array with ``count`` > 0 True pixels."""
    _, labels = cv2.connectedComponents(binary.view(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    # Counting all labels takes longer than finding them, and is needless when one region holds
    # most of the foreground. Label 0 is the background, never the main body.
    sample = np.bincount(labels[::16, ::16].ravel())
    if len(sample) > 1:
        region = labels == 1 + int(np.argmax(sample[1:]))
        if 2 * int(np.count_nonzero(region)) > count:
            return region
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))


def _sobel(alpha: np.ndarray) -> np.ndarray:
    """Sobel edge strength, float64 H x W, zero padding."""
    gx = cv2.Sobel(alpha, cv2.CV_64F, 1, 0, ksize=3, borderType=cv2.BORDER_CONSTANT)
    gy = cv2.Sobel(alpha, cv2.CV_64F, 0, 1, ksize=3, borderType=cv2.BORDER_CONSTANT)
    return _magnitude(gx, gy, _GRAD_EPSILON)


def _gaussian_gradient(alpha: np.ndarray) -> np.ndarray:
    """Gaussian-derivative edge strength, float64 H x W, borders repeated."""
    density = math.sqrt(2 * math.pi) * _DIM_SIGMA
    half = math.ceil(_DIM_SIGMA * math.sqrt(-2 * math.log(density * _DIM_CUTOFF)))
    x = np.arange(-half, half + 1, dtype=np.float64)
    smooth = np.exp(-(x**2) / (2 * _DIM_SIGMA**2))
    # The 2-D kernel is the outer product, so unit norm of both factors gives it unit norm too;
    # the constants of the Gaussian and the sign of the slope drop out.
    smooth, slope = smooth / np.linalg.norm(smooth), x * smooth / np.linalg.norm(x * smooth)
    gx = cv2.sepFilter2D(alpha, cv2.CV_64F, slope, smooth, borderType=cv2.BORDER_REPLICATE)
    gy = cv2.sepFilter2D(alpha, cv2.CV_64F, smooth, slope, borderType=cv2.BORDER_REPLICATE)
    return _magnitude(gx, gy, 0.0)


def _magnitude(gx: np.ndarray, gy: np.ndarray, epsilon: float) -> np.ndarray:
    """``sqrt(gx^2 + gy^2 + epsilon)``, overwriting both inputs: 12-megapixel arrays are large."""
    np.square(gx, out=gx)
    gx += np.square(gy, out=gy)
    gx += epsilon
    return np.sqrt(gx, out=gx)


def _chosen(values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return values if mask is None else values[mask]


def _rounded(threshold: float, dtype: np.dtype) -> float:
    """The threshold as the caller's own type holds it: a float32 0.7 is below a float64 0.7."""
    return float(dtype.type(threshold))


def _pair(pred: Any, target: Any, mask: Any) -> _Pair:
    """Check both mattes and the mask against each other."""
    a, b = _matte(pred, "pred"), _matte(target, "target")
    if a.alpha.shape != b.alpha.shape:
        raise ImageError(
            f"pred is {_size(a.alpha)} and target is {_size(b.alpha)} (height x width); "
            "both must have the same size: resize the prediction to the target's"
        )
    if mask is None:
        return _Pair(a, b, None)
    chosen = _numpy(mask, "mask")
    if chosen.dtype != np.bool_ or chosen.shape != a.alpha.shape:
        raise ImageError(
            f"mask is {chosen.dtype} of shape {chosen.shape}; expected bool of shape "
            f"{a.alpha.shape}: for a trimap pass trimap == 128"
        )
    if not chosen.any():
        raise ImageError("mask selects no pixel, so there is nothing to score; pass mask=None")
    return _Pair(a, b, chosen)


def _matte(values: Any, name: str) -> _Matte:
    """Check one matte and bring it to float64 in [0, 1]."""
    array = _numpy(values, name)
    if array.ndim != 2 or array.size == 0:
        raise ImageError(
            f"{name} has shape {array.shape}; expected one non-empty matte of height x width: "
            "pass a single channel, for example mattes[0]"
        )
    if array.dtype == np.bool_:
        return _Matte(array.astype(np.float64), np.dtype(np.float64))
    if array.dtype in (np.uint8, np.uint16):
        return _Matte(array / float(np.iinfo(array.dtype).max), np.dtype(np.float64))
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageError(
            f"{name} has type {array.dtype}; expected float in [0, 1], uint8, uint16 or bool: "
            "convert it first"
        )
    low, high = float(array.min()), float(array.max())
    if math.isnan(low) or math.isnan(high):
        raise ImageError(f"{name} contains NaN; expected values in [0, 1]: replace them first")
    if low < 0 or high > 1:
        raise ImageError(
            f"{name} has values from {low:g} to {high:g}; expected [0, 1]: "
            "divide by the maximum or clip first"
        )
    return _Matte(np.ascontiguousarray(array, dtype=np.float64), array.dtype)


def _numpy(values: Any, name: str) -> np.ndarray:
    """A numpy view of an array, a nested list or a torch tensor on any device."""
    if hasattr(values, "detach"):  # a torch tensor; torch itself is not needed here
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # numpy has no bfloat16
        values = values.numpy()
    try:
        array = np.asarray(values)
        return array.astype(np.float32) if array.dtype == np.float16 else array
    except (TypeError, ValueError) as error:
        raise ImageError(
            f"{name} is a {type(values).__name__} that is no rectangular array ({error}); "
            "expected a height x width matte"
        ) from error


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"
