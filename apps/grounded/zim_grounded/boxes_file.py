"""Boxes from a file, for pipelines that have a detector of their own.

The file is JSON: a list of ``{"box": [x0, y0, x1, y1], "phrase": "dog", "score": 0.9}``, or an
object that gives such a list for every picture's file name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as shorten
from typing import Any, cast

import numpy as np

from zim.errors import PromptError
from zim.prompt_json import read_json
from zim_grounded.candidates import CandidateDetector, Found, Thresholds, cut_box
from zim_grounded.phrases import plain


class BoxesFile(CandidateDetector):
    """Answers phrases from a file; runs no model and looks at no pixel."""

    name = "boxes"

    def __init__(self, file: str | Path, thresholds: Thresholds | None = None) -> None:
        """Read and check the file.

        Raises:
            PromptError: it is not what the head of this module says.
            OSError: it cannot be read.
        """
        self.thresholds = thresholds or Thresholds(box=0.0)
        self.file = Path(file)
        data = read_json(self.file)
        self._by_picture: dict[str, list[Found]] | None = None
        self._all: list[Found] = []
        if isinstance(data, dict) and "box" not in data:
            table = cast("dict[str, Any]", data)
            self._by_picture = {k: _read(v, f"{file}, {k}") for k, v in table.items()}
        else:
            self._all = _read(data, str(file))

    def open(self, picture: str) -> None:
        """Choose the boxes of a picture by its path or file name, where the file has several.

        Raises:
            PromptError: the file does not mention it.
        """
        if self._by_picture is None:
            return
        for key in (picture, Path(picture).name, Path(picture).stem):
            if key in self._by_picture:
                self._all = self._by_picture[key]
                return
        raise PromptError(f"{self.file} has no boxes for {Path(picture).name}")

    def phrases(self) -> list[str]:
        """Return the phrases of the opened picture in the file's order, case aside."""
        first: dict[str, str] = {}
        for f in self._all:
            first.setdefault(plain(f.phrase), f.phrase)
        return list(first.values())

    def candidates(self, image: np.ndarray, phrases: Sequence[str]) -> list[Found]:
        """Return the boxes whose phrase was asked for; those outside the picture are left out."""
        size = (image.shape[0], image.shape[1])
        asked = {plain(phrase): phrase for phrase in phrases}
        found = []
        for entry in self._all:
            box = cut_box(entry.box, size)
            phrase = asked.get(plain(entry.phrase))
            if box is not None and phrase is not None:
                found.append(Found(box, phrase, entry.score))
        return found


def _read(entries: Any, where: str) -> list[Found]:
    if isinstance(entries, dict):
        entries = [entries]
    if not isinstance(entries, list):
        raise PromptError(f"{where}: {shorten(entries)}; {_EXPECTED}")
    return [_entry(e, f"{where}, entry {i}") for i, e in enumerate(cast("list[Any]", entries), 1)]


_EXPECTED = 'expected a list of {"box": [x0, y0, x1, y1], "phrase": "dog", "score": 0.9}'


def _entry(entry: Any, where: str) -> Found:
    values = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
    box, phrase, score = values.get("box"), values.get("phrase"), values.get("score", 1.0)
    good = isinstance(box, list) and len(cast("list[Any]", box)) == 4
    numbers = [v for v in cast("list[Any]", box if good else []) if _finite(v)]
    if not isinstance(phrase, str) or not plain(phrase) or len(numbers) != 4:
        raise PromptError(f"{where}: {shorten(entry)}; {_EXPECTED}")
    if not _finite(score) or not 0 <= score <= 1:
        raise PromptError(f"{where}: score {shorten(score)}; expected 0 to 1")
    x0, y0, x1, y1 = (float(v) for v in numbers)
    if x1 <= x0 or y1 <= y0:
        raise PromptError(f"{where}: box {x0:g},{y0:g},{x1:g},{y1:g} has no area; x0 < x1, y0 < y1")
    return Found((x0, y0, x1, y1), phrase, float(score))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
