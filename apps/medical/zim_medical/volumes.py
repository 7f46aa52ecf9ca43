"""Volumes and their slices: NIfTI in and out, and the planes a radiologist would look at.

A volume is turned (voxels are only reordered) so that its axes run to the patient's left,
posterior and inferior (LPI). Every slice then shows the patient's right on the left of the
picture, and front or head at the top; going back is exact.
"""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zim._extras import require
from zim.errors import ImageError, one_line
from zim.output import atomic_write

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".mgz")
#: millimetres in NIfTI's codes of metre and micron; what says nothing counts in millimetres
_MILLIMETRES = {1: 1e3, 3: 1e-3}


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels with their place in the patient.

    Attributes:
        data: X x Y x Z float32, in the order of the file.
        affine: 4 x 4 float64, voxel indices to millimetres (RAS+), whatever the file counts in.
        source: the file or folder, for messages.
        template: the nibabel image it came from, whose header outputs keep; None for DICOM and
            pictures.
        plane_only: it is one picture (Z is 1) without a place in a patient; rows run down.
        sized: voxel sizes are known; never those of pictures.
        unit: millimetres in what the file counts in.
    """

    data: NDArray[np.float32]
    affine: NDArray[np.float64]
    source: str
    template: Any = None
    plane_only: bool = False
    sized: bool = True
    unit: float = 1.0

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel sizes in mm, in the order of the file's axes."""
        return tuple(float(v) for v in np.sqrt((self.affine[:3, :3] ** 2).sum(0)))  # type: ignore[return-value]

    @property
    def voxel_mm3(self) -> float | None:
        """Volume of a voxel, also of a slanted one; None where sizes are not known."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) if self.sized else None

    def turn(self) -> NDArray[Any]:
        """Return nibabel's orientation transform from the file's axes to LPI."""
        orientations = require("nibabel", "medical").orientations
        own = orientations.io_orientation(self.affine)
        if np.isnan(own).any():
            raise ImageError(f"{self.source}: its affine has an axis of no length; repair it")
        goal = orientations.axcodes2ornt(("L", "P", "I"))
        return orientations.ornt_transform(own, goal)


def read_nifti(path: str | Path, *, finite: bool = True) -> Volume:
    """Read a 3D volume (or a 4D file of a single volume, or a 2D picture).

    Args:
        path: NIfTI or anything else nibabel opens.
        finite: refuse NaN and infinite voxels.

    Raises:
        ImageError: unreadable, not 3D, without voxels, or not finite.
    """
    nibabel = require("nibabel", "medical")
    path = Path(path).expanduser()
    if not path.is_file():
        raise ImageError(f"{path} does not exist; check the path")
    try:
        image: Any = nibabel.load(path)
        shape = tuple(image.shape)
        squeezed = shape[:3] + tuple(n for n in shape[3:] if n != 1)
        if len(squeezed) > 3:
            raise ImageError(
                f"{path.name}: a 4D volume of shape {shape}; expected 3D, extract one frame"
            )
        if not shape or 0 in shape:
            raise ImageError(f"{path.name}: no voxels (shape {shape})")
        data = np.asarray(image.dataobj, np.float32)
    except ImageError:
        raise
    except Exception as error:  # nibabel raises many kinds for damaged files
        detail = one_line(error)
        raise ImageError(f"{path.name}: cannot be read as a volume ({detail})") from error
    data = data.reshape(squeezed + (1,) * (3 - len(squeezed)))
    if finite:
        check_finite(data, path.name)
    affine = np.array(image.affine, np.float64)
    told = isinstance(image, nibabel.Nifti1Pair)
    unit = _MILLIMETRES.get(int(image.header["xyzt_units"]) % 8, 1.0) if told else 1.0
    affine[:3] *= unit
    return Volume(data, affine, str(path), image, unit=unit)


def check_finite(data: NDArray[Any], name: str) -> None:
    """Refuse NaN and infinite values, saying how many there are."""
    bad = int(data.size - np.isfinite(data).sum())
    if bad:
        raise ImageError(f"{name}: {bad} of {data.size} voxels are NaN or infinite")


def check_not_empty(data: NDArray[Any], name: str) -> None:
    """Refuse an image in which every voxel is the same: there is nothing to see in it."""
    low, high = data.min(), data.max()
    if low == high:
        raise ImageError(f"{name}: empty, all of its {data.size} values are {low:g}")


def planes(data: NDArray[Any], turn: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return slices S x H x W of a volume along an axis of the patient (a view).

    Args:
        data: X x Y x Z in the file's order.
        turn: from :meth:`Volume.turn`.
        axis: 0 sagittal (slices run right to left), 1 coronal (front to back), 2 axial (head to
            feet).
    """
    turned = require("nibabel", "medical").orientations.apply_orientation(data, turn)
    # in-plane axes (columns, rows): axial (L, P), coronal (L, I), sagittal (P, I)
    order = {0: (0, 2, 1), 1: (1, 2, 0), 2: (2, 1, 0)}[axis]
    return turned.transpose(order)


def from_planes(stack: NDArray[Any], turn: NDArray[Any], axis: int) -> NDArray[Any]:
    """Undo :func:`planes`: slices S x H x W back to the file's X x Y x Z."""
    order = {0: (0, 2, 1), 1: (2, 0, 1), 2: (2, 1, 0)}[axis]
    turned = stack.transpose(order)
    return undo_turn(turned, turn)


def undo_turn(turned: NDArray[Any], turn: NDArray[Any]) -> NDArray[Any]:
    """Bring LPI voxels back into the file's order."""
    out = turned
    for own in range(3):
        if turn[own, 1] == -1:
            out = np.flip(out, int(turn[own, 0]))
    return out.transpose([int(turn[own, 0]) for own in range(3)])


def plane_spacing(spacing: tuple[float, ...], turn: NDArray[Any], axis: int) -> tuple[float, float]:
    """Return millimetres per row and per column of the slices."""
    turned = [0.0, 0.0, 0.0]
    for own in range(3):
        turned[int(turn[own, 0])] = spacing[own]
    column, row = {0: (1, 2), 1: (0, 2), 2: (0, 1)}[axis]
    return turned[row], turned[column]


def stretch(spacing: tuple[float, float]) -> tuple[float, float]:
    """Return how much higher and wider pixels of a spacing are shown, at most tenfold."""
    return min(10.0, spacing[0] / min(spacing)), min(10.0, spacing[1] / min(spacing))


def write_like(path: str | Path, data: NDArray[Any], like: Volume) -> None:
    """Write a volume in the grid of another: its header, affine, codes and units are kept.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        data: X x Y x Z uint8 or float32, in the file's order.
        like: where it belongs.

    Raises:
        OutputError: it cannot be written.
    """
    nibabel = require("nibabel", "medical")
    template = like.template
    if isinstance(template, nibabel.Nifti1Image | nibabel.Nifti2Image):
        header = template.header.copy()
        image = type(template)(data.reshape(template.shape), template.affine, header)
    else:
        image = nibabel.Nifti1Image(data, like.affine)
        image.header.set_xyzt_units("mm")
    image.header.set_data_dtype(data.dtype)
    image.header.set_slope_inter(1, 0)
    image.header["cal_min"], image.header["cal_max"] = 0, 1
    stream = io.BytesIO()
    image.to_stream(stream)
    raw = stream.getvalue()
    # mtime 0: the same result is the same file
    packed = gzip.compress(raw, 6, mtime=0) if str(path).endswith(".gz") else raw
    atomic_write(path, packed)
