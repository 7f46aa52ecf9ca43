"""Table 5 of the paper beside what was measured, and the contact sheet."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zim.evaluation.tables import Table
from zim.images import load_image
from zim.viz import contact_sheet
from zim_inpaint.clip_metrics import TOPS
from zim_inpaint.coco import Target
from zim_inpaint.evaluate import kept_picture

#: CLIP distance and accuracy in the first 1, 3 and 5; which distance it was is not said
PAPER = {
    "COCO ground truth": (67.07, 0.7767, 0.6236, 0.5415),
    "SAM": (68.17, 0.7940, 0.6521, 0.5753),
    "ZIM": (73.11, 0.8616, 0.7543, 0.6855),
}
_SHEET_HEIGHT = 200


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return means over one model's rows, standard errors of both distances, and counts."""
    names = ["l2", "cosine", *(f"{rule}@{top}" for rule in ("source", "truth") for top in TOPS)]
    out: dict[str, Any] = {"objects": len(rows), "refused": sum("refused" in row for row in rows)}
    for name in (*names, "mask_area", "iou", "outside_mse"):
        out[name] = float(np.mean([row[name] for row in rows]))
    for name in ("l2", "cosine"):
        values = [row[name] for row in rows]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        out[f"{name}_error"] = spread / math.sqrt(len(values)) if len(values) > 1 else None
    # a removal that CLIP's reference cannot judge: it did not see the class in the first place
    agreeing = [row for row in rows if row["agrees"]]
    out["agreeing"] = len(agreeing)
    for top in TOPS:
        values = [row[f"truth@{top}"] for row in agreeing]
        out[f"truth_seen@{top}"] = float(np.mean(values)) if values else None
    return out


def tables(
    rows: Sequence[dict[str, Any]], models: Sequence[str], distance: str, rule: str
) -> tuple[list[Table], dict[str, dict[str, Any]]]:
    """Lay out the results.

    Args:
        rows: of :func:`zim_inpaint.evaluate.read_results`.
        models: which, and in which order.
        distance: ``l2`` or ``cosine`` in the headline table.
        rule: ``source`` or ``truth`` in the headline table.

    Returns:
        Table 5, all measures, and the headline per class; and the summary of each model.
    """
    of_model = {name: [row for row in rows if row["model"] == name] for name in models}
    of_model = {name: found for name, found in of_model.items() if found}
    means = {name: summary(found) for name, found in of_model.items()}
    keys = [distance, *(f"{rule}@{top}" for top in TOPS)]
    head = [(f"paper, not measured here: {name}", _numbers(row)) for name, row in PAPER.items()]
    head += [(name, _numbers([mean[key] for key in keys])) for name, mean in means.items()]
    wide = ["l2", "l2_error", "cosine", "cosine_error"]
    wide += [f"{kind}@{top}" for kind in ("source", "truth", "truth_seen") for top in TOPS]
    every = tuple(
        (
            name,
            *(_cell(mean[key]) for key in wide),
            f"{100 * mean['mask_area']:.2f}",
            f"{mean['iou']:.4f}",
            _psnr(mean["outside_mse"]),
            *(str(mean[key]) for key in ("objects", "agreeing", "refused")),
        )
        for name, mean in means.items()
    )
    further = ("mask area %", "mask IoU", "PSNR outside", "objects", "agreeing", "refused")
    return [
        Table(
            "table5",
            "Table 5, higher is better",
            ("mask", "CLIP distance", "accuracy top-1", "top-3", "top-5"),
            tuple((name, *cells) for name, cells in head),
        ),
        Table("measures", "All measures", ("mask", *wide, *further), every),
        _per_class(of_model, distance, rule),
    ], means


def _per_class(of_model: dict[str, list[dict[str, Any]]], distance: str, rule: str) -> Table:
    lines: list[tuple[str, ...]] = []
    for name, found in of_model.items():
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in found:
            groups[row["category"]].append(row)
        for category, some in sorted(groups.items()):
            values = [float(np.mean([r[key] for r in some])) for key in (distance, f"{rule}@1")]
            lines.append((name, category, str(len(some)), *(_cell(value) for value in values)))
    headings = ("mask", "class", "objects", distance, f"{rule}@1")
    return Table("classes", "Per class", headings, tuple(lines))


def sheet(
    output: Path, targets: Sequence[Target], models: Sequence[str]
) -> NDArray[np.uint8] | None:
    """Lay out the pictures that were kept: a row per object, matte and result per model."""
    rows: list[list[tuple[NDArray[Any], str]]] = []
    for target in targets:
        row: list[tuple[NDArray[Any], str]] = []
        for model in models:
            paths = [kept_picture(output, model, target.key, w) for w in ("matte", "result")]
            if all(path.is_file() for path in paths):
                captions = (f"{model}: {target.category}", "result")
                row += [(load_image(p).rgb, c) for p, c in zip(paths, captions, strict=True)]
        if row:
            rows.append(row)
    return contact_sheet(rows, height=_SHEET_HEIGHT) if rows else None


def _numbers(values: Sequence[float]) -> tuple[str, ...]:
    return (f"{values[0]:.2f}", *(f"{value:.4f}" for value in values[1:]))


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value > 1 else f"{value:.4f}"


def _psnr(mse: float) -> str:
    return "identical" if mse == 0 else f"{10 * math.log10(255**2 / mse):.2f}"
