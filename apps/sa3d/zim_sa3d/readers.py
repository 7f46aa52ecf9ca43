"""Folders people have, read as a scene: ``transforms.json``, LLFF's ``poses_bounds.npy``, COLMAP.

Pictures are straightened and brought to their working size here, without ever asking.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zim.errors import ConfigError, OutputError, reason
from zim.folders import SUFFIXES
from zim.images import load_image
from zim.output import make_folder, save_rgb
from zim.weights.registry import zim_home
from zim_sa3d.cameras import Camera
from zim_sa3d.colmap import model_folder, read_colmap
from zim_sa3d.folders import picture_folder, pictures, view_names
from zim_sa3d.presets import FACTOR, INWARD, LLFF
from zim_sa3d.scene import Scene, View, facing, save_scene
from zim_sa3d.synthetic import synthetic_scene

#: camera models of transforms.json whose pictures OpenCV can straighten
_FLAT = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "RADIAL", "SIMPLE_RADIAL")
#: EXIF's tag of how a picture is to be turned
_ORIENTATION = 0x0112


def prepare(name: str, output: Path, *, data: Path | None = None, factor: int = FACTOR) -> Scene:
    """Bring a scene into ``output`` as ``transforms.json`` with pictures at their working size.

    Args:
        name: ``synthetic``, a scene's name under ``data`` or ``ZIM_HOME``, or a folder.
        output: folder for the result; made if missing.
        data: where scenes are looked for by name.
        factor: pictures are made this much smaller; 1 leaves them.

    Raises:
        ConfigError: no such scene, a folder that holds none, or ``output`` itself.
        OutputError: ``output`` cannot be made.
    """
    if name == "synthetic":
        with _moved_when_whole(output) as part:
            synthetic_scene(part)
        return read_transforms(output)
    folder = find_scene(name, data)
    if folder.resolve() == output.resolve():
        raise ConfigError(
            f"{folder} is the scene and the folder for the result; expected two: give another "
            "--output"
        )
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
    # the order that read_transforms will find: views have the same numbers in later commands
    found = replace(found, views=tuple(sorted(found.views, key=lambda view: view.name)))
    found = replace(found, source=str(folder.absolute()), factor=factor)
    with _moved_when_whole(output) as part:
        _shrink(found, part, factor)
    return read_transforms(output)


@contextmanager
def _moved_when_whole(output: Path) -> Iterator[Path]:
    """Give a folder beside ``output`` whose files move into it at the end; none after an error.

    Raises:
        OutputError: a folder cannot be made, or a file cannot be moved.
    """
    if output.exists():
        make_folder(output)
    made = not output.parent.exists()
    make_folder(output.parent)
    try:
        part = Path(tempfile.mkdtemp(prefix=".prepare-", dir=output.parent))
    except OSError as error:
        raise OutputError(f"{output} cannot be made: {error.strerror or error}") from error
    try:
        yield part
        make_folder(output)
        _move_files(part, output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if made and not any(output.parent.iterdir()):
            output.parent.rmdir()


def _move_files(source: Path, target: Path) -> None:
    """Move a prepared scene's files; ``transforms.json`` goes first and comes last."""
    poses = "transforms.json"
    try:
        (target / poses).unlink(missing_ok=True)
        files = [path for path in source.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda path: path.name == poses):
            place = target / file.relative_to(source)
            make_folder(place.parent)
            file.replace(place)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error


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
        about: dict[str, Any] = data.get("zim_sa3d") or {}
        if not isinstance(about, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"zim_sa3d is {about!r}; expected an object, or leave it out")
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
        about.get("reduction"),
        about.get("source"),
        about.get("factor"),
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
    fy = float(values.get("fl_y", fx))
    if not {"fl_x", "fl_y"} & set(values) and "camera_angle_y" in values:
        fy = height / 2 / float(np.tan(float(values["camera_angle_y"]) / 2))
    pose = np.array(values["transform_matrix"], np.float64)[:3]
    cx, cy = float(values.get("cx", width / 2)), float(values.get("cy", height / 2))
    try:
        camera = Camera(pose, fx, fy, cx, cy, width, height)
    except ConfigError as error:
        raise ConfigError(f"{values['file_path']}: {error}") from error
    mattes = {name: folder / part for name, part in values.get("mattes", {}).items()}
    keys = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")  # OpenCV's order
    lens = tuple(float(values.get(key) or 0.0) for key in keys)
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
    for k, (row, image) in enumerate(zip(table, images, strict=True)):
        matrix = row[:15].reshape(3, 5)
        pose = np.stack([matrix[:, 1], -matrix[:, 0], matrix[:, 2], matrix[:, 3]], -1)
        height, width, focal = matrix[:, 4]
        try:
            camera = Camera(pose, focal, focal, width / 2, height / 2, round(width), round(height))
        except (ConfigError, ValueError, OverflowError) as error:
            raise ConfigError(f"{path}, row {k} ({image.name}): {error}") from error
        views.append(View(image.stem, camera, image))
    scene = Scene(folder.name, tuple(views), near=float(table[:, 15].min()))
    return replace(scene, kind=facing(scene))


