"""Optional packages: import one by name, or say which extra brings it."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

from packaging.requirements import Requirement

from zim.errors import MissingExtraError

DISTRIBUTION = "zim-toolkit"


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: import name, for example ``"onnxruntime"``.
        extra: the extra of this distribution that brings it, for example ``"onnx"``.

    Raises:
        MissingExtraError: the module is not installed. A module that is there but fails while
            being imported raises its own error, which says more.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(module, extra) from error


def missing_by_extra() -> dict[str, list[str]]:
    """Return, for every extra of the installed distribution, the requirements that are not met.

    An empty list means the extra is usable. Extras made of other extras (``all``) are left out.
    """
    metadata = importlib.metadata.metadata(DISTRIBUTION)
    extras = [name for name in metadata.get_all("Provides-Extra") or [] if name != "all"]
    requirements = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or []]
    return {
        extra: [
            f"{requirement.name}{requirement.specifier}"
            for requirement in requirements
            if requirement.marker
            and requirement.marker.evaluate({"extra": extra})
            and not requirement.marker.evaluate({"extra": ""})
            and not _met(requirement)
        ]
        for extra in extras
    }


def _met(requirement: Requirement) -> bool:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(version, prereleases=True)
