"""Sheets of pictures with prompt, truth and every model's answer, as in the paper's Fig. 9.

Pictures are picked evenly over the ranking of scores (best, middle, worst), never only the best.
Their mattes are computed again, so that an evaluation keeps no pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim import viz
from zim.protocols import Segmenter
from zim_medical.answers import ask, joined
from zim_medical.datasets import case_pictures
from zim_medical.evaluate import Plan, prompts_of
from zim_medical.layouts import Dataset
from zim_medical.prompts import ModePrompt
from zim_medical.records import Counts, Picture
from zim_medical.table import CaseTable
from zim_medical.volumes import stretch

Scale = tuple[float, float]

TRUTH, PREDICTED = (60, 200, 90), (255, 140, 30)
#: pixels of a picture on the sheet, and how much wider than high it is at most
_HEIGHT, _WIDEST = 230, 1.5


def choose(
    table: CaseTable, dataset: str, model: str, mode: int, count: int
) -> list[dict[str, str]]:
    """Return rows evenly over the ranking by IoU of a model and mode, best first."""

    def rows() -> Iterator[tuple[int, dict[str, str]]]:
        for number, row in enumerate(table.rows()):
            if (row["dataset"], row["model"], row["mode"]) == (dataset, model, str(mode)):
                yield number, row

    ranked = sorted(  # read twice, so that the table is never in memory
        (-float(row["iou"]), row["case_id"], row["slice"], row["class"], number)
        for number, row in rows()
    )
    if len(ranked) > count:
        ranked = [ranked[round(i)] for i in np.linspace(0, len(ranked) - 1, count)]
    numbers = [number for *_, number in ranked]
    found = {number: row for number, row in rows() if number in numbers}
    return [found[number] for number in numbers]


def sheet(
    plan: Plan,
    dataset: Dataset,
    folder: Path,
    rows: list[dict[str, str]],
    segmenters: Mapping[str, Segmenter],
) -> NDArray[np.uint8]:
    """Return a contact sheet, H x W x 3 uint8, with one line for every chosen row."""
    pairs = {pair.case_id: pair for pair in plan.cases(dataset, folder)}
    lines: list[list[tuple[NDArray[Any], str]]] = []
    for row in rows:
        for picture in case_pictures(dataset, pairs[row["case_id"]], plan.protocol, Counts()):
            axis = "" if picture.axis is None else str(picture.axis)
            if (axis, str(picture.index)) == (row["axis"], row["slice"]):
                break
        else:
            continue
        cls, mode = row["class"], int(row["mode"])
        truth = picture.masks[cls]
        prompt = prompts_of(plan, dataset.name, picture)[cls][mode]
        scale = _scale(picture)
        image = _enlarge(picture.image, scale, cv2.INTER_CUBIC)
        name = row["case_id"].removeprefix(f"{dataset.name}_") + (
            "" if not axis else f", slice {row['slice']}"
        )
        name += "" if cls == "all" else f" {cls}"
        line = [
            (image, name),
            (_draw(image, prompt, scale), f"prompt, mode {mode}"),
            (_show(image, truth, TRUTH, scale), "truth"),
        ]
        mattes: list[tuple[NDArray[Any], str]] = []
        for model, segmenter in segmenters.items():
            segmenter.set_image(picture.image)
            answers = ask(segmenter, prompt.queries, plan.protocol.mask_select)
            mask = joined(prompt, answers, plan.threshold(model))
            iou = np.logical_and(mask, truth).sum() / np.logical_or(mask, truth).sum()
            line.append((_show(image, mask, PREDICTED, scale), f"{model}, IoU {iou:.2f}"))
            matte = np.maximum.reduce([answers[q].chosen for q in prompt.queries])
            mattes.append((_enlarge(matte, scale, cv2.INTER_LINEAR), f"soft: {model}"))
        lines.append(line + mattes[:1])
    framed = [[(_framed(shown), caption) for shown, caption in line] for line in lines]
    return viz.contact_sheet(framed, height=_HEIGHT)


def _scale(picture: Picture) -> Scale:
    """Return pixels of the sheet per column and per row: about as many as fit, square in mm."""
    rows, columns = stretch(picture.spacing)
    height, width = picture.image.shape[:2]
    whole = max(1, round(min(_HEIGHT / (height * rows), _WIDEST * _HEIGHT / (width * columns))))
    return whole * columns, whole * rows


def _framed(picture: NDArray[Any]) -> NDArray[Any]:
    """Put black above and below a slice that is much wider than high."""
    missing = max(0, round(picture.shape[1] / _WIDEST) - picture.shape[0])
    above, kind = missing // 2, cv2.BORDER_CONSTANT
    return np.asarray(cv2.copyMakeBorder(picture, above, missing - above, 0, 0, kind, value=0))


def _enlarge(picture: NDArray[Any], scale: Scale, method: int) -> NDArray[Any]:
    size = (round(picture.shape[1] * scale[0]), round(picture.shape[0] * scale[1]))
    return np.asarray(cv2.resize(picture, size, interpolation=method))


def _draw(image: NDArray[np.uint8], prompt: ModePrompt, scale: Scale) -> NDArray[np.uint8]:
    fx, fy = scale
    points = [[(x + 0.5) * fx, (y + 0.5) * fy] for query in prompt.queries for x, y in query.points]
    boxes = [
        [b[0] * fx, b[1] * fy, (b[2] + 1) * fx - 1, (b[3] + 1) * fy - 1]
        for query in prompt.queries
        if (b := query.box) is not None
    ]
    return viz.draw_prompts(image, points=points or None, boxes=boxes or None)


def _show(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], colour: tuple[int, int, int], scale: Scale
) -> NDArray[np.uint8]:
    """Tint a mask and draw its outline along pixel edges."""
    big = _enlarge(mask.astype(np.uint8), scale, cv2.INTER_NEAREST)
    out = viz.blend(np.full_like(image, colour), image, 0.35 * big)
    outlines, _ = cv2.findContours(big, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(out, outlines, -1, colour, 1)
    return out
