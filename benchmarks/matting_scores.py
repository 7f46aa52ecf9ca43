"""What the matting benchmarks share: pictures, classical answers, models, intervals, tables, cells.

The classical answers are those of :mod:`zim.segmenters.classical`, the metrics those of
:mod:`zim.metrics`. Intervals are percentile bootstraps over pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from zim import metrics
from zim.errors import ImageError
from zim.evaluation.samples import inner_point
from zim.prompts import Prompt, mask_box
from zim.segmenters.classical import closed_form_alpha, grabcut_mask

Kind = Literal["box", "point"]
KINDS: tuple[Kind, ...] = ("box", "point")
METRICS = ("sad", "mse", "mae", "grad", "conn")
REFERENCE = "GrabCut"  # every method is also compared with it, picture by picture

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture with its truth and its two prompts.

    Attributes:
        name: file stem.
        root: which ``--root`` it comes from.
        rgb: uint8 H x W x 3.
        alpha: float32 H x W in [0, 1].
        box: float32 x0, y0, x1, y1, right and bottom exclusive.
        point: float32 x, y (pixel centre).
    """

    name: str
    root: str
    rgb: np.ndarray
    alpha: np.ndarray
    box: np.ndarray
    point: np.ndarray


@dataclass(frozen=True)
class Method:
    """A named way from picture and prompt kind to an alpha (float H x W or bool)."""

    name: str
    answer: Callable[[Picture, Kind], np.ndarray]
    kinds: tuple[Kind, ...] = KINDS


def load_pictures(root: Path, max_side: int, seed: int, limit: int | None = None) -> list[Picture]:
    """Read every pair of ``images/`` and ``alphas/`` under a root, sorted by name.

    Raises:
        ImageError: a folder, a partner or a readable file is missing.
    """
    alphas = sorted(p for p in (root / "alphas").glob("*") if p.suffix.lower() in _SUFFIXES)
    if not alphas:
        raise ImageError(f"{root} has no alphas/*.png; --root needs images/ and alphas/ inside")
    pictures = []
    for path in alphas[:limit]:
        partners = [root / "images" / (path.stem + s) for s in _SUFFIXES]
        image = next((p for p in partners if p.is_file()), None)
        if image is None:
            raise ImageError(f"{path.name} has no picture of the same stem in {root / 'images'}")
        bgr, alpha = cv2.imread(str(image)), cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if bgr is None or alpha is None:
            raise ImageError(f"cannot read {image if bgr is None else path}")
        alpha = alpha[..., -1] if alpha.ndim == 3 else alpha
        rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        truth = (alpha / (65535 if alpha.dtype == np.uint16 else 255)).astype(np.float32)
        if truth.shape != rgb.shape[:2]:
            raise ImageError(f"{path.name} and its picture differ in size")
        pictures.append(make_picture(path.stem, root.name, rgb, truth, max_side, seed))
    return pictures


def make_picture(
    name: str, root: str, rgb: np.ndarray, alpha: np.ndarray, max_side: int, seed: int
) -> Picture:
    """Scale a picture down to ``max_side`` and draw its prompts from the true alpha."""
    height, width = alpha.shape
    scale = max_side / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        alpha = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA).clip(0, 1)
    return Picture(name, root, rgb, alpha, mask_box(alpha, 0.1), inner_point(alpha, name, seed))


def filled_box(picture: Picture, kind: Kind) -> np.ndarray:
    """The box itself as a mask: what doing nothing scores. Bool H x W."""
    mask = np.zeros(picture.alpha.shape, dtype=bool)
    x0, y0, x1, y1 = picture.box.astype(int)
    mask[y0:y1, x0:x1] = True
    return mask


@lru_cache(maxsize=len(KINDS))
def grabcut(picture: Picture, kind: Kind) -> np.ndarray:
    """Run GrabCut from one of a picture's prompts; the last answers are kept. Bool H x W."""
    size = (picture.alpha.shape[0], picture.alpha.shape[1])
    asked = {"box": picture.box} if kind == "box" else {"points": [(*picture.point, 1)]}
    return grabcut_mask(picture.rgb, Prompt.create(size, **asked))


def grabcut_closed_form(picture: Picture, kind: Kind) -> np.ndarray:
    """Closed-form matting round GrabCut's rim. Float H x W.

    Its time comes on top of :func:`grabcut`'s, whose mask it finds ready.
    """
    return closed_form_alpha(picture.rgb, grabcut(picture, kind))


CLASSICAL = (
    Method("filled box", filled_box, ("box",)),
    Method(REFERENCE, grabcut),
    Method("GrabCut + closed form", grabcut_closed_form),
)


def zim_method(name: str, device: str, best_of_three: bool) -> tuple[Method, Any]:
    """Load a model by name or path; the method and the predictor that answers for it.

    Raises:
        ZimError: the model is unknown or has no weights.
    """
    import zim

    predictor: Any = zim.ZimPredictor(zim.load(name, device=device))

    def answer(picture: Picture, kind: Kind) -> np.ndarray:
        predictor.set_image(picture.rgb)
        if kind == "box":
            mattes, _, _ = predictor.predict(box=picture.box, multimask_output=False)
            return mattes[0]
        mattes, scores, _ = predictor.predict(
            point_coords=picture.point[None],
            point_labels=np.ones(1, np.int64),
            multimask_output=best_of_three,
        )
        return mattes[int(np.argmax(scores))]

    # Reports are passed on, so a checkpoint's path is cut to its end.
    return Method("/".join(Path(name).parts[-2:]), answer), predictor


