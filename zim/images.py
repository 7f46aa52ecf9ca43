"""Pictures in: whatever a user has, as 8-bit RGB the right way up, in sRGB, with its own alpha.

Every way in (path, bytes, stdin, PIL image, array, tensor) ends in :class:`LoadedImage`. Writing
lives in :mod:`zim.output`; its names are here too, so that one import serves both.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zim.decode import Pixels, decode_file, decode_pillow, to_uint8
from zim.errors import ImageError, one_line
from zim.output import (
    atomic_write,
    encode_alpha,
    encode_rgb,
    encode_rgba,
    save_alpha,
    save_rgb,
    save_rgba,
)

__all__ = [
    "MAX_PIXELS",
    "LoadedImage",
    "atomic_write",
    "encode_alpha",
    "encode_rgb",
    "encode_rgba",
    "load_image",
    "read_alpha",
    "read_mask",
    "save_alpha",
    "save_rgb",
    "save_rgba",
]

#: Larger pictures are refused from their header, before anything is decoded.
MAX_PIXELS = 300_000_000


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """A picture as the rest of the library wants it.

    Attributes:
        rgb: H x W x 3 uint8, RGB, sRGB, straight (not premultiplied), EXIF orientation applied.
        alpha: the file's own transparency, H x W float32 in [0, 1], or None if it has none.
        icc: the file's own colour profile, already applied to ``rgb``; None if it has none.
        name: file name, or None for pictures that came from memory.
    """

    rgb: NDArray[np.uint8]
    alpha: NDArray[np.float32] | None = None
    icc: bytes | None = None
    name: str | None = None


def load_image(source: Any, max_pixels: int | None = None) -> LoadedImage:
    """Read a picture from a path, bytes, stdin (``"-"``), file object, PIL image, array or tensor.

    Depths above 8 bits are scaled and rounded, CMYK, palette and grey become RGB, a colour profile
    is applied where it can be, of an animation the first frame is taken.

    Args:
        source: ``str`` or ``Path``, ``"-"``, ``bytes``, a binary file object, ``PIL.Image``,
            numpy H x W or H x W x 1/3/4 (uint8, uint16, bool, float in [0, 1]; RGB order), or a
            torch tensor H x W or C x H x W (uint8 or float in [0, 1]).
        max_pixels: a lower limit than ``MAX_PIXELS`` for encoded ``bytes``; a service sets it.

    Raises:
        ImageError: it is missing, empty, damaged, no picture, larger than ``MAX_PIXELS``, or of a
            shape, type or range that cannot be used; one line naming what was given.
    """
    pixels = _pixels(source, max_pixels)
    colour = to_uint8(pixels.colour)
    if colour.ndim == 2:
        colour = np.repeat(colour[..., None], 3, axis=2)
    alpha = None if pixels.alpha is None else _to_unit(pixels.alpha)
    return LoadedImage(np.ascontiguousarray(colour), alpha, pixels.icc, pixels.name)


def read_alpha(source: Any, max_pixels: int | None = None) -> NDArray[np.float32]:
    """Read a mask or matte, H x W float32 in [0, 1], in the full depth of its file.

    A picture with transparency is read by its alpha, any other by its brightness (the largest of
    R, G and B, so that the colour of the brush does not matter).

    Args:
        source: anything :func:`load_image` takes.
        max_pixels: as there.

    Raises:
        ImageError: as in :func:`load_image`.
    """
    pixels = _pixels(source, max_pixels)
    if pixels.alpha is not None:
        alpha = _to_unit(pixels.alpha)
        if alpha.min() < 1.0:
            return alpha
    colour = pixels.colour
    return _to_unit(colour if colour.ndim == 2 else colour.max(axis=2))


def read_mask(source: Any, max_pixels: int | None = None) -> NDArray[np.float32]:
    """Read a mask that someone painted or exported, as :func:`read_alpha` reads mattes.

    A picture of nothing but zeros and ones (of 255) is a binary mask: its ones are 1. Arrays and
    tensors of floats are mattes, however faint.
    """
    alpha = read_alpha(source, max_pixels)
    floats = "float" in str(getattr(source, "dtype", ""))
    if not floats and 0 < alpha.max() <= np.float32(1 / 255):
        return (alpha > 0).astype(np.float32)
    return alpha


def _pixels(source: Any, max_pixels: int | None = None) -> Pixels:
    if isinstance(source, str | Path):
        return _from_path(source)
    if isinstance(source, bytes | bytearray | memoryview):
        where = "the given data" if max_pixels is None else "the picture"
        return _from_bytes(bytes(source), where, max_pixels)
    if isinstance(source, Image.Image):
        return decode_pillow(source, "the given PIL image", None, MAX_PIXELS)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    # A tensor can only arrive when torch is already imported; reading files must not import it.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.Tensor):
        return _from_tensor(source)
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        where = str(name) if isinstance(name, str) else "the given file object"
        try:
            data = source.read()
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise ImageError(f"{where} cannot be read ({one_line(error)})") from error
        if not isinstance(data, bytes | bytearray):
            raise ImageError(f"{where} gives text; open it in binary mode ('rb')")
        return _from_bytes(bytes(data), where)
    raise ImageError(
        f"a picture cannot be a {type(source).__name__}; expected a path, bytes, file object, "
        "PIL image, numpy array or torch tensor"
    )


def _from_path(source: str | Path) -> Pixels:
    if str(source) == "-":
        return _from_bytes(sys.stdin.buffer.read(), "stdin")
    path = Path(source).expanduser()
    if not str(source):
        raise ImageError("the name of the picture is empty; expected an image file")
    try:
        if path.is_dir():
            raise ImageError(f"{source} is a folder; expected an image file")
        with path.open("rb") as file:
            if not file.read(1):
                raise ImageError(f"{source} is empty; expected an image file")
            file.seek(0)
            return decode_file(file, str(source), path.name, MAX_PIXELS)
    except FileNotFoundError as error:
        hint = "a URL; download it first" if "://" in str(source) else "check the path"
        raise ImageError(f"{source} does not exist; {hint}") from error
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise ImageError(f"{source} cannot be read ({reason})") from error
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(f"{source!r} is not a usable path ({one_line(error)})") from error


def _from_bytes(data: bytes, where: str, limit: int | None = None) -> Pixels:
    if not data:
        raise ImageError(f"{where}: empty; expected an encoded image")
    return decode_file(io.BytesIO(data), where, None, MAX_PIXELS if limit is None else limit)


def _from_array(array: NDArray[Any]) -> Pixels:
    array = np.asarray(array)  # a matrix keeps two dimensions whatever is done to it
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    shape = " x ".join(map(str, array.shape)) or "scalar"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        planes_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = "; transpose it with (1, 2, 0)" if planes_first else ""
        raise ImageError(f"an array of shape {shape}; expected H x W or H x W x 1, 3 or 4{hint}")
    if array.size == 0:
        raise ImageError(f"an array of shape {shape} has no pixels")
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind == "f":
        # NaN fails both comparisons, so this catches it without a pass of its own.
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):
            raise ImageError(
                f"a {array.dtype} array with values from {low} to {high}; expected 0 to 1"
            )
    elif array.dtype == np.uint8:
        array = array.copy()  # what the caller does to it later must not reach us
    elif array.dtype != np.uint16:
        raise ImageError(
            f"an array of type {array.dtype}; expected uint8, uint16, bool, or float in [0, 1]"
        )
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[2] == 4:
        return Pixels(array[..., :3], array[..., 3])
    return Pixels(array)


def _from_tensor(tensor: Any) -> Pixels:
    shape = " x ".join(map(str, tensor.shape)) or "scalar"
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        hint = "; take one picture of the batch" if tensor.ndim == 4 else ""
        raise ImageError(f"a tensor of shape {shape}; expected C x H x W with 1, 3 or 4{hint}")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()
    array = tensor.numpy()
    return _from_array(array if array.ndim == 2 else array.transpose(1, 2, 0))


def _to_unit(x: NDArray[Any]) -> NDArray[np.float32]:
    if x.dtype.kind == "f":
        return x.astype(np.float32)
    return x.astype(np.float32) / np.float32(255 if x.dtype == np.uint8 else 65535)
