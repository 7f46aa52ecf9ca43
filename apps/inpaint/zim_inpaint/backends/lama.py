"""LaMa: the TorchScript file ``big-lama.pt``, checked before it is run.

R. Suvorov et al.: "Resolution-robust Large Mask Inpainting with Fourier Convolutions" (WACV 2022).
The file is executable code, so one with another checksum is refused unless it is asked for.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zim.errors import CheckpointError, one_line
from zim.weights.registry import zim_home

FILE = "big-lama.pt"
BYTES = 205_669_692
SHA256 = "344c77bbcb158f17dd143070d1e789f38a66c04202311ae3a258ef66667a9ea9"
SOURCE = "https://github.com/Sanster/models/releases/download/add_big_lama/big-lama.pt"

_MULTIPLE = 8


def lama_path() -> Path:
    """Return where the file is expected: ``LAMA_MODEL``, else ``ZIM_HOME/models/big-lama.pt``."""
    if given := os.environ.get("LAMA_MODEL"):
        return Path(given).expanduser()
    return zim_home() / "models" / FILE


class Lama:
    """LaMa at 512 pixels (see :class:`zim_inpaint.backends.Filler`)."""

    name = "lama"
    takes_text = False
    side = 512
    multiple = 1
    enlarges = False

    def __init__(
        self, path: str | Path | None = None, *, device: str = "auto", sha256: str | None = SHA256
    ) -> None:
        """Load and check the file.

        Args:
            path: the TorchScript file; see :func:`lama_path`.
            device: as for :func:`zim.load`.
            sha256: what it must hash to; None for a file of your own that you trust.

        Raises:
            CheckpointError: it is missing, or is not the file it should be.
        """
        self._path = Path(path).expanduser() if path is not None else lama_path()
        if not self._path.is_file():
            raise CheckpointError(
                f"LaMa's weights are not at {self._path}; download {SOURCE} "
                f"({BYTES / 1e6:.0f} MB, Apache-2.0, sha256 {SHA256[:12]}...) and put it there, "
                "or give --lama FILE, or use --backend patchmatch, which needs no weights"
            )
        if sha256 is not None:
            found = _hash(self._path)
            if found != sha256:
                raise CheckpointError(
                    f"{self._path} has sha256 {found[:12]}..., expected {sha256[:12]}...; it is "
                    f"damaged or another file, so it is not run; download {SOURCE} again"
                )
        self._model, self._device = _load(self._path, device)

    def fill(
        self,
        image: NDArray[np.uint8],
        mask: NDArray[np.uint8],
        *,
        seed: int = 0,
        text: str | None = None,
        negative: str | None = None,
    ) -> NDArray[np.uint8]:
        """Fill the hole; LaMa is not random, and words are not used."""
        del seed, text, negative
        import torch

        height, width = mask.shape
        # Both sides become multiples of 8; mirrored edges are safe for pictures of any size.
        more = ((0, -height % _MULTIPLE), (0, -width % _MULTIPLE))
        padded = np.pad(image, (*more, (0, 0)), mode="symmetric")
        hole = np.pad(mask > 0, more, mode="symmetric")
        rgb = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            out = self._model(
                rgb.to(self._device), torch.from_numpy(hole)[None, None].float().to(self._device)
            )
        filled = (out[0].clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return np.ascontiguousarray(filled[:height, :width])


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load(path: Path, device: str) -> tuple[Any, Any]:
    import torch

    from zim.api import choose_device

    where = choose_device(device)
    try:
        with warnings.catch_warnings():
            # torch announces the end of TorchScript; the file exists in no other format
            warnings.simplefilter("ignore")
            return torch.jit.load(str(path), map_location=where).eval(), where
    except (RuntimeError, ValueError) as error:
        reason = one_line(error, 200)
        raise CheckpointError(f"{path} is not a TorchScript file ({reason})") from error
