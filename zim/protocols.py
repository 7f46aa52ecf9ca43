"""The small interfaces that parts of this project meet at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Segmenter(Protocol):
    """Anything that turns prompts into mattes or masks: ZIM, SAM, a classical method.

    Arguments and results are those of ``SamPredictor``: ``predict`` returns mattes C x H x W
    float32 in [0, 1] at the picture's size, scores C, and low-res logits C x h x w.
    """

    def set_image(self, image: Any) -> None:
        """Take the picture all following prompts are about."""
        ...

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Answer one prompt."""
        ...


@dataclass(frozen=True)
class Detection:
    """A box that words led to.

    Attributes:
        box: x0, y0, x1, y1 in pixels of the picture; right and bottom are exclusive.
        phrase: the phrase it answers, as it was asked for.
        score: confidence in [0, 1].
    """

    box: tuple[float, float, float, float]
    phrase: str
    score: float


@runtime_checkable
class Detector(Protocol):
    """Anything that finds boxes for phrases.

    The entry point group ``zim.detectors`` holds factories: called with ``name`` (which detector;
    None for the default) and ``device``, they return one.
    """

    def detect(self, image: np.ndarray, phrases: Sequence[str]) -> list[Detection]:
        """Find boxes.

        Args:
            image: H x W x 3 uint8 RGB.
            phrases: what to look for, in the order of asking.

        Returns:
            Detections above the detector's thresholds, best first within each phrase, phrases in
            the order they were asked for.
        """
        ...


@dataclass(frozen=True)
class TabField:
    """One input of a tab's form.

    Attributes:
        name: key in :attr:`TabRequest.values`.
        label: what the form says.
        kind: ``text`` (at most 500 characters), ``choice``, ``number`` or ``flag``.
        default: value when nothing is given.
        choices: of a ``choice``.
        low: smallest ``number``.
        high: largest ``number``.
        hint: example or explanation.
    """

    name: str
    label: str
    kind: Literal["text", "choice", "number", "flag"] = "text"
    default: Any = ""
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    hint: str = ""


@dataclass(frozen=True, eq=False)
class TabRequest:
    """What a tab works on.

    Attributes:
        image: H x W x 3 uint8 RGB.
        alpha: the chosen objects' matte, H x W float32 in [0, 1], as softly as the model draws it
            (:attr:`zim.ZimPredictor.soft`); None where none is needed.
        values: the form, checked against the tab's fields.
        device: as for :func:`zim.load`.
    """

    image: np.ndarray
    alpha: np.ndarray | None
    values: Mapping[str, Any]
    device: str = "auto"


@dataclass(frozen=True, eq=False)
class TabResult:
    """What a tab found: a new picture (H x W x 3 uint8), or boxes that become objects."""

    image: np.ndarray | None = None
    detections: Sequence[Detection] = ()
    notes: Sequence[str] = ()


@runtime_checkable
class ServeTab(Protocol):
    """A page of ``zim serve``, registered in the entry point group ``zim.serve_tabs``.

    Attributes:
        title: on the tab.
        endpoint: the last part of its address, ``/v1/<endpoint>``.
        summary: one sentence.
        needs_matte: whether an object has to be chosen first.
        fields: its form.
    """

    title: str
    endpoint: str
    summary: str
    needs_matte: bool
    fields: tuple[TabField, ...]

    def ready(self) -> None:
        """Raise a :class:`zim.errors.ZimError` where packages or weights are missing."""
        ...

    def run(self, request: TabRequest) -> TabResult:
        """Do the work, in one thread at a time."""
        ...
