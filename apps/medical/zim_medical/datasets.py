"""From files to pictures with truth: opened one case at a time, what cannot be used is named."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zim.errors import ImageError, ZimError, one_line
from zim_medical.intensity import parse_norm, to_rgb, value_range
from zim_medical.layouts import VOLUMES, Dataset
from zim_medical.options import Protocol
from zim_medical.prompts import gives_prompts
from zim_medical.records import Counts, Exclusion, Pair, Picture
from zim_medical.volumes import (
    Volume,
    check_finite,
    check_not_empty,
    plane_spacing,
    planes,
    read_nifti,
)

#: a mask with so many values between 0 and its largest, half of them above this share of it, has
#: soft edges rather than labels; masks with fewer grey levels than the last are label maps
SOFT_VALUES, SOFT_SPREAD, SOFT_LEAST = 8, 5, 99


def pictures(
    dataset: Dataset,
    pairs: list[Pair],
    protocol: Protocol,
    counts: Counts,
    exclude: Callable[[Exclusion], None],
) -> Iterator[Picture]:
    """Yield the pictures to score, in a fixed order; only one case is in memory.

    Args:
        dataset: which rules hold.
        pairs: its cases, from ``dataset.pairs``.
        protocol: slicing, classes, intensities, minimum size.
        counts: filled while going on.
        exclude: called for every case that cannot be used.
    """
    for pair in pairs:
        counts.cases += 1
        try:
            yield from case_pictures(dataset, pair, protocol, counts)
        except (ZimError, OSError) as error:
            reason = one_line(error)
            exclude(Exclusion(dataset.name, pair.case_id, reason))


def case_pictures(
    dataset: Dataset, pair: Pair, protocol: Protocol, counts: Counts
) -> Iterator[Picture]:
    """Yield the pictures of one case.

    Raises:
        ImageError: the image or its truth cannot be used, or (after the others) single slices
            cannot; said in one line.
    """
    if pair.mask is None or not pair.mask.is_file():
        where = "no mask has its name" if pair.mask is None else f"no mask at {pair.mask.name}"
        raise ImageError(f"missing mask: {where}")
    if not pair.image.is_file():
        raise ImageError(f"missing image: {pair.image.name} is not there")
    auto = protocol.norm == "auto"
    norm = parse_norm(dataset.norm if auto else protocol.norm)
    merge = dataset.merge if protocol.classes == "auto" else protocol.classes == "merge"
    if pair.image.name.lower().endswith(VOLUMES):
        image, truth = read_nifti(pair.image), read_nifti(pair.mask)
        _same_size(image.data.shape, truth.data.shape)
        labels = _labels(truth.data, dataset)
        views = _views(image, truth, labels, protocol)
        source = image.data
    else:
        grey = read_plane(pair.image)
        raw = read_labels(pair.mask, merge)
        _same_size(grey.shape[:2], raw.shape)
        labels = _labels(_cut(raw, dataset, merge), dataset)
        views = iter([(None, 0, grey, labels, (1.0, 1.0))])
        source = grey
    if not labels.any():
        counts.empty += 1
        return
    check_not_empty(source, pair.image.name)
    limits = value_range(source, norm)
    blank: list[str] = []
    for axis, index, plane, truth_plane, spacing in views:
        masks = _classes(truth_plane, merge, dataset, protocol, counts)
        if not masks:
            continue
        rgb = to_rgb(plane, norm, limits)
        if rgb.min() == rgb.max():
            blank.append(str(index))
            continue
        counts.pictures += 1
        yield Picture(pair, axis, index, rgb, masks, spacing)
    if blank:
        some = ", ".join(blank[:10]) + (", ..." if len(blank) > 10 else "")
        raise ImageError(
            f"{len(blank)} left out that show one grey value (slices {some}; norm "
            f"{dataset.norm if auto else protocol.norm}), the others are scored"
        )


View = tuple["int | None", int, NDArray[Any], NDArray[Any], tuple[float, float]]


def _views(
    image: Volume, truth: Volume, labels: NDArray[np.int64], protocol: Protocol
) -> Iterator[View]:
    if image.data.shape[2] == 1:  # a radiograph in a NIfTI: rows and columns as stored
        spacing = image.spacing
        yield None, 0, image.data[..., 0], labels[..., 0], (spacing[0], spacing[1])
        return
    # Half a voxel in the worst corner: more than rounding, less than any real shift.
    shape = np.array(image.data.shape)
    corners = np.array([*itertools.product(*((0, n - 1) for n in shape))])
    # a mask often does not say what it counts in; then it is what its image counts in
    gaps = (image.affine[:3] - truth.affine[:3] * f for f in {1.0, image.unit / truth.unit})
    apart = min(float(np.abs(corners @ gap[:, :3].T + gap[:, 3]).max()) for gap in gaps)
    if apart > 0.5 * min(image.spacing):
        raise ImageError(
            f"image and mask lie {apart:.3g} mm apart by their affines; resample the mask"
        )
    turn = image.turn()
    axes = (0, 1, 2) if protocol.axis == "all" else (int(protocol.axis),)
    for axis in axes:
        stack, truths = planes(image.data, turn, axis), planes(labels, turn, axis)
        spacing = plane_spacing(image.spacing, turn, axis)
        for index in range(len(stack)):
            yield axis, index, stack[index], truths[index], spacing


def _classes(
    truth: NDArray[Any], merge: bool, dataset: Dataset, protocol: Protocol, counts: Counts
) -> dict[str, NDArray[np.bool_]]:
    if merge:
        candidates = {"all": truth > 0}
    else:
        found = [int(v) for v in np.unique(truth) if v > 0]
        wanted = [v for v in dataset.labels or found if v > 0]
        candidates = {f"class{value}": truth == value for value in wanted}
    masks: dict[str, NDArray[np.bool_]] = {}
    for name, mask in candidates.items():
        area = int(mask.sum())
        if area == 0:
            counts.empty += 1
        elif area < protocol.min_fg or not gives_prompts(mask, protocol):
            counts.small += 1
        else:
            masks[name] = np.ascontiguousarray(mask)
    return masks


def read_plane(path: str | Path) -> NDArray[np.float32]:
    """Read a picture's own values, float32: grey H x W of any depth, or colour H x W x 3 of 8 bits.

    Raises:
        ImageError: it cannot be read, has several pages, or is not finite.
    """
    path = Path(path).expanduser()
    values = _read(path, lambda image: image if _is_grey(image) else image.convert("RGB"))
    if values.ndim == 3 and np.array_equal(values[..., 0], values[..., 1]):
        return values[..., 0] if np.array_equal(values[..., 0], values[..., 2]) else values
    return values


def read_labels(path: str | Path, merge: bool) -> NDArray[np.float32]:
    """Read a truth's own values, H x W float32: grey values, indices of a palette, or its alpha.

    Args:
        path: a picture.
        merge: any label is the object, so colours need not be told apart.

    Raises:
        ImageError: as :func:`read_plane`, or it is a format or has colours that hold no labels.
    """
    path = Path(path).expanduser()
    lossy = path.suffix.lower() in (".jpg", ".jpeg")
    if lossy and not merge:
        raise ImageError(
            f"the mask {path.name} is a JPEG, which changes labels along edges; save it as PNG"
        )
    values = _read(path, _label_bands)
    if lossy:  # what is left of an object's own value
        grey = values if values.ndim == 2 else values.max(2)
        return np.where(grey > grey.max() / 2, grey, 0).astype(np.float32)
    if values.ndim == 2:
        return values
    if values.shape[2] == 4:
        if values[..., 3].min() < 255:  # an object on nothing
            return values[..., 3]
        values = values[..., :3]
    if not merge and (np.ptp(values, axis=2) > 0).any():
        raise ImageError(f"the mask {path.name} has colours; expected one number per class")
    return values.max(2)


def _label_bands(image: Image.Image) -> Image.Image:
    if _is_grey(image):
        return image
    if image.mode == "P":  # its indices are the labels, unless it is a picture that was squeezed
        first = tuple((image.getpalette() or [0, 0, 0])[:3])
        return image if first == (0, 0, 0) else image.convert("RGB")
    return image.convert("RGBA" if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") else "RGB")


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "F", "I") or image.mode.startswith("I;16")


def _read(path: Path, bands: Callable[[Image.Image], Image.Image]) -> NDArray[np.float32]:
    """Open a picture of one page, as it is seen, and return what ``bands`` makes of it."""
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise ImageError(
                    f"{path.name}: {image.n_frames} pages; expected one picture, split it"  # type: ignore[attr-defined]
                )
            values = np.asarray(bands(ImageOps.exif_transpose(image)), np.float32)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist; check the path") from error
    except Exception as error:
        detail = one_line(error)
        raise ImageError(f"{path.name}: cannot be read as a picture ({detail})") from error
    check_finite(values, path.name)
    return values


def _same_size(image: tuple[int, ...], mask: tuple[int, ...]) -> None:
    if image != mask:
        raise ImageError(
            f"image is {' x '.join(map(str, image))} but its mask {' x '.join(map(str, mask))}; "
            "expected one size"
        )


def _cut(raw: NDArray[np.float32], dataset: Dataset, merge: bool) -> NDArray[np.float32]:
    """Cut masks that are grey at their rims: more than half of their largest value is the object.

    CT2US's are; others are taken for such if many values lie between 0 and the largest, far apart
    from the small whole numbers that classes have.
    """
    if dataset.labels is not None or raw.max() <= 1:
        return raw
    if dataset.name == "us_kidney":
        return (raw >= 128).astype(np.float32)
    most = float(raw.max())
    between = np.unique(raw[(raw > 0) & (raw < most)])
    soft = len(between) >= SOFT_VALUES and np.median(between) > most / SOFT_SPREAD
    if soft and not merge:
        raise ImageError(
            f"the mask has 0, {most:g} and {len(between)} values between, which are no labels; "
            "save it with hard edges, or give --classes merge"
        )
    return (raw > most / 2).astype(np.float32) if soft and most > SOFT_LEAST else raw


def _labels(values: NDArray[np.float32], dataset: Dataset) -> NDArray[np.int64]:
    whole = np.rint(values)
    if np.abs(values - whole).max() > 1e-3:
        raise ImageError("the mask holds fractions; expected whole-numbered labels")
    labels = whole.astype(np.int64)
    present = set(np.unique(labels).tolist())
    if dataset.labels is not None and present - set(dataset.labels):
        wrong = ", ".join(map(str, sorted(present - set(dataset.labels))[:5]))
        expected = ", ".join(map(str, dataset.labels))
        raise ImageError(f"wrong labels {wrong} in the mask; expected {expected}")
    if min(present) < 0:
        raise ImageError(f"negative label {min(present)} in the mask; expected 0 and above")
    return labels
