"""The one function: a picture and a matte in, the picture without the object out."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zim.errors import ConfigError, ImageError, PromptError
from zim.images import load_image, read_mask
from zim.result import Matte
from zim.viz import blend
from zim_inpaint.backends import Filler, get_filler
from zim_inpaint.cover import COVER, covered, grown, growth, paste_weight
from zim_inpaint.window import Window, around, enlarge, shrink, work_shape

Mode = Literal["remove", "fill", "replace"]
MODES: tuple[str, ...] = ("remove", "fill", "replace")

#: a matte that covers more leaves nothing to continue
_FULL = 0.95
#: the ramp ends so many times ``feather`` away from the mask
_RAMP = 3
#: above these shares of the window, and of the picture's rim, results get worse
_LARGE, _AT_THE_RIM = 0.4, 0.25

_U8 = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class InpaintResult:
    """A repainted picture and how it came about.

    Attributes:
        image: H x W x 3 uint8 RGB, the result.
        mask: H x W bool, what was repainted; the object's background in mode ``replace``.
        weight: H x W float32 in [0, 1], how much of each pixel is new; 0 means untouched.
        fill: H x W x 3 uint8, what the filler painted (or the new background), before pasting.
        meta: parameters, sizes and seconds, ready for JSON.
        notes: warnings for a person, one line each.
    """

    image: _U8
    mask: NDArray[np.bool_]
    weight: NDArray[np.float32]
    fill: _U8
    meta: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def inpaint(
    image: Any,
    alpha: Any,
    mode: Mode = "remove",
    backend: str | Filler = "auto",
    *,
    text: str | None = None,
    negative: str | None = None,
    background: Any = None,
    cover: float = COVER,
    grow: int | Literal["auto"] = "auto",
    feather: float = 2.0,
    context: float = 0.5,
    work_size: int | None = None,
    seed: int = 0,
    **options: Any,
) -> InpaintResult:
    """Remove an object, paint something in its place, or replace what is behind it.

    Args:
        image: anything :func:`zim.images.load_image` takes.
        alpha: the object's matte, H x W float in [0, 1], bool or uint8, or a file.
        mode: ``remove`` continues the surroundings; ``fill`` paints what ``text`` says where the
            object was; ``replace`` keeps the object and changes the rest, by ``text`` or to
            ``background``.
        backend: one of :data:`zim_inpaint.backends.NAMES`, or an object with the same ``fill``.
        text: what to paint; needed by ``fill`` and by ``replace`` without ``background``.
        negative: what not to paint.
        background: for ``replace``: a colour or picture, see :meth:`zim.result.Matte.composite`.
        cover: alpha above which a pixel shows the object (below 1 minus it, in ``replace``).
        grow: pixels the mask grows by; ``auto`` follows the width of the matte's soft band.
        feather: width of the ramp outside the mask in pixels, 0 for a hard edge.
        context: surroundings the filler sees, as a share of the hole's longer side.
        work_size: longest side the filler works at; its own if None.
        seed: the same seed gives the same picture.
        **options: for the backend, see :func:`zim_inpaint.backends.get_filler`.

    Returns:
        The result at the picture's size. Pixels of weight 0 are bit-identical to the input.

    Raises:
        PromptError: the matte is empty or covers everything, or words are missing.
        ImageError: matte and picture differ in size, or cannot be read.
        ConfigError: a parameter is out of range, or the backend does not take words.
        CheckpointError: the backend's weights are missing.
    """
    rgb = load_image(image).rgb
    matte = _matte(alpha, rgb.shape[:2])
    _check(mode, text, background, cover, grow, feather, context, work_size)
    start = time.perf_counter()
    meta: dict[str, Any] = {
        "mode": mode,
        "cover": cover,
        "feather": feather,
        "context": context,
        "seed": seed,
    }
    if text:
        meta["text"] = text
    if negative:
        meta["negative"] = negative
    if mode == "replace" and background is not None:
        result = _on_background(rgb, matte, background, cover, meta)
        meta["seconds"] = round(time.perf_counter() - start, 4)
        return result
    hole = _hole(matte, mode, cover, grow, meta)
    filler = backend if isinstance(backend, Filler) else get_filler(backend, **options)
    if mode != "remove" and not filler.takes_text:
        raise ConfigError(
            f"mode {mode!r} paints what words say, and the backend {filler.name!r} takes none; "
            "use the backend 'diffusers' with a model"
            + (", or give a background" if mode == "replace" else "")
        )
    window = around(hole, context, _RAMP * feather if mode != "replace" else 0)
    fill = rgb.copy()
    part, masked = rgb[window.rows, window.columns], hole[window.rows, window.columns]
    shape = work_shape(
        window, work_size or filler.side, multiple=filler.multiple, enlarge=filler.enlarges
    )
    small, small_mask = shrink(part, masked, shape)
    if small_mask.all():
        raise PromptError("the matte covers everything; there is nothing to continue from")
    painted = filler.fill(small, small_mask, seed=seed, text=text, negative=negative)
    fill[window.rows, window.columns] = enlarge(painted, window)
    if mode == "replace":
        out, weight = _behind(rgb, matte, hole, fill)
    else:
        out, weight = _pasted(rgb, hole, fill, feather, window)
    meta |= {
        "backend": filler.name,
        "window": [window.left, window.top, window.right, window.bottom],
        "work_shape": list(shape),
        "hole_share": round(float(hole.mean()), 6),
        "seconds": round(time.perf_counter() - start, 4),
    }
    return InpaintResult(out, hole, weight, fill, meta, _notes(mode, hole, masked, filler))


def _matte(alpha: Any, size: tuple[int, ...]) -> NDArray[np.float32]:
    matte = read_mask(alpha)
    if matte.shape != size:
        raise ImageError(
            f"the matte is {matte.shape[1]} x {matte.shape[0]} but the picture is "
            f"{size[1]} x {size[0]}; expected the same size, so scale one of them"
        )
    return matte


def _check(
    mode: str,
    text: str | None,
    background: Any,
    cover: float,
    grow: int | str,
    feather: float,
    context: float,
    work_size: int | None,
) -> None:
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r} is unknown; expected one of {', '.join(MODES)}")
    if mode == "fill" and not (text or "").strip():
        raise PromptError("mode 'fill' needs words for what to paint; give text")
    if mode == "replace" and background is None and not (text or "").strip():
        raise PromptError("mode 'replace' needs a new background; give background or text")
    if background is not None and mode != "replace":
        raise ConfigError(f"a background is for mode 'replace', not {mode!r}")
    if not 0 < cover < 0.5:
        raise ConfigError(f"cover is {cover:g}; expected more than 0 and less than 0.5")
    if grow != "auto" and (isinstance(grow, str) or grow < 0):
        raise ConfigError(f"grow is {grow!r}; expected 'auto' or at least 0 pixels")
    if not (0 <= feather < math.inf and 0 <= context < math.inf):
        raise ConfigError(
            f"feather is {feather:g} and context {context:g}; expected numbers of at least 0"
        )
    if work_size is not None and work_size < 32:
        raise ConfigError(f"work_size is {work_size}; expected at least 32 pixels")


def _hole(
    matte: NDArray[np.float32],
    mode: str,
    cover: float,
    grow: int | Literal["auto"],
    meta: dict[str, Any],
) -> NDArray[np.bool_]:
    """Return what is repainted, and refuse what cannot be."""
    if not (matte > cover).any():
        raise PromptError(
            f"the matte is empty: nothing above {cover:g}; choose another point or draw a box"
        )
    if mode == "replace":
        if matte.min() >= 1 - cover:
            raise PromptError("the matte covers the whole picture; there is nothing behind it")
        return np.asarray(matte < 1 - cover)
    seen = covered(matte, cover)
    if not seen.any():
        raise PromptError("the matte holds nothing but specks; choose another point or draw a box")
    radius = growth(matte, cover) if grow == "auto" else int(grow)
    meta["grow"] = radius
    hole = grown(seen, radius)
    share = float(hole.mean())
    if share > _FULL:
        raise PromptError(
            f"the matte covers {share:.0%} of the picture; too little is left to continue from"
        )
    return hole


def _pasted(
    rgb: _U8, hole: NDArray[np.bool_], fill: _U8, feather: float, window: Window
) -> tuple[_U8, NDArray[np.float32]]:
    weight = np.zeros(hole.shape, np.float32)
    out = rgb.copy()
    rows, columns = window.rows, window.columns
    weight[rows, columns] = paste_weight(hole[rows, columns], feather)
    out[rows, columns] = blend(fill[rows, columns], rgb[rows, columns], weight[rows, columns])
    return out, weight


def _behind(
    rgb: _U8, matte: NDArray[np.float32], hole: NDArray[np.bool_], behind: _U8
) -> tuple[_U8, NDArray[np.float32]]:
    """Put the object, in its own colours, in front of what was painted."""
    solid = np.where(hole, matte, np.float32(1))
    out = blend(Matte(rgb, solid).foreground(), behind, solid)
    out[~hole] = rgb[~hole]
    return out, (1 - solid).astype(np.float32)


def _on_background(
    rgb: _U8, matte: NDArray[np.float32], background: Any, cover: float, meta: dict[str, Any]
) -> InpaintResult:
    hole = _hole(matte, "replace", cover, 0, meta)
    # Composite a blank first: it is the background scaled to the picture.
    behind = Matte(rgb, np.zeros_like(matte)).composite(background, "none")
    out, weight = _behind(rgb, matte, hole, behind)
    meta |= {"backend": None, "hole_share": round(float(hole.mean()), 6)}
    return InpaintResult(out, hole, weight, behind, meta)


def _notes(
    mode: str, hole: NDArray[np.bool_], inside: NDArray[np.bool_], filler: Filler
) -> tuple[str, ...]:
    notes: list[str] = []
    if mode == "remove":
        if filler.name == "telea":
            notes.append("telea only smears; install the extra 'inpaint' for patchmatch")
        if inside.mean() > _LARGE:
            notes.append(f"the hole is {inside.mean():.0%} of what surrounds it; expect guesswork")
        rim = np.concatenate([hole[0], hole[-1], hole[:, 0], hole[:, -1]])
        if rim.mean() > _AT_THE_RIM:
            notes.append(f"the hole touches {rim.mean():.0%} of the picture's edge")
    return tuple(notes)
