"""Between the command line and the library: open a picture once, cut many objects out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.api import best_matte, load
from zim.commands.prompt_flags import ObjectPrompt
from zim.errors import PromptError
from zim.images import load_image
from zim.predictor import ZimPredictor
from zim.prompts import Prompt
from zim.result import Matte


class Session:
    """One model, one picture at a time."""

    def __init__(self, model: str, device: str, dtype: str) -> None:
        """Load the model.

        Raises:
            ZimError: the model, device or type is unknown, or its weights are missing.
        """
        self._predictor = ZimPredictor(load(model, device=device, dtype=dtype))
        self._rgb: NDArray[np.uint8] | None = None

    def read(self, source: str) -> None:
        """Read the picture that all following calls are about; ``-`` is stdin.

        Raises:
            ImageError: it cannot be read.
        """
        self._rgb = None
        self._rgb = load_image(source).rgb

    def encode(self) -> None:
        """Run the image encoder on the picture."""
        self._predictor.set_image(self._picture())

    def cut(self, asked: ObjectPrompt, *, candidates: int = 1) -> list[Matte]:
        """Cut one object out of the picture.

        Args:
            asked: what was said about the object.
            candidates: 1 for the answer, 3 for all alternatives, best score first.

        Raises:
            PromptError: the prompt is malformed or outside the picture.
        """
        prompt = self._prompt(asked)
        if candidates == 1:
            return [best_matte(self._predictor, prompt)]
        mattes, scores, low_res = self._predictor.predict_batch([prompt], multimask_output=True)
        order = np.argsort(-scores[0])[:candidates]
        return [
            Matte(
                image=self._picture(),
                alpha=mattes[0, i],
                score=float(scores[0, i]),
                low_res=low_res[0, i],
            )
            for i in order
        ]

    def _picture(self) -> NDArray[np.uint8]:
        if self._rgb is None:
            raise PromptError("no picture is open; read one first")
        return self._rgb

    def _prompt(self, asked: ObjectPrompt) -> Prompt:
        height, width = self._picture().shape[:2]
        size = (height, width)
        return Prompt.create(
            size,
            points=asked.points or None,
            box=asked.box,
            scribble=None if asked.scribble is None else _scribble(asked.scribble, size),
            mask=None if asked.mask is None else _mask(asked.mask, size),
        )


def _scribble(file: str, size: tuple[int, int]) -> Any:
    """Read strokes: JSON polylines as they are, a painted picture as H x W in [0, 1]."""
    if Path(file).suffix.lower() != ".json":
        return _painted(file, size, cv2.INTER_NEAREST)
    try:
        strokes = json.loads(Path(file).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PromptError(f"{file}: not JSON ({error})") from error
    if not isinstance(strokes, list) or not strokes:
        raise PromptError(f"{file}: expected [[x, y], ...] or a list of such strokes")
    return strokes


def _mask(file: str, size: tuple[int, int]) -> NDArray[np.float32]:
    return _painted(file, size, cv2.INTER_LINEAR)


def _painted(file: str, size: tuple[int, int], interpolation: int) -> NDArray[np.float32]:
    """Read what is painted in a picture, scaled to ``size``, float32 H x W in [0, 1].

    A picture with transparency says it with its alpha; any other with brightness, whatever the
    colour of the brush.
    """
    loaded = load_image(file)
    if loaded.alpha is not None and loaded.alpha.min() < 1:
        values = loaded.alpha.astype(np.float32)
    else:
        values = loaded.rgb.max(axis=2).astype(np.float32) / 255.0
    (height, width), (own_height, own_width) = size, values.shape
    # 2 % and a pixel of rounding
    allowed = 0.02 * own_height * width + max(size)
    if abs(own_width * height - own_height * width) > allowed:
        raise PromptError(
            f"{file} is {own_width} x {own_height}; expected the proportions of the "
            f"{width} x {height} picture"
        )
    if values.shape != size:
        values = cv2.resize(values, (width, height), interpolation=interpolation)
    return np.clip(values, 0.0, 1.0, dtype=np.float32)
