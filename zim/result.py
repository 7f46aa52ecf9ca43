"""The answer to a prompt: a matte with its picture, and everything that is made from the two.

:class:`Matte` is what the one-shot call, the command line and the applications hand around. It
lives here because ``zim.matte`` is the function that makes one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from zim import viz
from zim._arrays import as_numpy, to_unit
from zim.errors import ImageError, OutputError
from zim.foreground import ForegroundMethod, estimate_foreground
from zim.images import load_image
from zim.output import Bits, atomic_write, encode_alpha, encode_rgb, encode_rgba, quantise

Kind = Literal["rgba", "alpha", "composite", "overlay"]
KINDS: tuple[str, ...] = ("rgba", "alpha", "composite", "overlay")

#: Rows blended at a time, so that float temporaries stay small whatever the picture's size.
_STRIP = 256
#: by so much may alpha leave [0, 1], as interpolation makes it
_SLACK = 0.05


@dataclass(frozen=True, eq=False)
class Matte:
    """A soft matte and the picture it belongs to.

    Attributes:
        image: the picture, H x W x 3 uint8, RGB.
        alpha: how much of each pixel is the object, H x W float32 in [0, 1]; given as
            integers, bool, another float or a tensor, it is brought into that form.
        score: the model's own estimate of the matte's quality, about 0 to 1.
        box: the box that asked for it, x0, y0, x1, y1 in pixels, if there was one.
        low_res: logits h x w, to be given back as a prompt for a better answer.
    """

    image: NDArray[np.uint8]
    alpha: NDArray[np.float32]
    score: float = 1.0
    box: NDArray[np.float32] | tuple[float, float, float, float] | None = None
    low_res: NDArray[np.float32] | None = None
    _foregrounds: dict[str, NDArray[np.uint8]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Bring the matte into its form, or refuse it."""
        object.__setattr__(self, "alpha", _as_alpha(self.alpha))
        if not isinstance(self.image, np.ndarray):
            raise ImageError(
                f"a matte's picture is a {type(self.image).__name__}; expected H x W x 3 uint8 "
                "(zim.images.load_image(picture).rgb)"
            )
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ImageError(
                f"a matte's picture has shape {self.image.shape} and type {self.image.dtype}; "
                "expected H x W x 3 uint8"
            )
        if self.alpha.shape != self.image.shape[:2]:
            raise ImageError(
                f"the matte is {self.alpha.shape} but the picture is {self.image.shape[:2]}; "
                "resize one of them"
            )

    def foreground(self, method: ForegroundMethod = "ml") -> NDArray[np.uint8]:
        """Return the object's own colours, H x W x 3 uint8; computed once.

        ``"ml"`` removes the background that shines through soft pixels, ``"none"`` keeps the
        picture's colours (see :func:`zim.foreground.estimate_foreground`).
        """
        return self._foreground(method).copy()

    def _foreground(self, method: ForegroundMethod) -> NDArray[np.uint8]:
        if method not in self._foregrounds:
            self._foregrounds[method] = estimate_foreground(self.image, self.alpha, method)
        return self._foregrounds[method]

    def rgba(self, bits: Bits = 8, foreground: ForegroundMethod = "ml") -> NDArray[Any]:
        """Return the cut-out with straight alpha, H x W x 4 uint8 (or uint16 with ``bits=16``).

        Clear pixels carry the object's colours on, so the cut-out can be resized or blurred
        without a rim; only a viewer that ignores alpha shows them.
        """
        alpha = quantise(self.alpha, bits)
        out = np.empty((*alpha.shape, 4), dtype=alpha.dtype)
        out[..., :3] = self._foreground(foreground)
        if bits == 16:
            out[..., :3] *= 257  # 255 becomes 65535
        out[..., 3] = alpha
        return out

    def binary(self, threshold: float = 0.5) -> NDArray[np.bool_]:
        """Return the pixels that are more object than ``threshold``, H x W bool."""
        return self.alpha > threshold

    def composite(
        self, background: Any = "white", foreground: ForegroundMethod = "ml"
    ) -> NDArray[np.uint8]:
        """Put the object on a new background, H x W x 3 uint8.

        Args:
            background: a colour name, ``#rrggbb``, ``(r, g, b)`` in 0 to 255, or a picture
                (anything :func:`zim.images.load_image` takes), scaled to cover and centred.
            foreground: as in :meth:`foreground`.

        Raises:
            ImageError: the background is neither a colour nor a picture that can be read.
        """
        behind = _background(background, self.alpha.shape)
        front = self._foreground(foreground)
        out = np.empty_like(front)
        for top in range(0, len(out), _STRIP):
            rows = slice(top, top + _STRIP)
            under = behind if behind.ndim == 1 else behind[rows]
            out[rows] = viz.blend(front[rows], under, self.alpha[rows])
        return out

    def overlay(self, **prompts: Any) -> NDArray[np.uint8]:
        """Show the matte in colour on the darkened picture, H x W x 3 uint8.

        Args:
            **prompts: ``points``, ``labels``, ``boxes``, ``scribbles`` to draw on it, as in
                :func:`zim.viz.overlay`.
        """
        return viz.overlay(self.image, self.alpha, **prompts)

    def encode(
        self,
        kind: Kind = "rgba",
        suffix: str = ".png",
        *,
        bits: Bits = 8,
        background: Any = "white",
        foreground: ForegroundMethod = "ml",
    ) -> bytes:
        """Return one kind of result as the bytes of an image file; arguments as in :meth:`save`."""
        if kind == "rgba":
            return encode_rgba(self.rgba(bits, foreground), suffix)
        if kind == "alpha":
            return encode_alpha(self.alpha, bits, suffix)
        if kind == "composite":
            return encode_rgb(self.composite(background, foreground), suffix)
        if kind == "overlay":
            return encode_rgb(self.overlay(), suffix)
        raise OutputError(f"unknown kind of result {kind!r}; expected one of {', '.join(KINDS)}")

    def save(
        self,
        path: str | Path,
        kind: Kind = "rgba",
        *,
        bits: Bits = 8,
        background: Any = "white",
        foreground: ForegroundMethod = "ml",
    ) -> Path:
        """Write one kind of result; the suffix picks the format. Returns the path.

        Args:
            path: PNG, WebP or TIFF; JPEG too for ``composite`` and ``overlay``.
            kind: ``rgba`` cut-out, ``alpha`` matte, ``composite`` on ``background``, ``overlay``.
            bits: depth of ``rgba`` and ``alpha``, 8 or 16.
            background: for ``composite``, see :meth:`composite`.
            foreground: for ``rgba`` and ``composite``, see :meth:`foreground`.

        Raises:
            OutputError: the format cannot hold it, or the file cannot be written.
            ImageError: the background cannot be used.
        """
        path = Path(path).expanduser()
        data = self.encode(
            kind, path.suffix, bits=bits, background=background, foreground=foreground
        )
        atomic_write(path, data)
        return path


