"""Telling the files that ``zim auto`` wrote from pictures, by their names and what lies beside."""

from __future__ import annotations

import re
from pathlib import Path

#: what a folder's overlays are laid out on
SHEET = "sheet.jpg"
OVERLAY = ".overlay.png"
TABLE = "metadata.csv"


def is_result(path: Path) -> bool:
    """Tell whether an earlier run wrote a picture, which a folder's next run passes over."""
    if path.name == SHEET:
        return any(path.parent.glob(f"*{OVERLAY}"))
    if path.name.endswith(OVERLAY):
        folder = path.with_name(path.name.removesuffix(OVERLAY))
        return (folder / TABLE).is_file() or folder.with_name(f"{folder.name}.json").is_file()
    if not re.fullmatch(r"\d+\.png", path.name):
        return False
    folder = path.parent.parent if path.parent.name == "alpha" else path.parent
    return (folder / TABLE).is_file() or folder.with_name(folder.name + OVERLAY).is_file()
