"""What fills a hole: one protocol, four implementations, chosen by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from zim.errors import ConfigError

#: what ``--backend`` takes
NAMES = ("auto", "patchmatch", "telea", "lama", "diffusers")


@runtime_checkable
class Filler(Protocol):
    """Anything that paints the inside of a hole.

    Attributes:
        name: for reports.
        takes_text: it paints what words say; otherwise it continues the surroundings.
        side: longest side it works at, in pixels.
        multiple: both sides must be multiples of it.
        enlarges: small windows should be enlarged to ``side``.
    """

    name: str
    takes_text: bool
    side: int
    multiple: int
    enlarges: bool

    def fill(
        self,
        image: NDArray[np.uint8],
        mask: NDArray[np.uint8],
        *,
        seed: int = 0,
        text: str | None = None,
        negative: str | None = None,
    ) -> NDArray[np.uint8]:
        """Fill a hole.

        Args:
            image: H x W x 3 uint8 RGB; what is inside the hole must not matter.
            mask: H x W uint8, 255 is repainted, 0 is kept; never empty, never full.
            seed: the same seed gives the same picture.
            text: what to paint, for fillers that take words.
            negative: what not to paint.

        Returns:
            H x W x 3 uint8 RGB; only its inside is used.
        """
        ...


def get_filler(name: str, **options: Any) -> Filler:
    """Return a filler by name.

    ``auto`` takes the first that is ready without a download: ``lama`` if its file is there (one
    that is damaged is an error), else ``patchmatch``, else ``telea``.

    Args:
        name: one of :data:`NAMES`.
        **options: ``lama`` (path of big-lama.pt), ``model``, ``device``, ``dtype``, ``steps``,
            ``guidance``, ``strength``, ``offload``, ``offline`` for the filler that knows them.

    Raises:
        ConfigError: unknown name.
        MissingExtraError: the package behind it is not installed.
        CheckpointError: its weights are not there, or damaged.
    """
    if name == "auto":
        return _ready(options)
    if name == "patchmatch":
        from zim_inpaint.backends.patches import PatchMatch

        return PatchMatch()
    if name == "telea":
        from zim_inpaint.backends.telea import Telea

        return Telea()
    if name == "lama":
        from zim_inpaint.backends.lama import Lama

        return Lama(options.get("lama"), device=options.get("device", "auto"))
    if name == "diffusers":
        from zim_inpaint.backends.diffusion import Diffusion

        known = ("model", "device", "dtype", "steps", "guidance", "strength", "offload", "offline")
        given = {key: options[key] for key in known if options.get(key) is not None}
        return Diffusion(**given)
    raise ConfigError(f"backend {name!r} is unknown; expected one of {', '.join(NAMES)}")


def _ready(options: dict[str, Any]) -> Filler:
    from zim_inpaint.backends.lama import Lama, lama_path
    from zim_inpaint.backends.patches import available

    given: str | Path | None = options.get("lama")
    if given is not None or lama_path().is_file():
        return Lama(given, device=options.get("device", "auto"))
    return get_filler("patchmatch" if available() else "telea")
