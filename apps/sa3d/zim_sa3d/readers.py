"""Folders people have, read as a scene: ``transforms.json``, LLFF's ``poses_bounds.npy``, COLMAP.

Pictures are straightened and brought to their working size here, without ever asking.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.errors import ConfigError, reason
from zim.folders import SUFFIXES
from zim.images import load_image
from zim.output import make_folder, save_rgb
from zim.weights.registry import zim_home
from zim_sa3d.cameras import Camera
from zim_sa3d.colmap import model_folder, read_colmap
from zim_sa3d.folders import picture_folder, pictures, view_names
from zim_sa3d.presets import INWARD, LLFF
from zim_sa3d.scene import Scene, View, facing, save_scene
from zim_sa3d.synthetic import synthetic_scene

#: camera models of transforms.json whose pictures OpenCV can straighten
_FLAT = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "RADIAL", "SIMPLE_RADIAL")


def prepare(name: str, output: Path, *, data: Path | None = None, factor: int = 4) -> Scene:
    """Bring a scene into ``output`` as ``transforms.json`` with pictures at their working size.

    Args:
        name: ``synthetic``, a scene's name under ``data`` or ``ZIM_HOME``, or a folder.
        output: folder for the result; made if missing.
        data: where scenes are looked for by name.
        factor: pictures are made this much smaller; 1 leaves them.

    Raises:
        ConfigError: no such scene, or a folder that holds none.
        OutputError: ``output`` cannot be made.
    """
    if name == "synthetic":
        make_folder(output)
        return synthetic_scene(output)
    folder = find_scene(name, data)
    if (folder / "poses_bounds.npy").is_file():
        found = read_llff(folder)
    elif (folder / "transforms.json").is_file():
        found = read_transforms(folder)
    elif model_folder(folder) is not None:
        found = read_colmap(folder)
    else:
        raise ConfigError(
            f"{folder} holds no poses: neither poses_bounds.npy, transforms.json nor COLMAP's "
            "sparse/0; for pictures alone run colmap automatic_reconstructor first"
        )
    if name in INWARD:
        found = replace(found, kind="inward")
    return _shrink(found, output, factor)


def find_scene(name: str, data: Path | None) -> Path:
    """Return a scene's folder.

    Raises:
        ConfigError: it is nowhere; says where it was looked for and where to get it.
    """
    direct = Path(name).expanduser()
    if direct.is_dir():
        return direct
    base = name.removesuffix("_center").removesuffix("_left")
    roots = [data] if data else [zim_home() / "datasets"]
    for root in roots:
        for part in ("", "nerf_llff_data", "llff", "360", "360_v2", "nvos"):
            for known in (name, base):
                if (root / part / known).is_dir():
                    return root / part / known
    if base in LLFF:
        what = "LLFF's nerf_llff_data (linked from the NeRF authors' page, with its licence)"
    elif name in INWARD:
        what = "mip-NeRF 360 (from its project page, with its licence)"
    else:
        raise ConfigError(
            f"scene {name!r} is no folder and no known name; give a folder, synthetic, or one of "
            f"{', '.join([*LLFF, *INWARD])}"
        )
    raise ConfigError(
        f"scene {name!r} is not at {roots[0]}: it belongs to {what}; unpack it so that "
        f"{roots[0] / base} holds images/ with poses_bounds.npy or sparse/0, or point --data to "
        "where it is"
    )


def read_transforms(folder: Path) -> Scene:
    """Read ``transforms.json`` of nerfstudio or instant-ngp; frames without picture are left out.

    Raises:
        ConfigError: it cannot be understood, or a pose is none.
    """
    path = folder / "transforms.json"
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
        about: dict[str, Any] = data.get("zim_sa3d", {})
        model = str(data.get("camera_model", "OPENCV"))
        if model not in _FLAT or data.get("is_fisheye"):
            raise ConfigError(
                f"camera model {model} is not read; expected one of {', '.join(_FLAT)}: undistort "
                "the pictures first"
            )
        found = [(f, p) for f in data["frames"] if (p := _picture(folder, f)).is_file()]
        names = view_names([str(f["file_path"]) for f, _ in found])
        views = [
            _frame(folder, {**data, **f}, image, name)
            for name, (f, image) in zip(names, found, strict=True)
        ]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read as transforms.json ({reason(error)})") from error
    views.sort(key=lambda view: view.name)
    return Scene(
        str(about.get("name", folder.name)),
        tuple(views),
        str(about.get("kind", "inward")),
        about.get("extent"),
        about.get("near"),
    )


def _picture(folder: Path, frame: dict[str, Any]) -> Path:
    """Return a frame's picture; instant-ngp leaves its suffix away."""
    image = folder / str(frame["file_path"])
    if image.suffix:
        return image
    return next((p for s in SUFFIXES if (p := image.with_suffix(s)).is_file()), image)


