"""Shared test set-up."""

from __future__ import annotations

import os
from collections.abc import Generator

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
