"""What numbers hide: how errors spread, and the best, median and worst answers."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from zim._extras import require
from zim.evaluation.runner import Settings, answer
from zim.evaluation.samples import Sample, load_sample
from zim.evaluation.tables import scored
from zim.metrics import mse
from zim.protocols import Segmenter
from zim.viz import contact_sheet, draw_prompts


def error_plot(results: Sequence[dict[str, Any]], models: Sequence[str]) -> bytes:
    """Draw MSE per picture as violins with a box inside, one per model and prompt; PNG bytes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "eval")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = scored(results)
    columns = [
        (f"{model}\n{prompt}", [r["mse"] for r in rows if (r["model"], r["prompt"]) == pair])
        for model in models
        for prompt in ("point", "box")
        if any((r["model"], r["prompt"]) == (pair := (model, prompt)) for r in rows)
    ]
    figure = Figure(figsize=(max(4.0, 1.3 * len(columns)), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    values = [np.log10(np.maximum(v, 1e-3)) for _, v in columns]
    if values:
        if min(len(v) for v in values) > 1:
            axes.violinplot(values, showextrema=False)
        axes.boxplot(values, widths=0.15, showfliers=False)
        axes.set_xticks(range(1, len(columns) + 1), [name for name, _ in columns], fontsize=8)
        low, high = (int(f(np.concatenate(values))) for f in (np.min, np.max))
        ticks = [a * 10.0**k for k in range(low - 1, high + 2) for a in (1, 2, 5)]
        shown = axes.get_ylim()
        axes.set_yticks(np.log10(ticks), [f"{tick:g}" for tick in ticks])
        axes.set_ylim(shown)
    axes.set_ylabel("MSE (x 1000) per picture, log scale")
    axes.grid(axis="y", alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def sheet(
    results: Sequence[dict[str, Any]],
    samples: Sequence[Sample],
    models: dict[str, Callable[[], Segmenter]],
    settings: Settings,
) -> np.ndarray:
    """Show picture, prompt, truth and every model for the best, median and worst sample.

    They are the first model's by MSE, for each prompt. Mattes are computed again.
    """
    rows = scored(results)
    first = next((name for name in models if any(r["model"] == name for r in rows)), None)
    by_key = {sample.key: sample for sample in samples}
    chosen = []
    for kind in settings.prompts:
        ranked = sorted(
            (r["mse"], r["key"]) for r in rows if (r["model"], r["prompt"]) == (first, kind)
        )
        if ranked:
            picks = {"best": 0, "median": len(ranked) // 2, "worst": -1}
            chosen += [(kind, word, ranked[k][1]) for word, k in picks.items()]
    lines = []
    loaded = [
        load_sample(by_key[key], settings.prompts, settings.seed, settings.max_side)
        for _, _, key in chosen
    ]
    for (kind, word, key), one in zip(chosen, loaded, strict=True):
        prompt = one.prompts[kind]
        drawn = draw_prompts(
            one.rgb,
            points=prompt.points if len(prompt.points) else None,
            labels=prompt.labels if len(prompt.labels) else None,
            boxes=prompt.box,
        )
        lines.append([(one.rgb, f"{word}: {key}"), (drawn, kind), (one.alpha, "truth")])
    for name in [n for n in models if any(r["model"] == n for r in rows)]:
        model = models[name]()
        for line, (kind, _, _), one in zip(lines, chosen, loaded, strict=True):
            model.set_image(one.rgb)
            matte = answer(model, one, kind)
            line.append((matte, f"{name}, MSE {mse(matte, one.alpha):.1f}"))
    return contact_sheet(lines, height=180)
