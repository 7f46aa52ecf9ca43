"""Radiance fields that nerfstudio trained: nerfacto, and whatever else samples rays like it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zim._extras import require
from zim.errors import CheckpointError, ConfigError, reason
from zim_sa3d.field import Samples
from zim_sa3d.field_note import FILE, read_note, write_note
from zim_sa3d.nerfstudio_runs import EXTRA, Frame, build_model, capture_of, open_run
from zim_sa3d.scene import Scene
from zim_sa3d.space import MARGIN, Space, from_dict

#: samples of less weight are left out; of some fifty per ray hardly any matter
_FAINT = 1e-4
#: how far away, in the run's units, a ray ends that meets nothing
_FAR = 1000.0


class NerfstudioField:
    """A trained model behind :class:`zim_sa3d.field.RadianceField`.

    The unit cube is our own contraction of the scene, not the model's, so that the object gets
    as many voxels whatever the run's scale. Tensors come and go on the CPU.
    """

    backend = "nerfstudio"

    def __init__(self, model: Any, frame: Frame, space: Space, device: str) -> None:
        """Take a model in evaluation mode.

        Raises:
            ConfigError: it samples rays in a way that is not known here.
        """
        if not all(hasattr(model, part) for part in ("proposal_sampler", "density_fns", "field")):
            raise ConfigError(
                f"{type(model).__name__} has no proposal sampler; expected a run of nerfacto, one "
                "of its relatives, or splatfacto"
            )
        self.model, self.space, self.device = model, space, device
        # nerfstudio looks nearer in evaluation than it did in training, into what nobody trained
        if hasattr(model.collider, "reset_near_plane"):
            model.collider.reset_near_plane = False
        self._turn = torch.as_tensor(frame.transform[:, :3], dtype=torch.float32)
        self._shift = torch.as_tensor(frame.transform[:, 3], dtype=torch.float32)
        self._scale = frame.scale

    def _to_run(self, points: Tensor) -> Tensor:
        """Bring scene coordinates N x 3 into the run's."""
        return ((points @ self._turn.T + self._shift) * self._scale).to(self.device)

    @torch.no_grad()
    def trace(self, origins: Tensor, directions: Tensor) -> Samples:
        """Return the samples of rays; those outside the cube or fainter than 1e-4 are left out."""
        rays: Any = require("nerfstudio.cameras.rays", EXTRA)
        count = len(origins)
        bundle = rays.RayBundle(
            origins=self._to_run(origins),
            directions=(directions @ self._turn.T).to(self.device),
            pixel_area=torch.full((count, 1), 1e-6, device=self.device),
            camera_indices=torch.zeros(count, 1, dtype=torch.long, device=self.device),
        )
        bundle = self.model.collider(bundle)
        samples, _, _ = self.model.proposal_sampler(bundle, density_fns=self.model.density_fns)
        density, _ = self.model.field.get_density(samples)
        weight = samples.get_weights(density)[..., 0].float().cpu()
        frustums = samples.frustums
        t = ((frustums.starts + frustums.ends) / 2)[..., 0].float().cpu() / self._scale
        ray, index = (weight > _FAINT).nonzero(as_tuple=True)
        t = t[ray, index]
        grid = self.space.to_grid(origins[ray] + directions[ray] * t[:, None])
        inside = (grid.abs() <= 1).all(-1)
        ray, index, grid, t = ray[inside], index[inside], grid[inside], t[inside]
        return Samples(ray, grid, weight[ray, index], t)

    @torch.no_grad()
    def _ask(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Return density (N) and RGB (N x 3) at places of the run seen along its directions."""
        rays: Any = require("nerfstudio.cameras.rays", EXTRA)
        heads: Any = require("nerfstudio.field_components.field_heads", EXTRA).FieldHeadNames
        zero = torch.zeros(len(points), 1, 1, device=self.device)
        samples = rays.RaySamples(
            frustums=rays.Frustums(
                origins=points[:, None],
                directions=directions[:, None],
                starts=zero,
                ends=zero,
                pixel_area=zero,
            ),
            camera_indices=torch.zeros(len(points), 1, 1, dtype=torch.long, device=self.device),
        )
        out = self.model.field(samples)
        return out[heads.DENSITY][:, 0, 0].float().cpu(), out[heads.RGB][:, 0].float().cpu()

    def colour(self, grid: Tensor, directions: Tensor) -> Tensor:
        """Return RGB N x 3; where no direction is given, the mean of six."""
        points = self._to_run(self.space.to_scene(grid))
        if len(directions) and not directions.any():
            ways = torch.cat([torch.eye(3), -torch.eye(3)])
            looks = [self._ask(points, way.expand_as(points).to(self.device))[1] for way in ways]
            return torch.stack(looks).mean(0)
        return self._ask(points, (directions @ self._turn.T).to(self.device))[1]

    def background(self, directions: Tensor) -> Tensor:
        """Return RGB at the far end of rays, N x 3; nerfacto itself repeats its last sample."""
        ways = (directions @ self._turn.T).to(self.device)
        return self._ask(ways * _FAR, ways)[1]

    def density(self, grid: Tensor) -> Tensor:
        """Return opacity per unit of the cube, N (in its inner part, where objects are)."""
        points = self._to_run(self.space.to_scene(grid))
        margin = MARGIN if self.space.kind == "contract" else 0.0
        unit = self._scale * self.space.extent * (1 + margin)
        parts = [self._ask(part, torch.zeros_like(part))[0] for part in points.split(1 << 17)]
        return torch.cat(parts) * unit

    def to_scene(self, grid: Tensor) -> Tensor:
        """Return scene coordinates of places in the cube."""
        return self.space.to_scene(grid)

    @classmethod
    def adopt(cls, config: Path, scene: Scene, folder: Path, device: str) -> NerfstudioField:
        """Take a trained run as a scene's field, and note in ``folder/field.json`` where it is.

        Args:
            config: the run's ``config.yml``, or the folder that holds it.
            scene: prepared from the capture the run was trained on.
            folder: where :meth:`load` will look.
            device: ``cpu`` or ``cuda``.

        Raises:
            ConfigError: the run is none, or is of another capture or an unknown kind of method.
            CheckpointError: its checkpoint or its pictures cannot be read.
        """
        run = open_run(config)
        capture = capture_of(run)
        frame = capture.frame(scene)
        space = Space.of(scene)
        model = build_model(run, capture.box, len(capture.files), device)
        distortion = getattr(getattr(model, "field", None), "spatial_distortion", None)
        if space.kind == "box" and distortion is not None:  # the model sees beyond the box too
            space = replace(space, kind="contract")
        field = cls(model, frame, space, device)
        about = {
            "backend": cls.backend,
            "config": str(config.resolve()),
            "method": run.config.method_name,
            "space": space.to_dict(),
            "transform": frame.transform.tolist(),
            "scale": frame.scale,
            "box": capture.box.tolist(),
            "views": len(capture.files),
        }
        write_note(folder, about)
        return field

    @classmethod
    def load(cls, folder: Path, device: str) -> NerfstudioField:
        """Open the run that :meth:`adopt` noted.

        Raises:
            CheckpointError: the note is damaged or of another version, or the run is gone.
        """
        about = read_note(folder)
        try:
            frame = Frame(np.array(about["transform"], np.float64), float(about["scale"]))
            space, box = from_dict(about["space"]), torch.tensor(about["box"])
            config, views = Path(about["config"]), int(about["views"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder / FILE} is damaged ({reason(error)}); "
                "train again with --scene SCENE --overwrite"
            ) from error
        return cls(build_model(open_run(config), box, views, device), frame, space, device)
