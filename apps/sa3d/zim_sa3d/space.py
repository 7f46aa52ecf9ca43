"""How unbounded space fits into a cube: a plain box, an inf-norm contraction, or NDC.

All three map the scene into [-1, 1]^3 and say where along a ray to sample. Distances for opacity
are measured in the cube, so that a voxel is as opaque far away as it is nearby (as in DVGO).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zim.errors import ConfigError
from zim_sa3d.cameras import Camera
from zim_sa3d.scene import Scene

#: how much of the cube's half-side lies outside the cameras' own region (DVGO: 0.2)
MARGIN = 0.2


@dataclass(frozen=True)
class Space:
    """A scene's frame.

    Attributes:
        kind: ``box``, ``contract`` or ``ndc``.
        centre: of the region of interest, in the scene.
        extent: its half-side, in scene units (``ndc``: unused).
        near: no samples before this distance, in scene units (``ndc``: the near plane).
        axes: 3 x 3, rows right, up, backward of the mean camera (``ndc``; else the identity).
        half_view: tangents of the half angles of view, horizontally and vertically (``ndc``).
    """

    kind: str
    centre: tuple[float, float, float]
    extent: float
    near: float
    axes: tuple[tuple[float, ...], ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    half_view: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def of(cls, scene: Scene) -> Space:
        """Choose a frame for a scene.

        Raises:
            ConfigError: the scene's kind is unknown.
        """
        if scene.kind == "bounded":
            extent = scene.extent or 1.0
            return cls("box", (0.0, 0.0, 0.0), extent, scene.near or 0.05 * extent)
        if scene.kind == "inward":
            return _around(scene)
        if scene.kind == "forward":
            return _forward(scene)
        raise ConfigError(f"scene kind {scene.kind!r}; expected bounded, inward or forward")

    def to_dict(self) -> dict[str, Any]:
        """Return what :func:`from_dict` takes."""
        return asdict(self)

    def to_grid(self, points: Tensor) -> Tensor:
        """Map scene coordinates N x 3 into the cube; outside a plain box exceeds 1."""
        local = (points - torch.tensor(self.centre)) @ torch.tensor(self.axes).T
        if self.kind == "ndc":
            z = -local[:, 2]
            tangents = torch.tensor(self.half_view)
            flat = local[:, :2] / (z.clamp_min(1e-6)[:, None] * tangents)
            return torch.cat([flat, (1 - 2 * self.near / z.clamp_min(1e-6))[:, None]], 1)
        local = local / self.extent
        if self.kind == "box":
            return local
        size = local.abs().amax(1, keepdim=True).clamp_min(1e-9)
        outer = local / size * (1 + MARGIN - MARGIN / size)
        return torch.where(size <= 1, local, outer) / (1 + MARGIN)

    def to_scene(self, grid: Tensor) -> Tensor:
        """Map places of the cube N x 3 back into the scene."""
        axes, centre = torch.tensor(self.axes), torch.tensor(self.centre)
        if self.kind == "ndc":
            z = 2 * self.near / (1 - grid[:, 2]).clamp_min(1e-6)
            local = torch.cat(
                [grid[:, :2] * z[:, None] * torch.tensor(self.half_view), -z[:, None]], 1
            )
            return local @ axes + centre
        local = grid
        if self.kind == "contract":
            local = grid * (1 + MARGIN)
            size = local.abs().amax(1, keepdim=True)
            true = MARGIN / (1 + MARGIN - size).clamp_min(1e-6)
            local = torch.where(size <= 1, local, local / size.clamp_min(1e-9) * true)
        return local * self.extent @ axes + centre

    def distances(self, origins: Tensor, directions: Tensor, count: int) -> Tensor:
        """Return where to sample rays: N x (count + 1) ascending distances, the bins' edges."""
        steps = torch.linspace(0, 1, count + 1)
        if self.kind == "box":
            inverse = 1 / torch.where(directions.abs() < 1e-9, 1e-9, directions)
            low = (-self.extent - (origins - torch.tensor(self.centre))) * inverse
            high = (self.extent - (origins - torch.tensor(self.centre))) * inverse
            first = torch.minimum(low, high).amax(1).clamp_min(self.near)
            last = torch.maximum(low, high).amin(1)
            last = torch.maximum(last, first)
            return first[:, None] + (last - first)[:, None] * steps
        if self.kind == "ndc":
            axes = torch.tensor(self.axes)
            z0 = -((origins - torch.tensor(self.centre)) @ axes.T)[:, 2]
            slope = -(directions @ axes.T)[:, 2].clamp(max=-1e-3)
            z = self.near / (1 - steps * 0.999)
            return ((z - z0[:, None]) / slope[:, None]).clamp_min(1e-4)
        # half of the samples evenly through the inner cube, the other half evenly in 1 / distance
        reach = (origins - torch.tensor(self.centre)).norm(dim=1).amax() + self.extent * 1.75
        inner = steps[steps <= 0.5] * 2 * reach + self.near
        left = 1 - (steps[steps > 0.5] - 0.5) * 2 * 0.999
        edges = torch.cat([inner, inner[-1] / left])
        return edges.expand(len(origins), -1)


