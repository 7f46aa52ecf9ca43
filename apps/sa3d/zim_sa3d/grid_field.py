"""The built-in radiance field: opacity and colour as voxels in plain torch, trained in a minute.

The design is DVGO's (which SA3D stands on) without its colour network: two voxel tensors read by
trilinear interpolation, coarse first, then fine; empty space is skipped once it is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from zim._progress import track
from zim.errors import CheckpointError
from zim.output import atomic_write
from zim_sa3d.field import Samples
from zim_sa3d.field_note import read_note, write_note
from zim_sa3d.scene import Scene
from zim_sa3d.space import Space, from_dict

#: raw values below are read as this density's exponent; the softplus is scaled as in the cube
_SHARP = 40.0
#: so that a ray through fresh voxels keeps most of its light, and what stays fresh counts as empty
_CLEAR = 5.0
#: a sample counts as empty below this opacity
_EMPTY = 5e-3
#: fine stages look again for empty cells after so many steps
_PRUNE = 75


@dataclass(frozen=True)
class GridSettings:
    """How the voxels are trained.

    Attributes:
        resolutions: voxels per side of each stage.
        steps: optimiser steps of each stage.
        rays: per step.
        samples: per ray in each stage.
        smoothness: weight of the total variation of opacity, against floaters.
        clearness: weight of the entropy of accumulation: rays end at something or at nothing.
        spread: weight of the spread of a ray's weights (mip-NeRF 360's distortion): one thin
            surface instead of a thick fog of the same colour.
        own_colour: weight, in each stage, of every sample's own colour against the pixel's (DVGO):
            without it the cheapest table is a half transparent one of too dark a colour.
        rate: learning rate at the start; it falls tenfold.
    """

    resolutions: tuple[int, ...] = (40, 96)
    steps: tuple[int, ...] = (150, 650)
    rays: int = 768
    samples: tuple[int, ...] = (64, 128)
    smoothness: float = 1e-3
    clearness: float = 1e-3
    spread: float = 3e-2
    own_colour: tuple[float, ...] = (0.1, 0.03)
    rate: float = 0.1


class GridField:
    """Opacity and colour on voxels; see the module's text.

    Attributes:
        space: the scene's frame.
        voxels: float32 1 x 4 x Z x Y x X, raw opacity and raw RGB.
        sky: float32 3, raw RGB behind everything.
        occupied: bool Z x Y x X or None: cells that may hold something.
        samples: per ray.
    """

    backend = "grid"

    def __init__(self, space: Space, voxels: Tensor, sky: Tensor, samples: int) -> None:
        """Take tensors as they are; nothing is skipped until :meth:`find_empty`."""
        self.space = space
        self.voxels = voxels
        self.sky = sky
        self.samples = samples
        self.occupied: Tensor | None = None

    @property
    def _cell(self) -> float:
        return 2.0 / (self.voxels.shape[-1] - 1)

    def _density(self, raw: Tensor) -> Tensor:
        return F.softplus(raw - _CLEAR) * _SHARP

    def _read(self, grid: Tensor) -> Tensor:
        """Return N x 4 raw values."""
        out = F.grid_sample(self.voxels, grid.view(1, 1, 1, -1, 3), align_corners=True)
        return out.view(4, -1).T

    def find_empty(self) -> None:
        """Note which cells are empty, so that tracing passes them over."""
        with torch.no_grad():
            solid = 1 - torch.exp(-self._density(self.voxels[:, :1]) * self._cell)
            near = F.max_pool3d(solid, 3, stride=1, padding=1)
            self.occupied = (near > _EMPTY)[0, 0]

    def _march(self, origins: Tensor, directions: Tensor, jitter: bool) -> tuple[Tensor, ...]:
        """Return the samples worth reading, flat.

        Returns:
            Ray, place, step in the cube, distance, and share of the way through the ray's bins.
        """
        edges = self.space.distances(origins, directions, self.samples)
        rays, count = len(origins), edges.shape[1] - 1
        share = torch.rand(rays, count) if jitter else torch.tensor(0.5)
        t = edges[:, :-1] + (edges[:, 1:] - edges[:, :-1]) * share
        points = origins[:, None] + directions[:, None] * t[..., None]
        grid = self.space.to_grid(points.view(-1, 3)).view(rays, count, 3)
        if self.space.kind == "box":
            step = ((edges[:, 1:] - edges[:, :-1]) / self.space.extent).expand(rays, count)
        else:
            step = (grid[:, 1:] - grid[:, :-1]).norm(dim=-1)
            step = torch.cat([step, step[:, -1:]], 1)
        keep = (grid.abs() <= 1).all(-1)
        if self.occupied is not None:
            side = torch.tensor(self.occupied.shape[::-1]) - 1
            cell = ((grid + 1) / 2 * side + 0.5).long().clamp_min(0).minimum(side)
            keep &= self.occupied[cell[..., 2], cell[..., 1], cell[..., 0]]
        ray, index = keep.nonzero(as_tuple=True)
        way = (index + 0.5) / count
        return ray, grid[ray, index], step[ray, index], t[ray, index], way

    def _weights(self, ray: Tensor, optical: Tensor, rays: int) -> Tensor:
        """Return compositing weights from optical depths of samples sorted by ray."""
        return torch.exp(-_before(ray, optical, rays)) * (1 - torch.exp(-optical))

    def trace(self, origins: Tensor, directions: Tensor) -> Samples:
        """Return the samples of rays; see :class:`zim_sa3d.field.RadianceField`."""
        ray, grid, step, t, _ = self._march(origins, directions, jitter=False)
        optical = self._density(self._read_density(grid)) * step
        weight = self._weights(ray, optical, len(origins))
        seen = weight > 0
        return Samples(ray[seen], grid[seen], weight[seen], t[seen])

    def _read_density(self, grid: Tensor) -> Tensor:
        part = self.voxels[:, :1]
        return F.grid_sample(part, grid.view(1, 1, 1, -1, 3), align_corners=True).view(-1)

    def density(self, grid: Tensor) -> Tensor:
        """Return opacity per unit of the cube, N."""
        return self._density(self._read_density(grid))

    def colour(self, grid: Tensor, directions: Tensor) -> Tensor:
        """Return RGB N x 3; it does not depend on the direction."""
        del directions
        return torch.sigmoid(self._read(grid)[:, 1:])

    def background(self, directions: Tensor) -> Tensor:
        """Return the one colour behind everything, N x 3."""
        return torch.sigmoid(self.sky).expand(len(directions), 3)

    def to_scene(self, grid: Tensor) -> Tensor:
        """Return scene coordinates of places in the cube."""
        return self.space.to_scene(grid)

    def save(self, folder: Path) -> Path:
        """Write ``field.safetensors`` and ``field.json``; return the former."""
        from safetensors.torch import save

        path = folder / "field.safetensors"
        atomic_write(path, save({"voxels": self.voxels.detach().half(), "sky": self.sky.detach()}))
        space = self.space.to_dict()
        write_note(folder, {"backend": self.backend, "space": space, "samples": self.samples})
        return path

    @classmethod
    def load(cls, folder: Path) -> GridField:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: the files are missing, damaged or of another version.
        """
        from safetensors.torch import load

        about = read_note(folder)
        try:
            tensors = load((folder / "field.safetensors").read_bytes())
            space = from_dict(about["space"])
            field = cls(space, tensors["voxels"].float(), tensors["sky"], int(about["samples"]))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{folder} holds no trained field ({error.filename}); run zim-sa3d train first"
            ) from error
        except Exception as error:
            raise CheckpointError(
                f"the field in {folder} is damaged ({' '.join(str(error).split())}); "
                "train again with --scene SCENE --overwrite"
            ) from error
        field.find_empty()
        return field


