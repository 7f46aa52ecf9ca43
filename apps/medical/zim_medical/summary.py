"""From rows to numbers: per dataset, class, mode and model, and between models."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from zim_medical.evaluate import Plan, Progress
from zim_medical.options import MODE_NAMES, NOTICE
from zim_medical.statistics import RESAMPLES, Comparison, cluster_interval, compare, holm

Rows = Iterable[dict[str, str]]
ALL = "all classes"
MACRO = "mean of datasets"
#: optional columns and what they hold; empty answers have no distance and are left out of it
EXTRA = {
    "iou_oracle": "IoU, best of three chosen by the truth",
    "hd95_mm": "95 % Hausdorff distance, mm (pixels where files have no spacing)",
    "nsd": "normalised surface Dice",
}


@dataclass(frozen=True, slots=True)
class Score:
    """What summaries need of a row; the rows of a truth share ``key`` and ``patient``."""

    key: tuple[str, ...]
    patient: str
    empty: bool
    iou: float
    dice: float
    iou_oracle: float | None
    hd95_mm: float | None
    nsd: float | None


class Scores:
    """The columns of ``cases.csv`` that summaries need, grouped: about 200 bytes per row."""

    def __init__(self, rows: Rows) -> None:
        """Read the rows once."""
        self.groups: dict[tuple[str, str, int, str], list[Score]] = defaultdict(list)
        keys: dict[tuple[str, ...], tuple[str, ...]] = {}
        for row in rows:
            key = (row["case_id"], row["axis"], row["slice"], row["class"])
            more = (
                float(row[name]) if row.get(name) else None
                for name in ("iou_oracle", "hd95_mm", "nsd")
            )
            group = (row["dataset"], row["class"], int(row["mode"]), row["model"])
            self.groups[group].append(
                Score(
                    keys.setdefault(key, key),
                    sys.intern(row["patient_id"]),
                    row["empty_pred"] == "1",
                    float(row["iou"]),
                    float(row["dice"]),
                    *more,
                )
            )

    def datasets(self) -> list[str]:
        """Return the datasets, in the order of the rows."""
        return list(dict.fromkeys(dataset for dataset, _, _, _ in self.groups))

    def classes(self, dataset: str) -> list[str]:
        """Return the classes of a dataset, sorted."""
        return sorted({c for d, c, _, _ in self.groups if d == dataset})

    def entries(self, dataset: str, cls: str, mode: int, model: str) -> list[Score]:
        """Return the rows of a group; ``ALL`` joins the classes."""
        names = self.classes(dataset) if cls == ALL else [cls]
        return [e for name in names for e in self.groups.get((dataset, name, mode, model), [])]


def summarise(plan: Plan, scores: Scores, progress: Progress) -> dict[str, Any]:
    """Return everything ``summary.json`` holds."""
    table, compared = [], []
    for dataset in scores.datasets():
        classes = scores.classes(dataset)
        for cls in [ALL, *classes] if len(classes) > 1 else [ALL]:
            for mode in plan.modes:
                for model in plan.models:
                    found = scores.entries(dataset, cls, mode, model)
                    if found:
                        head = {"dataset": dataset, "class": cls, "mode": mode, "model": model}
                        table.append(head | _describe(found))
        for mode in plan.modes:
            for other in plan.models[1:]:
                compared.append(_compared(scores, dataset, mode, plan.models[0], other))
    for entry, p in zip(compared, holm([c["p"] for c in compared]), strict=True):
        entry["p_holm"] = p
    return {
        "notice": NOTICE,
        **plan.to_dict(),
        "preset": plan.protocol.describe(),
        "scores": table,
        "macro": _macro(plan, table),
        "comparisons": compared,
        "counts": {name: vars(counts) for name, counts in progress.counts.items()},
        "excluded": [vars(e) for e in progress.exclusions],
        "bootstrap": f"{RESAMPLES} resamples of patients, percentile interval",
    }


def _describe(found: list[Score]) -> dict[str, Any]:
    iou = np.array([e.iou for e in found])
    low, high = np.percentile(iou, (25, 75))
    out: dict[str, Any] = {
        "n": len(found),
        "patients": len({e.patient for e in found}),
        "mean": float(iou.mean()),
        "median": float(np.median(iou)),
        "q1": float(low),
        "q3": float(high),
        "ci95": cluster_interval(iou.tolist(), [e.patient for e in found]),
        "dice": float(np.mean([e.dice for e in found])),
        "empty_pred": sum(e.empty for e in found),
    }
    for name in EXTRA:
        values = [v for e in found if (v := getattr(e, name)) is not None]
        if values:
            out[name] = float(np.mean(values))
            out[f"{name}_n"] = len(values)
    return out


def _compared(scores: Scores, dataset: str, mode: int, first: str, other: str) -> dict[str, Any]:
    a = {e.key: e for e in scores.entries(dataset, ALL, mode, first)}
    b = {e.key: e for e in scores.entries(dataset, ALL, mode, other)}
    keys = [key for key in a if key in b]
    result: Comparison = compare(
        [a[k].iou for k in keys], [b[k].iou for k in keys], [a[k].patient for k in keys]
    )
    return {"dataset": dataset, "mode": mode, "first": first, "other": other, **vars(result)}


def _macro(plan: Plan, table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the unweighted mean of the datasets' means, by mode and model."""
    out = []
    for mode in plan.modes:
        for model in plan.models:
            means = [
                row["mean"]
                for row in table
                if (row["class"], row["mode"], row["model"]) == (ALL, mode, model)
            ]
            if means:
                entry = {"mode": mode, "model": model, "mean": float(np.mean(means))}
                out.append(entry | {"datasets": len(means)})
    return out


