"""Shared test set-up."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType

import pytest

#: tests that need an extra as a whole, and packages of it: left out, and said so, without them
NEEDS = {
    "medical": ("nibabel", "pydicom", "skimage", "monai"),
    "serve": ("fastapi", "httpx"),
    "training/test_detector.py": ("torchvision",),
}
MISSING = {
    place: [name for name in packages if importlib.util.find_spec(name) is None]
    for place, packages in NEEDS.items()
}


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what cannot even be imported here."""
    here = Path(__file__).parent
    missing = [p for place, p in MISSING.items() if p and collection_path == here / place]
    return True if missing else None


def pytest_report_header() -> list[str]:
    """Say what is left out and why."""
    return [
        f"tests/{place} left out: {', '.join(packages)} not installed (pip install -e '.[all]')"
        for place, packages in MISSING.items()
        if packages
    ]


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
