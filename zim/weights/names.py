"""The names of models: which there are, what is said of others, which files they stand for."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from pathlib import Path

from zim.errors import CheckpointError
from zim.weights.registry import REGISTRY
from zim.weights.rivals import RIVALS


def check_name(name: str, *, rivals: bool = False, also: Sequence[str] = ()) -> None:
    """Find out from its name alone whether there may be such a model.

    Args:
        name: what ``--model`` and :func:`zim.load` take.
        rivals: systems of other people and ``zim.segmenters`` entry points count too.
        also: further names to accept.

    Raises:
        CheckpointError: no known name, no file and no hub id; or a rival where none can be used.
    """
    row = REGISTRY.get(name)
    if name in RIVALS and not rivals and not (row is not None and row.loadable):
        raise CheckpointError(
            f"{name} is for zim matte, batch and eval and for the applications; expected one of "
            f"{_listed(also)}, a checkpoint path or a hub id"
        )
    known = {*REGISTRY, *RIVALS, *also}
    if name in known or "/" in name or Path(name).exists():
        return
    usable = set(_loadable(also))
    if rivals:
        from zim import plugins  # importlib.metadata takes its time, and --help does not need it

        usable |= {*RIVALS, *plugins.names("zim.segmenters")}
        if name in usable:
            return
    close = difflib.get_close_matches(name, sorted(usable), n=1, cutoff=0.75)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise CheckpointError(
        f"unknown model {name!r}; {hint}expected one of {_listed(also)}, "
        f"{'another that zim models lists, ' if rivals else ''}a checkpoint path or a hub id"
    )


def weights_hash(name: str) -> str:
    """Return the SHA-256 of a model's files, whatever they are called; "" where none are here."""
    row, path = REGISTRY.get(name), Path(name)
    if name in RIVALS and not (row is not None and row.installed()):
        path = RIVALS[name].folder()
    elif row is not None:
        path = row.path()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if not file.is_file():
            return ""
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _loadable(also: Sequence[str]) -> list[str]:
    loadable = [row.name for row in REGISTRY.values() if row.loadable]
    return list(dict.fromkeys((*also, *loadable)))


def _listed(also: Sequence[str]) -> str:
    return ", ".join(_loadable(also))
