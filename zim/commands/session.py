"""Between the command line and the library: open a picture once, cut many objects out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from zim.errors import ConfigError, PromptError
from zim.foreground import ForegroundMethod
from zim.images import load_image
from zim.output import Bits, encode_rgb
from zim.predictor import ZimPredictor
from zim.prompt_files import read_prompt
from zim.prompt_json import ObjectPrompt
from zim.prompts import Prompt
from zim.refine import refine as sharpen
from zim.result import Kind, Matte
from zim.segmenters import load_segmenter
from zim.segmenters.answer import answer


@dataclass(frozen=True)
class Look:
    """How results are to look."""

    bits: Bits
    foreground: ForegroundMethod
    background: Any

    def check(self) -> None:
        """Find out now, not after the work, whether the background can be used.

        Raises:
            ImageError: it is neither a colour nor a picture.
        """
        dot = Matte(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.float32))
        dot.composite(self.background, "none")


@dataclass(frozen=True)
class Answer:
    """One matte and the prompt that led to it."""

    matte: Matte
    prompt: Prompt

    def encoded(self, kind: str, look: Look, suffix: str = ".png") -> bytes:
        """Return one kind of result as the bytes of an image file."""
        if kind == "overlay":
            prompt = self.prompt
            drawn = self.matte.overlay(
                points=prompt.points if len(prompt.points) else None,
                labels=prompt.labels if len(prompt.labels) else None,
                boxes=prompt.box,
            )
            return encode_rgb(drawn, suffix)
        return self.matte.encode(
            cast("Kind", kind),
            suffix,
            bits=look.bits,
            background=look.background,
            foreground=look.foreground,
        )


class Session:
    """One model, one picture at a time."""

    def __init__(self, model: str, device: str, dtype: str) -> None:
        """Load the model.

        Raises:
            ZimError: the model, device or type is unknown, or its weights are missing.
        """
        self._name = model
        self._segmenter = load_segmenter(model, device=device, dtype=dtype)
        self._rgb: NDArray[np.uint8] | None = None
        #: the picture's own transparency: what was cut away stays away
        self._alpha: NDArray[np.float32] | None = None

    def check(self, *, candidates: int, refine: bool) -> None:
        """Refuse what only ZIM's own models can do.

        Raises:
            ConfigError: several candidates or refining of another model.
        """
        if not isinstance(self._segmenter, ZimPredictor) and (refine or candidates > 1):
            flag = "--refine" if refine else "--multimask"
            raise ConfigError(f"{flag} is for ZIM's own models, not {self._name}; leave it out")

    def read(self, source: str) -> None:
        """Read the picture that all following calls are about; ``-`` is stdin.

        Raises:
            ImageError: it cannot be read.
        """
        self._rgb = None
        loaded = load_image(source)
        self._rgb, self._alpha = loaded.rgb, loaded.alpha

    def encode(self) -> None:
        """Run the image encoder on the picture."""
        self._segmenter.set_image(self._picture())

    def cut(
        self, asked: ObjectPrompt, *, candidates: int = 1, refine: bool = False
    ) -> list[Answer]:
        """Cut one object out of the picture.

        Args:
            asked: what was said about the object.
            candidates: 1 for the answer, 3 for all alternatives, best score first.
            refine: sharpen the mattes at full resolution.

        Raises:
            PromptError: the prompt is malformed or outside the picture.
        """
        rgb, predictor = self._picture(), self._segmenter
        prompt = read_prompt(asked, (rgb.shape[0], rgb.shape[1]))
        if candidates == 1 or not isinstance(predictor, ZimPredictor):
            best = answer(predictor, rgb, prompt, refine=refine, within=self._alpha)
            return [Answer(best, prompt)]
        mattes, scores, low_res = predictor.predict_batch([prompt], multimask_output=True)
        best_first = np.argsort(-scores[0])[:candidates]
        if refine:
            for i in best_first:
                mattes[0, i] = sharpen(rgb, mattes[0, i], predictor)
        if self._alpha is not None:
            mattes[0] *= self._alpha
        return [
            Answer(
                Matte(
                    image=rgb,
                    alpha=mattes[0, i],
                    box=prompt.box,
                    score=float(scores[0, i]),
                    low_res=low_res[0, i],
                ),
                prompt,
            )
            for i in best_first
        ]

    def _picture(self) -> NDArray[np.uint8]:
        if self._rgb is None:
            raise PromptError("no picture is open; read one first")
        return self._rgb
