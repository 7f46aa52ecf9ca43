"""ONNX: write our models for other engines, and run ONNX folders (the official ZIM) as our own.

The folder layout is that of the official release: ``encoder.onnx`` and ``decoder.onnx``, with the
tensor names and shapes of :mod:`zim.onnx.layout`. The extra ``onnx`` brings what is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zim.onnx.export import export_onnx
    from zim.onnx.runtime import OnnxZim

__all__ = ["OnnxZim", "export_onnx"]

_HOMES = {"OnnxZim": "zim.onnx.runtime", "export_onnx": "zim.onnx.export"}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'zim.onnx' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
