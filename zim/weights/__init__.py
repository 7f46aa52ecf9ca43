"""Checkpoints: what exists, where it lies, how it gets into a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zim.weights.registry import REGISTRY, Checkpoint, zim_home

if TYPE_CHECKING:
    from zim.weights.sam import LoadReport, load_sam

__all__ = ["REGISTRY", "Checkpoint", "LoadReport", "load_sam", "zim_home"]


def __getattr__(name: str) -> object:
    """Import the parts that need torch on first use."""
    if name in ("load_sam", "LoadReport"):
        from zim.weights import sam

        return getattr(sam, name)
    raise AttributeError(f"module 'zim.weights' has no attribute {name!r}")
