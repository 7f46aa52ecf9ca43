"""COLMAP's sparse models, binary or text, read as a scene.

A model is a folder (usually ``sparse/0``) with ``cameras``, ``images`` and ``points3D`` as ``.bin``
or ``.txt``. Poses in it are world to camera with axes right, down, forward and a quaternion
(w, x, y, z); pixel (0.5, 0.5) is the centre of the upper left one, as here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from zim.errors import ConfigError, reason
from zim_sa3d.cameras import Camera
from zim_sa3d.folders import picture_folder, view_names
from zim_sa3d.scene import Scene, View, facing

#: name and number of parameters of COLMAP's camera models, by their number in binary files
_MODELS = (
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
)
_ONE_FOCAL = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
_READABLE = (*_ONE_FOCAL, "PINHOLE", "OPENCV", "FULL_OPENCV")


@dataclass(frozen=True)
class Lens:
    """A row of ``cameras``: model, size in pixels, and the model's parameters as COLMAP orders."""

    model: str
    width: int
    height: int
    parameters: tuple[float, ...]

    def split(self) -> tuple[tuple[float, float, float, float], tuple[float, ...]]:
        """Return (fx, fy, cx, cy) and the distortion in OpenCV's order, at least four; () if none.

        Raises:
            ConfigError: the model is none that OpenCV can undo in a plane, or its numbers are none.
        """
        if self.model not in _READABLE:
            raise ConfigError(
                f"camera model {self.model} is not read; expected one of {', '.join(_READABLE)}: "
                "run colmap image_undistorter and give its output folder"
            )
        values, wanted = self.parameters, dict(_MODELS)[self.model]
        if not np.isfinite(values).all():
            said = " ".join(f"{v:g}" for v in values)
            raise ConfigError(f"a {self.model} camera of {said}; expected finite numbers")
        if len(values) != wanted:
            raise ConfigError(
                f"a {self.model} camera of {len(values)} parameters; expected {wanted}"
            )
        if self.model in _ONE_FOCAL:
            values = (values[0], *values)
        bends = values[4:] if any(values[4:]) else ()
        if bends:  # OpenCV takes no fewer than four: k1, k2, p1, p2
            bends = (*bends, *[0.0] * (4 - len(bends)))
        return (values[0], values[1], values[2], values[3]), tuple(bends)


@dataclass(frozen=True)
class Pose:
    """A row of ``images``: file name, camera number, quaternion (w, x, y, z), translation."""

    file: str
    lens: int
    quaternion: tuple[float, ...]
    translation: tuple[float, ...]

    def c2w(self) -> NDArray[np.float64]:
        """Return the pose as 3 x 4 camera to world, axes right, up, backward."""
        # a quaternion of length 0 becomes NaN, which no camera takes
        with np.errstate(invalid="ignore"):
            w, x, y, z = np.array(self.quaternion) / np.linalg.norm(self.quaternion)
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        place = -rotation.T @ np.array(self.translation)
        return np.concatenate([rotation.T * [1.0, -1.0, -1.0], place[:, None]], 1)


def model_folder(scene: Path) -> Path | None:
    """Return the folder of a scene's sparse model, None if there is none."""
    for part in ("sparse/0", "colmap/sparse/0", "sparse", "colmap/sparse", "."):
        for suffix in (".bin", ".txt"):
            if all((scene / part / f"{name}{suffix}").is_file() for name in ("cameras", "images")):
                return scene / part
    return None


def read_colmap(folder: Path) -> Scene:
    """Read a folder with ``images/`` and a sparse model; views without picture are left out.

    Raises:
        ConfigError: there is no model, or it cannot be understood.
    """
    model = model_folder(folder)
    if model is None:
        raise ConfigError(f"{folder} holds no sparse/0 with cameras and images (.bin or .txt)")
    try:
        lenses, poses, points = _read_model(model)
        root = picture_folder(folder)
        poses = sorted((p for p in poses if (root / p.file).is_file()), key=lambda p: p.file)
        views: list[View] = []
        for name, pose in zip(view_names([p.file for p in poses]), poses, strict=True):
            if pose.lens not in lenses:
                raise ConfigError(f"{pose.file} is of camera {pose.lens}, which is not listed")
            lens = lenses[pose.lens]
            plane, distortion = lens.split()
            try:
                camera = Camera(pose.c2w(), *plane, lens.width, lens.height)
            except ConfigError as error:
                raise ConfigError(f"{pose.file}: {error}") from error
            views.append(View(name, camera, root / pose.file, distortion=distortion))
    except ConfigError as error:
        raise ConfigError(f"{model}: {error}") from error
    except (OSError, ValueError, KeyError, IndexError, struct.error) as error:
        raise ConfigError(f"{model} cannot be read as a COLMAP model ({reason(error)})") from error
    near = _nearest(views, points)
    scene = Scene(folder.name, tuple(views), near=near)
    # a forward-facing frame starts at the nearest point; without points nobody knows where that is
    return scene if near is None else replace(scene, kind=facing(scene))


