"""Detectors by name: the entry point ``zim.detectors`` of this package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from zim.errors import CheckpointError
from zim_grounded.boxes_file import BoxesFile
from zim_grounded.candidates import CandidateDetector, Found, Thresholds
from zim_grounded.checkpoints import WEIGHTS, find_weights
from zim_grounded.mini import BUNDLED, MiniDetector

__all__ = [
    "NAMES",
    "BoxesFile",
    "CandidateDetector",
    "Found",
    "Thresholds",
    "default_name",
    "load_detector",
]

#: every name that ``--detector`` takes beside folders and hub ids; ``boxes`` needs a file
NAMES = (*WEIGHTS, "mini", "groundingdino-py", "boxes")


def default_name() -> str:
    """Return the detector that is used when none is named: the bundled one where there is one."""
    return "mini" if BUNDLED.is_file() else "gdino-tiny"


def load_detector(
    name: str | None = None, device: str = "auto", thresholds: Thresholds | None = None
) -> CandidateDetector:
    """Load a detector that finds boxes for phrases.

    Args:
        name: one of :data:`NAMES`, ``boxes:FILE``, a folder with ``config.json``, a hub id, a
            ``.safetensors`` file of ``zim-train detector``; ``groundingdino-py:CONFIG:WEIGHTS`` for
            the original package. None is :func:`default_name`.
        device: as for :func:`zim.load`.
        thresholds: what makes a candidate a detection; by default the detector's own.

    Returns:
        A :class:`zim.protocols.Detector` that shows its candidates too.

    Raises:
        CheckpointError: no such detector, or its weights are not there.
        MissingExtraError: its package is not installed.
        ConfigError: the device cannot be used.
    """
    name = name or default_name()
    if name.startswith("boxes:"):
        return BoxesFile(name.removeprefix("boxes:"), thresholds)
    if name == "mini" or name.endswith(".safetensors"):
        weights = BUNDLED if name == "mini" else Path(name).expanduser()
        if not weights.is_file():
            raise CheckpointError(
                f"{weights} does not exist: no mini detector comes with this version; train one "
                "with `zim-train detector` and give its .safetensors file, or use gdino-tiny"
            )
        return MiniDetector.load(weights, device, thresholds)
    if name.split(":")[0] == "groundingdino-py":
        from zim_grounded.original_package import OriginalGroundingDino

        files = name.split(":")[1:]
        if len(files) != 2:
            raise CheckpointError(
                f"{name}: the original package needs its files: groundingdino-py:CONFIG.py:"
                "WEIGHTS.pth; gdino-tiny is the same model without them"
            )
        return OriginalGroundingDino.load(files[0], files[1], device, thresholds)
    folder = find_weights(name)
    from zim_grounded.transformers_detectors import load_folder

    row = WEIGHTS.get(name) or next((r for r in WEIGHTS.values() if r.hub == name), None)
    if thresholds is None and row is not None:
        thresholds = replace(Thresholds(), box=row.box)
    return load_folder(folder, name, device, thresholds)
