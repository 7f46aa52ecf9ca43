"""Tables in the shape of the paper's 1, 2 and 7, its own numbers beside ours."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zim.evaluation import paper
from zim.evaluation.runner import METRICS

SIZES = ("all", "S", "M", "L")
_TITLES = {"sad": "SAD", "mse": "MSE", "mae": "MAE", "grad": "Grad", "conn": "Conn"}


@dataclass(frozen=True)
class Table:
    """Headings and rows of text, written in three formats."""

    name: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return it for a README."""
        lines = [f"### {self.caption}", "", "| " + " | ".join(self.headings) + " |"]
        lines.append("|" + "---|" * len(self.headings))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Return it for a spreadsheet."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.headings, *self.rows])
        return text.getvalue()

    def latex(self) -> str:
        """Return it as a ``tabular``."""
        lines = [
            f"% {self.caption}",
            rf"\begin{{tabular}}{{{'l' * len(self.headings)}}}",
            r"\hline",
        ]
        for k, row in enumerate((self.headings, *self.rows)):
            lines.append(" & ".join(_escape(cell) for cell in row) + r" \\")
            if k == 0:
                lines.append(r"\hline")
        return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"


def scored(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the answers that have numbers."""
    return [row for row in results if "excluded" not in row]


def tables(
    dataset: str,
    results: Sequence[dict[str, Any]],
    models: Sequence[str],
    missing: dict[str, str],
    latency: dict[str, float] | None = None,
) -> list[Table]:
    """Build the tables of a run.

    Args:
        dataset: which.
        results: of :func:`zim.evaluation.runner.read_results`.
        models: in the order of the rows.
        missing: why a model could not run; it keeps its row.
        latency: milliseconds per picture and prompt by model, from ``zim bench``.
    """
    rows = scored(results)
    there = {r["group"] for r in rows} or {"all"}
    groups = [g for g in ("fine", "coarse") if g in there]
    groups += sorted(there - set(groups))
    prompts = [p for p in ("point", "box") if any(r["prompt"] == p for r in rows)]
    made = [_by_metric(dataset, rows, models, missing, groups, prompts)]
    if dataset in ("am2k", "aim500"):
        made.append(_table2(dataset, rows, models, missing, prompts))
    made.append(_by_size(dataset, rows, models, missing, groups, prompts, latency or {}))
    return made


def _not_run(model: str, missing: dict[str, str], headings: Sequence[str]) -> tuple[str, ...]:
    """Return the row of a system that could not run."""
    why = f"not run: {missing[model].replace('|', '/')}"
    return (model, "-", why, *["-"] * (len(headings) - 3))


def _by_metric(
    dataset: str,
    rows: list[dict[str, Any]],
    models: Sequence[str],
    missing: dict[str, str],
    groups: list[str],
    prompts: list[str],
) -> Table:
    headings = ["method", "prompt", "source", "n"]
    headings += [f"{g} {_TITLES[m]}" for g in groups for m in METRICS]
    lines: list[tuple[str, ...]] = []
    for model in models:
        if model in missing:
            lines.append(_not_run(model, missing, headings))
            continue
        for prompt in prompts:
            mine = [r for r in rows if (r["model"], r["prompt"]) == (model, prompt)]
            if not mine:
                continue
            cells = [_mean(mine, g, m) for g in groups for m in METRICS]
            counts = [str(sum(r["group"] == g for r in mine)) for g in groups]
            lines.append((model, prompt, "measured", " + ".join(counts), *cells))
    if dataset == "micromat3k":
        for row in paper.table1():
            cells = [_number(row["cells"].get((g, m))) for g in groups for m in METRICS]
            lines.append((row["method"], row["prompt"], paper.LABEL, "-", *cells))
    return Table(
        "table1", f"{dataset}: five metrics, lower is better", tuple(headings), tuple(lines)
    )


def _table2(
    dataset: str,
    rows: list[dict[str, Any]],
    models: Sequence[str],
    missing: dict[str, str],
    prompts: list[str],
) -> Table:
    headings = ("method", "prompt", "source", "MSE", "Grad")
    lines: list[tuple[str, ...]] = []
    for model in models:
        if model in missing:
            lines.append(_not_run(model, missing, headings))
            continue
        for prompt in prompts:
            mine = [r for r in rows if (r["model"], r["prompt"]) == (model, prompt)]
            if mine:
                cells = [_mean(mine, None, m) for m in ("mse", "grad")]
                lines.append((model, prompt, "measured", *cells))
    for row in paper.table2():
        cells = [_number(row["cells"][dataset, m]) for m in ("mse", "grad")]
        lines.append((row["method"], row["prompt"], paper.LABEL, *cells))
    return Table("table2", f"{dataset}: MSE and Grad", headings, tuple(lines))


def _by_size(
    dataset: str,
    rows: list[dict[str, Any]],
    models: Sequence[str],
    missing: dict[str, str],
    groups: list[str],
    prompts: list[str],
    latency: dict[str, float],
) -> Table:
    headings = ["method", "prompt", "source", "ms"]
    headings += [f"{g} MSE {s}" if s != "all" else f"{g} MSE" for g in groups for s in SIZES]
    lines: list[tuple[str, ...]] = []
    for model in models:
        if model in missing:
            lines.append(_not_run(model, missing, headings))
            continue
        for prompt in prompts:
            mine = [r for r in rows if (r["model"], r["prompt"]) == (model, prompt)]
            if not mine:
                continue
            cells = [
                _mean([r for r in mine if s in ("all", r["size"])], g, "mse")
                for g in groups
                for s in SIZES
            ]
            ms = f"{latency[model]:.1f}" if model in latency else "-"
            lines.append((model, prompt, "measured", ms, *cells))
    if dataset == "micromat3k":
        for row in paper.table7():
            cells = [_number(row["cells"].get((g, s))) for g in groups for s in SIZES]
            name = f"{row['method']} {row['backbone']}"
            lines.append((name, row["prompt"], paper.LABEL, f"{row['ms']} (V100)", *cells))
    caption = f"{dataset}: MSE by object size (S < 1 %, M < 10 %, L of the picture)"
    return Table("table7", caption, tuple(headings), tuple(lines))


def _mean(rows: list[dict[str, Any]], group: str | None, metric: str) -> str:
    values = [r[metric] for r in rows if group is None or r["group"] == group]
    return f"{np.mean(values):.3f}" if values else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _escape(text: str) -> str:
    for mark in "\\&%_#$":
        text = text.replace(mark, r"\textbackslash{}" if mark == "\\" else f"\\{mark}")
    return text
