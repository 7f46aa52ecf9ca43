"""What a command reports of several pictures: an item each, in their order."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zim.commandline import Report, error_line


def failed_item(
    command: str, source: str, error: BaseException, *, debug: bool = False, part: str = ""
) -> dict[str, Any]:
    """Say on stderr what failed, and return its item.

    Args:
        command: who says so.
        source: the picture as it was given.
        error: what was raised.
        debug: show the trace too.
        part: of the picture, as ``, object 2``; without one a message that names the picture
            is not given its name again.
    """
    line = error_line(error)
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    named = line if not part and Path(source).name in line else f"{source}{part}: {line}"
    sys.stderr.write(f"{command}: {named}\n")
    return {"input": source, "outputs": {}, "metrics": {}, "error": line}


def report_items(report: Report, items: list[dict[str, Any]], sources: Sequence[str]) -> None:
    """Put items into a report in the order of the pictures; a single one is the report itself."""
    place = {source: i for i, source in reversed(list(enumerate(sources)))}
    report.items = sorted(items, key=lambda item: place[item["input"]])
    if len(items) == 1:
        (item,) = items
        report.outputs = item["outputs"] | report.outputs
        report.metrics = item["metrics"]
        if item["error"]:
            report.extra["error"] = item["error"]
    elif report.failed:
        failed = len({item["input"] for item in items if item["error"]})
        report.extra["error"] = f"{failed} of {len(sources)} images failed"
