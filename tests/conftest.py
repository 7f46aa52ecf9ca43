"""Shared test set-up."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With ZIM_REQUIRE_PARITY=1 a parity test that skips has failed: its package was promised."""
    report = yield
    required = os.environ.get("ZIM_REQUIRE_PARITY") == "1"
    if required and report.skipped and item.get_closest_marker("parity"):
        reason = call.excinfo.value if call.excinfo else "no reason given"
        report.outcome = "failed"
        report.longrepr = f"skipped although ZIM_REQUIRE_PARITY=1: {reason}"
    return report


@pytest.fixture(scope="module")
def benchmark_script() -> Generator[Callable[[str], ModuleType], None, None]:
    """Import a script of ``benchmarks/`` by name; it finds its neighbours as when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield importlib.import_module
