"""What is found is what the model draws, doubt included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import zim
from zim.images import load_image
from zim.prompt_json import ObjectPrompt
from zim_inpaint.finder import Finder

PICTURE = Path(__file__).parents[2] / "examples" / "rabbit.jpg"


def test_sure_mattes_are_not_drawn_closer_to_the_object() -> None:
    image = load_image(PICTURE).rgb[::2, ::2].copy()
    height, width = image.shape[:2]
    box = (0.2 * width, 0.2 * height, 0.9 * width, 0.95 * height)
    model = zim.load("nano", device="cpu")

    def matte(sharpen: float) -> np.ndarray:
        model.config = replace(model.config, sharpen=sharpen)
        predictor = zim.ZimPredictor(model)
        predictor.set_image(image)
        with torch.inference_mode():
            return predictor.predict(box=np.array(box), multimask_output=False)[0][0]

    assert model.config.sharpen > 1
    sharp, soft = matte(model.config.sharpen), matte(1.0)
    finder = Finder("nano", device="cpu", ends=False, shadow=False)
    found, count, _ = finder.find(image, [ObjectPrompt(box=box)])
    assert count == 1
    faint = (soft > 0.02) & (soft < 0.5)
    assert sharp[faint].mean() < 0.95 * soft[faint].mean()  # or there is nothing to tell apart
    np.testing.assert_allclose(found, soft, atol=1e-5)