def from_dict(values: dict[str, Any]) -> Space:
    """Return the frame that :meth:`Space.to_dict` described."""
    tuples = {k: tuple(map(float, values[k])) for k in ("centre", "half_view")}
    axes = tuple(tuple(map(float, row)) for row in values["axes"])
    return Space(
        kind=str(values["kind"]),
        centre=(tuples["centre"][0], tuples["centre"][1], tuples["centre"][2]),
        extent=float(values["extent"]),
        near=float(values["near"]),
        axes=axes,
        half_view=(tuples["half_view"][0], tuples["half_view"][1]),
    )


def _around(scene: Scene) -> Space:
    """Put the cube where the cameras look: the point nearest to all viewing axes."""
    places = np.array([view.camera.position for view in scene.views])
    looks = np.array([-view.camera.c2w[:, 2] for view in scene.views])
    across = np.eye(3)[None] - looks[:, :, None] * looks[:, None, :]
    focus = np.linalg.lstsq(across.sum(0), (across @ places[:, :, None]).sum(0)[:, 0], rcond=None)[
        0
    ]
    reach = np.linalg.norm(places - focus, axis=1)
    extent = float(np.median(reach))
    if not np.isfinite(extent) or extent <= 0:
        raise ConfigError(f"{scene.name}: the cameras look at no common point; wrong poses?")
    near = scene.near if scene.near is not None else 0.05 * extent
    return Space("contract", _triple(focus), extent, near)


def _forward(scene: Scene) -> Space:
    cameras = [view.camera for view in scene.views]
    back = np.mean([c.c2w[:, 2] for c in cameras], axis=0)
    back /= np.linalg.norm(back)
    right = np.cross(np.mean([c.c2w[:, 1] for c in cameras], axis=0), back)
    right /= np.linalg.norm(right)
    axes: NDArray[np.float64] = np.stack([right, np.cross(back, right), back])
    centre = np.mean([c.position for c in cameras], axis=0)
    near = scene.near if scene.near is not None else 1.0
    # the cube's walls stand a little outside of what the outermost cameras see at the near plane
    offsets = np.array([(c.position - centre) @ axes.T for c in cameras])
    tangents = np.array([_tangents(c, axes) for c in cameras]).max(0)
    spread = np.abs(offsets[:, :2]).max(0) / near
    half = 1.05 * (tangents + spread)
    return Space(
        "ndc",
        _triple(centre),
        1.0,
        float(near * 0.9),
        tuple(tuple(float(v) for v in row) for row in axes),
        (float(half[0]), float(half[1])),
    )


def _tangents(camera: Camera, axes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far a camera's corners reach to the sides along ``axes``, as 2 tangents."""
    right, down = camera.width - camera.cx, camera.height - camera.cy
    corners = np.array(
        [
            [x / camera.fx, -y / camera.fy, -1.0]
            for x in (-camera.cx, right)
            for y in (-camera.cy, down)
        ]
    )
    turned = corners @ camera.c2w[:, :3].T @ axes.T
    # a corner that looks past the side would need a cube without end
    return np.abs(turned[:, :2] / np.maximum(-turned[:, 2:], 0.1)).max(0)


def _triple(values: Any) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
