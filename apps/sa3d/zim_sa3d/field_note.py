"""``field.json`` in a run folder: which kind of field was trained, and all it takes to load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zim.errors import CheckpointError
from zim.output import atomic_write

FILE = "field.json"
#: to be raised whenever what lies in a run folder is read in another way (files without one: 1)
VERSION = 2


def write_note(folder: Path, about: dict[str, Any]) -> Path:
    """Write ``field.json`` with this code's version into a run folder; return its path.

    Raises:
        OutputError: it cannot be written.
    """
    path = folder / FILE
    text = json.dumps({"version": VERSION, **about}, indent=1)
    atomic_write(path, (text + "\n").encode())
    return path


def read_note(folder: Path) -> dict[str, Any]:
    """Read what :func:`write_note` wrote.

    Raises:
        CheckpointError: it is missing, damaged, or of another version.
    """
    path = folder / FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        version = about.get("version", 1)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} holds no trained field; run zim-sa3d train first"
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged; train again with --scene SCENE --overwrite"
        ) from error
    if version != VERSION:
        age = "an older" if isinstance(version, int) and version < VERSION else "a newer"
        raise CheckpointError(
            f"{path} was written by {age} zim-sa3d (version {version!r} of the field, expected "
            f"{VERSION}); train again with --scene SCENE --overwrite"
        )
    return about
