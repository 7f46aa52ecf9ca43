"""ZIM: promptable zero-shot image matting in native PyTorch."""

from __future__ import annotations

__version__ = "0.1.0"
