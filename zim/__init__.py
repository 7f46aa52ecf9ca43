"""ZIM: promptable zero-shot image matting in native PyTorch.

>>> import zim
>>> result = zim.matte("cat.jpg", points=[(320, 240)])   # doctest: +SKIP
>>> result.save("cat.rgba.png")                           # doctest: +SKIP

Public names are loaded on first use, so ``import zim`` is cheap and imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from zim import metrics, weights
    from zim.api import load, matte
    from zim.automatic import ZimAutomaticMaskGenerator
    from zim.builder import build
    from zim.config import ZimConfig
    from zim.errors import ZimError
    from zim.predictor import ZimPredictor
    from zim.pretrained import Zim
    from zim.prompts import Prompt
    from zim.result import Matte

_HOMES = {
    "Matte": "zim.result",
    "Prompt": "zim.prompts",
    "Zim": "zim.pretrained",
    "ZimAutomaticMaskGenerator": "zim.automatic",
    "ZimConfig": "zim.config",
    "ZimError": "zim.errors",
    "ZimPredictor": "zim.predictor",
    "build": "zim.builder",
    "load": "zim.api",
    "matte": "zim.api",
    "metrics": "zim.metrics",
    "weights": "zim.weights",
}

__all__ = [
    "Matte",
    "Prompt",
    "Zim",
    "ZimAutomaticMaskGenerator",
    "ZimConfig",
    "ZimError",
    "ZimPredictor",
    "__version__",
    "build",
    "load",
    "matte",
    "metrics",
    "weights",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'zim' has no attribute {name!r}")
    module = importlib.import_module(home)
    value = module if home == f"zim.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
