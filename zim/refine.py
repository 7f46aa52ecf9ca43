"""A second pass at the picture's own resolution: strands that the model's frame cannot hold.

A model sees the picture scaled to its frame and answers on a grid of half that size; in a picture
of 12 megapixels one cell of it covers 8 to 30 pixels, hair one or two. The cells say how much of
the object there is, the colours which pixels it is. Three steps, around the soft parts only:

1. Colour lines. Around every cell the matte is taken to be linear in the picture's colours (Levin,
   Lischinski and Weiss, "A Closed-Form Solution to Natural Image Matting", TPAMI 2008), with
   windows as large as in He, Sun and Tang, "Fast Matting Using Large Kernel Matting Laplacian
   Matrices" (CVPR 2010); found cell by cell and applied to the pixels (:mod:`zim.upsample`).
2. Local colours. The result splits the neighbourhood of every pixel into object and background;
   their means and covariances, from large neighbourhoods to small ones, give a matte anew (Chuang
   et al., "A Bayesian Approach to Digital Matting", CVPR 2001).
3. Both are weighed by their variances. Far from the soft parts the model is believed and
   nothing changes.

Only sums over blocks of 8 x 8 pixels pass between tiles, over the whole crop at once; so the result
does not depend on where tiles end, and there is no seam to blend away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim._progress import track
from zim.errors import ImageError
from zim.framing import Window
from zim.upsample import guided_upsample

if TYPE_CHECKING:
    from zim.predictor import ZimPredictor

Floats = NDArray[Any]  # float32 throughout

#: side of the blocks whose sums pass between tiles, and of the tiles, in pixels
_BLOCK = 8
_TILE = 256
#: neighbourhoods in which colours are collected, as halvings of the block grid: 64 to 8 pixels
_LEVELS = (3, 2, 1, 0)
#: crops begin and end on the coarsest of these neighbourhoods
_ALIGN = _BLOCK << _LEVELS[0]
#: how much of a block the colours of the wider neighbourhood count
_BORROW = 0.05
#: spread of the picture's noise, for colours in [0, 1]
_NOISE = 0.01
#: variance of alpha below which a neighbourhood does not tell object from background
_SAME = 1e-3
#: alpha this close to 0 or 1 (of what the model calls 0 and 1) is certain
_CERTAIN = 0.02
#: cells beyond the soft ones that may still change, and how fast doubt fades there
_REACH = 8.0
_FADE = 3.0


@dataclass(frozen=True)
class _Trust:
    """How far a first matte is believed.

    Attributes:
        doubt: its standard deviation at soft pixels.
        radius: of the windows of the colour lines, in cells.
        rounds: how often colour lines are found, each time from the last result.
    """

    doubt: float
    radius: int
    rounds: int


#: Cells of a few pixels show most structure, larger ones hide it and colours have to say more.
#: Measured on composites and on photographs with true alpha; see ``benchmarks/refine.py``.
_LARGE_CELL = 12.0
_SMALL = _Trust(doubt=0.15, radius=2, rounds=1)
_LARGE = _Trust(doubt=0.25, radius=4, rounds=3)


def refine(
    image: NDArray[np.uint8],
    alpha: NDArray[np.floating[Any]],
    predictor: ZimPredictor | None = None,
    *,
    cell: float | None = None,
) -> Floats:
    """Sharpen a matte with the picture at full resolution: strands, fur, thin edges.

    Certain regions (alpha near 0 or 1) more than eight cells from a soft one stay as they are, bit
    by bit; so does a matte without soft pixels or edges. Memory beside input and result is
    about 40 bytes per pixel of the crop around the soft parts.

    Args:
        image: H x W x 3 uint8, RGB.
        alpha: the first matte in [0, 1], H x W, or smaller over the same picture.
        predictor: what made it; tells how many pixels a cell of its grid covers.
        cell: that number itself. Without either, the scale of a smaller ``alpha``, or for one of
            the picture's size a frame of 1024.

    Returns:
        H x W float32 in [0, 1].

    Raises:
        ImageError: shapes or types do not fit, or alpha is not finite within [0, 1].
    """
    _check(image, alpha)
    height, width = image.shape[:2]
    if cell is None and alpha.shape != (height, width):
        cell = max(height / alpha.shape[0], width / alpha.shape[1])
    first = np.array(alpha, dtype=np.float32)
    if first.shape != (height, width):
        first = _resize(first, (width, height))
    if cell is None:
        cell = cell_size(predictor, first)
    cell = max(cell, 1.0)
    low, high = _plateaus(first)
    grid = (max(1, round(width / cell)), max(1, round(height / cell)))
    reach, doubt = _soft(_stretch(_shrink(first, grid), low, high))
    crop = _crop(reach, (height, width))
    if crop is None:
        return first
    rows, columns = crop
    trust = _SMALL if cell < _LARGE_CELL else _LARGE
    blocks = -(-(rows.stop - rows.start) // _ALIGN) * _ALIGN // _BLOCK
    across = -(-(columns.stop - columns.start) // _ALIGN) * _ALIGN // _BLOCK
    at = (rows.start, columns.start, blocks, across, height, width)
    solver = _Solver(
        np.ascontiguousarray(image[rows, columns]),
        _stretch(first[rows, columns], low, high),
        np.stack([_sample(reach, *at), (trust.doubt * _sample(doubt, *at)) ** 2], -1),
        cell,
        trust,
    )
    before = solver.alpha.copy()
    change = solver.solve()
    change -= before
    first[rows, columns] += change
    return np.clip(first, 0, 1, out=first)


def cell_size(predictor: ZimPredictor | None, alpha: Floats) -> float:
    """Return how many pixels of the picture a cell of the model's stride-2 grid covers.

    Args:
        predictor: what made the matte; None means a frame of 1024 over the whole picture.
        alpha: the matte at the picture's size. Models that look again at a crop around the object
            (``ZimConfig.framing``) have smaller cells for smaller objects.
    """
    longest = max(alpha.shape)
    if predictor is None:
        return longest / 512
    config = predictor.model.config
    if config.framing:
        rows, columns = np.nonzero((alpha > 0.5).any(1))[0], np.nonzero((alpha > 0.5).any(0))[0]
        if len(rows):
            region = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            window = Window.around(region, (alpha.shape[0], alpha.shape[1]), config.framing)
            if window is not None:
                longest = max(window.width, window.height)
    return longest / (config.image_size // 2)


def _check(image: NDArray[np.uint8], alpha: NDArray[np.floating[Any]]) -> None:
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"a picture is a {type(image).__name__}; expected H x W x 3 uint8 "
            "(zim.images.load_image(picture).rgb)"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ImageError(
            f"a picture of shape {image.shape} and type {image.dtype}; expected H x W x 3 uint8"
        )
    if alpha.ndim != 2 or alpha.size == 0 or not np.issubdtype(alpha.dtype, np.floating):
        raise ImageError(
            f"a matte of shape {alpha.shape} and type {alpha.dtype}; expected h x w float"
        )
    if alpha.shape[0] > image.shape[0] or alpha.shape[1] > image.shape[1]:
        raise ImageError(
            f"the matte is {alpha.shape} but the picture is {image.shape[:2]}; "
            "expected the picture's size or less"
        )
    (height, width), (h, w) = image.shape[:2], alpha.shape
    if abs(h - height * w / width) > 1 and abs(w - width * h / height) > 1:
        raise ImageError(
            f"the matte is {alpha.shape} but the picture is {image.shape[:2]}; expected the same "
            "proportions"
        )
    # written so that NaN fails too
    if not (alpha.min() >= -1e-6 and alpha.max() <= 1 + 1e-6):
        raise ImageError(
            f"the matte has values from {alpha.min():g} to {alpha.max():g}; expected [0, 1]"
        )


def _plateaus(alpha: Floats) -> tuple[float, float]:
    """Return what the model calls 0 and 1: a network's solid parts are often 0.98, not 1."""
    seen = alpha[::4, ::4]
    empty, solid = seen[seen < 0.05], seen[seen > 0.95]
    return (
        float(np.median(empty)) if empty.size else 0.0,
        float(np.median(solid)) if solid.size else 1.0,
    )


