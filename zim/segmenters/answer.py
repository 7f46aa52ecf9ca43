"""One prompt, one matte, whoever answers: our own predictor or a rival of the same protocol."""

from __future__ import annotations

import numpy as np

from zim.api import best_matte
from zim.errors import PromptError
from zim.predictor import ZimPredictor
from zim.prompts import Prompt, whole_frame
from zim.protocols import Segmenter
from zim.result import Matte


def answer(
    segmenter: Segmenter,
    image: np.ndarray,
    prompt: Prompt,
    *,
    refine: bool = False,
    within: np.ndarray | None = None,
) -> Matte:
    """Answer one prompt on the picture that is set, with the best-scored matte.

    Args:
        segmenter: with its picture set.
        image: that picture, H x W x 3 uint8 RGB.
        prompt: clicks, a box, a mask; nothing at all means the whole picture as the box.
        refine: sharpen soft parts at full resolution; ZIM's own models only.
        within: the picture's own transparency H x W float32: what was cut away stays away.

    Raises:
        PromptError: a mask for a segmenter that takes clicks and boxes.
    """
    if isinstance(segmenter, ZimPredictor):
        return best_matte(segmenter, prompt, refine=refine, within=within)
    if prompt.mask is not None:
        raise PromptError("this model takes clicks and boxes, no mask; give another prompt")
    some = len(prompt.points) > 0
    mattes, scores, low_res = segmenter.predict(
        point_coords=prompt.points if some else None,
        point_labels=prompt.labels if some else None,
        box=whole_frame((image.shape[0], image.shape[1])) if prompt.empty else prompt.box,
        multimask_output=prompt.single_click,
    )
    best = int(np.argmax(scores))
    alpha = np.asarray(mattes[best], np.float32)
    return Matte(
        image=image,
        alpha=alpha if within is None else alpha * within,
        box=prompt.box,
        score=float(scores[best]),
        low_res=low_res[best],
    )
