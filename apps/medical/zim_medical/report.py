"""One HTML file that explains itself: what was done, the numbers, the plots, the pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from zim import __version__
from zim_medical.layouts import REGISTRY
from zim_medical.options import MODE_NAMES, NOTICE
from zim_medical.summary import ALL, EXTRA, MACRO, extra_text, interval, p_text

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1120px;margin:2em auto;padding:0 1em}
h1{margin:0 0 .2em;font-size:1.7em}h2{margin:2em 0 .4em;border-bottom:1px solid #ddd}
h3{margin:1.4em 0 .3em}.notice{background:#fff4e0;border-left:4px solid #d9822b;padding:.6em 1em}
table{border-collapse:collapse;margin:.6em 0;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:.25em .7em;text-align:right;border-bottom:1px solid #e4e4e4}
th{background:#f5f5f5;vertical-align:bottom}
th.t,td.t{text-align:left}td span{color:#777;font-size:12px;white-space:nowrap}
img{max-width:100%;height:auto}
.first td{border-top:2px solid #bbb}p.small,li.small{color:#555;font-size:13.5px}
.wide{overflow-x:auto}code{background:#f3f3f3;padding:0 .25em}
"""


_READING = {
    "box": "Box: middle half of the slices; line: median; whiskers: up to 1.5 times the box; "
    "dots: slices beyond.",
    "violin": "Width: how many slices have this score; lines: smallest, median, largest.",
}


def html_report(
    summary: Mapping[str, Any],
    plot: bytes,
    sheets: Mapping[str, bytes],
    *,
    command: str,
    demo: bool,
    plot_kind: str = "box",
    missing: Iterable[str] = (),
) -> str:
    """Return the report.

    Args:
        summary: from :func:`zim_medical.summary.summarise`.
        plot: the distribution figure, PNG.
        sheets: JPEG overlay sheets by dataset.
        command: what was typed.
        demo: the data are phantoms.
        plot_kind: ``box`` or ``violin``.
        missing: datasets that were not found, for the record.
    """
    models = summary["models"]
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width,initial-scale=1'>",
        f"<title>Medical evaluation: {escape(', '.join(models))}</title>",
        f"<style>{_STYLE}</style>",
        "<h1>Prompted segmentation of medical images</h1>",
        f"<p class='small'>zim-toolkit {__version__}, <code>{escape(command)}</code></p>",
        f"<p class='notice'><b>{NOTICE}</b> Prompts are made from the ground truth, so these "
        "scores say how well a model answers a perfect prompt; they are an upper bound of what "
        "a person who clicks would get."
        + (
            " <b>The data are phantoms</b> drawn by this program, not scans of patients: the "
            "scores show that the evaluation works, not how good a model is on medical images."
            if demo
            else ""
        )
        + "</p>",
        _how(summary),
        "<h2>Overlap with the truth</h2>",
        "<p>Mean IoU (intersection over union, 1 is perfect) over slices, with the 95 % interval "
        "over patients below it. Every mode is scored against the whole truth, so a mode that "
        "shows only the largest part cannot reach 1 where there are several.</p>",
        "<div class='wide'>",
        _grid(summary),
        "</div>",
        "<h2>Distribution</h2>",
        f"<p>{_READING[plot_kind]}</p>",
        _picture(plot, "png", "IoU per dataset, mode and model"),
    ]
    if summary["comparisons"]:
        parts += ["<h2>Models compared</h2>", _compared(summary)]
    if sheets:
        parts += [
            "<h2>Pictures</h2>",
            f"<p>Picked evenly over the ranking by IoU of {escape(models[0])} (best, middle, "
            "worst), not selected by eye. Green: truth; orange: answer.</p>",
        ]
    for dataset, data in sheets.items():
        parts += [f"<h3>{escape(REGISTRY[dataset].title)}</h3>"]
        parts += [_picture(data, "jpeg", f"examples of {dataset}")]
    parts += [_left_out(summary, list(missing)), _details(summary), "</html>"]
    return "\n".join(parts) + "\n"


def _how(summary: Mapping[str, Any]) -> str:
    cuts = "; ".join(
        f"{escape(m)}: {'probability 0.5 (logit 0)' if t == 0.5 else f'matte &gt; {t:g}'}"
        for m, t in summary["thresholds"].items()
    )
    modes = "".join(f"<li>mode {m}: {MODE_NAMES[m]}</li>" for m in summary["modes"])
    which = {
        "single": "the model's single mask",
        "first": "the first of three masks (token 1)",
        "score": "of three masks the one the model itself rates best",
    }[summary["protocol"]["mask_select"]]
    return (
        "<h2>What was done</h2><p>Every object in every slice with a non-empty truth was asked for "
        f"in {len(summary['modes'])} ways:</p><ul>{modes}</ul><p>Scored is {which}. "
        f"Binarised at: {cuts}. Settings: <b>{escape(summary['preset'])}</b>.</p>"
    )