def _stretch(alpha: Floats, low: float, high: float) -> Floats:
    return np.clip((alpha - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)


def _soft(cells: Floats) -> tuple[Floats, Floats]:
    """Return per cell how far it may change (1, falling to 0) and how much it is doubted."""
    near = np.ones((3, 3), np.uint8)
    soft = (cells > _CERTAIN) & (cells < 1 - _CERTAIN)
    soft |= cv2.dilate(cells, near) - cv2.erode(cells, near) > 0.1  # between certain cells
    if not soft.any():
        return np.zeros_like(cells), np.zeros_like(cells)
    away = cv2.distanceTransform((~soft).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    reach = np.clip((_REACH - away) / 2, 0, 1)
    return reach.astype(np.float32), np.exp(-away / _FADE).astype(np.float32)


def _crop(reach: Floats, size: tuple[int, int]) -> tuple[slice, slice] | None:
    """Return the rows and columns around everything within reach, aligned, or None."""
    crop = []
    for axis in (1, 0):
        length, cells = size[1 - axis], reach.shape[1 - axis]
        used = np.nonzero((reach > 0).any(axis))[0]
        if not len(used):
            return None
        start = int((used[0] - 1) * length / cells) // _ALIGN * _ALIGN - _ALIGN
        stop = -int(-(used[-1] + 2) * length / cells // _ALIGN) * _ALIGN + _ALIGN
        crop.append(slice(max(0, start), min(length, stop)))
    return crop[0], crop[1]


def _sample(
    cells: Floats, top: int, left: int, rows: int, columns: int, height: int, width: int
) -> Floats:
    """Interpolate a map over the picture's cells at the middles of a crop's blocks."""

    def places(start: int, count: int, length: int, total: int) -> Floats:
        middle = start + (np.arange(count) + 0.5) * _BLOCK
        return (middle * total / length - 0.5).astype(np.float32)

    y = places(top, rows, height, cells.shape[0])
    x = places(left, columns, width, cells.shape[1])
    xs, ys = np.meshgrid(x, y)
    return cv2.remap(cells, xs, ys, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


class _Solver:
    """The second pass over one crop; tiles share nothing but sums over blocks."""

    def __init__(
        self, rgb: NDArray[np.uint8], alpha: Floats, doubt: Floats, cell: float, trust: _Trust
    ) -> None:
        """Take the crop, its first matte, and reach and variance per block (b x b x 2)."""
        self.rgb, self.alpha, self.doubt, self.trust = rgb, alpha, doubt, trust
        height, width = alpha.shape
        self.grid = (max(1, round(width / cell)), max(1, round(height / cell)))
        tops, lefts = range(0, height, _TILE), range(0, width, _TILE)
        self.tiles = [
            (slice(y, min(y + _TILE, height)), slice(x, min(x + _TILE, width)))
            for y in tops
            for x in lefts
        ]
        self.active = [t for t in self.tiles if self.doubt[(*_blocks(t), 0)].any()]

    def solve(self) -> Floats:
        """Return the refined alpha of the crop."""
        self.colour_lines()
        prior = self.alpha.copy()
        sums = np.zeros((*self.doubt.shape[:2], 2, 10), np.float32)
        for tile in self.tiles:
            sums[_blocks(tile)] = self.collect(tile)
        steps = [(level, tile) for level in _LEVELS for tile in self.active]
        fields, current = sums[..., 0, :], -1
        for level, tile in track(steps, "refining"):
            if level != current:
                # sums of this level are complete: every tile of the last one has been visited
                fields, current = self.local_colours(sums, level), level
            self.update(tile, _enlarge(fields, tile), prior[tile])
            if level != _LEVELS[-1]:
                sums[_blocks(tile)] = self.collect(tile)
        return self.alpha

    def colour_lines(self) -> None:
        """Replace alpha, within reach, by what is linear in the colours around every cell."""
        first = self.alpha
        for _ in range(self.trust.rounds):
            cells = _shrink(self.alpha, self.grid)
            eps = 1e-4 if self.trust is _SMALL else 1e-5
            guided = np.clip(guided_upsample(cells, self.rgb, self.trust.radius, eps), 0, 1)
            for tile in self.active:
                reach = _enlarge(self.doubt[..., :1], tile)[..., 0]
                guided[tile] = first[tile] + reach * (guided[tile] - first[tile])
            for tile in self.tiles:
                if tile not in self.active:
                    guided[tile] = first[tile]
            self.alpha = guided

    def collect(self, tile: tuple[slice, slice]) -> Floats:
        """Return weights, colours and products of colours, summed over blocks: b x b x 2 x 10.

        Object and background weigh alpha^2 and (1 - alpha)^2, so that mixed pixels count little.
        """
        colour = self.rgb[tile].astype(np.float32) * np.float32(1 / 255)
        alpha = self.alpha[tile]
        r, g, b = (np.ascontiguousarray(colour[..., k]) for k in range(3))
        planes = (r, g, b, r * r, r * g, r * b, g * g, g * b, b * b)
        rows, columns = _blocks(tile)
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start, 2, 10), np.float32)
        for k, weight in enumerate((np.square(alpha), np.square(1 - alpha))):
            out[..., k, 0] = _block_means(weight)
            for j, plane in enumerate(planes, 1):
                out[..., k, j] = _block_means(weight * plane)
        return out

    def local_colours(self, sums: Floats, level: int) -> Floats:
        """Return per block the background, object minus background, their variances, and doubt.

        b x b x 10: background (3), difference (3), variance of object and of background along
        the difference, reach, variance of the first matte.
        """
        front, back = (_spread(sums[..., k, :], level) for k in range(2))
        difference = front[..., :3] - back[..., :3]
        length = (difference**2).sum(-1) + np.float32(1e-6)
        spreads = [np.maximum(_along(f, difference) / length, 0)[..., None] for f in (front, back)]
        doubt = self.doubt.copy()
        doubt[..., 1] *= _told_apart(sums[..., 0])
        return np.concatenate([back[..., :3], difference, *spreads, doubt], -1)

    def update(self, tile: tuple[slice, slice], fields: Floats, prior: Floats) -> None:
        """Weigh the prior against where each colour lies between background and object."""
        alpha = self.alpha[tile]
        difference = fields[..., 3:6]
        length = np.einsum("yxc,yxc->yx", difference, difference) + np.float32(1e-6)
        colour = self.rgb[tile] * np.float32(1 / 255) - fields[..., :3]
        place = np.einsum("yxc,yxc->yx", colour, difference) / length
        error = alpha**2 * fields[..., 6] + (1 - alpha) ** 2 * fields[..., 7] + _NOISE**2
        doubt = fields[..., 9] * length
        share = fields[..., 8] * doubt / (doubt + error)
        self.alpha[tile] = np.clip(prior + share * (place - prior), 0, 1)


def _spread(sums: Floats, level: int) -> Floats:
    """Return means per block; neighbourhoods without weight borrow from wider ones.

    ``sums`` is b x b x 10 with the weight first, the result b x b x 9 (pull-push on a pyramid).
    """
    height, width = sums.shape[:2]
    pyramid = [np.ascontiguousarray(sums)]
    while min(pyramid[-1].shape[:2]) > 2:
        h, w = pyramid[-1].shape[:2]
        pyramid.append(_shrink(pyramid[-1], ((w + 1) // 2, (h + 1) // 2)))
    level = min(level, len(pyramid) - 1)
    top = pyramid[-1]
    out: Floats = top[..., 1:] / np.maximum(top[..., :1], np.float32(1e-6))
    for below in pyramid[level:-1][::-1]:
        wider = _resize(out, (below.shape[1], below.shape[0]))
        out = (below[..., 1:] + _BORROW * wider) / (below[..., :1] + _BORROW)
    return _resize(out, (width, height))


def _told_apart(weights: Floats) -> Floats:
    """Return per block how far object and background differ there, 0 to 1.

    Where alpha hardly varies, the two sets of colours are one and their difference means nothing.
    ``weights`` is b x b x 2, the means of alpha^2 and (1 - alpha)^2 (0 and 0 outside the crop).
    """
    height, width = weights.shape[:2]
    inside = (weights.sum(-1, keepdims=True) > 0).astype(np.float32)
    factor = 1 << _LEVELS[0]
    wide = _shrink(np.concatenate([weights, inside], -1), (width // factor, height // factor))
    square, opposite, share = (wide[..., k] for k in range(3))
    share = np.maximum(share, np.float32(1e-6))
    mean = (1 + (square - opposite) / share) / 2
    variance = np.maximum(square / share - mean**2, 0)
    return _resize(variance / (variance + _SAME), (width, height))


def _along(moments: Floats, direction: Floats) -> Floats:
    """Return ``d' C d`` for the covariance C in b x b x 9 moments and directions b x b x 3."""
    total = np.zeros(moments.shape[:2], np.float32)
    pairs = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    for k, (i, j) in enumerate(pairs, 3):
        covariance = moments[..., k] - moments[..., i] * moments[..., j]
        twice = 1 if i == j else 2
        total += twice * covariance * direction[..., i] * direction[..., j]
    return total


def _blocks(tile: tuple[slice, slice]) -> tuple[slice, slice]:
    """Return the blocks a tile covers; the last ones may stick out."""
    rows, columns = (slice(s.start // _BLOCK, -(-s.stop // _BLOCK)) for s in tile)
    return rows, columns


def _block_means(plane: Floats) -> Floats:
    """Average over blocks; those that stick out of the picture repeat its last pixels."""
    height, width = plane.shape
    down, right = -height % _BLOCK, -width % _BLOCK
    if down or right:
        plane = cv2.copyMakeBorder(plane, 0, down, 0, right, cv2.BORDER_REPLICATE)
    return _shrink(plane, (plane.shape[1] // _BLOCK, plane.shape[0] // _BLOCK))


def _enlarge(fields: Floats, tile: tuple[slice, slice]) -> Floats:
    """Interpolate per-block maps at the pixels of a tile, the same whatever the tile."""
    rows, columns = _blocks(tile)
    y = np.clip(np.arange(rows.start - 1, rows.stop + 1), 0, len(fields) - 1)
    x = np.clip(np.arange(columns.start - 1, columns.stop + 1), 0, fields.shape[1] - 1)
    part = fields[np.ix_(y, x)]
    large = _resize(part, (len(x) * _BLOCK, len(y) * _BLOCK))
    height, width = (s.stop - s.start for s in tile)
    return large[_BLOCK : _BLOCK + height, _BLOCK : _BLOCK + width]


def _shrink(values: Floats, size: tuple[int, int]) -> Floats:
    return _scale(values, size, cv2.INTER_AREA)


def _resize(values: Floats, size: tuple[int, int]) -> Floats:
    return _scale(values, size, cv2.INTER_LINEAR)


def _scale(values: Floats, size: tuple[int, int], how: int) -> Floats:
    """Resize h x w or h x w x c to (width, height), any number of channels."""
    if values.ndim == 2:
        return np.asarray(cv2.resize(values, size, interpolation=how), np.float32)
    out = np.empty((size[1], size[0], values.shape[2]), np.float32)
    for start in range(0, values.shape[2], 4):  # cv2 takes four channels at most
        part = np.ascontiguousarray(values[..., start : start + 4])
        out[..., start : start + 4] = cv2.resize(part, size, interpolation=how).reshape(
            size[1], size[0], -1
        )
    return out
