"""Remove COCO's objects one at a time, and score what CLIP still sees; resumable.

``<output>/results.jsonl`` grows by a whole line per object and model. A line that a crash has
torn is ignored and its object scored again. Objects whose picture cannot be used are never
written, so that a repaired picture is scored by the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zim._progress import track
from zim.errors import ImageError, PromptError, ZimError, one_line
from zim.evaluation.result_log import appending, check_settings, rows_of
from zim.images import atomic_write, encode_rgb, load_image
from zim.protocols import Segmenter
from zim.viz import overlay
from zim_inpaint.api import inpaint
from zim_inpaint.backends import Filler
from zim_inpaint.clip_metrics import Clip, crop, measure
from zim_inpaint.coco import Target, draw_points

#: the "model" whose masks are COCO's own
TRUTH = "coco"
RESULTS = "results.jsonl"
#: what is below the threshold has been zeroed, so that any alpha is the object
_ANYTHING = 0.001


@dataclass(frozen=True)
class Settings:
    """Every choice that the numbers depend on; the paper states only points and data.

    Attributes:
        points: clicks per object.
        seed: of the clicks, of the choice of objects and of the filler.
        limit: how many objects, None for all.
        min_side: see :class:`zim_inpaint.coco.Filter`.
        min_area: likewise.
        max_box: likewise.
        answer: of several answers to one prompt the ``best`` by its own score, or the ``single``.
        threshold: alpha above which a matte's pixel is repainted.
        grow: pixels every mask grows by, or ``auto``.
        feather: pixels of ramp outside of it.
        context: see :func:`zim_inpaint.inpaint`.
        work_size: likewise.
        backend: name of the filler that was used.
        clip_model: open_clip's name.
        clip_pretrained: its weights.
        region: see :func:`zim_inpaint.clip_metrics.crop`.
        square: likewise.
        template: prompt of a class.
    """

    points: int = 10
    seed: int = 0
    limit: int | None = None
    min_side: float = 32
    min_area: float = 1024
    max_box: float = 0.9
    answer: str = "best"
    threshold: float = 0.02
    grow: int | Literal["auto"] = 0
    feather: float = 0.0
    context: float = 0.5
    work_size: int | None = None
    backend: str = "patchmatch"
    clip_model: str = "ViT-B-32-quickgelu"
    clip_pretrained: str = "openai"
    region: str = "box"
    square: str = "pad"
    template: str = "a photo of a {}"


@dataclass(frozen=True)
class Failures:
    """What did not run: models by name and pictures by object, each with the reason.

    Apart from these, the objects whose mask is too thin to hold a pixel: no click can be on them.
    """

    models: dict[str, str]
    objects: dict[str, str]
    empty: set[int]


def evaluate(
    models: Mapping[str, Callable[[], Segmenter] | None],
    targets: Sequence[Target],
    names: Sequence[str],
    settings: Settings,
    filler: Filler,
    clip: Clip,
    output: Path,
    *,
    pictures: int = 0,
    weights: dict[str, str] | None = None,
) -> Failures:
    """Score every model on every object.

    Args:
        models: loaders by name, None for COCO's own masks; each is called once, in its turn.
        targets: the objects, in the order of their pictures.
        names: of all classes, in the order of ``clip.texts``.
        settings: what the numbers depend on.
        filler: repaints.
        clip: judges.
        output: folder; what an interrupted run has left there is kept.
        pictures: keep pictures of the first so many objects, for a contact sheet.
        weights: hash by model; answers of other weights are computed again.

    Raises:
        OutputError: the folder holds results of other settings.
    """
    output.mkdir(parents=True, exist_ok=True)
    check_settings(output, asdict(settings) | {"objects": len(targets), "clicks": "pixel centres"})
    shown = {target.key for target in targets[:pictures]}
    failures = Failures({}, {}, set())
    hashes = weights or {}
    done = {
        (row["model"], row["key"])
        for row in read_results(output)
        if row.get("weights", "") == hashes.get(row["model"], "")
    }
    with appending(output / RESULTS) as add:
        for name, load in models.items():
            todo = [t for t in targets if (name, t.key) not in done]
            if not todo:
                continue
            try:
                model = load() if load else None
            except ZimError as error:
                failures.models[name] = one_line(error)
                continue
            for target, image, alpha, row in _removals(model, todo, settings, failures):
                result = _remove(image, alpha, settings, filler, row)
                crops = [
                    crop(x, target.box, settings.region, settings.square) for x in (image, result)
                ]
                u, v = clip.embed(crops)
                row |= measure(u, v, clip.texts, list(names).index(target.category))
                row |= {"model": name, "weights": hashes.get(name, "")}
                if target.key in shown:
                    _keep(output, name, target, image, alpha, result, row)
                add(row)
    return failures


def read_results(output: Path) -> list[dict[str, Any]]:
    """Read what was scored so far, each object and model once, in a fixed order."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows_of([output / RESULTS]):
        if "model" in row and "key" in row and "l2" in row:
            rows[row["model"], row["key"]] = row
    return [rows[key] for key in sorted(rows)]


