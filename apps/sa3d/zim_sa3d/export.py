"""The object as files: points, a mesh, a turntable, pictures per view, masked transforms."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zim import viz
from zim._extras import require
from zim._progress import track
from zim.errors import ZimError
from zim.foreground import estimate_foreground
from zim.output import atomic_write, encode_rgba, save_alpha, save_rgb
from zim_sa3d.cameras import Camera, look_at
from zim_sa3d.field import RadianceField, Samples, composite, trace_camera
from zim_sa3d.mask_grid import HAZE, MaskGrid, Readout, render_mask
from zim_sa3d.scene import Scene
from zim_sa3d.segment import ViewLog

#: a place is solid if it is so many times as dense as the object's median place: how dense trained
#: surfaces are depends on the field, so no fixed density would do
_SOLID = 0.5


#: folders of a run with one picture per view, by kind
_KINDS = {"mask": "masks", "alpha": "alpha", "rgba": "rgba", "overlay": "overlay"}
_FILES = (
    "object.ply",
    "object_mesh.ply",
    "turntable.mp4",
    "turntable.gif",
    "transforms_masked.json",
    "summary.png",
)


def remove_exports(folder: Path, scene: Scene) -> None:
    """Remove what was written of an earlier object of the scene; other files stay."""
    files = [folder / name for name in _FILES]
    files += [
        folder / kind / f"{view.name}.png" for kind in _KINDS.values() for view in scene.views
    ]
    for file in files:
        file.unlink(missing_ok=True)


def predict_view(
    radiance: RadianceField,
    grid: MaskGrid,
    camera: Camera,
    readout: Readout,
    score_weight: float = HAZE,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Return the object's mask by a read-out, and its soft matte from the ratio grid (ours).

    Samples lighter than ``score_weight`` are left out of the read-out ``score``.
    """
    size = (camera.height, camera.width)
    with torch.no_grad():
        traced = list(trace_camera(radiance, camera))
        soft = render_mask(traced, lambda at: grid.read(at, "ratio"), size).clip(0, 1)
        if readout == "ratio":
            return soft > 0.5, soft
        haze = score_weight if readout == "score" else 0.0
        values = render_mask(traced, lambda at: grid.read(at, readout), size, haze)
    return values > (0.0 if readout == "score" else 0.5), soft


