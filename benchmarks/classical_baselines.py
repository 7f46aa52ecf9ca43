"""Score classical methods and our own models on pictures with true alpha, in one run.

    python benchmarks/classical_baselines.py --root DATA/mattes --models nano --output runs/peers

``--root`` is a folder with ``images/`` and ``alphas/`` holding files of equal stem; several are
scored apart and together. ``--output`` receives ``classical.md``, ``classical.json`` and, with
``--sheet``, a contact sheet. A sheet of pictures that may not be passed on (a folder called
``research_only``) is refused inside this repository.

Protocol, the same for every method: pictures at a longest side of at most ``--max-side``; boxes
are tight around alpha > 0.1; a point is drawn (seeded by the picture's name) where alpha > 0.9
and the distance to the rim is at least 90 % of the largest; one prompt per picture; models answer
with ``multimask_output=False``, or the best-scored of three for points with ``--best-of-three``.
Units are those of ``zim.metrics``. Intervals are percentile bootstraps over pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matting_scores import (
    CLASSICAL,
    KINDS,
    Kind,
    Method,
    Picture,
    cell,
    grey,
    load_pictures,
    mark_prompts,
    markdown,
    measure,
    set_threads,
    summarise,
    zim_method,
)

from zim import metrics
from zim.benchmarking import hardware_line, provenance
from zim.errors import ZimError
from zim.segmenters.classical import BAND_SHARE, GRABCUT_ITERATIONS

_REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Options:
    """Score classical baselines and zim models on pictures with true alpha."""

    root: tuple[Path, ...]
    """folders holding images/ and alphas/"""
    output: Path
    """folder for classical.md and classical.json"""
    models: tuple[str, ...] = ()
    """names or paths for zim.load"""
    prompts: tuple[Kind, ...] = KINDS
    """kinds of prompt to score"""
    classical: bool = True
    """also score filled box, GrabCut and GrabCut + closed-form matting"""
    best_of_three: bool = False
    """let models answer a point with the best-scored of three mattes"""
    sheet: Path | None = None
    """contact sheet (.png) to write"""
    max_side: int = 800
    """longest side; larger pictures are scaled down"""
    limit: int | None = None
    """score only the first pictures of each root"""
    device: str = "auto"
    """where models run"""
    threads: int = 0
    """CPU threads for torch and OpenCV, 0 for their own choice"""
    seed: int = 0
    """seed of points and bootstrap"""


def score(
    pictures: Sequence[Picture], methods: Sequence[Method], kinds: Sequence[Kind]
) -> tuple[list[dict[str, Any]], dict[tuple[str, Kind, str], np.ndarray]]:
    """Run every method on every picture.

    Returns:
        The record of every answer (:func:`matting_scores.measure`) and the mattes by (method,
        prompt, root/picture).
    """
    records, mattes = [], {}
    for number, picture in enumerate(pictures, 1):
        for kind in kinds:
            for method in methods:
                if kind not in method.kinds:
                    continue
                record, alpha = measure(method, picture, kind)
                records.append(record)
                mattes[method.name, kind, f"{picture.root}/{picture.name}"] = alpha
        print(f"{number}/{len(pictures)} {picture.name}", file=sys.stderr)
    return records, mattes


def contact_sheet(
    pictures: Sequence[Picture], mattes: Mapping[tuple[str, Kind, str], np.ndarray]
) -> np.ndarray:
    """Pictures down, methods across: prompt, truth, then each matte with its MSE. RGB uint8."""
    used = list(dict.fromkeys((name, kind) for name, kind, _ in mattes))
    columns: list[tuple[Kind, str]] = [
        (kind, name) for kind in KINDS for name, k in used if k == kind
    ]
    titles = ["prompts", "truth", *(f"{kind}: {name}" for kind, name in columns)]
    rows = [np.concatenate([cell(None, title) for title in titles], axis=1)]
    for picture in pictures:
        cells = [cell(mark_prompts(picture), picture.name), cell(grey(picture.alpha), "")]
        for kind, name in columns:
            alpha = mattes.get((name, kind, f"{picture.root}/{picture.name}"))
            if alpha is None:
                cells.append(cell(None, "-"))
            else:
                cells.append(cell(grey(alpha), f"MSE {metrics.mse(alpha, picture.alpha):.1f}"))
        rows.append(np.concatenate(cells, axis=1))
    # The title row is cut to the height of its text.
    return np.concatenate([rows[0][-22:], *rows[1:]])


def conditions(options: Options) -> dict[str, Any]:
    """Commit, date, hardware, versions and settings: what a reader needs to repeat the run."""
    settings = ("max_side", "seed", "device", "threads", "best_of_three", "prompts")
    facts: dict[str, Any] = {
        **provenance(),
        "hardware": hardware_line(),
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "grabcut_iterations": GRABCUT_ITERATIONS,
        "band_share": BAND_SHARE,
    }
    return facts | {name: getattr(options, name) for name in settings}


def run(options: Options) -> dict[str, Any]:
    """Score, write the reports and return them.

    Raises:
        ZimError: data or models are missing, or the sheet may not be written where asked.
    """
    sheet = options.sheet
    if sheet is not None and _REPOSITORY in sheet.resolve().parents:
        private = [r for r in options.root if "research_only" in r.resolve().parts]
        if private:
            raise ZimError(
                f"{private[0]} may not be passed on, so its pictures must not enter the "
                f"repository; write --sheet outside {_REPOSITORY.name} or leave that root out"
            )
    if not options.root:
        raise ZimError("--root got no folder; name at least one holding images/ and alphas/")
    facts = conditions(options)  # first: a long run must not name a commit made meanwhile
    set_threads(options.threads)
    by_root = [
        load_pictures(root, options.max_side, options.seed, options.limit) for root in options.root
    ]
    pictures = [
        # Two roots often share a name (".../mattes"), so they are numbered.
        Picture(p.name, f"{i}:{p.root}", p.rgb, p.alpha, p.box, p.point)
        for i, group in enumerate(by_root, 1)
        for p in group
    ]
    methods = list(CLASSICAL) if options.classical else []
    methods += [zim_method(m, options.device, options.best_of_three)[0] for m in options.models]
    names = [m.name for m in methods]
    if len(set(names)) < len(names):
        raise ZimError(
            f"two methods share a name: {', '.join(names)}; rename a checkpoint's folder"
        )
    records, mattes = score(pictures, methods, options.prompts)
    roots = list(dict.fromkeys(p.root for p in pictures))
    groups = {name: [r for r in records if r["root"] == name] for name in roots}
    if len(roots) > 1:
        groups["all"] = records
    summary = {name: summarise(group, options.seed) for name, group in groups.items()}
    report = {"conditions": facts, "summary": summary, "pictures": records}

    options.output.mkdir(parents=True, exist_ok=True)
    line = ", ".join(f"{k} {v}" for k, v in facts.items())
    text = f"# Classical baselines\n\n{line}.\n\n" + "\n".join(
        markdown(name, rows) for name, rows in summary.items()
    )
    (options.output / "classical.md").write_text(text, encoding="utf-8")
    dump = json.dumps(report, indent=1, default=str)
    (options.output / "classical.json").write_text(dump + "\n", encoding="utf-8")
    if sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(sheet), contact_sheet(pictures, mattes)[..., ::-1])
    print(text)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 and one line on a known failure."""
    parser = argparse.ArgumentParser(description=Options.__doc__)
    parser.add_argument("--root", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=())
    parser.add_argument("--prompts", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--classical", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--best-of-three", action="store_true")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--max-side", type=int, default=Options.max_side)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default=Options.device)
    parser.add_argument("--threads", type=int, default=Options.threads)
    parser.add_argument("--seed", type=int, default=Options.seed)
    given = vars(parser.parse_args(argv))
    options = Options(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    try:
        run(options)
    except ZimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
