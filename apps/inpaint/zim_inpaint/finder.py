"""From clicks, boxes, scribbles, masks or words to one matte of everything that was meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim import plugins
from zim.errors import ImageError, PromptError, ZimError, install_advice
from zim.images import read_mask
from zim.predictor import ZimPredictor
from zim.prompt_files import read_prompt
from zim.prompt_json import ObjectPrompt
from zim.prompts import Prompt
from zim.protocols import Segmenter
from zim.segmenters import load_segmenter
from zim.segmenters.answer import answer
from zim_inpaint.complete import completed
from zim_inpaint.cover import COVER


class Finder:
    """One model and, for words, one detector; both are loaded when they are first needed."""

    def __init__(
        self,
        model: str,
        *,
        detector: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        refine: bool = False,
        ends: bool = True,
        shadow: bool = True,
    ) -> None:
        """Remember what to load.

        Args:
            model: a name for :func:`zim.segmenters.load_segmenter`.
            detector: which detector answers words; its own default if None.
            device: for both.
            dtype: for the model.
            refine: sharpen mattes at full resolution (ZIM models).
            ends: add ends and other parts the matte missed (:mod:`zim_inpaint.complete`).
            shadow: add the shadow that touches the object.
        """
        self._model, self._detector_name = model, detector
        self._device, self._dtype, self._refine = device, dtype, refine
        self._ends, self._shadow = ends, shadow
        self._segmenter: Segmenter | None = None
        self._detector: Any = None

    def find(
        self, image: NDArray[np.uint8], prompts: Sequence[ObjectPrompt], words: str | None = None
    ) -> tuple[NDArray[np.float32], int, float]:
        """Return the matte of all objects, how many there are, and the lowest score.

        Args:
            image: H x W x 3 uint8 RGB.
            prompts: one per object; their union is returned.
            words: phrases separated by `` . `` or ``,``; every box they lead to is an object.

        Raises:
            PromptError: a prompt does not fit the picture, or nothing is found where it points.
            ZimError: the model or a detector is missing.
        """
        height, width = image.shape[:2]
        asked = [read_prompt(prompt, (height, width)) for prompt in prompts]
        if words:
            boxes = self._boxes(image, words)
            asked += [Prompt.create((height, width), box=box) for box in boxes]
        if self._segmenter is None:
            self._segmenter = load_soft(self._model, device=self._device, dtype=self._dtype)
        self._segmenter.set_image(image)
        union = np.zeros((height, width), np.float32)
        scores: list[float] = []
        for prompt in asked:
            matte = answer(self._segmenter, image, prompt, refine=self._refine)
            alpha = matte.alpha
            _check_clicks(alpha, prompt)
            alpha = completed(image, alpha, prompt, ends=self._ends, shadow=self._shadow)
            np.maximum(union, alpha, out=union)
            scores.append(matte.score)
        return union, len(asked), min(scores)

    def _boxes(self, image: NDArray[np.uint8], words: str) -> list[tuple[float, ...]]:
        if self._detector is None:
            known = plugins.names("zim.detectors")
            if not known:
                raise ZimError(
                    f"{words!r} needs a detector, and none is installed; install zim-grounded's "
                    f"extra: {install_advice('grounded')}, or click with --points"
                )
            factory = plugins.find("zim.detectors", known[0])
            self._detector = factory(name=self._detector_name, device=self._device)
        phrases = [part.strip() for part in words.replace(" . ", ",").split(",") if part.strip()]
        found = self._detector.detect(image, phrases)
        if not found:
            # what the bundled detector knows, and which to use instead; others have no such text
            limits = getattr(self._detector, "limits", None)
            advice = f": {limits}, or" if limits else ";"
            raise PromptError(
                f"nothing in the picture answers {words!r}{advice} click with --points"
            )
        return [tuple(detection.box) for detection in found]


def load_soft(model: str, *, device: str = "auto", dtype: str = "auto") -> Segmenter:
    """Load a model whose mattes end as softly as it draws them.

    See :attr:`zim.ZimPredictor.soft`.

    Args:
        model: a name for :func:`zim.segmenters.load_segmenter`.
        device: as there.
        dtype: as there.
    """
    segmenter = load_segmenter(model, device=device, dtype=dtype)
    if isinstance(segmenter, ZimPredictor):
        segmenter.soft = True
    return segmenter


def read_matte(file: str, size: tuple[int, int], *, resize: bool = False) -> NDArray[np.float32]:
    """Read a matte that is used as it is.

    Args:
        file: any picture; see :func:`zim.images.read_mask`.
        size: (height, width) of the picture it belongs to.
        resize: scale it to that size rather than refuse it.

    Raises:
        ImageError: it cannot be read, or has another size.
    """
    alpha = read_mask(file)
    if alpha.shape == size:
        return alpha
    if not resize:
        raise ImageError(
            f"{file} is {alpha.shape[1]} x {alpha.shape[0]} but the picture is {size[1]} x "
            f"{size[0]}; give a matte of its size, or --resize-matte"
        )
    scaled = cv2.resize(alpha, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return np.clip(scaled, 0, 1, dtype=np.float32)


def _check_clicks(alpha: NDArray[np.float32], prompt: Prompt) -> None:
    """Refuse an answer that does not contain any of the clicks."""
    clicks = prompt.points[prompt.labels == 1] if len(prompt.points) else prompt.points
    if not len(clicks):
        if not (alpha > COVER).any():
            raise PromptError("the matte is empty: the model sees no object there; use points")
        return
    last = np.array([alpha.shape[1] - 1, alpha.shape[0] - 1])
    at = np.clip(np.round(clicks), 0, last).astype(int)
    if not (alpha[at[:, 1], at[:, 0]] > COVER).any():
        x, y = clicks[0]
        raise PromptError(
            f"the matte is empty at the click ({x:g}, {y:g}): the model sees no object there; "
            "click elsewhere on it or draw a box"
        )