class RayBank:
    """Random pixels of the training views with their rays; pictures stay in 8 bits."""

    def __init__(self, scene: Scene, views: list[int]) -> None:
        """Read the pictures."""
        self.cameras = [scene.views[i].camera for i in views]
        self.pictures = [torch.from_numpy(scene.views[i].rgb()).view(-1, 3) for i in views]
        self.ends = torch.tensor([len(p) for p in self.pictures]).cumsum(0)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return origins, directions and RGB in [0, 1], count x 3 each, from random pixels."""
        pick = torch.randint(int(self.ends[-1]), (count,), generator=generator).sort().values
        which = torch.searchsorted(self.ends, pick, right=True)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for k in which.unique().tolist():
            pixels = pick[which == k] - (self.ends[k] - len(self.pictures[k]))
            origins, directions = self.cameras[k].rays(pixels)
            parts.append((origins, directions, self.pictures[k][pixels].float() / 255))
        origins, directions, colours = (torch.cat(x) for x in zip(*parts, strict=True))
        return origins, directions, colours


def train_grid(scene: Scene, settings: GridSettings, seed: int = 0) -> GridField:
    """Train a field on the scene's training views.

    Args:
        scene: its held-out views are not looked at.
        settings: see :class:`GridSettings`.
        seed: of pixels and jitter.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    bank = RayBank(scene, scene.train)
    side = settings.resolutions[0]
    field = GridField(
        Space.of(scene), torch.zeros(1, 4, side, side, side), torch.zeros(3), settings.samples[0]
    )
    total, done = sum(settings.steps), 0
    for stage, side in enumerate(settings.resolutions):
        if stage:
            field.find_empty()
            wanted = (side,) * 3
            if field.occupied is not None:
                blown = F.interpolate(field.occupied[None, None].float(), wanted, mode="nearest")
                field.occupied = blown[0, 0] > 0
        field.voxels = F.interpolate(
            field.voxels.detach(), (side,) * 3, mode="trilinear", align_corners=True
        ).requires_grad_()
        field.samples = settings.samples[stage]
        field.sky = field.sky.detach().requires_grad_()
        optimiser = torch.optim.Adam(
            [field.voxels, field.sky], lr=settings.rate, eps=1e-12, fused=True
        )
        for step in track(range(settings.steps[stage]), f"training, {side} voxels a side"):
            if stage and step and step % _PRUNE == 0:
                field.find_empty()
            rate = settings.rate * 0.1 ** (done / total)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
            _loss(field, bank, settings, settings.own_colour[stage], generator).backward()
            optimiser.step()
            done += 1
    field.voxels = field.voxels.detach()
    field.sky = field.sky.detach()
    field.find_empty()
    return field


