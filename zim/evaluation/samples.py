"""One form for every data set: a list of samples, and as JSON lines a manifest.

A manifest's line is ``{"image": path, "alpha": path, "key": name, "group": name, "prompt": path or
{"point": [[x, y, label], ...], "bbox": [x0, y0, x1, y1]}}``; paths are relative to the manifest,
only image and alpha are required (without a key, alpha's path is it), and a prompt needs only what
is asked for. Prompt files are MicroMat-3K's.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np

from zim.errors import ImageError, PromptError, reason
from zim.images import load_image, read_alpha
from zim.prompt_json import with_usual_names
from zim.prompts import Prompt, mask_box

KINDS = ("point", "box")
#: alpha above which a pixel belongs to our box, and above which a click may lie
BOX_ALPHA, CLICK_ALPHA = 0.1, 0.9


@dataclass(frozen=True)
class Sample:
    """What is scored once per model and prompt.

    Attributes:
        key: unique in the data set.
        image: file.
        alpha: file of the true matte.
        group: column group of the tables (``fine``, ``coarse``, ``all``).
        prompt: file, or its content; None to draw prompts from the truth.
        seg: file of the segmentation label where the set has one.
        error: why its entry in the data set's list cannot be used.
    """

    key: str
    image: Path
    alpha: Path
    group: str = "all"
    prompt: Path | dict[str, Any] | None = None
    seg: Path | None = None
    error: str | None = None

    def stamp(self) -> str:
        """Tell whether files changed: by their places, sizes and times, and the prompt."""
        parts: list[Any] = [self.prompt if isinstance(self.prompt, dict) else None]
        for path in (self.image, self.alpha, self.prompt):
            if isinstance(path, Path):
                parts.append([str(path.resolve()), *(_state(path) or ())])
        return f"{zlib.crc32(json.dumps(parts, sort_keys=True).encode()):08x}"


@dataclass(frozen=True, eq=False)
class Loaded:
    """A sample in memory: uint8 H x W x 3, float32 H x W in [0, 1], and its prompts by kind.

    ``problems`` says of the other kinds that were wanted why they cannot be asked.
    """

    rgb: np.ndarray
    alpha: np.ndarray
    prompts: dict[str, Prompt] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def load_sample(sample: Sample, kinds: tuple[str, ...], seed: int, max_side: int | None) -> Loaded:
    """Read a sample and its prompts.

    Args:
        sample: which.
        kinds: some of ``point`` and ``box``.
        seed: of drawn clicks.
        max_side: larger pictures are scaled down, prompts with them; None for none.

    Raises:
        ZimError: a file is missing or damaged, or sizes differ; such a sample must be left out,
            never scored.
    """
    if sample.error is not None:
        raise ImageError(sample.error)
    rgb = _rgb(sample.image, _state(sample.image))
    alpha = read_alpha(sample.alpha)
    if alpha.shape != rgb.shape[:2]:
        raise ImageError(
            f"{sample.alpha.name} is {alpha.shape[1]} x {alpha.shape[0]} and its picture "
            f"{rgb.shape[1]} x {rgb.shape[0]}; expected the same size"
        )
    if not (alpha > BOX_ALPHA).any():
        if 0 < alpha.max() <= np.float32(1 / 255):
            raise ImageError(
                f"{sample.alpha.name} goes from 0 to 1 of 255, which is no matte; multiply a mask "
                "of zeros and ones by 255"
            )
        raise ImageError(f"{sample.alpha.name} is empty: there is nothing to ask for")
    whole = (alpha.shape[0], alpha.shape[1])
    scale = 1.0 if max_side is None else min(1.0, max_side / max(alpha.shape))
    if scale < 1:
        size = (
            max(1, round(alpha.shape[1] * scale)),
            max(1, round(alpha.shape[0] * scale)),
        )
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        alpha = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA).clip(0, 1)
        if not (alpha > BOX_ALPHA).any():
            raise ImageError(f"{sample.alpha.name}: nothing is left of it at {max_side} pixels")
    loaded = Loaded(rgb, alpha)
    for kind in kinds:
        try:
            loaded.prompts[kind] = _prompt(sample, kind, alpha, whole, seed)
        except PromptError as error:
            loaded.problems[kind] = str(error)
    return loaded


def _prompt(
    sample: Sample, kind: str, alpha: np.ndarray, whole: tuple[int, int], seed: int
) -> Prompt:
    """Return one kind of prompt, in pixels of ``alpha``; ``whole`` is the size of its file."""
    if sample.prompt is None:
        size = (alpha.shape[0], alpha.shape[1])
        if kind == "box":
            return Prompt.create(size, box=mask_box(alpha, BOX_ALPHA))
        return Prompt.create(size, points=[(*inner_point(alpha, sample.key, seed), 1)])
    given = _given(sample.prompt, (kind,))
    factor = np.array([alpha.shape[1] / whole[1], alpha.shape[0] / whole[0]], np.float32)
    if kind == "box":
        box = Prompt.create(whole, box=given["bbox"]).box
        assert box is not None
        return Prompt.create((alpha.shape[0], alpha.shape[1]), box=box * np.tile(factor, 2))
    rows = [row for row in given["point"] if row[2] >= 0]
    if not any(label == 1 for *_, label in rows):
        raise PromptError(f"{sample.key}: its prompt has no positive point")
    asked = Prompt.create(whole, points=rows)
    # pixel centres are at integers; near the rim a smaller picture's last centre is nearest
    last = np.array([alpha.shape[1] - 1, alpha.shape[0] - 1], np.float32)
    points = np.clip((asked.points + 0.5) * factor - 0.5, 0, last).astype(np.float32)
    return Prompt.create((alpha.shape[0], alpha.shape[1]), points=points, labels=asked.labels)


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=2)
def _rgb(path: Path, state: tuple[int, int] | None) -> np.ndarray:
    """Read a picture; the objects of one come one after the other. Nobody writes into it."""
    del state  # a file that changed is another one
    return load_image(path).rgb


def inner_point(alpha: np.ndarray, name: str, seed: int) -> np.ndarray:
    """Draw a click well inside the object: float32 (x, y), the same for the same name and seed.

    It lies where alpha > 0.9 (or 0.9 of the largest alpha) and the distance to the rim is at least
    90 % of the largest.
    """
    solid = (alpha > min(CLICK_ALPHA, CLICK_ALPHA * float(alpha.max()))).astype(np.uint8)
    # The frame's rim counts as the object's rim, so padding comes before the transform.
    padded = cv2.copyMakeBorder(solid, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    rows, columns = np.nonzero(distance >= 0.9 * distance.max())
    chosen = np.random.default_rng([seed, zlib.crc32(name.encode())]).integers(len(rows))
    return np.array([columns[chosen], rows[chosen]], np.float32)


def _click(row: Any) -> tuple[float, float, float]:
    if len(row) not in (2, 3):
        raise ValueError(f"{len(row)} numbers in a click")
    x, y, label = (*row, 1)[:3]
    return float(x), float(y), float(label)


def _given(source: Path | dict[str, Any], kinds: tuple[str, ...]) -> dict[str, Any]:
    """Read the kinds of a prompt that are asked for; the picture checks their places later."""
    if isinstance(source, Path):
        try:
            data = json.loads(source.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise PromptError(f"{source.name}: not a prompt file ({reason(error)})") from error
        name = source.name
    else:
        data, name = source, "the manifest's prompt"
    given: dict[str, Any] = {}
    if isinstance(data, dict):
        data = with_usual_names(cast("dict[str, Any]", data), name)
    try:
        if "box" in kinds:
            given["bbox"] = [float(v) for v in data["bbox"]]
        if "point" in kinds:
            given["point"] = [_click(row) for row in data["point"]]
    except (KeyError, TypeError, ValueError) as error:
        raise PromptError(
            f'{name}: expected {{"point": [[x, y, label], ...], "bbox": [x0, y0, x1, y1]}} '
            f"({reason(error)})"
        ) from error
    if len(given.get("bbox", [0] * 4)) != 4:
        raise PromptError(f"{name}: {len(given['bbox'])} numbers in bbox; expected x0, y0, x1, y1")
    return given
