"""Encoded pictures to arrays: what Pillow makes of a file, in the depth the file has.

The way from there to 8-bit RGB is short and lives in :mod:`zim.images`, where users start.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from zim.errors import ImageError, one_line

_EXIF_ORIENTATION = 0x0112
#: tags of TIFF: bits of each colour, 0 where grey begins at white, 2 where colours lie in planes
_BITS, _PHOTOMETRIC, _PLANES = 258, 262, 284
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
_HEADER_LOCK = threading.Lock()


@dataclass(frozen=True, eq=False)
class Pixels:
    """Decoded values in their own depth: H x W or H x W x 3, uint8, uint16 or float in [0, 1]."""

    colour: NDArray[Any]
    alpha: NDArray[Any] | None = None
    icc: bytes | None = None
    name: str | None = None
    orientation: int = 1


def decode_file(file: Any, where: str, name: str | None, limit: int) -> Pixels:
    """Decode an open, seekable binary file.

    Args:
        file: positioned at its start.
        where: what to call it in messages.
        name: its file name, if it has one.
        limit: pictures with more pixels are refused from their header.

    Raises:
        ImageError: see :func:`zim.images.load_image`.
    """
    try:
        image = open_header(file)
    except UnidentifiedImageError as error:
        file.seek(0)
        head = file.read(12)
        if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
            message = "is HEIC, which needs another library; convert it to JPEG or PNG"
        else:
            message = "is not an image that can be read; expected PNG, JPEG, TIFF, WebP or the like"
        raise ImageError(f"{where} {message}") from error
    except Exception as error:  # decoders raise whatever their format's code runs into
        raise ImageError(f"{where} is damaged ({one_line(error)})") from error
    if image.format == "EPS":
        raise ImageError(f"{where} is a PostScript program; convert it to PNG")
    deep = _is_deep(image)
    pixels = decode_pillow(image, where, name, limit)
    return _deepen(file, pixels) if deep else pixels


def open_header(file: Any) -> ImageFile.ImageFile:
    """Open a file or path with Pillow, whatever its size; nothing of its pixels is read yet."""
    with _quiet_header():
        return Image.open(file)


@contextmanager
def _quiet_header() -> Iterator[None]:
    """Let Pillow read a header without its own size limit (ours follows) and without warnings.

    Both are global settings, so the lock keeps threads that load pictures apart.
    """
    with _HEADER_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def decode_pillow(image: Image.Image, where: str, name: str | None, limit: int) -> Pixels:
    """Decode a PIL image, which may be open but not read yet; arguments as above."""
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{where} has no pixels ({width} x {height})")
    if width * height > limit:
        raise ImageError(
            f"{where} is {width} x {height}, {width * height / 1e6:.0f} megapixels; expected at "
            f"most {limit / 1e6:.0f}, so scale it down first"
        )
    raw = any(tile[0] == "raw" for tile in getattr(image, "tile", None) or ())
    if raw and _in_planes(image) and 16 in _tag(image, _BITS):  # Pillow takes 8 of the 16
        raise ImageError(
            f"{where} is a TIFF of 16 bits stored plane by plane; save it with interleaved colours"
        )
    try:
        image.load()
        orientation = _orientation(image)
        icc = image.info.get("icc_profile") or None
        colour, alpha = _split(image, icc)
    except ImageError as error:
        raise ImageError(f"{where} {error}") from error
    except Exception as error:  # decoders raise whatever their format's code runs into
        raise ImageError(
            f"{where} cannot be decoded, it may be damaged or cut short ({one_line(error)})"
        ) from error
    colour = _turn(colour, orientation)
    alpha = None if alpha is None else _turn(alpha, orientation)
    return Pixels(colour, alpha, icc, name, orientation)


def _split(image: Image.Image, icc: bytes | None) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return colour and alpha of a decoded image."""
    mode = image.mode
    transparent = image.info.get("transparency")
    if mode.startswith("I;16") or mode in ("I", "F"):
        grey = _deep_grey(image)
        if isinstance(transparent, int) and mode.startswith("I;16"):
            # a PNG may declare one grey value transparent
            return grey, np.where(grey == transparent, 0, 255).astype(np.uint8)
        return grey, None
    if image.has_transparency_data:
        # Profiles and conversions see colour only; premultiplied modes become straight here.
        rgba = image.convert("RGBA")
        alpha = np.array(rgba.getchannel("A"))
        return np.array(_to_srgb(rgba.convert("RGB"), icc)), alpha
    if mode == "L" and icc is None:
        return np.array(image), None
    if mode in ("P", "1"):
        image = image.convert("RGB")
    return np.array(_to_srgb(image, icc)), None


