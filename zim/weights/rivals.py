"""The systems the paper compares with: hub ids, licences, where their files go (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zim.weights.registry import zim_home

Family = Literal["sam", "sam2", "sam_hq", "matte_anything", "supplied", "classical"]


@dataclass(frozen=True)
class Rival:
    """One system of Table 1 or Table 7.

    Attributes:
        name: what ``--model`` takes.
        family: which code runs it.
        about: one line for people.
        licence: of the weights.
        source: hub id, or where the user gets it.
        title: its name in the paper's tables; None where the paper has no such row.
        backbone: as the paper prints it.
    """

    name: str
    family: Family
    about: str
    licence: str
    source: str
    title: str | None = None
    backbone: str = ""

    def folder(self) -> Path:
        """Return where a local copy is looked for before the hub."""
        return zim_home() / "models" / self.name

    def installed(self) -> bool:
        """Tell whether it can run without a download."""
        return self.family == "classical" or self.folder().is_dir()


def _rows() -> tuple[Rival, ...]:
    rows: list[Rival] = []
    for size, long_name in (("b", "base"), ("l", "large"), ("h", "huge")):
        backbone = f"ViT-{size.upper()}"
        rows.append(
            Rival(
                f"sam_vit_{size}",
                "sam",
                f"Segment Anything {backbone}, binary masks",
                "Apache-2.0",
                f"facebook/sam-vit-{long_name}",
                "SAM",
                backbone,
            )
        )
        rows.append(
            Rival(
                f"hq_sam_vit_{size}",
                "sam_hq",
                f"HQ-SAM {backbone}, binary masks",
                "Apache-2.0",
                f"syscv-community/sam-hq-vit-{long_name}",
                "HQ-SAM",
                backbone,
            )
        )
    for size, long_name in (("b+", "base-plus"), ("l", "large")):
        rows.append(
            Rival(
                f"sam2_hiera_{size}",
                "sam2",
                f"SAM 2.1 Hiera-{size.upper()}, binary masks (the paper says SAM2, no version)",
                "Apache-2.0",
                f"facebook/sam2.1-hiera-{long_name}",
                "SAM2",
                f"Hiera-{size.upper()}",
            )
        )
    rows += [
        Rival(
            "matte_anything",
            "matte_anything",
            "SAM ViT-B, a trimap round its mask, ViTMatte-S",
            "Apache-2.0 (SAM); see its card (ViTMatte)",
            "hustvl/vitmatte-small-composition-1k and sam_vit_b",
            "Matte-Any",
            "ViT-B",
        ),
        Rival(
            "matting_anything",
            "supplied",
            "Matting-Anything, not packaged: bring your checkout or ONNX file",
            "see its repository",
            "you",
            "Matting-Any",
            "ViT-B",
        ),
        Rival(
            "smat",
            "supplied",
            "SMat/SEMat, not packaged: bring your checkout or ONNX file",
            "see its repository",
            "you",
            "SMat",
            "ViT-B",
        ),
        Rival("grabcut", "classical", "GrabCut (OpenCV), no weights", "-", "built in"),
        Rival(
            "closed_form",
            "classical",
            "GrabCut, then closed-form matting (pymatting), no weights",
            "-",
            "built in",
        ),
    ]
    return tuple(rows)


RIVALS: dict[str, Rival] = {row.name: row for row in _rows()}