def _read_model(model: Path) -> tuple[dict[int, Lens], list[Pose], NDArray[np.float64]]:
    binary = (model / "images.bin").is_file()
    suffix = ".bin" if binary else ".txt"
    cameras, images, points = (model / f"{n}{suffix}" for n in ("cameras", "images", "points3D"))
    empty = np.zeros((0, 3))
    if binary:
        with cameras.open("rb") as file:
            lenses = dict(_binary_lenses(file))
        with images.open("rb") as file:
            poses = list(_binary_poses(file))
        if not points.is_file():
            return lenses, poses, empty
        with points.open("rb") as file:
            return lenses, poses, np.array(list(_binary_points(file))).reshape(-1, 3)
    lenses = {}
    for row in filter(str.strip, _rows(cameras)):
        number, name, width, height, *rest = _long_enough(row.split(), 5, cameras)
        lenses[int(number)] = Lens(name, int(width), int(height), tuple(map(float, rest)))
    poses = []
    rows = _rows(images)
    for row in rows[1::2]:
        if len(words := row.split()) == 10 and not words[9].replace("-", "").isdecimal():
            raise ConfigError(f"{images.name}: two pictures without a line of features between")
    for row in filter(str.strip, rows[::2]):  # every second line lists the picture's features
        words = _long_enough(row.split(maxsplit=9), 10, images)
        values = tuple(map(float, words[1:8]))
        poses.append(Pose(words[9].strip(), int(words[8]), values[:4], values[4:]))
    if not points.is_file():
        return lenses, poses, empty
    xyz = [[float(v) for v in row.split(maxsplit=4)[1:4]] for row in _rows(points) if row.strip()]
    return lenses, poses, np.array(xyz).reshape(-1, 3)


def _rows(path: Path) -> list[str]:
    """Return a text file's lines without comments; empty ones stay, they mean no features."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [line for line in lines if not line.startswith("#")]


def _long_enough(words: list[str], least: int, path: Path) -> list[str]:
    if len(words) < least:
        row = " ".join(words)
        raise ConfigError(f"{path.name}: {row!r} is {len(words)} values; expected {least} or more")
    return words


def _take(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    """Read little-endian values laid out as :mod:`struct` describes."""
    layout = "<" + layout
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _binary_lenses(file: BinaryIO) -> Iterator[tuple[int, Lens]]:
    for _ in range(_take(file, "Q")[0]):
        number, kind, width, height = _take(file, "iiQQ")
        name, count = _MODELS[kind]
        yield number, Lens(name, width, height, _take(file, f"{count}d"))


def _binary_poses(file: BinaryIO) -> Iterator[Pose]:
    for _ in range(_take(file, "Q")[0]):
        values = _take(file, "i7di")
        name = b""
        while (letter := file.read(1)) != b"\0":
            if not letter:
                raise ValueError("images.bin ends within a name")
            name += letter
        (features,) = _take(file, "Q")
        file.seek(features * 24, 1)  # x, y and the point's number: not needed
        yield Pose(name.decode(), values[8], values[1:5], values[5:8])


def _binary_points(file: BinaryIO) -> Iterator[tuple[float, ...]]:
    for _ in range(_take(file, "Q")[0]):
        values = _take(file, "Q3d3BdQ")
        file.seek(values[8] * 8, 1)  # the views that see it
        yield values[1:4]


def _nearest(views: list[View], points: NDArray[np.float64]) -> float | None:
    """Return a distance before which no view sees a point (but for a percent of outliers)."""
    if not len(points):
        return None
    nearest: list[float] = []
    for camera in (view.camera for view in views):
        (xy, depth) = camera.project(points)
        seen = (depth > 0) & (xy > 0).all(1) & (xy < (camera.width, camera.height)).all(1)
        if seen.any():
            nearest.append(float(np.percentile(depth[seen], 1)))
    return 0.9 * min(nearest) if nearest else None