def _loss(
    field: GridField,
    bank: RayBank,
    settings: GridSettings,
    own_colour: float,
    generator: torch.Generator,
) -> Tensor:
    origins, directions, wanted = bank.draw(settings.rays, generator)
    ray, grid, step, _, way = field._march(origins, directions, jitter=True)
    raw = field._read(grid)
    weight = field._weights(ray, field._density(raw[:, 0]) * step, len(origins))
    colour = torch.sigmoid(raw[:, 1:])
    samples = colour * weight[:, None]
    acc = torch.zeros(len(origins)).index_add(0, ray, weight)
    rgb = torch.zeros(len(origins), 3).index_add(0, ray, samples)
    rgb = rgb + (1 - acc)[:, None] * field.background(directions)
    a = acc.clamp(1e-5, 1 - 1e-5)
    entropy = -(a * a.log() + (1 - a) * (1 - a).log()).mean()
    apart = (colour - wanted[ray]).square().mean(1)
    return (
        F.mse_loss(rgb, wanted)
        + settings.spread * _spread(ray, weight, way, len(origins))
        + own_colour * (apart * weight.detach()).sum() / len(origins)
        + settings.clearness * entropy
        + settings.smoothness * _variation(field.voxels[0, 0])
    )


def _before(ray: Tensor, values: Tensor, rays: int) -> Tensor:
    """Return, for samples sorted by ray, the sum of the values that come before each on its ray."""
    total = torch.cumsum(values.double(), 0)
    count = torch.bincount(ray, minlength=rays)
    first = torch.cumsum(count, 0) - count
    before = torch.cat([total.new_zeros(1), total])
    return (before[:-1] - before[first][ray]).float()


def _spread(ray: Tensor, weight: Tensor, way: Tensor, rays: int) -> Tensor:
    """Return the mean over rays of ``sum_ij w_i w_j |way_i - way_j|``, samples sorted by ray."""
    behind = way * _before(ray, weight, rays) - _before(ray, way * weight, rays)
    return 2 * (weight * behind).sum() / rays


def _variation(raw: Tensor) -> Tensor:
    """Mean squared difference of neighbouring voxels' raw opacity, of a quarter of fine grids."""
    side = raw.shape[0]
    if side > 64:
        start = int(torch.randint(side - side // 4, ()))
        raw = raw[start : start + side // 4 + 1]
    parts = [raw.diff(dim=k).square().mean() for k in range(3)]
    return torch.stack(parts).mean()