def kept_picture(output: Path, model: str, key: int, what: str) -> Path:
    """Return where the ``matte`` or ``result`` of an object lies, for the contact sheet."""
    safe = "".join(c if c.isalnum() or c in "._+-" else "_" for c in model)
    return output / "pictures" / f"{key}.{safe}.{what}.jpg"


def _removals(
    model: Segmenter | None,
    targets: Sequence[Target],
    settings: Settings,
    failures: Failures,
) -> Iterator[tuple[Target, NDArray[np.uint8], NDArray[np.float32], dict[str, Any]]]:
    """Yield object, picture, matte and the beginning of its row; each picture is read once."""
    path, image = None, np.zeros((0, 0, 3), np.uint8)
    for target in track(targets, "removing"):
        try:
            if target.image != path:
                path = None
                image = load_image(target.image).rgb
                path = target.image
                if model:
                    model.set_image(image)
            if image.shape[:2] != target.size:
                raise ImageError(f"{target.image} is {image.shape[:2]}, annotated {target.size}")
            truth = target.mask()
            if not truth.any():
                failures.empty.add(target.key)
                continue
            points = draw_points(truth, target.key, settings.points, settings.seed)
            alpha = truth.astype(np.float32)
            if model:
                alpha = _ask(model, points, settings.answer)
        except (ZimError, OSError) as error:
            failures.objects[str(target.key)] = one_line(error)
            continue
        both = (alpha > 0.5) & truth
        either = (alpha > 0.5) | truth
        row: dict[str, Any] = {
            "key": target.key,
            "image": target.image.name,
            "category": target.category,
            "points": points.round(1).tolist(),
            "iou": float(both.sum() / either.sum()),
        }
        yield target, image, alpha, row


def _ask(model: Segmenter, points: NDArray[np.float32], answer: str) -> NDArray[np.float32]:
    mattes, scores, _ = model.predict(
        point_coords=points,
        point_labels=np.ones(len(points), np.int64),
        multimask_output=answer == "best",
    )
    return np.clip(mattes[int(np.argmax(scores))], 0, 1).astype(np.float32)


def _remove(
    image: NDArray[np.uint8],
    alpha: NDArray[np.float32],
    settings: Settings,
    filler: Filler,
    row: dict[str, Any],
) -> NDArray[np.uint8]:
    """Return the repaired picture and add to the row how much of it changed.

    A mask that is empty, or leaves nothing to continue from, removes nothing: the picture stays
    and is scored like that. Leaving such objects out would reward models that miss them.
    """
    try:
        repaired = inpaint(
            image,
            np.where(alpha > settings.threshold, alpha, np.float32(0)),
            "remove",
            filler,
            cover=_ANYTHING,
            grow=settings.grow,
            feather=settings.feather,
            context=settings.context,
            work_size=settings.work_size,
            seed=settings.seed,
        )
    except PromptError as error:
        row |= {"refused": str(error), "mask_area": 0.0, "outside_mse": 0.0}
        return image
    outside = ~repaired.mask
    change = image[outside].astype(np.float64) - repaired.image[outside]
    row["mask_area"] = float(repaired.mask.mean())
    row["outside_mse"] = float((change**2).mean()) if change.size else 0.0
    return repaired.image


def _keep(
    output: Path,
    model: str,
    target: Target,
    image: NDArray[np.uint8],
    alpha: NDArray[np.float32],
    result: NDArray[np.uint8],
    row: dict[str, Any],
) -> None:
    matte = kept_picture(output, model, target.key, "matte")
    matte.parent.mkdir(exist_ok=True)
    shown = overlay(image, alpha, points=row["points"], boxes=[target.box])
    atomic_write(matte, encode_rgb(shown, ".jpg"))
    atomic_write(kept_picture(output, model, target.key, "result"), encode_rgb(result, ".jpg"))
