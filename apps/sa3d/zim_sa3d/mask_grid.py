"""The object in 3D: a grid of signed confidences, filled by mask inverse rendering (SA3D, Eq. 1-4).

The loss of a view with mask M, ``-sum(M * m) + lambda * sum((1 - M) * m)`` with
``m(r) = sum_i w_i V(x_i)``, is linear in V. One step of plain gradient descent therefore adds the
samples' weights into the voxels they are read from: ``V += A - lambda * B``, A from the pixels
inside the mask, B from those outside. :func:`add_view` does just that; :func:`add_view_gradient`
gets there by automatic differentiation and is kept to show that both agree.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from zim.errors import CheckpointError
from zim.output import atomic_write
from zim_sa3d.field import Samples, composite

Readout = Literal["indicator", "score", "ratio"]
READOUTS: tuple[Readout, ...] = ("indicator", "score", "ratio")

#: the soft 3D matte takes fainter samples too, or it would have holes where surfaces are soft
_SOFT_WEIGHT = 0.01
#: samples of less weight are left out of a rendered ``score`` (SA3D): haze would make it positive
HAZE = 0.1

#: pixels (a slice, row by row), ray directions, samples
Traced = Iterable[tuple[slice, Tensor, Samples]]


@dataclass
class MaskGrid:
    """One object's grids, each float32 Z x Y x X over the field's unit cube.

    Attributes:
        value: signed confidence V, the mean contribution per view that touched a voxel.
        count: how many views touched it.
        inside: summed weights times the soft matte.
        total: summed weights; ``inside / total`` is the soft 3D matte (ours, not SA3D's).
        keep: 0 where later cleaning removed the voxel, else 1.
    """

    value: Tensor
    count: Tensor
    inside: Tensor
    total: Tensor
    keep: Tensor = field(default_factory=lambda: torch.ones(1, 1, 1))

    @classmethod
    def empty(cls, side: int) -> MaskGrid:
        """Return a grid of ``side`` voxels a side that nothing was voted into."""
        zeros = [torch.zeros(side, side, side) for _ in range(4)]
        return cls(*zeros, keep=torch.ones(side, side, side))

    @property
    def side(self) -> int:
        """Voxels per side."""
        return self.value.shape[0]

    def read(self, grid: Tensor, readout: Readout) -> Tensor:
        """Return what a read-out sees at places N x 3 of the unit cube, N.

        ``score``: V itself; ``indicator``: 1 where V > 0, else 0; ``ratio``: the soft 3D matte.
        """
        kept = interpolate(self.keep, grid) if self.keep.min() < 1 else None
        if readout == "ratio":
            total = interpolate(self.total, grid)
            values = interpolate(self.inside, grid) / total.clamp_min(1e-9)
            values = torch.where(total > 1e-9, values, 0.0)
        else:
            values = interpolate(self.value, grid)
            if readout == "indicator":
                values = (values > 0).float()
        if kept is None:
            return values
        return torch.where(kept > 0.5, values, values.clamp(max=0.0))

    def merge(self, step: Tensor) -> None:
        """Take one view's step into the running mean of the views that changed a voxel."""
        changed = step != 0
        self.value = self.value * self.count + step
        self.count = self.count + changed
        self.value = torch.where(self.count > 0, self.value / self.count.clamp_min(1), self.value)

    def save(self, path: Path, **about: Any) -> None:
        """Write an ``.npz`` with all grids and whatever else describes them."""
        buffer = io.BytesIO()
        names = ("value", "count", "inside", "total", "keep")
        arrays = {name: getattr(self, name).numpy() for name in names}
        np.savez_compressed(buffer, **arrays, **about)
        atomic_write(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> MaskGrid:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                names = ("value", "count", "inside", "total", "keep")
                return cls(*(torch.from_numpy(data[name]) for name in names))
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} does not exist; run zim-sa3d segment first") from error
        except Exception as error:
            raise CheckpointError(f"{path} is no mask grid ({error}); segment again") from error


def interpolate(values: Tensor, grid: Tensor) -> Tensor:
    """Read a grid Z x Y x X at places N x 3 (x, y, z in [-1, 1]) by trilinear interpolation."""
    at = grid.view(1, 1, 1, -1, 3)
    return F.grid_sample(values[None, None], at, align_corners=True).view(-1)


def splat(out: Tensor, grid: Tensor, weights: Tensor) -> None:
    """Add weights N x C into grids C x Z x Y x X: the transpose of :func:`interpolate`."""
    side = out.shape[-1]
    position = (grid.clamp(-1, 1) + 1) / 2 * (side - 1)
    base = position.floor().long().clamp(0, side - 2)
    part = position - base
    flat = out.view(len(out), -1)
    for corner in range(8):
        bits = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1])
        share = torch.where(bits.bool(), part, 1 - part).prod(1)
        cell = base + bits
        index = (cell[:, 2] * side + cell[:, 1]) * side + cell[:, 0]
        flat.index_add_(1, index, (weights * share[:, None]).T.contiguous())


