"""Fixtures of the core's tests: outside packages to compare with."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch


def _outside(name: str) -> Any:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    return pytest.importorskip(name, reason=f"{name} is not installed (dependency group parity)")


@pytest.fixture(scope="session")
def segment_anything() -> Any:
    """Return Meta's package, or skip."""
    return _outside("segment_anything")


@pytest.fixture(scope="session")
def zim_anything() -> Any:
    """Return the official client's network module, or skip."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
    _outside("zim_anything")
    return importlib.import_module("zim_anything.modeling.zim")


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)
