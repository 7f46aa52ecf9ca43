"""What a dataset gives to an evaluation: pictures with their truth, and cases left out, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pair:
    """An image file and its truth.

    Attributes:
        case_id: unique within the dataset.
        patient_id: whose picture it is; slices of one patient are not independent.
        image: file.
        mask: file, or None if there is none.
    """

    case_id: str
    patient_id: str
    image: Path
    mask: Path | None


@dataclass(frozen=True, eq=False)
class Picture:
    """One slice or picture, as models see it, with the truth of every class.

    Attributes:
        pair: where it comes from.
        axis: 0 sagittal, 1 coronal, 2 axial; None for pictures that are no slices.
        index: slice number along the axis (head to feet, front to back, right to left); 0 else.
        image: H x W x 3 uint8 RGB.
        masks: truth H x W bool by class name; never empty ones.
        spacing: mm per row and column; 1, 1 where the file says nothing.
    """

    pair: Pair
    axis: int | None
    index: int
    image: NDArray[np.uint8]
    masks: dict[str, NDArray[np.bool_]]
    spacing: tuple[float, float] = (1.0, 1.0)

    @property
    def key(self) -> str:
        """Name of the picture, unique within the dataset."""
        return f"{self.pair.case_id}/{'' if self.axis is None else self.axis}/{self.index}"


@dataclass(frozen=True)
class Exclusion:
    """A case that could not be used, and why."""

    dataset: str
    case_id: str
    reason: str


@dataclass
class Counts:
    """What was looked at and not scored.

    Attributes:
        cases: files read.
        pictures: slices and pictures scored.
        empty: slices (and pictures, and classes) without truth, which the protocol skips.
        small: truths below the minimum size.
    """

    cases: int = 0
    pictures: int = 0
    empty: int = 0
    small: int = 0