def above(samples: Samples, min_weight: float) -> Samples:
    """Drop samples of little weight, so that masks land on surfaces and not on haze."""
    if min_weight <= 0:
        return samples
    keep = samples.weight > min_weight
    return Samples(samples.ray[keep], samples.grid[keep], samples.weight[keep], samples.t[keep])


def add_view(
    grid: MaskGrid,
    traced: Traced,
    matte: NDArray[np.float32],
    *,
    penalty: float,
    binarize: float,
    min_weight: float,
) -> None:
    """Vote one view's matte into the grid, in closed form.

    Args:
        grid: changed in place.
        traced: the view's samples (:func:`zim_sa3d.field.trace_camera`).
        matte: H x W in [0, 1].
        penalty: lambda, the weight of pixels outside the mask.
        binarize: the matte above this is the mask (ZIM paper, section 7.3: 0.3).
        min_weight: see :func:`above`.
    """
    soft = torch.from_numpy(np.ascontiguousarray(matte)).flatten()
    side = grid.side
    step, sums = torch.zeros(1, side, side, side), torch.zeros(2, side, side, side)
    for part, _, samples in traced:
        used = above(samples, min_weight)
        sign = torch.where(soft[part][used.ray] > binarize, 1.0, -penalty)
        splat(step, used.grid, (sign * used.weight)[:, None])
        _splat_soft(sums, samples, soft[part], min_weight)
    grid.merge(step[0])
    grid.inside += sums[0]
    grid.total += sums[1]


def _splat_soft(sums: Tensor, samples: Samples, soft: Tensor, min_weight: float) -> None:
    """Add a chunk of a view's soft matte, one alpha per ray, to ``inside`` and ``total``."""
    used = above(samples, min(min_weight, _SOFT_WEIGHT))
    rows = torch.stack([soft[used.ray] * used.weight, used.weight], 1)
    splat(sums, used.grid, rows)


def add_view_gradient(
    grid: MaskGrid,
    traced: Traced,
    matte: NDArray[np.float32],
    *,
    penalty: float,
    binarize: float,
    min_weight: float,
) -> None:
    """Do what :func:`add_view` does, ``value`` by one step of SGD with rate 1 on the loss."""
    soft = torch.from_numpy(np.ascontiguousarray(matte)).flatten()
    mask = (soft > binarize).float()
    sums = torch.zeros(2, *grid.value.shape)
    value = torch.nn.Parameter(torch.zeros_like(grid.value))
    optimiser = torch.optim.SGD([value], lr=1.0)
    for part, directions, samples in traced:
        used = above(samples, min_weight)
        score = composite(interpolate(value, used.grid), used, len(directions))
        loss = -(mask[part] * score).sum() + penalty * ((1 - mask[part]) * score).sum()
        loss.backward()
        _splat_soft(sums, samples, soft[part], min_weight)
    optimiser.step()
    grid.merge(value.detach())
    grid.inside += sums[0]
    grid.total += sums[1]


def render_mask(
    traced: Traced,
    read: Callable[[Tensor], Tensor],
    size: tuple[int, int],
    min_weight: float = 0.0,
) -> NDArray[np.float32]:
    """Composite what ``read`` sees at the samples of enough weight into a picture, H x W float32.

    SA3D drops samples of little weight for its ``score`` here too; haze around an object would
    make it positive.
    """
    out = torch.zeros(size[0] * size[1])
    for part, directions, samples in traced:
        used = above(samples, min_weight)
        out[part] = composite(read(used.grid), used, len(directions))
    return out.view(size).numpy()


def keep_component(grid: MaskGrid, clicked: Tensor | None = None) -> int:
    """Keep one connected piece of V > 0 (neighbours over faces, edges and corners).

    Args:
        grid: changed in place.
        clicked: K x 3 (x, y, z) in [-1, 1], places the user pointed at. The piece with most of them
            in it or next to it stays; the largest one where there are none.

    Returns:
        How many voxels of other pieces were removed.
    """
    from zim._extras import require

    measure: Any = require("skimage.measure", "sa3d")
    solid = (grid.value > 0).numpy()
    labels = measure.label(solid, connectivity=3)
    if labels.max() < 2:
        return 0
    sizes = np.bincount(labels.ravel())
    hits = np.zeros_like(sizes)
    for x, y, z in [] if clicked is None else _nearest(clicked, grid.side):
        near = labels[max(0, z - 1) : z + 2, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        hits[np.unique(near)] += 1
    sizes[0] = hits[0] = 0
    kept = int(np.lexsort((sizes, hits))[-1])
    gone = solid & (labels != kept)
    # a soft rim goes with the piece it belongs to: what is not next to a removed voxel stays
    blown = F.max_pool3d(torch.from_numpy(gone).float()[None, None], 3, 1, 1)[0, 0]
    stays = torch.from_numpy(labels == kept)
    grid.keep = torch.where((blown > 0) & ~stays, 0.0, 1.0)
    return int(gone.sum())


def _nearest(places: Tensor, side: int) -> list[list[int]]:
    """Voxels (x, y, z) nearest to places of the unit cube."""
    return (((places.clamp(-1, 1) + 1) / 2) * (side - 1)).round().long().tolist()