def set_threads(count: int) -> None:
    """Limit OpenCV, torch and pymatting's compiled code; 0 leaves them alone.

    pymatting comes first: on import its numba raises the number of OpenMP threads, torch's too.
    """
    if count > 0:
        import numba
        import pymatting  # noqa: F401
        import torch

        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
        cv2.setNumThreads(count)
        torch.set_num_threads(count)


def measure(method: Method, picture: Picture, kind: Kind) -> tuple[dict[str, Any], np.ndarray]:
    """Ask a method and score its answer.

    Returns:
        The record (method, prompt, root, picture, seconds, five metrics and ``iou`` of what is
        above 0.5) and the matte.
    """
    start = time.perf_counter()
    alpha = method.answer(picture, kind)
    record = {
        "method": method.name,
        "prompt": kind,
        "root": picture.root,
        "picture": picture.name,
        "seconds": time.perf_counter() - start,
        **metrics.evaluate(alpha, picture.alpha),
        "iou": iou(alpha, picture.alpha),
    }
    return record, alpha


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of what is above 0.5 in two mattes; 1 where both are empty."""
    a, b = one > 0.5, other > 0.5
    return float((a & b).sum() / union) if (union := int((a | b).sum())) else 1.0


def bootstrap(values: np.ndarray, seed: int, rounds: int = 10_000) -> tuple[float, float]:
    """95 % percentile interval of the mean over pictures."""
    picks = np.random.default_rng(seed).integers(len(values), size=(rounds, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def summarise(
    records: Sequence[dict[str, Any]], seed: int, names: Sequence[str] = METRICS
) -> list[dict[str, Any]]:
    """Mean and interval of each metric per method and prompt, and its wins over GrabCut by MSE."""
    rows = []
    order = dict.fromkeys((r["prompt"], r["method"]) for r in records)
    for prompt, method in sorted(order, key=lambda pair: KINDS.index(pair[0])):
        mine = [r for r in records if (r["prompt"], r["method"]) == (prompt, method)]
        row: dict[str, Any] = {"prompt": prompt, "method": method, "n": len(mine)}
        row["seconds"] = float(np.median([r["seconds"] for r in mine]))
        for name in names:
            values = np.array([r[name] for r in mine])
            low, high = bootstrap(values, seed)
            row[name] = {"mean": float(values.mean()), "low": low, "high": high}
        theirs = {
            (r["root"], r["picture"]): r["mse"]
            for r in records
            if (r["prompt"], r["method"]) == (prompt, REFERENCE)
        }
        if theirs and method != REFERENCE:
            gaps = np.array([r["mse"] - theirs[r["root"], r["picture"]] for r in mine])
            low, high = bootstrap(gaps, seed)
            row["mse_minus_grabcut"] = {"mean": float(gaps.mean()), "low": low, "high": high}
            row["wins"] = int((gaps < 0).sum())
        rows.append(row)
    return rows


def markdown(title: str, rows: Iterable[dict[str, Any]], names: Sequence[str] = METRICS) -> str:
    """One table; a cell is the mean and its 95 % interval."""
    head = ["prompt", "method", "n", *(m.upper() for m in names)]
    head += ["MSE minus GrabCut's", "better than GrabCut", "s/picture"]
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["prompt"], row["method"], str(row["n"])]
        gap = row.get("mse_minus_grabcut")
        for value in [row[m] for m in names] + [gap]:
            cells.append(
                f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]" if value else "-"
            )
        cells += [f"{row['wins']}/{row['n']}" if gap else "-", f"{row['seconds']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def grey(alpha: np.ndarray) -> np.ndarray:
    """Show an alpha as RGB uint8."""
    return np.repeat(np.rint(np.float32(alpha) * 255).astype(np.uint8)[..., None], 3, axis=2)


def mark_prompts(picture: Picture) -> np.ndarray:
    """Draw a picture's box and point on a copy of it."""
    shown = picture.rgb.copy()
    x0, y0, x1, y1 = (int(v) for v in picture.box)
    cv2.rectangle(shown, (x0, y0), (x1 - 1, y1 - 1), (255, 210, 0), 3)
    centre = (int(picture.point[0]), int(picture.point[1]))
    cv2.circle(shown, centre, max(shown.shape) // 60, (255, 40, 40), -1)
    return shown


def cell(image: np.ndarray | None, caption: str, side: int = 180) -> np.ndarray:
    """Fit an RGB picture into a square of a contact sheet, with a line of text below."""
    cell = np.full((side + 22, side + 6, 3), 40, np.uint8)
    if image is not None:
        scale = side / max(image.shape[:2])
        width, height = (max(1, int(n * scale)) for n in (image.shape[1], image.shape[0]))
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        y, x = (side - height) // 2, (side + 6 - width) // 2
        cell[y : y + height, x : x + width] = small
    where = (3, side + 15)
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(cell, caption, where, font, 0.36, (255, 255, 255), 1, cv2.LINE_AA)
    return cell
