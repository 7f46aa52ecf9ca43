"""DICOM series as volumes: sorted by position, in real units, refused when something is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zim._extras import require
from zim.errors import ImageError, one_line
from zim_medical.volumes import Volume

SUFFIXES = (".dcm", ".ima")
#: neighbouring slices may be this much closer or farther than the typical distance
UNEVEN = 0.05


def read_dicom(path: Path) -> tuple[Volume, str]:
    """Read a folder with one series, or one file.

    Args:
        path: folder (files that are no DICOM images are passed over) or file.

    Returns:
        The volume (columns x rows x slices, rescaled, MONOCHROME1 inverted), and its modality.

    Raises:
        ImageError: no images, a damaged one, several series, several frames in a file, colour,
            slices of different shape or orientation, twice the same position, or a gap.
    """
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    slices = [d for d in (_header(f) for f in files) if d is not None]
    if not slices:
        raise ImageError(f"{path}: no DICOM images; expected a folder with one series")
    _one_series(slices, path)
    _has_place(slices[0], path)
    ordered, step = _by_position(slices, path)
    data = np.stack([_values(d, path) for d in ordered], -1)
    thick = len(ordered) > 1 or bool(ordered[0].get("SliceThickness"))
    sized = thick and _spacing(ordered[0]) is not None
    volume = Volume(data, _affine(ordered, step), str(path), sized=sized)
    return volume, str(ordered[0].get("Modality", ""))


def is_dicom(path: Path) -> bool:
    """Tell a DICOM file by its suffix, or by its mark where it has none."""
    if path.name.lower().endswith(SUFFIXES):
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _header(path: Path) -> Any:
    pydicom: Any = require("pydicom", "medical")
    try:
        data = pydicom.dcmread(path)
    except (pydicom.errors.InvalidDicomError, OSError, EOFError) as error:
        hidden = path.name.startswith(".")
        if path.name.lower().endswith(SUFFIXES) and not hidden:  # at an end it would not be missed
            raise ImageError(
                f"{path}: cannot be read as DICOM; copy it again, or take it away if it is none"
            ) from error
        return None
    if "NumberOfFrames" in data and not data.NumberOfFrames:  # there, and empty: one
        del data.NumberOfFrames
    return data if "PixelData" in data else None


def _one_series(slices: list[Any], path: Path) -> None:
    series = sorted({str(d.get("SeriesInstanceUID", "")) for d in slices})
    if len(series) > 1:
        numbers = sorted({str(d.get("SeriesNumber", "?")) for d in slices})
        raise ImageError(
            f"{path}: {len(series)} series are mixed (numbers {', '.join(numbers)}); "
            "move one into a folder of its own"
        )
    first = slices[0]
    if int(first.get("NumberOfFrames", 1)) > 1:
        raise ImageError(f"{path}: several frames in one file; convert it to NIfTI first")
    if int(first.get("SamplesPerPixel") or 1) != 1:
        raise ImageError(f"{path}: colour DICOM; expected grey values")
    for name in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        kinds = [np.atleast_1d(np.array(d.get(name) or 0, float)) for d in slices]
        if any(k.shape != kinds[0].shape or np.abs(k - kinds[0]).max() > 1e-3 for k in kinds):
            raise ImageError(f"{path}: slices differ in {name}; expected one stack")


def _has_place(data: Any, path: Path) -> None:
    """Refuse slices of a scanner without size or direction; other pictures may have none."""
    needed = ("PixelSpacing", "ImageOrientationPatient")
    lacking = [name for name in needed if not data.get(name)]
    if lacking and str(data.get("Modality", "")) in ("CT", "MR", "PT"):
        raise ImageError(
            f"{path}: no {' and no '.join(lacking)}, so sizes and directions are unknown; "
            "convert it to NIfTI with the right ones"
        )


def _by_position(slices: list[Any], path: Path) -> tuple[list[Any], NDArray[np.float64]]:
    """Sort slices along their normal; return them and the step between two, mm in LPS."""
    thickness = float(slices[0].get("SliceThickness") or 1.0)
    normal = np.cross(*_directions(slices[0]))
    if len(slices) == 1:
        return slices, normal * thickness
    missing = [d for d in slices if d.get("ImagePositionPatient") is None]
    if missing:
        raise ImageError(
            f"{path}: {len(missing)} of {len(slices)} slices have no ImagePositionPatient; "
            "their order is unknown"
        )
    places = [np.array(d.ImagePositionPatient, float) for d in slices]
    order = np.argsort([place @ normal for place in places], kind="stable")
    along = np.array([places[i] @ normal for i in order])
    gaps = np.diff(along)
    if gaps.min() < 1e-3:
        raise ImageError(
            f"{path}: two slices at position {along[int(gaps.argmin())]:.2f} mm; "
            "remove the duplicate or separate the phases"
        )
    typical = float(gaps.min())
    if gaps.max() > 1.5 * typical:
        at = int(gaps.argmax())
        raise ImageError(
            f"{path}: slices are missing between {along[at]:.2f} and {along[at + 1]:.2f} mm "
            f"(spacing {typical:.2f} mm); add them"
        )
    if gaps.max() > (1 + UNEVEN) * typical:
        raise ImageError(
            f"{path}: slice spacing varies from {typical:.3f} to {gaps.max():.3f} mm; resample it"
        )
    step = (places[order[-1]] - places[order[0]]) / (len(slices) - 1)
    return [slices[i] for i in order], step


def _directions(data: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return unit vectors (LPS) along a row and along a column of the picture."""
    values = data.get("ImageOrientationPatient")
    six = np.array(values if values is not None else (1, 0, 0, 0, 1, 0), float)
    return six[:3], six[3:]


def _spacing(data: Any) -> Any:
    """Return millimetres between rows and between columns; None where they are not told."""
    return data.get("PixelSpacing") or data.get("ImagerPixelSpacing") or None


def _affine(ordered: list[Any], step: NDArray[np.float64]) -> NDArray[np.float64]:
    first = ordered[0]
    along_row, along_column = _directions(first)
    spacing = _spacing(first) or (1.0, 1.0)
    place = first.get("ImagePositionPatient")
    affine = np.eye(4)
    affine[:3, 0] = along_row * float(spacing[1])  # the second value is between columns
    affine[:3, 1] = along_column * float(spacing[0])
    affine[:3, 2] = step
    affine[:3, 3] = (0, 0, 0) if place is None else np.array(place, float)
    affine[:2] *= -1  # DICOM's x and y point to the left and back, NIfTI's to the right and front
    return affine


def _values(data: Any, path: Path) -> NDArray[np.float32]:
    """Return columns x rows in real units."""
    try:
        stored = np.asarray(data.pixel_array, np.float64)
    except Exception as error:  # pydicom raises many kinds for pixels it cannot decode
        detail = one_line(error, 200)
        raise ImageError(f"{path}: pixels cannot be decoded ({detail})") from error
    if str(data.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        signed = int(data.get("PixelRepresentation", 0)) == 1
        stored = (-1 if signed else 2 ** int(data.BitsStored) - 1) - stored
    slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
    real = stored * float(1 if slope is None else slope)
    real += float(0 if intercept is None else intercept)
    return real.T.astype(np.float32)
