"""Object removal, filling and replacing, on top of zim.

    from zim_inpaint import inpaint
    result = inpaint(image, alpha)            # the object under the matte is gone
    result.image                              # H x W x 3 uint8

Heavy packages are imported when the function is, not when the package is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zim_inpaint.api import InpaintResult, inpaint

__all__ = ["InpaintResult", "inpaint"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that ``--help`` needs none of what they need."""
    if name in __all__:
        from zim_inpaint import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
