"""The pictures in a folder."""

from __future__ import annotations

from pathlib import Path

#: files that are taken from folders; HEIC is not, since nothing here can read it
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


def is_picture(path: Path) -> bool:
    """Tell by its name whether a file is a picture.

    Hidden ones are not: macOS puts a companion ``._x.png`` beside every ``x.png`` it copies.
    """
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def pictures_in(folder: Path, *, deep: bool = False) -> list[Path]:
    """Return the pictures in a folder by their names, and those in its folders if ``deep``."""
    return sorted(p for p in (folder.rglob("*") if deep else folder.iterdir()) if is_picture(p))
