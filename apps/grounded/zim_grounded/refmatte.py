"""RefMatte-RW100: natural photographs, expressions and the true mattes of what they mean.

Reference: Li, Zhang, Tao, "Referring Image Matting", CVPR 2023. The set is for research only
(CC BY-NC) and has to be fetched by its user.

Layout: ``image/*.jpg`` (or ``image_all``), ``mask/*.png``, and an index in JSON keyed by the
mask's file stem with ``image_name`` and ``expressions``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from zim import metrics
from zim.errors import PromptError, ZimError
from zim.images import load_image, read_alpha
from zim.masks import box_iou
from zim.prompts import Prompt, mask_box
from zim.protocols import Segmenter
from zim.segmenters.answer import answer
from zim_grounded.boxes_file import BoxesFile
from zim_grounded.candidates import CandidateDetector
from zim_grounded.locate import locate

#: names the index was seen under
INDEXES = ("refmatte_rw100_label.json", "eval_index_expression.json")
_FOLDERS = ("image", "image_all", "img")
METRICS = ("sad", "mse", "mae", "grad", "conn")
#: a box that overlaps the matte's own by this IoU counts as found
RECALL_IOU = 0.5

Alpha = NDArray[np.float32]


@dataclass(frozen=True)
class Entity:
    """A thing in a picture: its true matte and what people called it."""

    key: str
    image: Path
    mask: Path
    expressions: tuple[str, ...]


def read_entities(root: Path, index: Path | None = None) -> list[Entity]:
    """Read the set's index.

    Args:
        root: the folder with ``image`` and ``mask``.
        index: the JSON file, if it has a name of its own.

    Raises:
        ZimError: the set or its index is missing, or holds something else; unknown keys are
            named rather than guessed about.
    """
    if not root.is_dir():
        raise ZimError(
            f"{root} does not exist; RefMatte-RW100 (66.6 MB, CC BY-NC, research only) is fetched "
            "by hand from the page of JizhiziLi/RIM and unpacked so that ROOT holds image, mask "
            f"and {INDEXES[0]}"
        )
    file = index or next((root / n for n in INDEXES if (root / n).is_file()), None)
    if file is None or not file.is_file():
        raise ZimError(f"{index or root}: no index; expected {' or '.join(INDEXES)}, or --index")
    folder = next((root / f for f in _FOLDERS if (root / f).is_dir()), None)
    if folder is None or not (root / "mask").is_dir():
        raise ZimError(f"{root}: expected the folders {_FOLDERS[0]} and mask")
    try:
        table = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ZimError(f"{file}: not JSON ({error})") from error
    if not isinstance(table, dict) or not table:
        raise ZimError(f"{file}: expected an object keyed by the masks' file stems")
    rows = cast("dict[str, Any]", table)
    return [_entity(key, row, root, folder, file) for key, row in rows.items()]


def _entity(key: str, row: Any, root: Path, folder: Path, file: Path) -> Entity:
    values = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
    name, expressions = values.get("image_name"), values.get("expressions")
    words = cast("list[Any]", expressions) if isinstance(expressions, list) else []
    if not isinstance(name, str) or not words or not all(isinstance(w, str) for w in words):
        raise ZimError(
            f"{file}, {key}: keys {sorted(values)}; expected image_name and a list expressions"
        )
    image = next((p for s in (".jpg", ".png", "") if (p := folder / f"{name}{s}").is_file()), None)
    mask = root / "mask" / f"{key.removesuffix('.png')}.png"
    for path, what in ((image, f"{folder.name}/{name}.jpg"), (mask, f"mask/{mask.name}")):
        if path is None or not path.is_file():
            raise ZimError(f"{root}: {what} of the index does not exist")
    assert image is not None
    return Entity(key, image, mask, tuple(cast("list[str]", words)))


def evaluate(
    entities: Sequence[Entity],
    segmenter: Segmenter,
    detector: CandidateDetector | None,
    focus: str | None = None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Score every entity with its true box, and every expression with the box it leads to.

    A missed expression is an empty matte: it counts, at the price of the whole object. Entities
    whose files cannot be used, or with an expression that the detector cannot read, are left out.

    Args:
        entities: of :func:`read_entities`.
        segmenter: makes mattes of boxes.
        detector: makes boxes of expressions; None leaves them out.
        focus: the word to rank by, instead of the head of each expression.

    Returns:
        Rows ``{entity, expression, boxes, found, hit, sad, mse, mae, grad, conn}``; ``boxes`` is
        ``true`` or ``detected``. Metrics are the whole image's, in the paper's scaling. And why
        entities were left out, by their keys.
    """
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    current: Path | None = None
    rgb = np.zeros((1, 1, 3), np.uint8)
    for entity in entities:
        try:
            if entity.image != current:
                current = None
                rgb = load_image(entity.image).rgb
                segmenter.set_image(rgb)
                current = entity.image
            rows += _scored(entity, rgb, segmenter, detector, focus)
        except ZimError as error:
            left_out[entity.key] = str(error)
    return rows, left_out


