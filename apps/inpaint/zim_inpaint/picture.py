"""A picture with everything that should survive a repair: colours, profile, EXIF, transparency.

The model sees sRGB. The repair happens in the file's own colours, so that what is not touched
comes out with the values it had, and the profile that explains them goes with it.
"""

from __future__ import annotations

import io
import math
import re
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zim.decode import open_header
from zim.errors import OutputError
from zim.images import encode_rgb, encode_rgba, load_image
from zim.output import quantise

_ORIENTATION, _X_RESOLUTION = 0x0112, 0x011A
_PNG_HEADER = 33
#: length, name, one byte and checksum of the sRGB chunk that follows it
_SRGB_CHUNK = 13
_QUALITY = 95
#: what a TIFF says about its own pixels and where they lie; a copy of it would contradict ours
_STRUCTURE = {254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 282, 283, 284, 296, 317}
_STRUCTURE |= {*range(320, 326), 330, 338, 339, 347, *range(512, 533), 34675}
#: how Pillow names values of 16 bits by their byte order; without one they are 5, 6 and 5 bits
_DEEP = re.compile(r"(L|LA|RGB|RGB[AXa]|CMYK);16[BLN]")
#: dots per inch from which on a file is damaged; formats hold no such number
_MOST_DPI = 1e6


@dataclass(frozen=True, eq=False)
class Picture:
    """What was read.

    Attributes:
        rgb: H x W x 3 uint8 in the file's own colour space, right way up.
        srgb: the same in sRGB, for models.
        alpha: the file's transparency, float32 H x W, or None.
        icc: the profile of ``rgb``; None for sRGB.
        exif: EXIF block without its orientation, which is applied, and without a TIFF's layout.
        dpi: resolution for printing.
        note: something the user should know, or None.
    """

    rgb: NDArray[np.uint8]
    srgb: NDArray[np.uint8]
    alpha: NDArray[np.float32] | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    note: str | None = None


def read_picture(source: str) -> Picture:
    """Read a picture from a path or stdin (``-``).

    Raises:
        ImageError: it cannot be read.
    """
    given: Any = sys.stdin.buffer.read() if source == "-" else source
    loaded = load_image(given)
    file: Any = io.BytesIO(given) if source == "-" else Path(source).expanduser()
    with open_header(file) as image:
        dpi, deep = _dpi(image), is_deep(image)
        rgb, icc = loaded.rgb, None
        if loaded.icc and image.mode in ("RGB", "RGBA") and not deep:
            own = np.array(ImageOps.exif_transpose(image).convert("RGB"))
            if (own != rgb).any():
                rgb, icc = own, loaded.icc
        exif = image.getexif()
        for tag in (_ORIENTATION, *_STRUCTURE):  # last: the image forgets them too
            exif.pop(tag, None)
    return Picture(
        rgb,
        loaded.rgb,
        loaded.alpha,
        icc,
        exif.tobytes() if len(exif) else None,
        dpi,
        "16 bits become 8" if deep else None,
    )


def is_deep(image: Image.Image) -> bool:
    """Whether the values of a file that is open but not read yet have 16 bits."""
    tiles = getattr(image, "tile", None)
    layout = tiles[0][3] if tiles else None
    if image.format == "PPM":  # (raw mode, largest value) where the values are not bytes
        return image.mode == "I" or (isinstance(layout, tuple) and layout[-1] in range(256, 65536))
    raw = layout[0] if isinstance(layout, tuple) else layout
    return image.mode.startswith("I;16") or bool(_DEEP.fullmatch(str(raw)))


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    """Return a file's resolution, or None where it states none that can be meant."""
    if image.format == "TIFF" and _X_RESOLUTION not in image.getexif():  # Pillow says 1 then
        return None
    try:
        x, y = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    fits = all(math.isfinite(value) and 0 < value < _MOST_DPI for value in (x, y))
    return (x, y) if fits else None


def encode_picture(rgb: NDArray[np.uint8], like: Picture, suffix: str) -> bytes:
    """Encode a repaired picture with the metadata and transparency of its original.

    Args:
        rgb: H x W x 3 uint8 in the colours of ``like.rgb``.
        like: the original.
        suffix: ``.png``, ``.webp`` and ``.tif`` keep every value, ``.jpg`` does not.

    Raises:
        OutputError: the format cannot hold it.
    """
    suffix = suffix.lower()
    if like.alpha is not None and suffix in (".jpg", ".jpeg"):
        raise OutputError(f"{suffix} has no transparency, which the picture has; use .png or .webp")
    alpha = None if like.alpha is None else quantise(like.alpha)
    if suffix == ".png":
        data = encode_rgb(rgb) if alpha is None else encode_rgba(np.dstack([rgb, alpha]))
        return _with_metadata(data, like)
    if suffix not in (".jpg", ".jpeg", ".webp", ".tif", ".tiff"):
        raise OutputError(f"{suffix or 'no suffix'} is not written; use .png, .webp, .tif or .jpg")
    options: dict[str, Any] = {"icc_profile": like.icc, "exif": like.exif, "dpi": like.dpi}
    options = {key: value for key, value in options.items() if value is not None}
    if suffix == ".webp":
        options |= {"format": "WEBP", "lossless": True, "exact": True, "method": 1}
    elif suffix in (".tif", ".tiff"):
        options |= {"format": "TIFF", "compression": "tiff_adobe_deflate"}
    else:
        options |= {"format": "JPEG", "quality": _QUALITY, "subsampling": 0}
    image = Image.fromarray(rgb if alpha is None else np.dstack([rgb, alpha]))
    buffer = io.BytesIO()
    try:
        image.save(buffer, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise OutputError(f"encoding as {suffix} failed ({error})") from error
    return buffer.getvalue()


def _with_metadata(png: bytes, like: Picture) -> bytes:
    """Put profile, EXIF and resolution between header and pixels; a profile takes sRGB's place."""
    head, rest = png[:_PNG_HEADER], png[_PNG_HEADER:]
    chunks = b""
    if like.icc is not None:
        chunks += _chunk(b"iCCP", b"icc\x00\x00" + zlib.compress(like.icc))
        rest = rest[_SRGB_CHUNK:]
    if like.dpi is not None:
        x, y = (round(value / 0.0254) for value in like.dpi)
        chunks += _chunk(b"pHYs", struct.pack(">IIB", x, y, 1))
    if like.exif is not None:
        chunks += _chunk(b"eXIf", like.exif.removeprefix(b"Exif\x00\x00"))
    return head + chunks + rest


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
