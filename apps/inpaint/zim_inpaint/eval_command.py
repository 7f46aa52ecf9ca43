"""``zim-inpaint eval``: flags and report of the COCO benchmark (paper, section 7.2, Table 5)."""

from __future__ import annotations

import argparse

from zim.commandline import Report, not_built_error


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``zim-inpaint eval``."""


def run(args: argparse.Namespace) -> Report:
    """Score removals."""
    raise not_built_error("zim-inpaint eval")
