"""Results as JSON lines, taken up where an interrupted run stopped, and their settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from zim.errors import OutputError
from zim.output import atomic_write

SETTINGS = "settings.json"


@contextmanager
def appending(path: Path) -> Generator[Callable[[dict[str, Any]], None]]:
    """Give a function that adds a row to a file; each is on the disk before the next begins."""
    with path.open("a", encoding="utf-8") as file:
        if file.tell():
            file.write("\n")  # ends a line that a crash has torn

        def add(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        yield add


def rows_of(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield the rows of files that are there; lines that a crash has torn are passed over."""
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield cast("dict[str, Any]", row)


def check_settings(folder: Path, wanted: dict[str, Any], *, write: bool = True) -> None:
    """Note what a folder's results depend on, or compare with what is noted there.

    Args:
        folder: of the results.
        wanted: the settings of now.
        write: note them where there is no file yet; else only where nobody has.

    Raises:
        OutputError: the folder holds results of other settings.
    """
    path, wanted = folder / SETTINGS, json.loads(json.dumps(wanted))
    if not path.is_file():
        if write or not path.exists():
            atomic_write(path, (json.dumps(wanted) + "\n").encode())
        return
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if found != wanted:
        raise OutputError(
            f"{folder} holds results of other settings ({_differences(found, wanted)}); "
            "use another --output or --overwrite"
        )


def _differences(found: Any, wanted: dict[str, Any]) -> str:
    """Say which settings differ: ``seed 0, now 1``."""
    if not isinstance(found, dict):
        return f"{SETTINGS} is unreadable"
    kept = cast("dict[str, Any]", found)
    return ", ".join(
        f"{key} {_shown(kept.get(key))}, now {_shown(wanted.get(key))}"
        for key in dict.fromkeys((*wanted, *kept))
        if kept.get(key) != wanted.get(key)
    )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
