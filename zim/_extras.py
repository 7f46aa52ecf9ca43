"""Optional packages: import one by name, or say which extra brings it."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from types import ModuleType

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
    """Return, for every extra of the installed distribution, the packages that are missing.

    An empty list means the extra is usable. Extras made of other extras (``all``) are left out.
    """
    metadata = importlib.metadata.metadata(DISTRIBUTION)
    missing: dict[str, list[str]] = {
        name: [] for name in metadata.get_all("Provides-Extra") or [] if name != "all"
    }
    for requirement in importlib.metadata.requires(DISTRIBUTION) or []:
        extra = re.search(r"""extra\s*==\s*['"]([\w-]+)['"]""", requirement)
        package = re.match(r"[\w.-]+", requirement)
        if extra and package and extra[1] in missing:
            try:
                importlib.metadata.version(package[0])
            except importlib.metadata.PackageNotFoundError:
                missing[extra[1]].append(package[0])
    return missing
