"""Pictures for people: checkerboards, overlays with the prompts drawn in, contact sheets.

Everything takes and returns uint8 RGB arrays; nothing needs more than OpenCV and Pillow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from zim.errors import ImageError

_U8 = NDArray[np.uint8]
Colour = tuple[int, int, int]

MATTE_COLOUR: Colour = (64, 160, 255)
POSITIVE_COLOUR: Colour = (40, 200, 80)
NEGATIVE_COLOUR: Colour = (235, 60, 60)
BOX_COLOUR: Colour = (255, 200, 40)

_LIGHT, _DARK = 255, 204
_STRIP = 256


def checkerboard(height: int, width: int, cell: int | None = None) -> _U8:
    """Return the grey squares that stand for transparency, H x W x 3 uint8.

    Args:
        height: in pixels.
        width: in pixels.
        cell: side of a square; by default about 1/40 of the longer side, at least 4.
    """
    cell = max(4, round(max(height, width) / 40)) if cell is None else max(1, cell)
    odd = (np.arange(height)[:, None] // cell + np.arange(width)[None] // cell) % 2
    grey = np.where(odd == 1, _DARK, _LIGHT).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def blend(front: _U8, behind: NDArray[Any], alpha: NDArray[np.floating[Any]]) -> _U8:
    """Return ``alpha * front + (1 - alpha) * behind`` rounded to 8 bits.

    Args:
        front: H x W x 3 uint8.
        behind: H x W x 3, or one colour of 3 values in 0 to 255.
        alpha: H x W in [0, 1].
    """
    mixed = np.subtract(front, behind, dtype=np.float32)
    mixed *= np.clip(alpha, 0.0, 1.0, dtype=np.float32)[..., None]
    mixed += behind
    mixed += np.float32(0.5)
    return mixed.astype(np.uint8)


def over_checkerboard(rgba: _U8, cell: int | None = None) -> _U8:
    """Show a cut-out (H x W x 4 uint8, straight alpha) on a checkerboard, H x W x 3 uint8."""
    if rgba.ndim != 3 or rgba.shape[2] != 4 or rgba.dtype != np.uint8:
        raise ImageError(
            f"a cut-out of shape {rgba.shape} and type {rgba.dtype}; expected H x W x 4 uint8"
        )
    out = checkerboard(rgba.shape[0], rgba.shape[1], cell)
    for top in range(0, len(out), _STRIP):
        rows = slice(top, top + _STRIP)
        alpha = rgba[rows, :, 3] * np.float32(1 / 255)
        out[rows] = blend(rgba[rows, :, :3], out[rows], alpha)
    return out


def overlay(
    rgb: _U8,
    alpha: NDArray[np.floating[Any]],
    *,
    points: Any = None,
    labels: Any = None,
    boxes: Any = None,
    scribbles: Any = None,
    colour: Colour = MATTE_COLOUR,
) -> _U8:
    """Show a matte in colour on its picture, with the prompts that led to it.

    The object keeps its brightness and takes on ``colour``; the rest is dark with a faint
    checkerboard, so half-transparent parts can be told from dark ones. A line runs along 0.5.

    Args:
        rgb: the picture, H x W x 3 uint8.
        alpha: the matte, H x W in [0, 1].
        points: see :func:`draw_prompts`, as are ``labels``, ``boxes`` and ``scribbles``.
        labels: of the points.
        boxes: one box or several.
        scribbles: strokes.
        colour: of the matte.

    Raises:
        ImageError: picture and matte differ in size.
    """
    if alpha.shape != rgb.shape[:2]:
        raise ImageError(f"the matte is {alpha.shape} but the picture is {rgb.shape[:2]}")
    out = checkerboard(*alpha.shape)
    tint = np.array(colour, dtype=np.float32)
    for top in range(0, len(out), _STRIP):
        rows = slice(top, top + _STRIP)
        inside = (rgb[rows] * np.float32(0.65) + tint * np.float32(0.35)).astype(np.uint8)
        behind = rgb[rows] * np.float32(0.30) + out[rows] * np.float32(0.10)
        out[rows] = blend(inside, behind, alpha[rows])
    solid = (alpha > 0.5).astype(np.uint8)
    outline, _ = cv2.findContours(solid, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    thin = (_stroke(out) + 1) // 2  # or it would hide the hair it runs along
    cv2.drawContours(out, outline, -1, colour, thin, cv2.LINE_AA)
    return draw_prompts(out, points=points, labels=labels, boxes=boxes, scribbles=scribbles)


def draw_prompts(
    rgb: _U8,
    *,
    points: Any = None,
    labels: Any = None,
    boxes: Any = None,
    scribbles: Any = None,
) -> _U8:
    """Draw prompts on a copy of a picture, in sizes that suit it.

    Args:
        rgb: H x W x 3 uint8.
        points: N x 2 pixels (x, y), or rows (x, y, label).
        labels: N, 1 object (green), 0 background (red); without them points are object.
        boxes: x0, y0, x1, y1, or N x 4.
        scribbles: a stroke N x 2, or a list of strokes.

    Returns:
        H x W x 3 uint8.
    """
    out = np.ascontiguousarray(rgb).copy()
    thick = _stroke(out)
    if boxes is not None:
        for x0, y0, x1, y1 in _rows(boxes, 4):
            first, last = (round(x0), round(y0)), (round(x1), round(y1))
            cv2.rectangle(out, first, last, (0, 0, 0), thick * 2)
            cv2.rectangle(out, first, last, BOX_COLOUR, thick)
    if scribbles is not None:
        for stroke in _strokes(scribbles):
            line = np.round(stroke).astype(np.int32)[:, None]
            cv2.polylines(out, [line], False, (255, 255, 255), thick * 4, cv2.LINE_AA)
            cv2.polylines(out, [line], False, POSITIVE_COLOUR, thick * 2, cv2.LINE_AA)
    if points is not None and np.size(points):
        spots = _rows(points, np.shape(points)[-1] if np.ndim(points) else 0)
        if labels is None:
            labels = [spot[2] if len(spot) > 2 else 1 for spot in spots]
        kinds = np.ravel(labels)
        if len(kinds) != len(spots):
            raise ImageError(f"{len(spots)} points but {len(kinds)} labels; give one per point")
        for spot, label in zip(spots, kinds, strict=True):
            centre = (round(spot[0]), round(spot[1]))
            fill = POSITIVE_COLOUR if label == 1 else NEGATIVE_COLOUR
            cv2.circle(out, centre, thick * 4 + 1, (255, 255, 255), -1, cv2.LINE_AA)
            cv2.circle(out, centre, thick * 3, fill, -1, cv2.LINE_AA)
    return out


def contact_sheet(
    rows: Sequence[Sequence[tuple[NDArray[Any], str]]], height: int = 240, gap: int = 8
) -> _U8:
    """Lay out pictures with captions, for looking at many results at once.

    Args:
        rows: each row a list of (picture H x W x 3 or H x W x 4 uint8, or a matte H x W in [0, 1],
            caption). Cut-outs are shown on a checkerboard.
        height: of every picture on the sheet, in pixels; proportions are kept.
        gap: space between pictures, in pixels.

    Returns:
        The sheet, H x W x 3 uint8 on white.

    Raises:
        ImageError: there is nothing to lay out.
    """
    if not any(rows):
        raise ImageError("a contact sheet of no pictures; give at least one row with one")
    text_height = max(12, height // 15)
    font = ImageFont.load_default(text_height)
    lines = [[(_thumbnail(picture, height), caption) for picture, caption in row] for row in rows]
    wide = max(sum(t.shape[1] + gap for t, _ in line) + gap for line in lines)
    step = height + text_height * 3 // 2 + gap
    sheet = Image.new("RGB", (wide, gap + step * len(lines)), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for k, line in enumerate(lines):
        left, top = gap, gap + k * step
        for thumbnail, caption in line:
            sheet.paste(Image.fromarray(thumbnail), (left, top))
            fitting = _fit(caption, font, thumbnail.shape[1])
            pen.text((left, top + height + 2), fitting, fill=(30, 30, 30), font=font)
            left += thumbnail.shape[1] + gap
    return np.array(sheet)


def _thumbnail(picture: NDArray[Any], height: int) -> _U8:
    if picture.ndim == 2:
        grey = np.clip(picture, 0, 1) * 255 if picture.dtype.kind in "fb" else picture
        picture = np.repeat(np.round(grey).astype(np.uint8)[..., None], 3, axis=2)
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    method = cv2.INTER_AREA if height < picture.shape[0] else cv2.INTER_CUBIC
    # The squares of the checkerboard are made for the size they are seen at.
    small = np.asarray(cv2.resize(picture, (width, height), interpolation=method), dtype=np.uint8)
    return over_checkerboard(small) if small.shape[2] == 4 else small


def _fit(caption: str, font: Any, width: int) -> str:
    """Shorten a caption to the width of its picture."""
    if font.getlength(caption) <= width:
        return caption
    while caption and font.getlength(caption + "...") > width:
        caption = caption[:-1]
    return caption + "..."


def _stroke(picture: NDArray[Any]) -> int:
    return max(1, round(max(picture.shape[:2]) / 400))


def _rows(values: Any, columns: int) -> list[list[float]]:
    table = np.atleast_2d(np.asarray(values, dtype=float))
    if table.ndim != 2 or table.shape[1] != columns or columns < 2 or not np.isfinite(table).all():
        raise ImageError(f"cannot draw {values!r}; expected rows of {max(columns, 2)} numbers")
    return table.tolist()


def _strokes(scribbles: Any) -> list[NDArray[Any]]:
    single = isinstance(scribbles, np.ndarray) and scribbles.ndim == 2
    if not single and len(scribbles) and np.ndim(scribbles[0]) == 1:
        single = True
    return [
        np.asarray(s, dtype=float).reshape(-1, 2) for s in ([scribbles] if single else scribbles)
    ]
