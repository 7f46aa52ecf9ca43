"""A built-in scene with exact mattes: three textured solids and a thin plant on a chequered table.

Everything is intersected analytically, 3 x 3 rays per pixel, so colours are anti-aliased and every
object's matte is the exact share of its rays (to a ninth). Lengths are in units of the scene's
box, which reaches from -1.15 to 1.15.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zim.output import save_alpha, save_rgb
from zim_sa3d.cameras import Camera, look_at
from zim_sa3d.scene import Scene, View, save_scene

EXTENT = 1.15
VIEWS = 24
SIZE = 256
SOLIDS = ("ball", "cube", "barrel")
THIN = "plant"
OBJECTS = (*SOLIDS, THIN)

_TABLE = -0.45
_SKY = np.array([0.80, 0.86, 0.93])
_LIGHT = np.array([0.4, 0.25, 0.88]) / np.linalg.norm([0.4, 0.25, 0.88])
_OVERSAMPLE = 3

F = NDArray[np.float64]


@dataclass(frozen=True)
class _Hit:
    """Where rays meet a surface: distance (inf: nowhere), normal, colour; N, N x 3, N x 3."""

    t: F
    normal: F
    colour: F


def synthetic_scene(folder: Path, *, size: int = SIZE, views: int = VIEWS) -> Scene:
    """Render the scene's views with mattes into a folder, with its ``transforms.json``.

    Args:
        folder: made if missing; gets ``images/`` and ``mattes/<object>/``.
        size: width and height of the views in pixels.
        views: how many.
    """
    for name in ("images", *(f"mattes/{name}" for name in OBJECTS)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    made: list[View] = []
    for i, camera in enumerate(orbit(views, size)):
        rgb, mattes = render(camera)
        name = f"view_{i:03d}"
        image = folder / "images" / f"{name}.png"
        save_rgb(image, rgb)
        paths: dict[str, Path] = {}
        for label, alpha in mattes.items():
            paths[label] = folder / "mattes" / label / f"{name}.png"
            save_alpha(paths[label], alpha)
        made.append(View(name, camera, image, paths))
    scene = Scene("synthetic", tuple(made), kind="bounded", extent=EXTENT, source="synthetic")
    save_scene(scene, folder)
    return scene


def orbit(views: int, size: int) -> list[Camera]:
    """Return cameras on three rings around the scene, all looking at its middle."""
    cameras: list[Camera] = []
    for i in range(views):
        turn = 2 * np.pi * i * 0.618034  # golden angle: neighbours in number are far apart
        rise = np.radians((22.0, 38.0, 54.0)[i % 3])
        place = 3.0 * np.array(
            [np.cos(turn) * np.cos(rise), np.sin(turn) * np.cos(rise), np.sin(rise)]
        )
        place[2] += _TABLE + 0.25
        cameras.append(look_at(place, (0.0, 0.0, _TABLE + 0.25), size=(size, size), fov=42.0))
    return cameras


def render(camera: Camera) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.float32]]]:
    """Render one view.

    Returns:
        The picture, H x W x 3 uint8 RGB, and each object's matte, H x W float32 in [0, 1].
    """
    n = _OVERSAMPLE
    fine = camera.resized(camera.width * n, camera.height * n)
    origins, directions = (x.double().numpy() for x in fine.rays())
    order: list[tuple[str, _Hit]] = [("table", _table(origins, directions))]
    order.append(("ball", _ball(origins, directions)))
    order.append(("cube", _cube(origins, directions)))
    order.append(("barrel", _barrel(origins, directions)))
    order += [("plant", hit) for hit in _plant(origins, directions)]
    nearest = np.argmin(np.stack([hit.t for _, hit in order]), axis=0)
    colour = np.tile(_SKY, (len(origins), 1))
    owner = np.full(len(origins), "", dtype="<U8")
    for k, (name, hit) in enumerate(order):
        seen = (nearest == k) & np.isfinite(hit.t)
        shade = 0.45 + 0.55 * np.clip(hit.normal[seen] @ _LIGHT, 0, 1)
        colour[seen] = hit.colour[seen] * shade[:, None]
        owner[seen] = name
    size = (camera.height, n, camera.width, n)
    mean = colour.reshape(*size, 3).mean((1, 3))
    rgb = np.round(np.clip(mean, 0, 1) * 255).astype(np.uint8)
    mattes = {
        name: (owner == name).reshape(size).mean((1, 3)).astype(np.float32) for name in OBJECTS
    }
    return rgb, mattes


def _table(o: F, d: F) -> _Hit:
    with np.errstate(divide="ignore"):
        t = (_TABLE - o[:, 2]) / d[:, 2]
    p = o + t[:, None] * d
    t = np.where((t > 0) & (np.hypot(p[:, 0], p[:, 1]) < 1.12), t, np.inf)
    odd = (np.floor(p[:, 0] / 0.28) + np.floor(p[:, 1] / 0.28)) % 2 == 1
    colour = np.where(odd[:, None], [0.58, 0.56, 0.54], [0.74, 0.72, 0.69])
    return _Hit(t, np.tile([0.0, 0.0, 1.0], (len(o), 1)), colour)


def _ball(o: F, d: F) -> _Hit:
    centre, radius = np.array([0.45, 0.35, _TABLE + 0.33]), 0.33
    t = _quadratic(o - centre, d, radius, slice(0, 3))
    p = _at(o, d, t)
    normal = (p - centre) / radius
    stripe = np.sin(9 * normal[:, 2] + 2 * normal[:, 0]) > 0
    colour = np.where(stripe[:, None], [0.86, 0.16, 0.13], [0.98, 0.55, 0.28])
    return _Hit(t, normal, colour)


def _cube(o: F, d: F) -> _Hit:
    half = 0.27
    centre = np.array([-0.45, 0.40, _TABLE + half])
    turn = np.radians(25)
    axes = np.array(
        [[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0.0, 0.0, 1.0]]
    )
    lo, ld = (o - centre) @ axes.T, d @ axes.T
    with np.errstate(divide="ignore"):
        a, b = (-half - lo) / ld, (half - lo) / ld
    enter, leave = np.minimum(a, b), np.maximum(a, b)
    first, last = enter.max(1), leave.min(1)
    t = np.where((first < last) & (first > 0), first, np.inf)
    side = enter.argmax(1)
    normal = -np.sign(ld[np.arange(len(ld)), side])[:, None] * axes[side]
    p = _at(lo, ld, t)
    dots = (np.sin(p * 23) > 0.3).sum(1) >= 2
    colour = np.where(dots[:, None], [0.10, 0.22, 0.62], [0.20, 0.50, 0.90])
    return _Hit(t, normal, colour)


def _barrel(o: F, d: F) -> _Hit:
    centre, radius, half = np.array([0.05, -0.50, _TABLE + 0.30]), 0.24, 0.30
    local = o - centre
    t = _quadratic(local, d, radius, slice(0, 2))
    p = _at(local, d, t)
    t = np.where(np.abs(p[:, 2]) < half, t, np.inf)
    normal = np.concatenate([p[:, :2] / radius, np.zeros((len(p), 1))], 1)
    with np.errstate(divide="ignore"):
        lid = (half - local[:, 2]) / d[:, 2]
    q = _at(local, d, lid)
    on_lid = (lid > 0) & (np.hypot(q[:, 0], q[:, 1]) < radius) & (lid < t)
    t = np.where(on_lid, lid, t)
    normal = np.where(on_lid[:, None], [0.0, 0.0, 1.0], normal)
    angle = np.where(on_lid, np.arctan2(q[:, 1], q[:, 0]), np.arctan2(p[:, 1], p[:, 0]))
    stave = np.sin(angle * 7) > 0
    colour = np.where(stave[:, None], [0.10, 0.48, 0.24], [0.42, 0.78, 0.30])
    return _Hit(t, normal, colour)


def _plant(o: F, d: F) -> list[_Hit]:
    """Five thin stems that fan out, each with a flat round leaf on top."""
    foot = np.array([0.68, -0.48, _TABLE])
    hits: list[_Hit] = []
    for k in range(5):
        turn = 2 * np.pi * k / 5 + 0.3
        top = foot + np.array([0.26 * np.cos(turn), 0.26 * np.sin(turn), 0.56 + 0.05 * (k % 2)])
        hits.append(_rod(o, d, foot, top, 0.015))
        tilt = np.array([0.5 * np.cos(turn), 0.5 * np.sin(turn), 0.75])
        hits.append(_disc(o, d, top, tilt / np.linalg.norm(tilt), 0.085))
    return hits


def _rod(o: F, d: F, start: F, end: F, radius: float) -> _Hit:
    axis = end - start
    length = float(np.linalg.norm(axis))
    axis = axis / length
    local = o - start
    # the part of position and direction across the rod turns it into a circle
    across_o = local - np.outer(local @ axis, axis)
    across_d = d - np.outer(d @ axis, axis)
    t = _quadratic(across_o, across_d, radius, slice(0, 3))
    p = _at(local, d, t)
    along = p @ axis
    t = np.where((along > 0) & (along < length), t, np.inf)
    normal = np.nan_to_num((p - np.outer(along, axis)) / radius)
    return _Hit(t, normal, np.tile([0.45, 0.16, 0.50], (len(o), 1)))


def _disc(o: F, d: F, centre: F, normal: F, radius: float) -> _Hit:
    with np.errstate(divide="ignore"):
        t = ((centre - o) @ normal) / (d @ normal)
    p = _at(o, d, t)
    t = np.where((t > 0) & (np.linalg.norm(p - centre, axis=1) < radius), t, np.inf)
    facing = -np.sign(d @ normal)[:, None] * normal
    return _Hit(t, facing, np.tile([0.72, 0.25, 0.66], (len(o), 1)))


def _quadratic(o: F, d: F, radius: float, part: slice) -> F:
    """First positive t with |o + t d| = radius over some coordinates; inf where there is none."""
    o, d = o[:, part], d[:, part]
    a, b, c = (d * d).sum(1), (o * d).sum(1), (o * o).sum(1) - radius**2
    inside = b * b - a * c
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (-b - np.sqrt(np.maximum(inside, 0))) / a
    return np.where((inside > 0) & (t > 0), t, np.inf)


def _at(o: F, d: F, t: F) -> F:
    """Return o + t d, and o where t is no number one can go to."""
    return o + np.where(np.isfinite(t), t, 0.0)[:, None] * d