def _scored(
    entity: Entity,
    rgb: NDArray[np.uint8],
    segmenter: Segmenter,
    detector: CandidateDetector | None,
    focus: str | None,
) -> list[dict[str, Any]]:
    """Return the rows of one entity on the picture that is set."""
    target, box = _truth(entity, rgb)
    if isinstance(detector, BoxesFile):
        detector.open(str(entity.image))
    true = _row(entity, None, "true", _matte(segmenter, rgb, box), target)
    rows = [true | {"found": True, "hit": True}]
    for text in entity.expressions if detector is not None else ():
        assert detector is not None
        limits = detector.thresholds
        seen = locate(detector, rgb, [text], limits, focus=focus, parts=False).found
        alpha = np.zeros(target.shape, np.float32)
        hit = False
        if seen:
            alpha = _matte(segmenter, rgb, np.array(seen[0].box))
            hit = box_iou(seen[0].box, box.tolist()) >= RECALL_IOU
        row = _row(entity, text, "detected", alpha, target)
        rows.append(row | {"found": bool(seen), "hit": hit})
    return rows


def _truth(entity: Entity, rgb: NDArray[np.uint8]) -> tuple[Alpha, NDArray[np.float32]]:
    """Read the true matte of an entity, and its box."""
    target = read_alpha(entity.mask)
    if target.shape != rgb.shape[:2]:
        raise ZimError(
            f"{entity.mask.name} is {target.shape[1]} x {target.shape[0]} but its image is "
            f"{rgb.shape[1]} x {rgb.shape[0]}"
        )
    try:
        return target, mask_box(target)
    except PromptError as error:
        raise ZimError(f"{entity.mask.name} is empty") from error


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Average the rows: with true boxes, over all expressions, and over entities.

    ``per_entity`` first averages the expressions of one entity, so that things with many
    expressions do not weigh more.
    """
    groups: dict[str, dict[str, float]] = {}
    for boxes in ("true", "detected"):
        mine = [row for row in rows if row["boxes"] == boxes]
        if not mine:
            continue
        groups[f"{boxes}_boxes"] = _mean(mine) | {"samples": float(len(mine))}
        if boxes == "detected":
            recall = float(np.mean([row["hit"] for row in mine]))
            groups["detected_boxes"] |= {
                "box_recall": recall,
                "found": float(np.mean([row["found"] for row in mine])),
            }
            keys = dict.fromkeys(row["entity"] for row in mine)
            means = [_mean([row for row in mine if row["entity"] == key]) for key in keys]
            groups["detected_boxes_per_entity"] = _mean(means) | {"samples": float(len(means))}
    return groups


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in METRICS}


def _matte(segmenter: Segmenter, rgb: NDArray[np.uint8], box: NDArray[Any]) -> Alpha:
    return answer(segmenter, rgb, Prompt.create((rgb.shape[0], rgb.shape[1]), box=box)).alpha


def _row(
    entity: Entity, expression: str | None, boxes: str, alpha: Alpha, target: Alpha
) -> dict[str, Any]:
    row: dict[str, Any] = {"entity": entity.key, "expression": expression, "boxes": boxes}
    return row | metrics.evaluate(alpha, target)
