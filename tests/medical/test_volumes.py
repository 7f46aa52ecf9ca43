"""Volumes keep their grid, slices are what MONAI and a radiologist would see, DICOM is checked."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from nibabel.orientations import aff2axcodes, axcodes2ornt, io_orientation, ornt_transform
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from zim.errors import ImageError
from zim_medical.dicom import read_dicom
from zim_medical.segment import open_input
from zim_medical.volumes import (
    from_planes,
    plane_spacing,
    planes,
    read_nifti,
    stretch,
    write_like,
)

SHAPE = (7, 9, 5)


def affine_of(codes: str) -> np.ndarray:
    """An affine with unequal spacing whose axes run to the given directions."""
    ornt = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    base = np.diag([1.5, 0.75, 3.0, 1.0])
    base[:3, 3] = (10, -20, 30)
    return base @ nib.orientations.inv_ornt_aff(ornt, SHAPE)


def oblique() -> np.ndarray:
    angle = 0.3
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    return turn @ tilt @ np.diag([0.8, -0.9, 2.5, 1.0])


AFFINES = {code: affine_of(code) for code in ("RAS", "LPS", "PIR", "SAL")} | {"oblique": oblique()}


@pytest.mark.parametrize("name", AFFINES)
def test_the_grid_comes_back_exactly(name: str, tmp_path: Path) -> None:
    affine = AFFINES[name]
    data = np.random.default_rng(0).integers(-50, 900, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 2)
    image.header["descrip"] = b"scanner"
    image.header["xyzt_units"] = 2
    nib.save(image, tmp_path / "in.nii.gz")
    volume = read_nifti(tmp_path / "in.nii.gz")
    label = (data > 400).astype(np.uint8)
    write_like(tmp_path / "out.nii.gz", label, volume)
    source: Any = nib.load(tmp_path / "in.nii.gz")
    out: Any = nib.load(tmp_path / "out.nii.gz")
    assert out.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(out.dataobj), label)
    assert np.array_equal(out.affine, source.affine)
    assert out.header.get_zooms() == source.header.get_zooms()
    assert aff2axcodes(out.affine) == aff2axcodes(source.affine)
    for key in ("qform_code", "sform_code", "descrip", "xyzt_units", "pixdim"):
        assert np.array_equal(out.header[key], source.header[key]), key


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_go_back_where_they_came_from(name: str, axis: int, tmp_path: Path) -> None:
    data = np.random.default_rng(1).random(SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(data, AFFINES[name]), tmp_path / "v.nii")
    volume = read_nifti(tmp_path / "v.nii")
    stack = planes(volume.data, volume.turn(), axis)
    assert np.array_equal(from_planes(stack, volume.turn(), axis), data)


@pytest.mark.parametrize("name", ["RAS", "LPS", "PIR", "SAL"])
def test_the_same_patient_gives_the_same_slices_in_any_order_of_axes(name: str) -> None:
    ras = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.float32)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(name))
    stored = nib.orientations.apply_orientation(ras, turn)
    affine = np.diag([1.5, 0.75, 3.0, 1.0]) @ nib.orientations.inv_ornt_aff(turn, SHAPE)
    to_lpi = ornt_transform(io_orientation(affine), axcodes2ornt("LPI"))
    # axial: head first, front at the top, the patient's right on the left
    axial = planes(stored, to_lpi, 2)
    assert np.array_equal(axial[0], ras[::-1, ::-1, -1].T)
    coronal = planes(stored, to_lpi, 1)
    assert np.array_equal(coronal[0], ras[::-1, -1, ::-1].T)
    sagittal = planes(stored, to_lpi, 0)
    assert np.array_equal(sagittal[0], ras[-1, ::-1, ::-1].T)
    spacing = tuple(float(v) for v in np.sqrt((affine[:3, :3] ** 2).sum(0)))
    assert plane_spacing(spacing, to_lpi, 2) == (0.75, 1.5)
    assert plane_spacing(spacing, to_lpi, 0) == (3.0, 0.75)


def test_axial_slices_equal_monais_orientation(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.transforms.compose import Compose
        from monai.transforms.io.array import LoadImage
        from monai.transforms.spatial.array import Orientation
        from monai.transforms.utility.array import EnsureChannelFirst

        data = np.random.default_rng(2).random(SHAPE).astype(np.float32)
        nib.save(nib.Nifti1Image(data, AFFINES["oblique"]), tmp_path / "v.nii.gz")
        load = Compose([LoadImage(), EnsureChannelFirst(), Orientation("LPI", labels=None)])
        theirs = np.asarray(load(tmp_path / "v.nii.gz"))[0]
    volume = read_nifti(tmp_path / "v.nii.gz")
    ours = planes(volume.data, volume.turn(), 2)
    assert np.array_equal(ours, theirs.transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros((3, 4, 5, 2), np.float32), "4D"),
        (np.full((3, 4, 5), np.nan, np.float32), "60 of 60 voxels are NaN"),
    ],
)
def test_unusable_volumes_are_named(data: np.ndarray, words: str, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "bad.nii.gz")
    with pytest.raises(ImageError, match=f"bad.nii.gz: .*{words}"):
        read_nifti(tmp_path / "bad.nii.gz")


@pytest.mark.parametrize(("unit", "factor"), [("micron", 1e-3), ("meter", 1e3), ("unknown", 1)])
def test_sizes_are_in_millimetres_whatever_the_file_counts_in(
    unit: str, factor: float, tmp_path: Path
) -> None:
    affine = np.array([[20.0, 0, 0, 100], [0, 30, 0, 0], [0, 0, 40, 0], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "v.nii")
    volume = read_nifti(tmp_path / "v.nii")
    assert volume.spacing == pytest.approx((20 * factor, 30 * factor, 40 * factor))
    assert volume.affine[0, 3] == pytest.approx(100 * factor)
    write_like(tmp_path / "out.nii", np.zeros((3, 4, 5), np.uint8), volume)
    out: Any = nib.load(tmp_path / "out.nii")
    assert np.array_equal(out.affine, affine)
    assert out.header.get_xyzt_units()[0] == unit


def test_pixels_are_shown_square_within_reason() -> None:
    assert stretch((5.0, 1.25)) == (4.0, 1.0)
    assert stretch((1.5, 3.0)) == (1.0, 2.0)
    assert stretch((1.0, 1e-4)) == (10.0, 1.0)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.nii.gz").write_bytes(bytes(16))
    with pytest.raises(ImageError, match=r"x\.nii\.gz: cannot be read as a volume"):
        read_nifti(tmp_path / "x.nii.gz")


def write_series(folder: Path, positions: list[float], **changes: Any) -> None:
    """Write slices of 4 rows x 6 columns; the value of a pixel tells its slice, row and column."""
    folder.mkdir(exist_ok=True)
    for number, z in enumerate(positions):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{number + 1}")
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.Modality, data.SeriesInstanceUID, data.SeriesNumber = "CT", "1.2.9", 4
        data.Rows, data.Columns, data.PixelSpacing = 4, 6, [0.5, 0.75]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [-10.0, -20.0, z]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
        data.PixelRepresentation = 0
        data.RescaleSlope, data.RescaleIntercept = 2, -1000
        y, x = np.mgrid[:4, :6]
        data.PixelData = (100 * z + 10 * y + x).astype(np.uint16).tobytes()
        for key, value in changes.items():
            setattr(data, key, value[number] if isinstance(value, tuple) else value)
        # names in another order than the positions
        data.save_as(folder / f"{(number * 7) % 11}.dcm")


def test_a_series_is_sorted_by_position_and_rescaled(tmp_path: Path) -> None:
    write_series(tmp_path / "s", [6.0, 0.0, 3.0], NumberOfFrames=None)
    (tmp_path / "s" / "notes.txt").write_text("not DICOM")
    (tmp_path / "s" / "._0.dcm").write_bytes(bytes(16))  # as macOS leaves them
    volume, modality = read_dicom(tmp_path / "s")
    assert (modality, volume.data.shape) == ("CT", (6, 4, 3))
    # value = 2 * (100 z + 10 row + column) - 1000
    assert volume.data[5, 3, 1] == 2 * (300 + 30 + 5) - 1000
    # column 5, row 3, slice 2 lies at LPS (-10 + 5 * 0.75, -20 + 3 * 0.5, 6): RAS flips two signs
    assert volume.affine @ [5, 3, 2, 1] == pytest.approx([6.25, 18.5, 6.0, 1.0])


def test_a_dicom_file_needs_no_suffix(tmp_path: Path) -> None:
    write_series(tmp_path / "s", [4.0])
    (tmp_path / "s" / "0.dcm").rename(tmp_path / "IM0001")
    source = open_input(tmp_path / "IM0001")
    assert (source.norm, source.volume.data.shape) == ("ct", (6, 4, 1))
    assert source.volume.voxel_mm3 is None  # its thickness is not told
    write_series(tmp_path / "s", [4.0], SliceThickness=2)
    assert read_dicom(tmp_path / "s")[0].voxel_mm3 == pytest.approx(0.75)


@pytest.mark.parametrize("content", [b"", b"half of a header"])
def test_a_damaged_slice_at_an_end_is_not_passed_over(content: bytes, tmp_path: Path) -> None:
    write_series(tmp_path / "s", [0.0, 2.0, 4.0])
    (tmp_path / "s" / "0.dcm").write_bytes(content)
    with pytest.raises(ImageError, match=r"0\.dcm: cannot be read as DICOM"):
        read_dicom(tmp_path / "s")


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    write_series(tmp_path / "s", [0.0, 2.0], PhotometricInterpretation="MONOCHROME1")
    volume, _ = read_dicom(tmp_path / "s")
    assert volume.data[5, 3, 0] == 2 * (4095 - 35) - 1000


@pytest.mark.parametrize(
    ("positions", "changes", "words"),
    [
        ([0.0, 3.0, 9.0], {}, "slices are missing between 3.00 and 9.00 mm"),
        ([0.0, 3.0, 3.0], {}, "two slices at position 3.00 mm"),
        ([0.0, 3.0, 6.5], {}, "slice spacing varies from 3.000 to 3.500"),
        ([0.0, 3.0], {"SeriesInstanceUID": ("1.2.9", "1.2.8")}, "2 series are mixed"),
        ([0.0, 3.0], {"PixelSpacing": ([0.5, 0.75], [0.5, 0.8])}, "slices differ in PixelSpacing"),
        ([0.0], {"NumberOfFrames": 5}, "several frames"),
        ([0.0], {"PixelSpacing": None}, "no PixelSpacing, so sizes and directions are unknown"),
    ],
)
def test_incomplete_series_are_refused(
    positions: list[float], changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    write_series(tmp_path / "s", positions, **changes)
    with pytest.raises(ImageError, match=words):
        read_dicom(tmp_path / "s")


def test_a_folder_without_dicom_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no DICOM images"):
        read_dicom(tmp_path)
    assert pydicom.__version__
