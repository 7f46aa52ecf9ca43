"""A view's picture hung into the scene where its camera sees it, and where clicks meet it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zim_sa3d.cameras import Camera


@dataclass(frozen=True)
class PicturePlane:
    """A picture at a distance in front of its camera, exactly filling what the camera sees.

    Attributes:
        camera: of the view.
        distance: from the camera, in scene units.
    """

    camera: Camera
    distance: float

    @property
    def rotation(self) -> NDArray[np.float64]:
        """3 x 3, columns right, down, forward in the scene."""
        return self.camera.c2w[:, :3] * [1.0, -1.0, -1.0]

    @property
    def centre(self) -> NDArray[np.float64]:
        """The middle of the picture in the scene, 3 values."""
        camera = self.camera
        x = (camera.width / 2 - camera.cx) / camera.fx
        y = (camera.height / 2 - camera.cy) / camera.fy
        return camera.position + self.rotation @ np.array([x, y, 1.0]) * self.distance

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in scene units."""
        camera = self.camera
        return (
            camera.width / camera.fx * self.distance,
            camera.height / camera.fy * self.distance,
        )

    def pixel(self, origin: Any, direction: Any) -> tuple[float, float] | None:
        """Return where a ray of the scene meets the picture, None if it misses it.

        In pixels (x, y) from the picture's corner, as cameras count: the first pixel's centre is
        at 0.5, 0.5.
        """
        start = (np.asarray(origin, np.float64) - self.camera.position) @ self.rotation
        way = np.asarray(direction, np.float64) @ self.rotation
        if abs(way[2]) < 1e-9:
            return None
        t = (self.distance - start[2]) / way[2]
        x, y = (start + t * way)[:2] / self.distance
        pixel = (x * self.camera.fx + self.camera.cx, y * self.camera.fy + self.camera.cy)
        inside = 0 <= pixel[0] < self.camera.width and 0 <= pixel[1] < self.camera.height
        return (float(pixel[0]), float(pixel[1])) if t > 0 and inside else None
