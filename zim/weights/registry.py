"""Every checkpoint this project knows by name: source, licence, size, checksum (no torch here)."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

#: the folder of files that ship inside the package
BUNDLED = Path(__file__).resolve().parent

Kind = Literal["zim", "sam", "onnx"]


@dataclass(frozen=True)
class Checkpoint:
    """One row of ``zim models``.

    Attributes:
        name: what ``--model`` and ``zim.load`` take.
        kind: ``zim`` (our format), ``sam`` (initialises an encoder), ``onnx`` (official ZIM).
        about: one line for people.
        licence: of the weights.
        source: hub id or where the file comes from.
        file: name of the file or folder under ``ZIM_HOME/models``, or in the package.
        config: preset it fits.
        bytes: size on disk, None where it is not known.
        sha256: None where it is not known.
        md5: published by the authors of older files.
        bundled: ships inside the package.
        loadable: ``zim.load`` can use it in this version.
    """

    name: str
    kind: Kind
    about: str
    licence: str
    source: str
    file: str
    config: str
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    bundled: bool = False
    loadable: bool = False

    def path(self) -> Path:
        """Return where the file or folder is expected."""
        return (BUNDLED if self.bundled else zim_home() / "models") / self.file

    def installed(self) -> bool:
        """Tell whether it is there."""
        return self.path().exists()


def zim_home() -> Path:
    """Return the folder for weights and data: ``ZIM_HOME`` or the platform's cache folder."""
    if home := os.environ.get("ZIM_HOME"):
        return Path(home).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~")).expanduser() / "zim"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/zim").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "zim"


def _ours(size: str) -> Checkpoint:
    return Checkpoint(
        name=f"vit_{size}",
        kind="zim",
        about=f"ZIM on SAM's ViT-{size.upper()}; none is published yet, train your own",
        licence="yours",
        source="zim.build, zim.weights.load_sam, zim-train",
        file=f"vit_{size}",
        config=f"vit_{size}",
        loadable=True,
    )


def _sam(size: str, file: str, md5: str) -> Checkpoint:
    long_name = {"b": "base", "l": "large", "h": "huge"}[size]
    return Checkpoint(
        name=f"sam_vit_{size}",
        kind="sam",
        about=f"Segment Anything ViT-{size.upper()}, to start vit_{size} from",
        licence="Apache-2.0",
        source=f"facebook/sam-vit-{long_name} (hub) or {file}",
        file=file,
        config=f"vit_{size}",
        md5=md5,
    )


def _official(size: str, folder: str) -> Checkpoint:
    return Checkpoint(
        name=f"zim_vit_{size}",
        kind="onnx",
        about=f"official ZIM ViT-{size.upper()}, ONNX",
        licence="CC BY-NC 4.0 (non-commercial)",
        source=f"naver-iv/zim-anything-vit{size}",
        file=folder,
        config=f"vit_{size}",
        loadable=True,
    )


_ROWS = (
    Checkpoint(
        name="nano",
        kind="zim",
        about="small bundled model, works offline",
        licence="Apache-2.0",
        source="bundled",
        file="nano.safetensors",
        config="nano",
        bytes=19_010_016,
        sha256="664f5d2eb173f239ec6c4b7092291db66e09a91cd4b2dc4514be5d8bb655a746",
        bundled=True,
        loadable=True,
    ),
    *(_ours(size) for size in "blh"),
    _sam("b", "sam_vit_b_01ec64.pth", "01ec64d29a2fca3f0661936605ae66f8"),
    _sam("l", "sam_vit_l_0b3195.pth", "0b3195507c641ddb6910d2bb5adee89c"),
    _sam("h", "sam_vit_h_4b8939.pth", "4b8939a88964f0f4ff5f5b2642c598a6"),
    _official("b", "zim_vit_b_2043"),
    _official("l", "zim_vit_l_2092"),
)

REGISTRY: dict[str, Checkpoint] = {row.name: row for row in _ROWS}
