"""Pinhole cameras: from pixels to rays and back.

Camera axes are OpenGL's (x right, y up, the camera looks along -z), as in nerfstudio and
``transforms.json``. Pixel (0, 0) is the top left one; its centre lies at (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zim.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Camera:
    """One view's camera.

    Attributes:
        c2w: 3 x 4 float64, camera to world; columns right, up, backward, position.
        fx: focal length in pixels, horizontally.
        fy: focal length in pixels, vertically.
        cx: principal point in pixels, from the left edge of the picture.
        cy: principal point in pixels, from its upper edge.
        width: of the picture in pixels.
        height: of the picture in pixels.
    """

    c2w: NDArray[np.float64]
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def __post_init__(self) -> None:
        """Refuse poses that are no poses, and focal lengths that are none.

        Raises:
            ConfigError: not 3 x 4, not finite, the axes are not orthonormal and right-handed, or a
                focal length is not above 0.
        """
        pose = self.c2w
        if pose.shape != (3, 4) or not np.isfinite(pose).all():
            raise ConfigError(f"a camera pose of shape {pose.shape}; expected 3 x 4 finite numbers")
        if not np.allclose(pose[:, :3].T @ pose[:, :3], np.eye(3), atol=1e-2):
            raise ConfigError(
                "a camera pose whose axes are not at right angles and of length 1; "
                "expected camera-to-world [R | t] (is it world-to-camera, or scaled?)"
            )
        if np.linalg.det(pose[:, :3]) < 0:
            raise ConfigError(
                "a camera pose that mirrors the world; expected right-handed axes right, up, "
                "backward (LLFF files hold down, right, backward and must be converted)"
            )
        plane = (self.fx, self.fy, self.cx, self.cy)
        if not np.isfinite(plane).all() or min(self.fx, self.fy) <= 0:
            raise ConfigError(
                f"a camera of focal length {self.fx:g}, {self.fy:g} and middle {self.cx:g}, "
                f"{self.cy:g}; expected finite numbers of pixels, focal lengths above 0"
            )

    @property
    def position(self) -> NDArray[np.float64]:
        """Where the camera is, 3 values."""
        return self.c2w[:, 3]

    def resized(self, width: int, height: int) -> Camera:
        """Return the same camera for pictures of another size."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self,
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=self.cx * sx,
            cy=self.cy * sy,
            width=width,
            height=height,
        )

    def moved(self, transform: NDArray[Any], scale: float) -> Camera:
        """Return the camera after ``x -> scale * (R x + t)`` of the world, ``transform`` 3 x 4."""
        rotation, shift = transform[:, :3], transform[:, 3]
        pose = np.empty((3, 4))
        pose[:, :3] = rotation @ self.c2w[:, :3]
        pose[:, 3] = scale * (rotation @ self.c2w[:, 3] + shift)
        return replace(self, c2w=pose)

    def rays(self, pixels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the rays through the centres of pixels.

        Args:
            pixels: long N, row * width + column; all pixels row by row if None.

        Returns:
            Origins and unit directions, float32 N x 3 each, in the world.
        """
        if pixels is None:
            pixels = torch.arange(self.width * self.height)
        x = (pixels % self.width + 0.5 - self.cx) / self.fx
        y = (torch.div(pixels, self.width, rounding_mode="floor") + 0.5 - self.cy) / self.fy
        pose = torch.as_tensor(self.c2w, dtype=torch.float32)
        local = torch.stack([x, -y, -torch.ones_like(x)], -1).float()
        directions = torch.nn.functional.normalize(local @ pose[:, :3].T, dim=-1)
        return pose[:, 3].expand_as(directions), directions

    def project(self, points: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Project world points.

        Args:
            points: N x 3.

        Returns:
            N x 2 pixel positions (x, y; the top left pixel's centre is 0.5, 0.5), and N depths
            along the viewing direction; behind the camera they are negative.
        """
        local = (np.asarray(points, np.float64) - self.position) @ self.c2w[:, :3]
        depth = -local[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            x = self.fx * local[:, 0] / depth + self.cx
            y = -self.fy * local[:, 1] / depth + self.cy
        return np.stack([x, y], -1), depth


def look_at(
    position: Any, target: Any, up: Any = (0.0, 0.0, 1.0), *, size: tuple[int, int], fov: float
) -> Camera:
    """Return a camera at ``position`` that looks at ``target``.

    Args:
        position: 3 values.
        target: 3 values.
        up: which way is up in the picture.
        size: (height, width) in pixels.
        fov: horizontal angle of view in degrees.
    """
    position = np.asarray(position, np.float64)
    back = position - np.asarray(target, np.float64)
    back /= np.linalg.norm(back)
    right = np.cross(np.asarray(up, np.float64), back)
    right /= np.linalg.norm(right)
    pose = np.stack([right, np.cross(back, right), back, position], -1).astype(np.float64)
    height, width = size
    focal = float(0.5 * width / np.tan(np.radians(fov) / 2))
    return Camera(pose, focal, focal, width / 2, height / 2, width, height)
