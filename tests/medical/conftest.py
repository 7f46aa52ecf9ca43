"""Fixtures of the medical tests: small data in the true layouts, and predictors without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zim_medical.demo import make_demo


class BoxFiller:
    """Answers a box with its interior and points with a disc, as float mattes of one alternative.

    The interior is 0.31, which the paper's threshold keeps; a rim of 0.29 outside must not count.
    """

    def __init__(self) -> None:
        self.shape = (0, 0)
        self.calls: list[Any] = []

    def set_image(self, image: Any) -> None:
        self.shape = image.shape[:2]

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.calls.append((point_coords, box, multimask_output))
        y, x = np.mgrid[: self.shape[0], : self.shape[1]]
        if box is not None:
            x0, y0, x1, y1 = box
            inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
            rim = (x >= x0 - 1) & (x <= x1 + 1) & (y >= y0 - 1) & (y <= y1 + 1)
        else:
            assert point_coords is not None
            near = [np.hypot(x - px, y - py) for px, py in point_coords]
            inside, rim = np.minimum.reduce(near) <= 2, np.minimum.reduce(near) <= 3
        matte = np.where(inside, 0.31, np.where(rim, 0.29, 0.0)).astype(np.float32)
        count = 3 if multimask_output else 1
        # alternatives: all, nothing, all; index 1 has the best score
        mattes = np.stack([matte, 0 * matte, matte][:count])
        return mattes, np.array([0.2, 0.9, 0.1][:count], np.float32), mattes[:, ::2, ::2]


@pytest.fixture
def box_filler() -> BoxFiller:
    return BoxFiller()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo"))
