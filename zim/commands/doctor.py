"""``zim doctor``: check the installation."""

from __future__ import annotations

import argparse
import dataclasses

from zim.commandline import Report, apply_runtime, timed, write_report

MARKS = {"ok": "ok", "note": "-", "warning": "WARNING", "error": "ERROR"}


def run(args: argparse.Namespace) -> Report:
    """Print what was found; exit code 1 when something is broken."""
    from zim.doctor import examine

    report = Report()
    with timed(report.seconds, "examine"):
        apply_runtime(args)
        checks = examine()
    report.extra["checks"] = [dataclasses.asdict(check) for check in checks]
    if wrong := [check.name for check in checks if check.status == "error"]:
        report.failed = True
        report.extra["error"] = f"not in order: {', '.join(wrong)}"
    width = max(len(check.name) for check in checks)
    for check in checks:
        advice = f"; {check.advice}" if check.advice else ""
        report.lines.append(f"{MARKS[check.status]:8}{check.name:{width}}  {check.value}{advice}")
    write_report(report, args)
    return report
