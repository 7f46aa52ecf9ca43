"""Fixtures of the inpainting tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch


class Painter:
    """A filler that paints one colour, and remembers what it was given."""

    name = "painter"
    multiple = 1
    enlarges = False

    def __init__(
        self, colour: tuple[int, int, int] = (10, 200, 30), *, side: int = 4096, words: bool = False
    ) -> None:
        self.colour, self.side, self.takes_text = colour, side, words
        self.calls: list[dict[str, Any]] = []

    def fill(
        self,
        image: np.ndarray,
        mask: np.ndarray,
        *,
        seed: int = 0,
        text: str | None = None,
        negative: str | None = None,
    ) -> np.ndarray:
        self.calls.append(
            {"image": image, "mask": mask, "seed": seed, "text": text, "negative": negative}
        )
        # everything is repainted, as a diffusion model does it: pasting has to protect the rest
        return np.full_like(image, self.colour)


@pytest.fixture
def painter() -> type[Painter]:
    return Painter


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(2)
