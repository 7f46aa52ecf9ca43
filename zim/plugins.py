"""Parts of this project, and other people's packages, find one another through entry points.

Groups: ``zim.detectors`` (words to boxes), ``zim.serve_tabs`` (pages of ``zim serve``) and
``zim.segmenters`` (further models for every ``--model`` flag).
"""

from __future__ import annotations

import importlib.metadata
from typing import Any, Literal

from zim.errors import MissingExtraError, ZimError

Group = Literal["zim.detectors", "zim.serve_tabs", "zim.segmenters"]


def names(group: Group) -> list[str]:
    """Return the names registered in a group, sorted; nothing is imported."""
    return sorted({entry.name for entry in importlib.metadata.entry_points(group=group)})


def find(group: Group, name: str) -> Any:
    """Import and return what is registered under a name.

    Raises:
        MissingExtraError: it needs a package of an extra that is not installed.
        ZimError: nothing has this name.
    """
    for entry in importlib.metadata.entry_points(group=group, name=name):
        try:
            return entry.load()
        except ModuleNotFoundError as error:
            if isinstance(error, MissingExtraError):
                raise
            raise ZimError(f"{group} {name!r} cannot be loaded: {error}") from error
    known = ", ".join(names(group)) or "none is installed"
    raise ZimError(f"no {group} entry is named {name!r}; known: {known}")
