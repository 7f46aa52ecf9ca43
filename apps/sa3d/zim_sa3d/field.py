"""What segmentation needs of a radiance field, whoever trained it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zim_sa3d.cameras import Camera

#: rays traced at a time; bounds memory whatever the picture's size
CHUNK = 8192


@dataclass(frozen=True)
class Samples:
    """The samples of some rays that matter, those of weight zero left out.

    Attributes:
        ray: long N, which ray each sample belongs to, ascending.
        grid: float32 N x 3 (x, y, z) in [-1, 1]: the place in the field's own unit cube.
        weight: float32 N, compositing weight; they add up to the ray's accumulation.
        t: float32 N, distance from the camera.
    """

    ray: Tensor
    grid: Tensor
    weight: Tensor
    t: Tensor


@dataclass(frozen=True)
class Rendered:
    """One view of a field: RGB H x W x 3 uint8, depth and accumulation float32 H x W."""

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    accumulation: NDArray[np.float32]


class RadianceField(Protocol):
    """A frozen field: what is where, and what colour it has.

    ``frame`` maps the unit cube back to the scene: half-extents and centre for boxes; fields
    that warp space do so in :meth:`to_scene`.
    """

    backend: str

    def trace(self, origins: Tensor, directions: Tensor) -> Samples:
        """Return the samples of rays (N x 3 each, scene coordinates, unit directions)."""
        ...

    def colour(self, grid: Tensor, directions: Tensor) -> Tensor:
        """Return RGB in [0, 1], N x 3, at places of the unit cube seen along directions."""
        ...

    def background(self, directions: Tensor) -> Tensor:
        """Return RGB in [0, 1] behind everything, N x 3."""
        ...

    def density(self, grid: Tensor) -> Tensor:
        """Return opacity per unit of the cube, N, at places N x 3 of the unit cube."""
        ...

    def to_scene(self, grid: Tensor) -> Tensor:
        """Return scene coordinates N x 3 of places in the unit cube."""
        ...


def trace_camera(
    field: RadianceField, camera: Camera, chunk: int = CHUNK
) -> Iterator[tuple[slice, Tensor, Samples]]:
    """Trace a whole view, some rays at a time.

    Yields:
        The pixels (a slice of the picture row by row), ray directions N x 3, and samples whose
        ``ray`` counts from the slice's start.
    """
    total = camera.width * camera.height
    for start in range(0, total, chunk):
        part = slice(start, min(start + chunk, total))
        origins, directions = camera.rays(torch.arange(part.start, part.stop))
        yield part, directions, field.trace(origins, directions)


def composite(values: Tensor, samples: Samples, rays: int) -> Tensor:
    """Return the weighted sum of per-sample values (N or N x C) along every ray."""
    weighted = samples.weight * values if values.dim() == 1 else samples.weight[:, None] * values
    out = torch.zeros(rays, *values.shape[1:])
    return out.index_add_(0, samples.ray, weighted)


@torch.no_grad()
def render_view(field: RadianceField, camera: Camera, chunk: int = CHUNK) -> Rendered:
    """Render one view of a field; depth is the expected distance, the farthest where nothing is."""
    total = camera.width * camera.height
    rgb = torch.zeros(total, 3)
    depth, opaque = torch.zeros(total), torch.zeros(total)
    for part, directions, samples in trace_camera(field, camera, chunk):
        rays = len(directions)
        acc = composite(torch.ones_like(samples.weight), samples, rays)
        colours = field.colour(samples.grid, directions[samples.ray])
        behind = field.background(directions) * (1 - acc)[:, None]
        rgb[part] = composite(colours, samples, rays) + behind
        depth[part] = composite(samples.t, samples, rays) / acc.clamp_min(1e-6)
        opaque[part] = acc
    seen = opaque > 0.1
    depth[~seen] = depth[seen].max() if seen.any() else 0.0
    size = (camera.height, camera.width)
    pixels = (rgb.clamp(0, 1) * 255).round().to(torch.uint8).reshape(*size, 3)
    return Rendered(pixels.numpy(), depth.reshape(size).numpy(), opaque.reshape(size).numpy())


def psnr(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio of two pictures in dB (at most 99)."""
    error = np.mean((first.astype(np.float64) - second) ** 2) / 255**2
    return 99.0 if error == 0 else float(min(99.0, -10 * np.log10(error)))
