"""Checkpoints: what exists, where it lies, how it gets into a model."""

from __future__ import annotations

from zim.weights.registry import REGISTRY, Checkpoint, zim_home

__all__ = ["REGISTRY", "Checkpoint", "LoadReport", "load_sam", "zim_home"]


def __getattr__(name: str) -> object:
    """Import the parts that need torch on first use."""
    if name in ("load_sam", "LoadReport"):
        from zim.weights import sam

        return getattr(sam, name)
    raise AttributeError(f"module 'zim.weights' has no attribute {name!r}")
