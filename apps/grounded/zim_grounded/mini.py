"""The bundled mini detector: some two hundred names and eleven colours, no download.

It was trained from scratch on composites of drawings and a few cut-outs (``zim-train detector``):
it finds things that look like those, and is no substitute for an open-vocabulary detector.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from zim.errors import CheckpointError, one_line
from zim_grounded.candidates import PROPOSED, CandidateDetector, Found, Thresholds, cut_box
from zim_grounded.phrases import subject

BUNDLED = Path(__file__).with_name("weights") / "mini.safetensors"
#: score from which a candidate is a detection
BOX = 0.3
LIMITS = (
    "the bundled mini detector knows {count} names of things, learnt from drawings; "
    "for photographs and free text use --detector gdino-tiny"
)
#: words that stand for a thing of any name: "the red thing"
_ANYTHING = ("thing", "object", "one")


class MiniDetector(CandidateDetector):
    """Names and colours in, boxes out."""

    name = "mini"

    def __init__(self, model: Any, thresholds: Thresholds | None = None) -> None:
        """Wrap a :class:`zim.model.named_objects.NamedObjects`."""
        self.model = model.eval()
        self.thresholds = thresholds or Thresholds(box=BOX)
        self._names = {tuple(n.split()): i for i, n in enumerate(model.config.names)}
        for name, i in list(self._names.items()):  # "socks" is a name, "sock" is not
            self._names.setdefault((*name[:-1], _singular(name[-1])), i)

    @classmethod
    def load(
        cls, weights: str | Path, device: str = "auto", thresholds: Thresholds | None = None
    ) -> MiniDetector:
        """Load ``NAME.safetensors`` with ``NAME.json`` beside it.

        Raises:
            CheckpointError: missing, damaged, or not of this network.
        """
        import torch

        from zim.api import choose_device
        from zim.model.named_objects import NamedObjects, NamedObjectsConfig
        from zim.weights.store import read_state

        weights = Path(weights)
        where = choose_device(device)
        try:
            text = weights.with_suffix(".json").read_text(encoding="utf-8")
            config = NamedObjectsConfig.from_dict(json.loads(text))
            with torch.random.fork_rng(devices=[]):
                model = NamedObjects(config)
            state = read_state(weights)
            model.load_state_dict(
                {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
            )
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            reason = one_line(error, 200)
            raise CheckpointError(f"{weights}: not a mini detector ({reason})") from error
        return cls(model.to(where), thresholds)

    @property
    def limits(self) -> str:
        """What a user should know before trusting it, on one line."""
        return LIMITS.format(count=len(self.model.config.names))

    def unknown(self, phrases: Sequence[str]) -> list[str]:
        """Return the phrases it has no name or colour for."""
        return [phrase for phrase in phrases if self._meaning(phrase) is None]

    def candidates(self, image: np.ndarray, phrases: Sequence[str]) -> list[Found]:
        """Return the best candidates of every phrase; none for those it does not know."""
        import torch

        from zim.model.named_objects import STRIDE, boxes_of

        side = self.model.config.side
        height, width = image.shape[:2]
        scale = side / max(height, width)
        pixels, left, top = _frame(image, side, scale)
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            tensor = torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None].float() / 255
            grid = self.model(tensor)
            centre = grid.centre.sigmoid()
            peak = torch.nn.functional.max_pool2d(centre, 3, 1, 1) == centre
            at = torch.where(peak, centre, 0).flatten().topk(PROPOSED).indices
            middles = centre.flatten()[at].cpu().numpy()
            names = grid.names.flatten(2)[0][:, at].softmax(0).cpu().numpy()
            colours = grid.colours.flatten(2)[0][:, at].sigmoid().cpu().numpy()
            boxes = boxes_of(grid.sides).flatten(2)[0][:, at].T.cpu().numpy()
        assert STRIDE * grid.centre.shape[-1] == side
        boxes = (boxes - [left, top, left, top]) / scale
        found: list[Found] = []
        for phrase in phrases:
            meaning = self._meaning(phrase)
            if meaning is None:
                continue
            name, wanted = meaning
            # the words' geometric mean, so that a colour beside a name does not halve the score
            factors = ([names[name]] if name is not None else []) + [colours[c] for c in wanted]
            scores = middles * np.prod(factors, 0) ** (1 / len(factors))
            for i in np.argsort(-scores, kind="stable").tolist():
                box = cut_box(boxes[i].tolist(), (height, width))
                if box is not None and scores[i] > 0:
                    found.append(Found(box, phrase, float(scores[i])))
        return found

    def _meaning(self, phrase: str) -> tuple[int | None, list[int]] | None:
        """Read a phrase as (name, colours); None if it says nothing that is known."""
        words = subject(phrase)
        colours = [
            i
            for i, colour in enumerate(self.model.config.colours)
            if colour in words[:-1] or (colour == "grey" and "gray" in words[:-1])
        ]
        for length in (2, 1):
            tail = tuple(words[-length:])
            for last in _singulars(tail[-1]) if len(tail) == length else ():
                if (spelled := (*tail[:-1], last)) in self._names:
                    return self._names[spelled], colours
        if words and words[-1] in _ANYTHING and colours:
            return None, colours
        return None


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and len(word) > 3 else word


def _singulars(word: str) -> tuple[str, ...]:
    """Return a word and what it may be the plural of: "cookies", "cooky" and "cookie"."""
    hissing = word.endswith(("ses", "xes", "zes", "ches", "shes", "oes"))
    return (word, _singular(word), word.removesuffix("s"), *([word[:-2]] if hissing else []))


def _frame(image: np.ndarray, side: int, scale: float) -> tuple[np.ndarray, int, int]:
    """Scale a picture into the middle of a grey square; return it and its offsets."""
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(image, size, interpolation=method)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    square = np.full((side, side, 3), 127, np.uint8)
    square[top : top + size[1], left : left + size[0]] = small
    return square, left, top
