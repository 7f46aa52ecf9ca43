"""Prompted segmentation of a volume, slice by slice, in the grid of the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zim._progress import track
from zim.errors import ImageError, PromptError
from zim.protocols import Segmenter
from zim_medical.datasets import read_plane
from zim_medical.dicom import is_dicom, read_dicom
from zim_medical.intensity import parse_norm, to_rgb, value_range
from zim_medical.prompts import tight_box
from zim_medical.volumes import (
    AXES,
    SUFFIXES,
    Volume,
    check_finite,
    check_not_empty,
    planes,
    read_nifti,
    undo_turn,
)

#: the box handed on to the next slice is the answer's, wider by this share of its size
HANDED_ON_MARGIN = 0.05
#: handing on stops where the area changes by more than this factor: the object ends or leaks
AREA_JUMP = 2.5

#: slice, then (column, row) positions: turned axes L, P, I of each patient axis
_SLICE_COLUMN_ROW = {0: (0, 1, 2), 1: (1, 0, 2), 2: (2, 0, 1)}


@dataclass(frozen=True, eq=False)
class Input:
    """What was opened: the volume, a colour picture's own pixels, and a guess of the window."""

    volume: Volume
    colour: NDArray[np.float32] | None = None
    norm: str = "minmax"


@dataclass
class SlicePrompt:
    """Prompts of one slice: (column, row, label) clicks and one box x0, y0, x1, y1."""

    points: list[tuple[float, float, int]] = field(default_factory=list[tuple[float, float, int]])
    box: tuple[float, float, float, float] | None = None


def open_input(path: Path) -> Input:
    """Open NIfTI, a DICOM folder or file, or a picture.

    Raises:
        ImageError: it cannot be used; said in one line.
    """
    if not path.exists():
        raise ImageError(f"{path} does not exist; check the path")
    name = path.name.lower()
    if path.is_dir() or is_dicom(path):
        volume, modality = read_dicom(path)
        check_finite(volume.data, path.name)
        check_not_empty(volume.data, path.name)
        return Input(volume, norm={"CT": "ct", "MR": "mr"}.get(modality, "minmax"))
    if name.endswith(SUFFIXES):
        volume = read_nifti(path)
        check_not_empty(volume.data, path.name)
        return Input(volume)
    plane = read_plane(path)
    check_not_empty(plane, path.name)
    grey = plane if plane.ndim == 2 else plane.mean(-1)
    # axes to the left and down, as pictures have them, so that x and y are voxel indices
    affine = np.diag([-1.0, -1.0, -1.0, 1.0])
    data = np.ascontiguousarray(grey.T[..., None])
    volume = Volume(data, affine, str(path), plane_only=True, sized=False)
    return Input(volume, plane if plane.ndim == 3 else None)


def slice_prompts(
    volume: Volume,
    axis: int,
    points: Sequence[Sequence[float]],
    box: Sequence[float] | None,
    space: str = "voxel",
) -> dict[int, SlicePrompt]:
    """Sort prompts into slices.

    Args:
        volume: where they belong.
        axis: of the slices, see :func:`zim_medical.volumes.planes`.
        points: x, y, z, label each; in pictures z is 0.
        box: x0, y0, z0, x1, y1, z1; opposite corners, both inside the object's box; cut at the
            volume's edges.
        space: ``voxel`` (indices as in the file) or ``mm`` (scanner coordinates, RAS+).

    Returns:
        Prompts by slice number; a box prompts every slice it covers.

    Raises:
        PromptError: a point, or all of the box, is outside the volume; or a slice has nothing but
            points beside the object.
    """
    beside: dict[int, Sequence[float]] = {}
    out: dict[int, SlicePrompt] = {}
    for point in points:
        index = _index(volume, point[:3], space)
        if not _inside(volume, index).all():
            raise PromptError(_outside(volume, point[:3], space))
        # the edges are half a voxel beyond the last centre, which is where a click there belongs
        index = np.clip(index, 0, np.array(volume.data.shape) - 1)
        number, column, row = _place(volume, axis, index)
        prompt = out.setdefault(math.floor(number + 0.5), SlicePrompt())
        prompt.points.append((column, row, int(point[3])))
        if not point[3]:
            beside.setdefault(math.floor(number + 0.5), point[:3])
    if box is not None:
        ends = [_place(volume, axis, corner) for corner in _cut(volume, box, space)]
        first, x0, y0 = np.min(ends, 0).tolist()
        last, x1, y1 = np.max(ends, 0).tolist()
        for number in range(math.floor(first + 0.5), math.floor(last + 0.5) + 1):
            flat = (x0, y0, max(x1, x0 + 1), max(y1, y0 + 1))
            out.setdefault(number, SlicePrompt()).box = flat
    for number, point in beside.items():
        if out[number].box is None and not any(label for _, _, label in out[number].points):
            # a model would answer with all the rest of the slice
            said = ", ".join(f"{v:g}" for v in (point[:2] if volume.plane_only else point))
            raise PromptError(
                f"({said}) is on no object (label 0), and nothing says where one is in that slice; "
                "add a click on it or a box"
            )
    return dict(sorted(out.items()))


