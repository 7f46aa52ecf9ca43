"""The distribution of scores per dataset and mode, drawn as in the paper's Fig. 8."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Literal

from zim._extras import require
from zim_medical.layouts import REGISTRY
from zim_medical.summary import ALL, Scores

COLOURS = ("#2563a8", "#d9822b", "#4b9460", "#8b5a9e", "#a23b3b")


def distributions(
    scores: Scores,
    modes: Sequence[int],
    models: Sequence[str],
    settings: str,
    kind: Literal["box", "violin"] = "box",
) -> dict[str, bytes]:
    """Draw one panel per dataset: mode on x, IoU on y, a colour per model.

    Args:
        scores: from the table of cases.
        modes: of 1 to 5.
        models: in the order of their colours.
        settings: written below, so that a copied plot says how it was made.
        kind: of drawing.

    Returns:
        The figure as ``png`` and ``pdf``.
    """
    matplotlib: Any = require("matplotlib", "medical")
    figure_class: Any = require("matplotlib.figure", "medical").Figure
    datasets = scores.datasets()
    columns = min(3, len(datasets))
    rows = -(-len(datasets) // columns)
    figure = figure_class(figsize=(4.0 * columns, 3.1 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(datasets) :]:
        axis.set_visible(False)
    for axis, dataset in zip(axes.flat, datasets, strict=False):
        width = 0.8 / len(models)
        for j, model in enumerate(models):
            values = [[e.iou for e in scores.entries(dataset, ALL, mode, model)] for mode in modes]
            places = [i + (j - (len(models) - 1) / 2) * width for i in range(len(modes))]
            _draw(axis, values, places, 0.85 * width, COLOURS[j % len(COLOURS)], kind)
        count = len(scores.entries(dataset, ALL, modes[0], models[0]))
        axis.set_title(f"{REGISTRY[dataset].title}\nn = {count}", fontsize=9)
        axis.set_xticks(range(len(modes)), [f"mode {m}" for m in modes], fontsize=8)
        axis.set_xlim(-0.6, len(modes) - 0.4)
        axis.set_ylim(-0.03, 1.03)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    for row in axes:
        row[0].set_ylabel("IoU")
    patch: Any = require("matplotlib.patches", "medical").Patch
    handles = [
        patch(color=COLOURS[j % len(COLOURS)], label=model) for j, model in enumerate(models)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(models), frameon=False)
    figure.supxlabel(settings, fontsize=7, color="#555555")
    out: dict[str, bytes] = {}
    for suffix in ("png", "pdf"):
        buffer = io.BytesIO()
        # no date inside: the same scores are the same file
        metadata = {"CreationDate": None} if suffix == "pdf" else {"Software": None}
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            figure.savefig(buffer, format=suffix, dpi=110, metadata=metadata)
        out[suffix] = buffer.getvalue()
    return out


def _draw(
    axis: Any,
    values: list[list[float]],
    places: list[float],
    width: float,
    colour: str,
    kind: str,
) -> None:
    pairs = [(v, p) for v, p in zip(values, places, strict=True) if v]
    if not pairs:
        return
    lists, where = [v for v, _ in pairs], [p for _, p in pairs]
    if kind == "violin" and all(len(set(v)) > 1 for v in lists):
        parts = axis.violinplot(lists, where, widths=width, showmedians=True)
        for body in parts["bodies"]:
            body.set(facecolor=colour, alpha=0.45)
        for name in ("cbars", "cmins", "cmaxes", "cmedians"):
            parts[name].set(color=colour, linewidth=1)
        return
    axis.boxplot(
        lists,
        positions=where,
        widths=width,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": colour, "alpha": 0.55, "edgecolor": colour},
        medianprops={"color": "#111111", "linewidth": 1.3},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": colour},
    )
