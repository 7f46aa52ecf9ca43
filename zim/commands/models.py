"""``zim models``: what can be loaded, under which licence, and what is already here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zim.commandline import Report, write_report

if TYPE_CHECKING:
    from zim.weights import Checkpoint
    from zim.weights.rivals import Rival

HEADINGS = ("name", "here", "size", "licence", "what it is", "where")


def run(args: argparse.Namespace) -> Report:
    """Print one line per known model; no network is used."""
    from zim.weights import REGISTRY, zim_home
    from zim.weights.rivals import RIVALS

    report = Report()
    rows = [describe(checkpoint) for checkpoint in REGISTRY.values()]
    rows += [describe_rival(rival) for rival in RIVALS.values() if rival.name not in REGISTRY]
    report.extra["models"] = rows
    report.extra["home"] = str(zim_home())
    cells = [HEADINGS] + [
        (
            row["name"],
            ("yes" if row["installed"] else "no") + ("" if row["loadable"] else "*"),
            _size(row["bytes"]),
            row["licence"],
            row["about"],
            row["path"] if row["installed"] else row["source"],
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADINGS))]
    for line in cells:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        report.lines.append(text.rstrip())
    if not all(row["loadable"] for row in rows):
        report.lines.append(
            "* not for zim.load and zim auto, serve, bench and export; the --model of all other "
            "commands takes it, as does zim.segmenters.load_segmenter."
        )
    report.lines.append(f"A path or a hub id works too. ZIM_HOME is {zim_home()}.")
    write_report(report, args)
    return report


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return one model as plain data; the size is the measured one where the file is here."""
    path = checkpoint.path()
    installed = checkpoint.installed()
    return {
        "name": checkpoint.name,
        "kind": checkpoint.kind,
        "about": checkpoint.about,
        "licence": checkpoint.licence,
        "bytes": _bytes(path) if installed else checkpoint.bytes,
        "source": checkpoint.source,
        "path": str(path),
        "installed": installed,
        "bundled": checkpoint.bundled,
        "loadable": checkpoint.loadable,
    }


def describe_rival(rival: Rival) -> dict[str, Any]:
    """Return one of the compared systems as plain data, with the same keys."""
    path = rival.folder()
    return {
        "name": rival.name,
        "kind": rival.family,
        "about": rival.about,
        "licence": rival.licence,
        "bytes": _bytes(path) if path.is_dir() else None,
        "source": rival.source,
        "path": "built in" if rival.family == "classical" else str(path),
        "installed": rival.installed(),
        "bundled": rival.family == "classical",
        "loadable": False,
    }


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _size(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:.1f} MB"
