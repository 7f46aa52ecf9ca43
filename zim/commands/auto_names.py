"""Telling the files that ``zim auto`` wrote from pictures, by their names and what lies beside."""

from __future__ import annotations

import re
from pathlib import Path

#: what a folder's overlays are laid out on
SHEET = "sheet.jpg"
OVERLAY = ".overlay.png"
TABLE = "metadata.csv"


def is_result(path: Path) -> bool:
    """Tell whether an earlier run wrote a picture, which a folder's next run passes over.

    Every result has its overlay beside its folder; names alone say too little, since many people
    number their pictures, and keep a ``metadata.csv`` with them.
    """
    folder = path.resolve().parent
    if path.name == SHEET:
        return any(folder.glob(f"*{OVERLAY}"))
    if path.name.endswith(OVERLAY):
        return (folder / path.name.removesuffix(OVERLAY) / "alpha").is_dir()
    if not re.fullmatch(r"\d+\.png", path.name):
        return False
    folder = folder.parent if folder.name == "alpha" else folder
    return (folder.parent / f"{folder.name}{OVERLAY}").is_file()