def _as_alpha(alpha: Any) -> NDArray[np.float32]:
    """Return a matte as float32, in [0, 1]."""
    given = as_numpy(alpha)
    values = to_unit(given)
    if values is None:
        raise ImageError(
            f"a matte of type {given.dtype}; expected float in [0, 1], bool, or integers up to 1, "
            "255 or 65535"
        )
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # NaN fails both
        raise ImageError(f"a matte with values from {low:g} to {high:g}; expected 0 to 1")
    return values if low >= 0 and high <= 1 else np.clip(values, 0, 1)


def _background(background: Any, size: tuple[int, ...]) -> NDArray[Any]:
    """Return a colour as 3 values, or a picture of the given size."""
    if isinstance(background, str):
        try:
            return _colour(ImageColor.getrgb(background), background)
        except ValueError as error:
            if isinstance(error, ImageError):
                raise
            if not Path(background).expanduser().exists():
                raise ImageError(
                    f"background {background!r} is no colour name, no #rrggbb and no file"
                ) from error
    elif isinstance(background, tuple | list) or np.ndim(background) == 1:
        return _colour(background, background)
    return _cover(load_image(background).rgb, size[0], size[1])


def _colour(values: Any, given: Any) -> NDArray[Any]:
    try:
        colour = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError):
        colour = np.full(0, 0.0, np.float32)
    if colour.shape != (3,) or not ((colour >= 0) & (colour <= 255)).all():
        raise ImageError(f"background {given!r} is no opaque colour; expected r, g, b in 0 to 255")
    return colour


def _cover(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Crop a picture to the proportions of the target around its centre, then scale it."""
    own_height, own_width = picture.shape[:2]
    scale = max(height / own_height, width / own_width)
    rows = min(own_height, max(1, round(height / scale)))
    cols = min(own_width, max(1, round(width / scale)))
    top, left = (own_height - rows) // 2, (own_width - cols) // 2
    crop = picture[top : top + rows, left : left + cols]
    if crop.shape[:2] == (height, width):
        return crop
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(crop, (width, height), interpolation=method), dtype=np.uint8)