def _index(volume: Volume, position: Sequence[float], space: str) -> NDArray[np.float64]:
    """Return a position as voxel indices."""
    index = np.asarray(position, np.float64)
    if space == "mm":
        index = np.linalg.solve(volume.affine, [*index, 1.0])[:3].astype(np.float64)
    return index


def _inside(volume: Volume, index: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell for each axis whether an index lies inside; the edges are half a voxel further out."""
    return (index >= -0.5) & (index <= np.array(volume.data.shape) - 0.5)


def _outside(volume: Volume, position: Sequence[float], space: str) -> str:
    """Say that a point or a box lies outside, in the numbers that were given."""
    flat, shape = volume.plane_only, volume.data.shape
    corners = [position[k : k + 3] for k in range(0, len(position), 3)]
    said = ", ".join(f"{v:g}" for c in corners for v in (c[:2] if flat else c))
    where = ""
    if space == "mm":
        places = (_index(volume, c, space) for c in corners)
        where = f" (voxel {', '.join(f'{v:.1f}' for place in places for v in place)})"
    if flat:
        return f"({said}){where} lies outside the {shape[0]} x {shape[1]} picture"
    return f"({said}){where} lies outside the volume of {' x '.join(map(str, shape))} voxels"


def _cut(
    volume: Volume, box: Sequence[float], space: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the first and last voxel indices of a box, cut at the volume's edges.

    Raises:
        PromptError: nothing of it is inside.
    """
    ends = np.array([_index(volume, corner, space) for corner in (box[:3], box[3:])])
    first, last = ends.min(0), ends.max(0)
    edge = np.array(volume.data.shape) - 1
    if (last < -0.5).any() or (first > edge + 0.5).any():
        raise PromptError(_outside(volume, box, space))
    return np.clip(first, 0, edge), np.clip(last, 0, edge)


def _place(volume: Volume, axis: int, index: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return slice, column and row of voxel indices."""
    shape = volume.data.shape
    turned = np.zeros(3)
    for own, (goal, flip) in enumerate(volume.turn()):
        turned[int(goal)] = index[own] if flip == 1 else shape[own] - 1 - index[own]
    number, column, row = (float(turned[i]) for i in _SLICE_COLUMN_ROW[axis])
    return number, column, row


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found.

    Attributes:
        soft: mattes in the file's grid, X x Y x Z float32 in [0, 1].
        slices: numbers of the slices that were answered.
        blank: those of them that are of one grey value, where nothing is labelled.
        shown: the prompted slice with the largest answer: picture, matte and prompt.
    """

    soft: NDArray[np.float32]
    slices: list[int]
    blank: list[int]
    shown: tuple[NDArray[np.uint8], NDArray[np.float32], SlicePrompt]


def segment(
    source: Input,
    axis: str | int,
    prompts: dict[int, SlicePrompt],
    segmenter: Segmenter,
    *,
    norm: str = "auto",
    threshold: float = 0.3,
    propagate: int = 0,
) -> Segmentation:
    """Answer prompts slice by slice, and hand boxes on to neighbours.

    Args:
        source: from :func:`open_input`.
        axis: of the slices, name or number.
        prompts: from :func:`slice_prompts`.
        segmenter: the model.
        norm: ``auto`` or as in :func:`zim_medical.intensity.parse_norm`.
        threshold: cuts the mattes whose boxes are handed on.
        propagate: how many slices on either side of the prompted ones the box of the answer is
            handed on to; it stops early where the object ends.

    A slice that is one grey value in its window shows nothing: it is answered with nothing.

    Raises:
        ImageError: all prompted slices are of one grey value.
    """
    volume = source.volume
    turn, number = volume.turn(), AXES[axis] if isinstance(axis, str) else axis
    stack = planes(volume.data, turn, number)
    rule = parse_norm(source.norm if norm == "auto" else norm)
    limits = value_range(volume.data if source.colour is None else source.colour, rule)
    soft = np.zeros(volume.data.shape, np.float32)
    answers = planes(_lpi_view(soft, turn), _IDENTITY, number)  # a view: filling it fills soft

    def answer(index: int, prompt: SlicePrompt) -> NDArray[np.float32]:
        plane = stack[index] if source.colour is None else source.colour
        rgb = to_rgb(plane, rule, limits)
        if rgb.min() == rgb.max():
            blank.add(index)
            return answers[index]
        segmenter.set_image(rgb)
        clicks = np.array(prompt.points, np.float32).reshape(-1, 3)
        mattes, _, _ = segmenter.predict(
            point_coords=clicks[:, :2] if len(clicks) else None,
            point_labels=clicks[:, 2].astype(np.int64) if len(clicks) else None,
            box=None if prompt.box is None else np.array(prompt.box, np.float32),
            multimask_output=False,
        )
        answers[index] = mattes[0]
        return mattes[0]

    blank: set[int] = set()
    done: dict[int, NDArray[np.bool_]] = {}
    for index, prompt in track(prompts.items(), "slices"):
        done[index] = answer(index, prompt) > threshold
    if len(blank) == len(prompts):
        raise ImageError(
            f"{Path(volume.source).name}: nothing to see in the prompted slices, each is of one "
            f"grey value; give other prompts or another --window (now black at {limits[0]:g}, "
            f"white at {limits[1]:g}; the volume holds {volume.data.min():g} to "
            f"{volume.data.max():g})"
        )
    shown = max(prompts, key=lambda i: int(done[i].sum()))
    for direction in (-1, 1):
        for start in sorted(prompts):
            here, mask = start, done[start]
            for _ in range(propagate):
                here += direction
                if here in done or not 0 <= here < len(stack) or not mask.any():
                    break
                x0, y0, x1, y1 = tight_box(mask)
                margin = max(1, round(HANDED_ON_MARGIN * max(x1 - x0, y1 - y0)))
                wider = tight_box(mask, margin)
                found = answer(here, SlicePrompt(box=wider)) > threshold
                change = (found.sum() + 1e-9) / mask.sum()
                if not 1 / AREA_JUMP <= change <= AREA_JUMP:
                    answers[here] = 0
                    break
                done[here] = mask = found
    plane = stack[shown] if source.colour is None else source.colour
    picture = to_rgb(plane, rule, limits)
    return Segmentation(
        soft,
        sorted(done),
        sorted(blank & set(done)),
        (picture, np.array(answers[shown]), prompts[shown]),
    )


_IDENTITY: NDArray[Any] = np.array([[0, 1], [1, 1], [2, 1]])


def _lpi_view(data: NDArray[Any], turn: NDArray[Any]) -> NDArray[Any]:
    """Return a view of the file's voxels in LPI order, the inverse of ``undo_turn``."""
    out = data
    for own in range(3):
        if turn[own, 1] == -1:
            out = np.flip(out, own)
    view = out.transpose(np.argsort(turn[:, 0]))
    assert undo_turn(view, turn).shape == data.shape
    return view
