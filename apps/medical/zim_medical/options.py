"""How an evaluation is done: every choice the paper leaves open, as one value with two presets.

``zim`` is what we hold for the fairest reading of section 7.4; ``mazurowski`` follows the code of
the study whose prompts the paper cites (Mazurowski et al., Medical Image Analysis 2023). Nothing
here imports numpy, so that ``--help`` stays instant.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Literal

from zim.weights.rivals import RIVALS

NOTICE = "Research use only, not a medical device."
DATASETS = ("hippocampus", "spleen", "us_kidney", "us_nerve", "xray_hip")
MODES = (1, 2, 3, 4, 5)
MODE_NAMES = {
    1: "one point",
    2: "up to 3 points",
    3: "box of the largest part",
    4: "up to 3 boxes",
    5: "box of everything",
}

MaskSelect = Literal["single", "first", "score"]


@dataclass(frozen=True)
class Protocol:
    """The choices of an evaluation.

    Attributes:
        preset: where the other values come from: ``zim`` or ``mazurowski``.
        mask_select: which of a model's masks is scored: ``single`` (``multimask_output=False``),
            ``first`` (index 0 of three) or ``score`` (best predicted score of three).
        norm: intensities to 8 bits: ``auto`` (per dataset), ``protocol``, ``ct``, ``mr``,
            ``minmax`` or ``LO,HI``.
        ties: which of several equally deep pixels is a region's centre: ``nearest`` to their mean
            (then smallest y, x), or ``random``.
        equal_areas: which of equally large regions counts as larger: the ``first`` in raster
            order, or the ``last``.
        seed: for random ties; every picture has a generator of its own, so the order of files and
            an interruption change nothing.
        min_area: regions of fewer pixels give no prompt.
        max_regions: at most so many regions give prompts in modes 2 and 4.
        box_margin: pixels added to every side of a box.
        connectivity: 8 or 4.
        axis: slices of volumes: 0 sagittal, 1 coronal, 2 axial, or ``all``.
        classes: ``auto`` (per dataset), ``merge`` (any label) or ``each``.
        min_fg: slices with fewer foreground pixels are left out, as empty ones always are.
        threshold: a matte above it is object (paper: 0.3). SAM's masks are cut at logit 0.
    """

    preset: Literal["zim", "mazurowski"] = "zim"
    mask_select: MaskSelect = "single"
    norm: str = "auto"
    ties: Literal["nearest", "random"] = "nearest"
    equal_areas: Literal["first", "last"] = "first"
    seed: int = 0
    min_area: int = 0
    max_regions: int = 3
    box_margin: int = 0
    connectivity: int = 8
    axis: str = "2"
    classes: Literal["auto", "merge", "each"] = "auto"
    min_fg: int = 1
    threshold: float = 0.3

    def to_dict(self) -> dict[str, object]:
        """Return every choice by name."""
        return asdict(self)

    def deviations(self) -> dict[str, str]:
        """Return what differs from the preset, each as ``"preset's value -> this value"``."""
        base = PRESETS[self.preset]
        return {
            f.name: f"{getattr(base, f.name)} -> {getattr(self, f.name)}"
            for f in fields(self)
            if getattr(self, f.name) != getattr(base, f.name)
        }

    def describe(self) -> str:
        """Return the preset and its deviations on one line."""
        changed = ", ".join(f"{name}: {change}" for name, change in self.deviations().items())
        return f"preset {self.preset}, " + (f"deviations: {changed}" if changed else "unchanged")


PRESETS: dict[str, Protocol] = {
    "zim": Protocol(),
    "mazurowski": Protocol(
        preset="mazurowski",
        mask_select="first",
        norm="protocol",
        ties="random",
        equal_areas="last",
        seed=1,
    ),
}


def threshold_of(model: str, matte_threshold: float) -> float:
    """Return the value above which a model's output is object.

    SAM, SAM 2 and HQ-SAM give probabilities of a mask, whose logit 0 is 0.5; everything else gives
    mattes.
    """
    rival = RIVALS.get(model)
    binary = rival is not None and rival.family in ("sam", "sam2", "sam_hq")
    return 0.5 if binary else matte_threshold