def _shrink(scene: Scene, output: Path, factor: int) -> None:
    """Write the pictures, straightened and smaller, and the scene that has them."""
    make_folder(output / "images")
    views: list[View] = []
    for view in scene.views:
        rgb = _as_posed(view)
        height, width = rgb.shape[:2]
        full = view.camera
        if view.distortion:
            rgb, full = _straighten(rgb, full.resized(width, height), view.distortion)
        # the factor is of the size the pose states: pictures may have been made smaller already
        size = (
            min(width, max(1, round(view.camera.width / factor))),
            min(height, max(1, round(view.camera.height / factor))),
        )
        if size != (width, height):
            rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        image = output / "images" / f"{view.name}.png"
        save_rgb(image, rgb)
        views.append(View(view.name, full.resized(*size), image))
    first = scene.train[0]
    reduction = scene.views[first].camera.width / views[first].camera.width
    save_scene(replace(scene, views=tuple(views), reduction=reduction), output)


def _as_posed(view: View) -> NDArray[np.uint8]:
    """Read a picture the way up its pose states: as EXIF turns it, else as it is stored.

    Raises:
        ConfigError: neither has the proportions that the pose states.
    """
    rgb, full = load_image(view.image).rgb, view.camera
    for turned in (rgb, _as_stored(rgb, view.image)):
        height, width = turned.shape[:2]
        if abs(width / height - full.width / full.height) <= 0.02:
            return np.ascontiguousarray(turned)
    raise ConfigError(
        f"{view.image} is {rgb.shape[1]} x {rgb.shape[0]}, its pose states "
        f"{full.width} x {full.height}; other proportions cannot be right, with or without its "
        "EXIF rotation"
    )


def _as_stored(rgb: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    """Undo the quarter turn that EXIF asks for, H x W x 3; other pictures stay as they are."""
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(_ORIENTATION)
    except OSError:  # a kind of file that Pillow does not read
        return rgb
    if orientation in (5, 7):  # mirrored as well
        return np.rot90(rgb, 0 if orientation == 5 else 2).swapaxes(0, 1)
    return np.rot90(rgb, {6: 1, 8: -1}.get(orientation or 1, 0))


def _straighten(
    rgb: NDArray[np.uint8], camera: Camera, distortion: tuple[float, ...]
) -> tuple[NDArray[np.uint8], Camera]:
    """Undo a lens's distortion; return the picture and its pinhole camera.

    The camera stays what it was, unless it saw beyond the photograph's rim: then it is narrowed to
    what was photographed, as the black there would be learned as part of the scene.
    """
    # OpenCV puts the origin into the centre of the first pixel
    matrix = np.array(
        [[camera.fx, 0.0, camera.cx - 0.5], [0.0, camera.fy, camera.cy - 0.5], [0.0, 0.0, 1.0]]
    )
    bends, size = np.array(distortion), (camera.width, camera.height)
    photographed = cv2.undistort(np.full(size[::-1], 255, np.uint8), matrix, bends)
    narrow = matrix
    if (photographed < 255).any():
        narrow, _ = cv2.getOptimalNewCameraMatrix(matrix, bends, size, 0)
        (fx, _, cx), (_, fy, cy), _ = narrow.tolist()
        camera = replace(camera, fx=fx, fy=fy, cx=cx + 0.5, cy=cy + 0.5)
    straight = cv2.undistort(rgb, matrix, bends, newCameraMatrix=narrow)
    return np.asarray(straight, dtype=np.uint8), camera
