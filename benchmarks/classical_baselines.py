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
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from zim import metrics
from zim.errors import ImageError, ZimError
from zim.evaluation.samples import inner_point
from zim.prompts import Prompt, mask_box
from zim.segmenters.classical import (
    BAND_SHARE,
    GRABCUT_ITERATIONS,
    closed_form_alpha,
    grabcut_mask,
)

Kind = Literal["box", "point"]
KINDS: tuple[Kind, ...] = ("box", "point")
METRICS = ("sad", "mse", "mae", "grad", "conn")
REFERENCE = "GrabCut"  # every method is also compared with it, picture by picture

_REPOSITORY = Path(__file__).resolve().parents[1]
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_CELL = 180  # side of a contact sheet's cell


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


def zim_method(name: str, device: str, best_of_three: bool) -> Method:
    """Load a model by name or path and wrap its predictor.

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
    return Method("/".join(Path(name).parts[-2:]), answer)


def score(
    pictures: Sequence[Picture], methods: Sequence[Method], kinds: Sequence[Kind]
) -> tuple[list[dict[str, Any]], dict[tuple[str, Kind, str], np.ndarray]]:
    """Run every method on every picture.

    Returns:
        One record per answer (method, prompt, picture, root, seconds, the five metrics) and the
        mattes by (method, prompt, root/picture).
    """
    records, mattes = [], {}
    for number, picture in enumerate(pictures, 1):
        for kind in kinds:
            for method in methods:
                if kind not in method.kinds:
                    continue
                start = time.perf_counter()
                alpha = method.answer(picture, kind)
                seconds = time.perf_counter() - start
                key = f"{picture.root}/{picture.name}"
                mattes[method.name, kind, key] = alpha
                records.append(
                    {
                        "method": method.name,
                        "prompt": kind,
                        "root": picture.root,
                        "picture": picture.name,
                        "seconds": seconds,
                        **metrics.evaluate(alpha, picture.alpha),
                    }
                )
        print(f"{number}/{len(pictures)} {picture.name}", file=sys.stderr)
    return records, mattes


def bootstrap(values: np.ndarray, seed: int, rounds: int = 10_000) -> tuple[float, float]:
    """95 % percentile interval of the mean over pictures."""
    picks = np.random.default_rng(seed).integers(len(values), size=(rounds, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def summarise(records: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Mean and interval of each metric per method and prompt, and its wins over GrabCut by MSE."""
    rows = []
    order = dict.fromkeys((r["prompt"], r["method"]) for r in records)
    for prompt, method in sorted(order, key=lambda pair: KINDS.index(pair[0])):
        mine = [r for r in records if (r["prompt"], r["method"]) == (prompt, method)]
        row: dict[str, Any] = {"prompt": prompt, "method": method, "n": len(mine)}
        row["seconds"] = float(np.median([r["seconds"] for r in mine]))
        for name in METRICS:
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


def markdown(title: str, rows: Iterable[dict[str, Any]]) -> str:
    """One table; a cell is the mean and its 95 % interval."""
    head = ["prompt", "method", "n", *(m.upper() for m in METRICS)]
    head += ["MSE minus GrabCut's", "better than GrabCut", "s/picture"]
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["prompt"], row["method"], str(row["n"])]
        gap = row.get("mse_minus_grabcut")
        for value in [row[m] for m in METRICS] + [gap]:
            cells.append(
                f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]" if value else "-"
            )
        cells += [f"{row['wins']}/{row['n']}" if gap else "-", f"{row['seconds']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def contact_sheet(
    pictures: Sequence[Picture], mattes: Mapping[tuple[str, Kind, str], np.ndarray]
) -> np.ndarray:
    """Pictures down, methods across: prompt, truth, then each matte with its MSE. RGB uint8."""
    used = list(dict.fromkeys((name, kind) for name, kind, _ in mattes))
    columns: list[tuple[Kind, str]] = [
        (kind, name) for kind in KINDS for name, k in used if k == kind
    ]
    titles = ["prompts", "truth", *(f"{kind}: {name}" for kind, name in columns)]
    rows = [np.concatenate([_cell(None, title) for title in titles], axis=1)]
    for picture in pictures:
        shown = picture.rgb.copy()
        x0, y0, x1, y1 = (int(v) for v in picture.box)
        cv2.rectangle(shown, (x0, y0), (x1 - 1, y1 - 1), (255, 210, 0), 3)
        centre = (int(picture.point[0]), int(picture.point[1]))
        cv2.circle(shown, centre, max(shown.shape) // 60, (255, 40, 40), -1)
        cells = [_cell(shown, picture.name), _cell(_grey(picture.alpha), "")]
        for kind, name in columns:
            alpha = mattes.get((name, kind, f"{picture.root}/{picture.name}"))
            if alpha is None:
                cells.append(_cell(None, "-"))
            else:
                cells.append(_cell(_grey(alpha), f"MSE {metrics.mse(alpha, picture.alpha):.1f}"))
        rows.append(np.concatenate(cells, axis=1))
    # The title row is cut to the height of its text.
    return np.concatenate([rows[0][-22:], *rows[1:]])


def _grey(alpha: np.ndarray) -> np.ndarray:
    return np.repeat(np.rint(np.float32(alpha) * 255).astype(np.uint8)[..., None], 3, axis=2)


def _cell(image: np.ndarray | None, caption: str) -> np.ndarray:
    cell = np.full((_CELL + 22, _CELL + 6, 3), 40, np.uint8)
    if image is not None:
        scale = _CELL / max(image.shape[:2])
        width, height = (max(1, int(n * scale)) for n in (image.shape[1], image.shape[0]))
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        y, x = (_CELL - height) // 2, (_CELL + 6 - width) // 2
        cell[y : y + height, x : x + width] = small
    where = (3, _CELL + 15)
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(cell, caption, where, font, 0.36, (255, 255, 255), 1, cv2.LINE_AA)
    return cell


def conditions(options: Options) -> dict[str, Any]:
    """Commit, date, hardware, versions and settings: what a reader needs to repeat the run."""
    settings = ("max_side", "seed", "device", "threads", "best_of_three", "prompts")
    facts: dict[str, Any] = {
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": _hardware(options),
        "python": platform.python_version(),
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "grabcut_iterations": GRABCUT_ITERATIONS,
        "band_share": BAND_SHARE,
    }
    return facts | {name: getattr(options, name) for name in settings}


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=_REPOSITORY, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()


def _hardware(options: Options) -> str:
    cores = cv2.getNumberOfCPUs()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        name = next((s.split(":", 1)[1].strip() for s in lines if s.startswith("model name")), name)
    text = f"{name}, {cores} cores"
    if options.models and options.device != "cpu":
        import torch

        if torch.cuda.is_available():
            text += f", {torch.cuda.get_device_name()}"
    return text


def set_threads(count: int) -> None:
    """Limit OpenCV and torch; 0 leaves both alone."""
    if count > 0:
        import torch

        cv2.setNumThreads(count)
        torch.set_num_threads(count)


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
    methods += [zim_method(m, options.device, options.best_of_three) for m in options.models]
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
