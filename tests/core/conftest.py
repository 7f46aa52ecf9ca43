"""Fixtures of the core's tests: outside packages to compare with."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import pytest
import torch
from PIL import Image


def _torchvision_stand_in() -> dict[str, types.ModuleType]:
    """Return the few torchvision names segment-anything and zim-anything use.

    torchvision from PyPI cannot be imported beside a CPU build of torch; what the two packages
    need of it for the comparisons here is a PIL resize.
    """

    def resize(image: Image.Image, size: tuple[int, int], **_: Any) -> Image.Image:
        return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)

    def missing(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("not part of the stand-in")

    names = {
        "torchvision": {},
        "torchvision.ops": {},
        "torchvision.ops.boxes": {"batched_nms": missing, "box_area": missing},
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {
            "resize": resize,
            "to_pil_image": Image.fromarray,
            "InterpolationMode": types.SimpleNamespace(BILINEAR="bilinear"),
        },
    }
    modules = {name: types.ModuleType(name) for name in names}
    for name, values in names.items():
        vars(modules[name]).update(values)
    return modules


def _outside(name: str) -> Any:
    try:
        importlib.import_module("torchvision")
        return importlib.import_module(name)
    except (ImportError, RuntimeError):
        pass
    for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    with pytest.MonkeyPatch.context() as patch:
        for module, value in _torchvision_stand_in().items():
            patch.setitem(sys.modules, module, value)
        return pytest.importorskip(
            name, reason=f"{name} is not installed (dependency group parity)"
        )


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
