"""Ask a model everything about one picture: encode once, decode the queries of all modes once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zim.protocols import Segmenter
from zim_medical.options import MaskSelect
from zim_medical.prompts import ModePrompt, Query

#: queries decoded together; bounds memory for pictures with many classes
BATCH = 16


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says to one query.

    Attributes:
        chosen: the matte that is scored, H x W in [0, 1].
        alternatives: all three, 3 x H x W, when they were asked for.
    """

    chosen: NDArray[np.float32]
    alternatives: NDArray[np.float32] | None


def ask(
    segmenter: Segmenter, queries: Sequence[Query], select: MaskSelect, alternatives: bool = False
) -> dict[Query, Answer]:
    """Answer queries about the picture that is set; equal ones are asked once.

    Args:
        segmenter: any model, after ``set_image``.
        queries: points or boxes.
        select: which mask counts, see :class:`zim_medical.options.Protocol`.
        alternatives: also return all three masks, at the price of a second pass for ``single``.
    """
    unique = list(dict.fromkeys(queries))
    single = _predict(segmenter, unique, multimask=False) if select == "single" else None
    three = _predict(segmenter, unique, multimask=True) if alternatives or single is None else None
    answers: dict[Query, Answer] = {}
    for i, query in enumerate(unique):
        masks = None if three is None else three[i][0]
        if single is not None:
            chosen = single[i][0][0]
        else:
            assert three is not None
            assert masks is not None
            chosen = masks[0 if select == "first" else int(np.argmax(three[i][1]))]
        answers[query] = Answer(chosen, masks if alternatives else None)
    return answers


def joined(prompt: ModePrompt, answers: dict[Query, Answer], threshold: float) -> NDArray[np.bool_]:
    """Return a mode's mask: every query's matte is cut first, then the masks are joined by or."""
    out = answers[prompt.queries[0]].chosen > threshold
    for query in prompt.queries[1:]:
        out = out | (answers[query].chosen > threshold)
    return out


def joined_alternatives(
    prompt: ModePrompt, answers: dict[Query, Answer], threshold: float
) -> list[NDArray[np.bool_]]:
    """Do the same for each of the three alternatives: joined first, to be chosen from after."""
    stacks = [answers[query].alternatives for query in prompt.queries]
    assert all(stack is not None for stack in stacks)
    cut = np.stack([np.asarray(stack) > threshold for stack in stacks])
    return [np.any(cut[:, i], axis=0) for i in range(cut.shape[1])]


def _predict(
    segmenter: Segmenter, queries: list[Query], multimask: bool
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return mattes C x H x W and scores C for every query."""
    many: Any = getattr(segmenter, "predict_batch", None)
    out: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    if many is not None:
        for start in range(0, len(queries), BATCH):
            asked = [_as_dict(query) for query in queries[start : start + BATCH]]
            mattes, scores, _ = many(asked, multimask_output=multimask)
            out += list(zip(mattes, scores, strict=True))
        return out
    for query in queries:
        points, box = (query.points, query.usable_box())
        mattes, scores, _ = segmenter.predict(
            point_coords=np.array(points, np.float32) if points else None,
            point_labels=np.ones(len(points), np.int64) if points else None,
            box=None if box is None else np.array(box, np.float32),
            multimask_output=multimask,
        )
        out.append((mattes, scores))
    return out


def _as_dict(query: Query) -> dict[str, Any]:
    box = query.usable_box()
    if box is not None:
        return {"box": box}
    return {"points": [(x, y, 1) for x, y in query.points]}
