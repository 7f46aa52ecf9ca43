"""A small phantom set in the true layouts of the five datasets, drawn by rules from a seed.

These are no patients and no scans: smooth shapes with speckle, noise and shadows, made so that the
whole evaluation can be tried, and its report read, before any data is there.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim._extras import require
from zim.output import atomic_write, save_alpha

Field = NDArray[np.float64]
DONE = ".complete"


def make_demo(root: Path, seed: int = 0) -> Path:
    """Write the phantom set below ``root``, once; about 3 MB, a second.

    Args:
        root: folder; files of an earlier call with this seed are kept.
        seed: of the shapes and the noise.
    """
    done = root / DONE
    if not done.is_file() or done.read_text(encoding="utf-8") != str(seed):
        _msd(root / "Task04_Hippocampus", "hippocampus", seed)
        _msd(root / "Task09_Spleen", "spleen", seed)
        _kidney(root / "ct2usforkidneyseg", seed)
        _nerve(root / "ultrasound-nerve-segmentation" / "train", seed)
        _hip(root / "zm6bxzhmfz", seed)
        atomic_write(done, str(seed).encode())
    return root


def blob(
    grid: tuple[Field, ...],
    centre: tuple[float, ...],
    radii: tuple[float, ...],
    rng: np.random.Generator,
    rough: float = 0.15,
) -> Field:
    """Return a signed field, positive inside an ellipse or ellipsoid with a wavy outline."""
    offsets = [(g - c) / r for g, c, r in zip(grid, centre, radii, strict=True)]
    distance = np.sqrt(sum(o**2 for o in offsets))
    angle = np.arctan2(offsets[0], offsets[1])
    wave = sum(
        rng.normal(0, rough / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5)
    )
    return 1 + wave - distance


def soft(field: Field, sharpness: float = 8.0) -> Field:
    """Return 1 inside and 0 outside with a soft edge, as blurred by a scanner."""
    return 1 / (1 + np.exp(-sharpness * field))


def smooth_noise(shape: tuple[int, ...], size: float, rng: np.random.Generator) -> Field:
    """Return noise of unit deviation whose grains are ``size`` pixels wide."""
    ndimage: Any = require("scipy.ndimage", "medical")
    noise = ndimage.gaussian_filter(rng.normal(size=shape), size)
    return noise / noise.std()


def _write_nifti(path: Path, data: NDArray[Any], affine: Field) -> None:
    nibabel: Any = require("nibabel", "medical")
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    nibabel.Nifti1Image(data, affine).to_stream(stream)
    import gzip

    atomic_write(path, gzip.compress(stream.getvalue(), 6, mtime=0))


def _write_picture(path: Path, values: Field) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_alpha(path, np.clip(values, 0, 1))


def _msd(folder: Path, kind: str, seed: int) -> None:
    """Write six labelled volumes: T1-like heads with two joined parts, CT-like bellies."""
    rng = np.random.default_rng([seed, len(kind)])
    training = []
    for number in range(1, 7):
        if kind == "hippocampus":
            data, label = _head(rng)
            spacing, data = (1.0, 1.0, 3.0), data.astype(np.float32)
            name = f"hippocampus_{number:03d}.nii.gz"
        else:
            data, label = _belly(rng)
            spacing, data = (1.6, 1.6, 5.0), data.astype(np.int16)
            name = f"spleen_{number}.nii.gz"
        affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
        affine[:3, 3] = (90.0, -60.0, -20.0)
        _write_nifti(folder / "imagesTr" / name, data, affine)
        _write_nifti(folder / "labelsTr" / name, label.astype(np.uint8), affine)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    about = {
        "name": f"phantom {kind}",
        "description": "drawn, not scanned",
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"}
        if kind == "hippocampus"
        else {"0": "background", "1": "spleen"},
        "modality": {"0": "MRI" if kind == "hippocampus" else "CT"},
        "numTraining": len(training),
        "numTest": 0,
        "training": training,
        "test": [],
    }
    atomic_write(folder / "dataset.json", (json.dumps(about, indent=2) + "\n").encode())


def _head(rng: np.random.Generator) -> tuple[Field, NDArray[np.uint8]]:
    shape = (36, 50, 10)
    grid = tuple(g.astype(float) for g in np.mgrid[: shape[0], : shape[1], : shape[2]])
    shift = rng.uniform(-3, 3, 2)
    front = blob(grid, (18 + shift[0], 33 + shift[1], 4.5), (6.5, 9, 2.6), rng)
    back = blob(grid, (17 + shift[0], 19 + shift[1], 5.5), (4.5, 9, 2.4), rng)
    texture = smooth_noise(shape, 2.0, rng)
    tissue = 300 + 45 * texture + 60 * soft(0.5 + 0.6 * smooth_noise(shape, 5.0, rng), 3)
    organ = np.maximum(soft(front), soft(back))
    values = tissue * (1 - organ) + (520 + 20 * texture) * organ + rng.normal(0, 18, shape)
    label = np.where(front > 0, 1, np.where(back > 0, 2, 0))
    return np.clip(values, 0, None), label.astype(np.uint8)


def _belly(rng: np.random.Generator) -> tuple[Field, NDArray[np.uint8]]:
    shape = (128, 112, 8)
    grid = tuple(g.astype(float) for g in np.mgrid[: shape[0], : shape[1], : shape[2]])
    flat = tuple(g[..., :1] for g in grid[:2])
    body = blob(flat, (64, 56), (56, 44), rng, 0.03)
    spine = blob(flat, (64, 22), (9, 9), rng, 0.05)
    liver = blob(grid, (35, 62, 4), (24, 22, 7), rng)
    spleen = blob(grid, (96 + rng.uniform(-4, 4), 42, 3.5), (11, 17, 3.4), rng)
    values = np.full(shape, -1000.0)
    for field, value in ((body, 10), (body - 0.08, 45), (spine, 350), (liver, 95), (spleen, 125)):
        inside = soft(field, 14)
        values = values * (1 - inside) + value * inside
    values[body[..., 0] - 0.08 < 0, :] = np.where(body[body[..., 0] - 0.08 < 0] > 0, -90.0, -1000.0)
    values += 6 * smooth_noise(shape, 1.0, rng) + rng.normal(0, 8, shape)
    return values, (spleen > 0).astype(np.uint8)


def _speckled(
    reflect: Field, rng: np.random.Generator, strength: float = 0.55
) -> tuple[Field, NDArray[np.bool_]]:
    """Return an ultrasound-like picture and the fan it fills: speckle, log compression, fading."""
    height, width = reflect.shape
    y, x = np.mgrid[:height, :width].astype(float)
    wave = smooth_noise(reflect.shape, 1.2, rng) + 1j * smooth_noise(reflect.shape, 1.2, rng)
    rayleigh = np.abs(wave) / np.sqrt(2)
    depth = np.exp(-0.5 * y / height)
    echo = reflect * depth * ((1 - strength) + strength * rayleigh)
    angle, radius = (
        np.arctan2(x - width / 2, y + 0.35 * height),
        np.hypot(x - width / 2, y + 0.35 * height),
    )
    fan = (np.abs(angle) < 0.62) & (radius > 0.4 * height) & (radius < 1.32 * height)
    return np.log1p(8 * echo) / np.log(9) * fan, fan


def _kidney(folder: Path, seed: int) -> None:
    rng = np.random.default_rng([seed, 101])
    y, x = np.mgrid[:192, :192].astype(float)
    for number in range(2, 22):
        centre = (rng.uniform(85, 125), rng.uniform(75, 115))
        kidney = blob((y, x), centre, (rng.uniform(24, 32), rng.uniform(36, 48)), rng, 0.08)
        sinus = blob((y, x), centre, (9, 18), rng, 0.2)
        reflect = 0.55 + 0.1 * smooth_noise(x.shape, 9, rng)
        reflect = reflect * (1 - soft(kidney, 12)) + 0.16 * soft(kidney, 12)
        reflect = reflect * (1 - soft(sinus, 6)) + 0.7 * soft(sinus, 6)
        reflect += 0.35 * np.exp(-((kidney / 0.05) ** 2))  # the bright capsule
        picture, fan = _speckled(reflect, rng)
        _write_picture(folder / "slice" / "slice" / f"{number}.png", picture)
        _write_picture(
            folder / "mask" / "mask" / f"{number}.png", ((kidney > 0) & fan).astype(float)
        )


def _nerve(folder: Path, seed: int) -> None:
    """Write seven patients of four frames; half of the frames show no nerve, as in the original."""
    rng = np.random.default_rng([seed, 202])
    height, width = 210, 290
    y, x = np.mgrid[:height, :width].astype(float)
    for subject in range(1, 8):
        centre = np.array([rng.uniform(70, 120), rng.uniform(100, 190)])
        for frame in range(1, 5):
            here = centre + rng.normal(0, 4, 2)
            nerve = blob((y, x), (here[0], here[1]), (17, 28), rng, 0.12)
            layers = 0.5 + 0.25 * np.sin(y / 9 + 2 * smooth_noise(y.shape, 30, rng))
            shown = (frame + subject) % 2 == 0
            inside = soft(nerve, 9) * shown
            reflect = layers * (1 - inside) + 0.2 * inside
            reflect += 0.3 * np.exp(-((nerve / 0.07) ** 2)) * shown
            wave = smooth_noise(reflect.shape, 1.3, rng) ** 2
            wave += smooth_noise(reflect.shape, 1.3, rng) ** 2
            speckle = np.sqrt(wave / 2)
            echo = np.log1p(8 * reflect * np.exp(-0.6 * y / height) * (0.45 + 0.5 * speckle))
            _write_picture(folder / f"{subject}_{frame}.tif", echo / np.log(9))
            mask = (nerve > 0) * shown
            _write_picture(folder / f"{subject}_{frame}_mask.tif", mask.astype(float))


def _hip(folder: Path, seed: int) -> None:
    rng = np.random.default_rng([seed, 303])
    height, width = 224, 192
    y, x = np.mgrid[:height, :width].astype(float)
    for number in range(1, 11):
        tilt = rng.uniform(-8, 8)
        wing = blob((y, x), (64 + tilt / 2, 84 + tilt), (42, 36), rng, 0.12)
        socket = blob((y, x), (120, 108 + tilt), (20, 20), rng, 0.04)
        ilium = np.maximum(wing, blob((y, x), (100, 98 + tilt), (22, 26), rng, 0.06))
        head = blob((y, x), (126, 112 + tilt), (17, 17), rng, 0.03)
        neck = _bar(y, x, (128, 114 + tilt), (146, 138 + tilt), 10)
        shaft = _bar(y, x, (146, 138 + tilt), (230, 128 + tilt), 13)
        femur = np.maximum.reduce([head, neck, shaft])
        flesh = blob((y, x), (120, 100), (150, 84), rng, 0.05)
        attenuation = 0.9 * soft(flesh, 6) + 0.75 * soft(ilium, 16) * (socket < 0.9)
        attenuation += 1.0 * soft(femur, 16) - 0.35 * soft(femur - 0.35, 10)
        attenuation *= 1 + 0.05 * smooth_noise(y.shape, 6, rng)
        exposure = 4095 * (1 - np.exp(-0.9 * attenuation)) * rng.uniform(0.75, 1.0)
        counts = exposure + rng.normal(0, 45, exposure.shape)
        picture = cv2.GaussianBlur(counts, (0, 0), 0.8)
        label = np.where(femur > 0, 2, np.where(ilium > 0, 1, 0)).astype(np.uint8)
        affine = np.eye(4)
        values = np.clip(picture, 0, 4095).astype(np.int16)
        _write_nifti(folder / "images" / f"{number}.nii.gz", values[..., None], affine)
        _write_nifti(folder / "labels" / f"{number}.nii.gz", label[..., None], affine)


def _bar(
    y: Field, x: Field, start: tuple[float, float], end: tuple[float, float], half: float
) -> Field:
    """Return a field positive within ``half`` pixels of a line from (y, x) to (y, x)."""
    dy, dx = end[0] - start[0], end[1] - start[1]
    along = np.clip(((y - start[0]) * dy + (x - start[1]) * dx) / (dy**2 + dx**2), 0, 1)
    return 1 - np.hypot(y - start[0] - along * dy, x - start[1] - along * dx) / half