def markdown(summary: dict[str, Any]) -> str:
    """Return ``summary.md``."""
    lines = [
        "# Medical evaluation",
        "",
        f"{NOTICE} {summary['preset']}.",
        f"Thresholds: {', '.join(f'{m} > {t:g}' for m, t in summary['thresholds'].items())}.",
        "",
        "| dataset | class | mode | model | n | patients | mean IoU | 95 % CI | median | IQR | "
        "Dice | empty predictions |",
        "|---|---|---|---|---:|---:|---:|---|---:|---|---:|---:|",
    ]
    lines += [
        f"| {r['dataset']} | {r['class']} | {r['mode']} {MODE_NAMES[r['mode']]} | {r['model']} | "
        f"{r['n']} | {r['patients']} | {r['mean']:.3f} | {interval(r['ci95'])} | "
        f"{r['median']:.3f} | {r['q1']:.3f} to {r['q3']:.3f} | {r['dice']:.3f} | "
        f"{r['empty_pred']} |"
        for r in summary["scores"]
    ]
    lines += _extra(summary)
    if summary["comparisons"]:
        lines += [
            "",
            "| dataset | mode | difference in IoU | 95 % CI | patients | p (Holm) | effect |",
            "|---|---|---|---|---:|---|---|",
        ]
    lines += [
        f"| {c['dataset']} | {c['mode']} | {c['first']} - {c['other']}: {c['difference']:+.3f} | "
        f"{interval(c['interval'])} | {c['patients']} | {p_text(c['p_holm'])} | "
        f"{'' if c['effect'] is None else format(c['effect'], '+.2f')} |"
        for c in summary["comparisons"]
    ]
    lines += ["", "| dataset | cases | pictures scored | empty truths | too small | excluded |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for name, c in summary["counts"].items():
        excluded = sum(e["dataset"] == name for e in summary["excluded"])
        lines.append(
            f"| {name} | {c['cases']} | {c['pictures']} | {c['empty']} | {c['small']} | "
            f"{excluded} |"
        )
    lines += [f"- {e['dataset']} {e['case_id']}: {e['reason']}" for e in summary["excluded"]]
    return "\n".join(lines) + "\n"


def _extra(summary: dict[str, Any]) -> list[str]:
    """Return a table of the optional columns, nothing without any."""
    present = [name for name in EXTRA if any(name in r for r in summary["scores"])]
    if not present:
        return []
    lines = ["", f"| dataset | class | mode | model | {' | '.join(EXTRA[n] for n in present)} |"]
    lines.append("|---|---|---|---|" + "---:|" * len(present))
    for r in summary["scores"]:
        head = f"| {r['dataset']} | {r['class']} | {r['mode']} | {r['model']} | "
        lines.append(head + " | ".join(extra_text(r, name) for name in present) + " |")
    return lines


def extra_text(row: dict[str, Any], name: str) -> str:
    """Return a mean of an optional column, and of how many answers it is where some have none."""
    if name not in row:
        return "-"
    some = f" ({row[f'{name}_n']} of {row['n']})" if row[f"{name}_n"] < row["n"] else ""
    return f"{row[name]:.3f}{some}"


def interval(ends: tuple[float, float] | None) -> str:
    """Return an interval as text."""
    return "one patient" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def p_text(p: float | None) -> str:
    """Return a p-value as text."""
    if p is None:
        return "too few patients"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
