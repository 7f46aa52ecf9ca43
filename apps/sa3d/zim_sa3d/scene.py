"""A scene: views with cameras and pictures, how to split them, and ``transforms.json``.

``transforms.json`` (nerfstudio's and instant-ngp's format) is the one form every reader turns its
input into, so that all later steps know one kind of scene.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zim.errors import ConfigError, ImageError
from zim.folders import SUFFIXES
from zim.images import load_image, read_alpha
from zim.output import atomic_write
from zim_sa3d.cameras import Camera

#: every eighth view is held out, as in LLFF
HOLDOUT = 8


@dataclass(frozen=True)
class View:
    """One picture of a scene.

    Attributes:
        name: unique, without a suffix; output files carry it.
        camera: in the scene's own coordinates.
        image: picture file.
        mattes: true mattes by object name, where they are known (synthetic scenes).
        distortion: of the picture's lens, in OpenCV's order (k1, k2, p1, p2, k3, ...); none once
            the scene has been prepared.
    """

    name: str
    camera: Camera
    image: Path
    mattes: dict[str, Path] = field(default_factory=dict[str, Path])
    distortion: tuple[float, ...] = ()

    def rgb(self) -> NDArray[np.uint8]:
        """Read the picture, H x W x 3 uint8 RGB.

        Raises:
            ImageError: it cannot be read, or has not the size its camera states.
        """
        rgb = load_image(self.image).rgb
        expected = (self.camera.height, self.camera.width)
        if rgb.shape[:2] != expected:
            raise ImageError(
                f"{self.image} is {rgb.shape[1]} x {rgb.shape[0]} pixels, its camera states "
                f"{expected[1]} x {expected[0]}; run prepare again or correct w and h"
            )
        return rgb

    def matte(self, name: str) -> NDArray[np.float32]:
        """Read an object's true matte, H x W float32 in [0, 1].

        Raises:
            ConfigError: this view has none of that name.
        """
        if name not in self.mattes:
            known = ", ".join(sorted(self.mattes)) or "none"
            raise ConfigError(f"view {self.name} has no true matte {name!r}; known: {known}")
        return read_alpha(self.mattes[name])


@dataclass(frozen=True)
class Scene:
    """Views of one static scene.

    Attributes:
        name: for people.
        views: in the order of the input; view numbers in flags and files count in this order.
        kind: ``bounded`` (everything is inside a box of half-side ``extent`` around the origin),
            ``inward`` (cameras around something, background far away) or ``forward``.
        extent: see ``kind``; None lets the field find its own frame.
        near: distance before which nothing is, in scene units; None if unknown.
        reduction: pixels of the full size, as the poses state it, per pixel of the first training
            view's picture; None if unknown.
        source: the folder it was prepared from, or ``synthetic``; None if unknown.
        factor: how many times smaller its pictures were asked for; None if nobody did.
    """

    name: str
    views: tuple[View, ...]
    kind: str = "inward"
    extent: float | None = None
    near: float | None = None
    reduction: float | None = None
    source: str | None = None
    factor: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be reconstructed.

        Raises:
            ConfigError: fewer than 3 views, names given twice, or cameras all at one place.
        """
        if len(self.views) < 3:
            raise ConfigError(
                f"{self.name}: {len(self.views)} view(s) with picture and pose; a radiance field "
                "needs at least 3, better 20 or more, from different places"
            )
        names = [view.name for view in self.views]
        if len(set(names)) < len(names):
            raise ConfigError(f"{self.name}: two views have the same name")
        places = np.array([view.camera.position for view in self.views])
        if np.ptp(places, axis=0).max() < 1e-9:
            raise ConfigError(
                f"{self.name}: all cameras are at the same place; without parallax there is no "
                "depth to find (wrong poses?)"
            )

    @property
    def train(self) -> list[int]:
        """Numbers of the views that may be learned from."""
        held = set(self.held_out)
        return [i for i in range(len(self.views)) if i not in held]

    @property
    def held_out(self) -> list[int]:
        """Numbers of the views kept for measuring: every eighth; none if there are under 8."""
        if len(self.views) < HOLDOUT:
            return []
        return list(range(0, len(self.views), HOLDOUT))

    @property
    def objects(self) -> list[str]:
        """Names of the objects whose true mattes are known in every view."""
        common = set.intersection(*(set(view.mattes) for view in self.views))
        return sorted(common)

    def find(self, view: str) -> int:
        """Return the number of a view given by its name, its picture's file name, or its number.

        A name comes before a number: pictures may be called 0001.

        Raises:
            ConfigError: there is none.
        """
        names = [v.name for v in self.views]
        if view in names:
            return names.index(view)
        stem, dot, suffix = view.rpartition(".")
        if f"{dot}{suffix}".lower() in SUFFIXES and stem in names:
            return names.index(stem)
        if view.isdecimal() and int(view) < len(names):
            return int(view)
        raise ConfigError(
            f"{self.name} has no view {view!r}; give 0 to {len(names) - 1} or a name such as "
            f"{names[0]}"
        )


def facing(scene: Scene) -> str:
    """Return the kind of a scene by its cameras: ``forward`` if all look the same way."""
    backs = np.array([view.camera.c2w[:, 2] for view in scene.views])
    return "forward" if (backs @ backs.mean(0) > 0.3).all() else "inward"


def save_scene(scene: Scene, folder: Path) -> Path:
    """Write ``transforms.json`` into the folder that holds the pictures; return its path."""
    frames: list[dict[str, Any]] = []
    for view in scene.views:
        camera = view.camera
        frame: dict[str, Any] = {
            "file_path": view.image.relative_to(folder).as_posix(),
            "transform_matrix": [*camera.c2w.tolist(), [0.0, 0.0, 0.0, 1.0]],
            "fl_x": camera.fx,
            "fl_y": camera.fy,
            "cx": camera.cx,
            "cy": camera.cy,
            "w": camera.width,
            "h": camera.height,
        }
        if view.mattes:
            frame["mattes"] = {
                name: path.relative_to(folder).as_posix() for name, path in view.mattes.items()
            }
        frames.append(frame)
    keys = ("name", "kind", "extent", "near", "reduction", "source", "factor")
    about = {key: getattr(scene, key) for key in keys}
    path = folder / "transforms.json"
    data: dict[str, Any] = {"camera_model": "OPENCV", "zim_sa3d": about}
    # nerfstudio's own keys, so that it holds out the same views
    held = scene.held_out or scene.train
    for split, numbers in (("train", scene.train), ("val", held), ("test", held)):
        data[f"{split}_filenames"] = [frames[i]["file_path"] for i in numbers]
    data["frames"] = frames
    atomic_write(path, (json.dumps(data, indent=1) + "\n").encode())
    return path