def object_points(
    radiance: RadianceField, grid: MaskGrid
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
    """Return the object's solid voxels: scene positions N x 3, RGB N x 3 uint8, confidence N.

    Raises:
        ZimError: there is no object.
    """
    places = _lattice(grid.side)
    with torch.no_grad():
        chosen = places[_solidity(radiance, grid, places) > 1]
        toward = torch.zeros_like(chosen)
        colour = (radiance.colour(chosen, toward).clamp(0, 1) * 255).round().to(torch.uint8)
        scene = radiance.to_scene(chosen)
        confidence = grid.read(chosen, "ratio")
    return scene.numpy(), colour.numpy(), confidence.numpy()


def _solidity(radiance: RadianceField, grid: MaskGrid, places: torch.Tensor) -> torch.Tensor:
    """Return the object's density at places N x 3, 0 outside of it, 1 where it becomes solid, N.

    Raises:
        ZimError: there is no object, or nothing of the field where it should be.
    """
    density = radiance.density(places)
    inside = grid.read(places, "score") > 0
    level = _SOLID * float(density[inside].median()) if inside.any() else 0.0
    if not level > 0:
        raise ZimError("the object is empty, there is nothing to export; see views.csv for why")
    return torch.where(inside, density / level, 0.0)


def _lattice(side: int) -> torch.Tensor:
    line = torch.linspace(-1, 1, side)
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    return torch.stack([x, y, z], -1).reshape(-1, 3)


def write_points(path: Path, radiance: RadianceField, grid: MaskGrid) -> int:
    """Write ``object.ply`` (positions in scene units, colour, confidence); return the number."""
    ply: Any = require("plyfile", "sa3d")
    xyz, rgb, confidence = object_points(radiance, grid)
    rows = np.empty(
        len(xyz),
        dtype=[(n, "f4") for n in "xyz"]
        + [(n, "u1") for n in ("red", "green", "blue")]
        + [("confidence", "f4")],
    )
    for k, name in enumerate("xyz"):
        rows[name] = xyz[:, k]
    for k, name in enumerate(("red", "green", "blue")):
        rows[name] = rgb[:, k]
    rows["confidence"] = confidence
    _write_ply(path, [ply.PlyElement.describe(rows, "vertex")])
    return len(rows)


def write_mesh(path: Path, radiance: RadianceField, grid: MaskGrid) -> int:
    """Write the object's surface by marching cubes as PLY; return the number of triangles.

    Raises:
        ZimError: there is no object.
    """
    ply: Any = require("plyfile", "sa3d")
    measure: Any = require("skimage.measure", "sa3d")
    side = grid.side
    places = _lattice(side)
    with torch.no_grad():
        solid = _solidity(radiance, grid, places).clamp(max=4).view(side, side, side)
    volume = np.pad(solid.numpy(), 1)
    corners, faces, _, _ = measure.marching_cubes(volume, 1.0)
    unit = torch.from_numpy(((corners[:, ::-1] - 1) / (side - 1) * 2 - 1).astype(np.float32).copy())
    with torch.no_grad():
        rgb = (radiance.colour(unit, torch.zeros_like(unit)).clamp(0, 1) * 255).round().numpy()
        xyz = radiance.to_scene(unit).numpy()
    rows = np.empty(
        len(xyz),
        dtype=[(n, "f4") for n in "xyz"] + [(n, "u1") for n in ("red", "green", "blue")],
    )
    for k, name in enumerate("xyz"):
        rows[name] = xyz[:, k]
    for k, name in enumerate(("red", "green", "blue")):
        rows[name] = rgb[:, k]
    triangles = np.empty(len(faces), dtype=[("vertex_indices", "i4", (3,))])
    triangles["vertex_indices"] = faces
    _write_ply(
        path,
        [ply.PlyElement.describe(rows, "vertex"), ply.PlyElement.describe(triangles, "face")],
    )
    return len(faces)


def _write_ply(path: Path, elements: list[Any]) -> None:
    ply: Any = require("plyfile", "sa3d")
    buffer = io.BytesIO()
    ply.PlyData(elements).write(buffer)
    atomic_write(path, buffer.getvalue())


def write_views(
    folder: Path,
    scene: Scene,
    radiance: RadianceField,
    grid: MaskGrid,
    readout: Readout,
    score_weight: float = HAZE,
) -> dict[str, Path]:
    """Write mask, soft alpha, cut-out and overlay of every view, and masked transforms.

    Returns:
        The folders by kind, and ``transforms_masked.json``.
    """
    paths = {kind: folder / name for kind, name in _KINDS.items()}
    for path in paths.values():
        path.mkdir(parents=True, exist_ok=True)
    masks: dict[str, str] = {}
    for view in track(scene.views, "cutting out of every view"):
        mask, soft = predict_view(radiance, grid, view.camera, readout, score_weight)
        rgb = view.rgb()
        file = f"{view.name}.png"
        save_alpha(paths["mask"] / file, mask.astype(np.float32))
        save_alpha(paths["alpha"] / file, soft)
        front = estimate_foreground(rgb, soft, "none")
        alpha8 = np.round(soft * 255).astype(np.uint8)
        atomic_write(paths["rgba"] / file, encode_rgba(np.dstack([front, alpha8])))
        save_rgb(paths["overlay"] / file, viz.overlay(rgb, soft))
        masks[view.image.name] = f"masks/{file}"
    source = json.loads((folder / "scene" / "transforms.json").read_text(encoding="utf-8"))
    for frame in source["frames"]:
        frame["mask_path"] = masks[Path(frame["file_path"]).name]
        frame["file_path"] = f"scene/{frame['file_path']}"
        frame.pop("mattes", None)
    for split in ("train", "val", "test"):
        key = f"{split}_filenames"
        source[key] = [f"scene/{file}" for file in source.get(key, [])]
    paths["transforms"] = folder / "transforms_masked.json"
    atomic_write(paths["transforms"], (json.dumps(source, indent=1) + "\n").encode())
    return paths


def write_csv(path: Path, log: list[ViewLog]) -> None:
    """Write which views were used and why not the others."""
    text = io.StringIO()
    names = list(log[0].to_dict())
    table = csv.DictWriter(text, names)
    table.writeheader()
    table.writerows(row.to_dict() for row in log)
    atomic_write(path, text.getvalue().encode())


def write_turntable(
    folder: Path,
    scene: Scene,
    radiance: RadianceField,
    grid: MaskGrid,
    *,
    frames: int = 24,
    size: int = 160,
) -> dict[str, Path]:
    """Film the object alone, see :func:`looking_ways`: ``turntable.mp4`` and ``turntable.gif``."""
    video: Any = require("imageio.v3", "sa3d")
    xyz, _, _ = object_points(radiance, grid)
    low, high = np.percentile(xyz, 1, axis=0), np.percentile(xyz, 99, axis=0)
    middle, reach = (low + high) / 2, float(np.linalg.norm(high - low))
    shots: list[NDArray[np.uint8]] = []
    up, ways = looking_ways(scene, middle, frames)
    for way in track(ways, "turntable"):
        camera = look_at(middle + way * reach * 1.6, middle, up, size=(size, size), fov=42.0)
        shots.append(film(radiance, grid, camera))
    paths = {"mp4": folder / "turntable.mp4", "gif": folder / "turntable.gif"}
    stack = np.stack(shots)
    atomic_write(
        paths["mp4"],
        video.imwrite("<bytes>", stack, extension=".mp4", fps=12, codec="libx264"),
    )
    atomic_write(paths["gif"], video.imwrite("<bytes>", stack, extension=".gif", loop=0))
    return paths


def looking_ways(
    scene: Scene, middle: NDArray[Any], frames: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return which way is up, 3, and from which ways to look at an object, ``frames`` x 3.

    Up is up in the mean camera. The object is seen from all around, a little from above. Nobody saw
    the back of a forward-facing scene: there the eye swings as far as the cameras stood, and back.
    """
    cameras = [view.camera for view in scene.views]
    up, back, place = (np.mean([c.c2w[:, k] for c in cameras], axis=0) for k in (1, 2, 3))
    turn = np.arange(frames)[:, None] / frames * 2 * np.pi
    if scene.kind == "forward":
        front = _unit(place - middle)
        up = _unit(up - up @ front * front)
        side = np.cross(up, front)
        places = np.array([camera.position for camera in cameras]) - middle
        turn = np.abs(np.arctan2(places @ side, places @ front)).max() * np.sin(turn)
        return up, np.cos(turn) * front + np.sin(turn) * side
    if np.linalg.norm(up) < 0.05:  # all look straight down, turned in all ways
        up = back
    up = _unit(up)
    side = _unit(np.cross(up, np.eye(3)[np.abs(up).argmin()]))
    front = np.cross(side, up)
    return up, 0.9 * (np.cos(turn) * front + np.sin(turn) * side) + 0.45 * up


def _unit(vector: NDArray[Any]) -> NDArray[np.float64]:
    return vector / np.linalg.norm(vector)


def film(radiance: RadianceField, grid: MaskGrid, camera: Camera) -> NDArray[np.uint8]:
    """Render the object alone on a checkerboard, H x W x 3 uint8.

    What hides the object in the scene hides it here too.
    """
    total = camera.height * camera.width
    rgb, alpha = torch.zeros(total, 3), torch.zeros(total)
    with torch.no_grad():
        for part, directions, samples in trace_camera(radiance, camera):
            share = grid.read(samples.grid, "indicator")
            own = Samples(samples.ray, samples.grid, samples.weight * share, samples.t)
            rgb[part] = composite(
                radiance.colour(own.grid, directions[own.ray]), own, len(directions)
            )
            alpha[part] = composite(torch.ones_like(own.weight), own, len(directions))
    size = (camera.height, camera.width)
    straight = (rgb / alpha.clamp_min(1e-3)[:, None]).clamp(0, 1).view(*size, 3).numpy()
    board = viz.checkerboard(*size)
    front = np.round(straight * 255).astype(np.uint8)
    return viz.blend(front, board, alpha.view(size).numpy())