def _frame(folder: Path, values: dict[str, Any], image: Path, name: str) -> View:
    """Return a frame as a view; ``values`` are the frame's on top of the file's."""
    if "w" not in values or "h" not in values:
        shape = load_image(image).rgb.shape
        values["h"], values["w"] = shape[0], shape[1]
    width, height = int(values["w"]), int(values["h"])
    if "fl_x" in values:
        fx = float(values["fl_x"])
    else:
        fx = width / 2 / float(np.tan(float(values["camera_angle_x"]) / 2))
    camera = Camera(
        np.array(values["transform_matrix"], np.float64)[:3],
        fx,
        float(values.get("fl_y", fx)),
        float(values.get("cx", width / 2)),
        float(values.get("cy", height / 2)),
        width,
        height,
    )
    mattes = {name: folder / part for name, part in values.get("mattes", {}).items()}
    lens = tuple(float(values.get(key, 0.0)) for key in ("k1", "k2", "p1", "p2", "k3"))
    return View(name, camera, image, mattes, lens if any(lens) else ())


def read_llff(folder: Path) -> Scene:
    """Read ``images/`` and ``poses_bounds.npy``: one row per picture, in the order of their names.

    A row is a 3 x 5 matrix [R | t | (height, width, focal)], whose axes are down, right and
    backward, then the near and far bounds.

    Raises:
        ConfigError: counts differ, or the file is none of LLFF's.
    """
    path = folder / "poses_bounds.npy"
    try:
        table: NDArray[np.float64] = np.load(path, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error})") from error
    if table.ndim != 2 or table.shape[1] != 17:
        raise ConfigError(f"{path} has shape {table.shape}; expected N x 17")
    root = picture_folder(folder)
    images = pictures(root)
    if len(images) != len(table):
        raise ConfigError(
            f"{folder}: {len(images)} pictures in {root.name}/ but {len(table)} poses; they are "
            "paired in the order of their names, so the numbers must agree"
        )
    views: list[View] = []
    for row, image in zip(table, images, strict=True):
        matrix = row[:15].reshape(3, 5)
        pose = np.stack([matrix[:, 1], -matrix[:, 0], matrix[:, 2], matrix[:, 3]], -1)
        height, width, focal = matrix[:, 4]
        camera = Camera(pose, focal, focal, width / 2, height / 2, round(width), round(height))
        views.append(View(image.stem, camera, image))
    scene = Scene(folder.name, tuple(views), near=float(table[:, 15].min()))
    return replace(scene, kind=facing(scene))


def _shrink(scene: Scene, output: Path, factor: int) -> Scene:
    """Write the pictures, straightened and smaller, and the scene that has them."""
    make_folder(output / "images")
    views: list[View] = []
    for view in scene.views:
        rgb = load_image(view.image).rgb
        height, width = rgb.shape[:2]
        full = view.camera
        if abs(width / height - full.width / full.height) > 0.02:
            raise ConfigError(
                f"{view.image} is {width} x {height}, its pose states "
                f"{full.width} x {full.height}; other proportions cannot be right"
            )
        if view.distortion:
            rgb = _straighten(rgb, full.resized(width, height), view.distortion)
        # the factor is of the size the pose states: pictures may have been made smaller already
        size = (
            min(width, max(1, round(full.width / factor))),
            min(height, max(1, round(full.height / factor))),
        )
        if size != (width, height):
            rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        image = output / "images" / f"{view.name}.png"
        save_rgb(image, rgb)
        views.append(View(view.name, full.resized(*size), image))
    made = replace(scene, views=tuple(views))
    save_scene(made, output)
    return made


def _straighten(
    rgb: NDArray[np.uint8], camera: Camera, distortion: tuple[float, ...]
) -> NDArray[np.uint8]:
    """Undo a lens's distortion; the pinhole camera stays what it was."""
    # OpenCV puts the origin into the centre of the first pixel
    matrix = np.array(
        [[camera.fx, 0.0, camera.cx - 0.5], [0.0, camera.fy, camera.cy - 0.5], [0.0, 0.0, 1.0]]
    )
    return np.asarray(cv2.undistort(rgb, matrix, np.array(distortion)), dtype=np.uint8)