def _grid(summary: Mapping[str, Any]) -> str:
    modes, models = summary["modes"], summary["models"]
    cells = {(r["dataset"], r["class"], r["mode"], r["model"]): r for r in summary["scores"]}
    head = "".join(f"<th>{m}: {MODE_NAMES[m]}</th>" for m in modes)
    out = [
        "<table><tr><th class='t'>dataset</th><th class='t'>class</th><th class='t'>model</th>"
        f"<th>n</th><th>patients</th>{head}<th>Dice,<br>mode {modes[-1]}</th>"
        "<th>empty<br>answers</th></tr>"
    ]
    for dataset, cls in dict.fromkeys((r["dataset"], r["class"]) for r in summary["scores"]):
        for j, model in enumerate(models):
            rows = [cells.get((dataset, cls, m, model)) for m in modes]
            some = next((r for r in rows if r), None)
            if some is None:
                continue
            means = "".join(
                f"<td>{r['mean']:.3f}<br><span>{interval(r['ci95'])}</span></td>"
                if r
                else "<td></td>"
                for r in rows
            )
            last = rows[-1]
            mark = " class='first'" if j == 0 else ""
            empty = sum(r["empty_pred"] for r in rows if r)
            out.append(
                f"<tr{mark}><td class='t'>{escape(dataset)}</td>"
                f"<td class='t'>{'all' if cls == ALL else escape(cls)}</td>"
                f"<td class='t'>{escape(model)}</td><td>{some['n']}</td>"
                f"<td>{some['patients']}</td>{means}"
                f"<td>{'' if last is None else format(last['dice'], '.3f')}</td>"
                f"<td>{empty}</td></tr>"
            )
    for j, model in enumerate(models):
        means = {m["mode"]: m["mean"] for m in summary["macro"] if m["model"] == model}
        values = "".join(f"<td><b>{means[m]:.3f}</b></td>" for m in modes)
        mark = " class='first'" if j == 0 else ""
        out.append(
            f"<tr{mark}><td class='t'><b>{MACRO}</b></td><td></td>"
            f"<td class='t'>{escape(model)}</td><td></td><td></td>{values}<td></td><td></td></tr>"
        )
    extra = _extra_grid(summary)
    return "".join(out) + "</table>" + extra


def _extra_grid(summary: Mapping[str, Any]) -> str:
    """Return a table of the optional columns, if there are any."""
    present = [n for n in EXTRA if any(n in r for r in summary["scores"])]
    if not present:
        return ""
    head = "".join(f"<th>{EXTRA[n]}</th>" for n in present)
    out = [f"<table><tr><th class='t'>dataset</th><th>mode</th><th class='t'>model</th>{head}</tr>"]
    for r in summary["scores"]:
        if r["class"] == ALL:
            values = "".join(f"<td>{extra_text(r, n)}</td>" for n in present)
            out.append(
                f"<tr><td class='t'>{escape(r['dataset'])}</td><td>{r['mode']}</td>"
                f"<td class='t'>{escape(r['model'])}</td>{values}</tr>"
            )
    return "".join(out) + "</table>"


def _compared(summary: Mapping[str, Any]) -> str:
    out = [
        "<p>Difference of mean IoU on the same slices, with its 95 % interval over patients; p of "
        "a Wilcoxon signed-rank test on patient means, Holm-adjusted over all rows; effect: "
        "matched rank-biserial correlation (1: better for every patient, -1: worse for "
        "every patient).</p>"
        "<table><tr><th class='t'>dataset</th><th>mode</th><th class='t'>models</th>"
        "<th>difference</th><th>95 % interval</th><th>patients</th><th>p (Holm)</th>"
        "<th>effect</th></tr>"
    ]
    before = None
    for c in summary["comparisons"]:
        effect = "" if c["effect"] is None else f"{c['effect']:+.2f}"
        mark = " class='first'" if c["dataset"] != before else ""
        before = c["dataset"]
        out.append(
            f"<tr{mark}><td class='t'>{escape(c['dataset'])}</td><td>{c['mode']}</td>"
            f"<td class='t'>{escape(c['first'])} - {escape(c['other'])}</td>"
            f"<td>{c['difference']:+.3f}</td><td>{interval(c['interval'])}</td>"
            f"<td>{c['patients']}</td><td>{p_text(c['p_holm'])}</td><td>{effect}</td></tr>"
        )
    return "".join(out) + "</table>"


def _left_out(summary: Mapping[str, Any], missing: list[str]) -> str:
    out = [
        "<h2>What was left out</h2><table><tr><th class='t'>dataset</th><th>cases</th>"
        "<th>pictures scored</th><th>without truth (skipped)</th><th>too small (skipped)</th>"
        "<th>excluded cases</th></tr>"
    ]
    for name, c in summary["counts"].items():
        bad = sum(e["dataset"] == name for e in summary["excluded"])
        out.append(
            f"<tr><td class='t'>{escape(name)}</td><td>{c['cases']}</td><td>{c['pictures']}</td>"
            f"<td>{c['empty']}</td><td>{c['small']}</td><td>{bad}</td></tr>"
        )
    out.append("</table>")
    items = [
        f"{escape(e['dataset'])} {escape(e['case_id'])}: {escape(e['reason'])}"
        for e in summary["excluded"]
    ]
    items += [f"{escape(name)}: not found below the root, not evaluated" for name in missing]
    if items:
        out.append("<ul>" + "".join(f"<li class='small'>{i}</li>" for i in items) + "</ul>")
    return "".join(out)


def _details(summary: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td class='t'>{escape(k)}</td><td class='t'>{escape(str(v))}</td></tr>"
        for k, v in summary["protocol"].items()
    )
    return (
        "<h2>For the record</h2><p class='small'>Points are the pixels deepest inside a region; "
        "boxes run from its first to its last pixel. The paper does not state the slice axis, the "
        "number of slices, the intensity range, the mask that is scored, the classes of the hip "
        "or whether 0.3 itself counts; the settings below are this run's answers. The official ZIM "
        "weights and code are CC BY-NC 4.0. Where a file name does not tell the patient, every "
        "file counts as one, and intervals are too narrow. "
        f"Intervals: {summary['bootstrap']}.</p><table>{rows}</table>"
    )


def _picture(data: bytes, kind: str, text: str) -> str:
    encoded = base64.b64encode(data).decode()
    return f"<p><img alt='{escape(text)}' src='data:image/{kind};base64,{encoded}'></p>"
