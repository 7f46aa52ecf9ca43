"""Every error this library raises on purpose.

A message says what was given, what was expected and what to do next, on one line. The command
line prints that line and exits with 1; library users catch :class:`ZimError` or a subclass.
"""

from __future__ import annotations

from pathlib import Path


class ZimError(Exception):
    """Root of all errors raised on purpose."""


class PromptError(ZimError, ValueError):
    """A point, box, scribble or mask cannot be used as a prompt."""


class ImageError(ZimError, ValueError):
    """An image cannot be read or has a shape, type or size that cannot be used."""


class ConfigError(ZimError, ValueError):
    """A model or training configuration is inconsistent."""


class CheckpointError(ZimError, RuntimeError):
    """Weights are missing, damaged or do not fit the model."""


class DownloadError(ZimError, OSError):
    """A file could not be fetched, or the network is forbidden (``ZIM_OFFLINE=1``)."""


class OutputError(ZimError, OSError):
    """A result cannot be written."""


def one_line(error: BaseException, most: int | None = None) -> str:
    """Return an error's text without line breaks, or its type when it has none.

    Args:
        error: whatever was raised.
        most: cut to so many characters, for other people's long messages.
    """
    return (" ".join(str(error).split()) or type(error).__name__)[:most]


def reason(error: Exception) -> str:
    """Say in a few words why data from outside is not what was expected.

    A missing key, too few values, a value of another type and a file that cannot be read are told
    in words; an error that says more is quoted.
    """
    text = " ".join(str(error).split())
    if isinstance(error, KeyError):
        return f"{error.args[0] if error.args else 'something'} is missing"
    if isinstance(error, OSError):
        return error.strerror or text or "unreadable"
    if isinstance(error, IndexError):
        return "fewer values than expected"
    if isinstance(error, TypeError | AttributeError):
        return "a value of another kind"
    return text or "damaged"


#: extras whose requirements fit no other's, so that they want an environment to themselves
APART = ("groundingdino", "nerfstudio")


def install_advice(extra: str) -> str:
    """Return the command that installs an extra, and where it has to be run.

    Whoever runs a checkout installs from it.
    """
    where = ", in an environment of its own" if extra in APART else ""
    checkout = Path(__file__).resolve().parents[1]
    try:
        ours = 'name = "zim-toolkit"' in (checkout / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        ours = False
    if ours:
        return f"pip install -e '{checkout}[{extra}]'{where}"
    return f"pip install 'zim-toolkit[{extra}]'{where}"


class MissingExtraError(ZimError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        """Name the package that failed to import and the extra that brings it."""
        super().__init__(
            f"{package} is not installed; it comes with an extra: {install_advice(extra)}"
        )
        self.package = package
        self.extra = extra