def _deep_grey(image: Image.Image) -> NDArray[Any]:
    """Grey of more than 8 bits as uint16, or as float in [0, 1]."""
    values = np.array(image)
    if image.mode.startswith("I;16"):
        values = values.astype(np.uint16)
        if _tag(image, _BITS) == (12,):
            values = (values.astype(np.uint32) * 65535 // 4095).astype(np.uint16)
        # which Pillow turns round in 8 bits only
        return np.uint16(65535) - values if _tag(image, _PHOTOMETRIC) == (0,) else values
    if not np.isfinite(values).all():
        raise ImageError("has NaN or infinite values")
    low, high = float(values.min()), float(values.max())
    if image.mode == "I" and image.format == "PNG" and low >= 0 and high <= 65535:
        return values.astype(np.uint16)  # which PNGs of 16 bits were to older versions of Pillow
    # Floats and integers of 32 bits come in three habits; the range tells them apart.
    for top in (1.0, 255.0, 65535.0):
        if low >= 0 and high <= top:
            return (values / np.float32(top)).astype(np.float32)
    raise ImageError(f"has values from {low} to {high}; expected 0 to 1, 255 or 65535")


def _to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """Apply the colour profile; a profile that cannot be used is passed over."""
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    if icc is not None:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            # sRGB to sRGB would cost time and rounding for nothing.
            if not ImageCms.getProfileDescription(profile).strip().lower().startswith("srgb"):
                srgb = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
                if converted is not None:
                    return converted
        except (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError):
            pass
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        with _quiet_header():
            value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged metadata must not cost the picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turn(x: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo an EXIF orientation (1 to 8): 5 to 8 are transposed first, then mirrored."""
    if orientation >= 5:
        x = x.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        x = x[::-1]
    if orientation in (2, 3, 6, 7):
        x = x[:, ::-1]
    return np.ascontiguousarray(x)


def _is_deep(image: Image.Image) -> bool:
    """Whether Pillow is about to cut 16-bit colour down to its upper 8 bits."""
    if image.format not in ("PNG", "TIFF") or "transparency" in image.info:
        return False
    if image.format == "TIFF" and _orientation(image) != 1:
        return False  # the two libraries turn such files at different moments
    if _in_planes(image):
        return False  # OpenCV takes the planes for interleaved colours
    tiles = getattr(image, "tile", None)
    layout = tiles[0][3] if tiles else None
    raw = layout[0] if isinstance(layout, tuple) else layout
    return isinstance(raw, str) and raw.startswith(("RGB;16", "RGBX;16", "RGBA;16", "LA;16"))


def _in_planes(image: Image.Image) -> bool:
    """Whether a TIFF stores its colours one after the other."""
    return len(image.getbands()) > 1 and _tag(image, _PLANES) == (2,)


def _tag(image: Image.Image, number: int) -> tuple[Any, ...]:
    """Return the values of a TIFF's tag; empty where there is none, or it is no TIFF."""
    value = getattr(image, "tag_v2", {}).get(number, ())
    return value if isinstance(value, tuple) else (value,)


def _deepen(file: Any, pixels: Pixels) -> Pixels:
    """Read 16-bit colour again in full depth; Pillow has found the file sound."""
    file.seek(0)
    decoded = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
        return pixels
    decoded = _turn(decoded, pixels.orientation)
    if decoded.shape[:2] != pixels.colour.shape[:2] or decoded.shape[2] not in (3, 4):
        return pixels
    colour: NDArray[Any] = np.ascontiguousarray(decoded[..., 2::-1])
    alpha = pixels.alpha
    if alpha is not None and decoded.shape[2] == 4:
        alpha = np.ascontiguousarray(decoded[..., 3])
    if pixels.icc is not None:
        colour = np.array(_to_srgb(Image.fromarray(to_uint8(colour)), pixels.icc))
    return replace(pixels, colour=colour, alpha=alpha)


def to_uint8(x: NDArray[Any]) -> NDArray[np.uint8]:
    """Round uint16, or float in [0, 1], to 8 bits; 8-bit values are returned as they are."""
    if x.dtype == np.uint8:
        return x
    # Rows at a time, so that no full-size temporary of a wider type is needed.
    out = np.empty(x.shape, dtype=np.uint8)
    for top in range(0, x.shape[0], 256):
        part = x[top : top + 256]
        if x.dtype == np.uint16:
            # 65535 / 255 = 257; adding half of it rounds
            out[top : top + 256] = (part.astype(np.uint32) + 128) // 257
        else:
            out[top : top + 256] = part * x.dtype.type(255) + x.dtype.type(0.5)
    return out
