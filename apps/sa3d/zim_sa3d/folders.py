"""Where the pictures of a scene's folder lie, and what its views are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from zim.errors import ConfigError
from zim.folders import SUFFIXES, pictures_in


def pictures(folder: Path) -> list[Path]:
    """Return a folder's picture files in the order of their names.

    Raises:
        ConfigError: it is missing or holds none.
    """
    found = pictures_in(folder) if folder.is_dir() else []
    if not found:
        raise ConfigError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    return found


def picture_folder(scene: Path) -> Path:
    """Return a scene's folder of pictures: ``images``, else the least reduced ``images_N``.

    Raises:
        ConfigError: there is none.
    """
    for name in ("images", "images_2", "images_4", "images_8"):
        if (scene / name).is_dir():
            return scene / name
    raise ConfigError(f"{scene} holds no folder images/ (nor images_2, images_4, images_8)")


def folder_name(folder: str) -> str:
    """Return what a folder is called, also when it is given as ``.`` or ``..``."""
    path = Path(folder).expanduser()
    return (path.resolve() if path.name in ("", "..") else path).name or "scene"


def view_names(files: Sequence[str]) -> list[str]:
    """Return a name without suffix per picture: its stem; with its folders where stems repeat.

    Names become files: they hold no separators and nothing else that file systems refuse.
    """
    paths = [PurePosixPath(file).with_suffix("") for file in files]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = ["_".join(p for p in path.parts if p not in ("/", "//", "..")) for path in paths]
    return [re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", name) for name in names]
