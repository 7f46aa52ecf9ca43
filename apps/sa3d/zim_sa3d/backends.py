"""Which radiance field a run uses: our voxels, or what nerfstudio trains."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

from zim_sa3d.field import RadianceField
from zim_sa3d.field_note import read_note, write_note
from zim_sa3d.grid_field import GridField, GridSettings, train_grid
from zim_sa3d.scene import Scene

Backend = Literal["auto", "grid", "nerfstudio"]


def choose(backend: Backend, device: str) -> Backend:
    """Return what ``auto`` stands for: nerfstudio on a GPU where it is installed, else voxels."""
    if backend != "auto":
        return backend
    there = importlib.util.find_spec("nerfstudio") is not None
    return "nerfstudio" if device.startswith("cuda") and there else "grid"


def train(
    scene: Scene,
    folder: Path,
    *,
    backend: Backend,
    device: str,
    steps: int | None,
    seed: int,
    method: str | None = None,
    load_config: Path | None = None,
) -> RadianceField:
    """Train a field on the scene in ``folder/scene``, or take a trained run; note it in ``folder``.

    Args:
        scene: prepared; its held-out views are not looked at.
        folder: of the run.
        backend: see :func:`choose`.
        device: of nerfstudio's models; voxels are trained on the CPU.
        steps: as many as the method is meant to make if None.
        seed: of everything random.
        method: one of nerfstudio's, nerfacto if None.
        load_config: ``config.yml`` of a run that nerfstudio trained on this capture.
    """
    if choose(backend, device) == "nerfstudio" or load_config is not None:
        from zim_sa3d.nerfstudio_field import NerfstudioField
        from zim_sa3d.nerfstudio_runs import train_run

        if load_config is not None:
            return NerfstudioField.adopt(load_config, scene, folder, device)
        method = method or "nerfacto"
        config = train_run(
            folder / "scene", folder, method=method, steps=steps, device=device, seed=seed
        )
        field = NerfstudioField.adopt(config, scene, folder, device)
        _note_steps(folder, steps)
        return field
    settings = GridSettings()
    if steps is not None:
        first = max(1, steps // 3)
        settings = GridSettings(steps=(first, max(1, steps - first)))
    field = train_grid(scene, settings, seed)
    field.save(folder)
    _note_steps(folder, steps or sum(settings.steps))
    return field


def _note_steps(folder: Path, steps: int | None) -> None:
    """Add to a field's note how many steps it was trained; None are as many as the method's."""
    write_note(folder, {**read_note(folder), "steps": steps})


def load(folder: Path, device: str) -> RadianceField:
    """Read the field that :func:`train` wrote, whichever it is.

    Raises:
        CheckpointError: there is none, it is damaged, or of another version.
    """
    if read_note(folder).get("backend") == "nerfstudio":
        from zim_sa3d.nerfstudio_field import NerfstudioField

        return NerfstudioField.load(folder, device)
    return GridField.load(folder)
