"""How good is ``nano`` (or any model) beside classical methods, on scenes frozen beforehand?

    python benchmarks/nano.py --data ../shared/data --output runs/nano --minutes 9

Draws the scenes of ``benchmarks/nano_scenes.json`` (which says how they were chosen) and asks every
method in the same run:

- boxes and single clicks, with the five metrics of ``zim.metrics`` and the IoU at alpha 0.5;
- correcting clicks (models): after the first click each next one goes where the answer (alpha
  0.5) is wrong most deeply; all clicks so far are asked anew, as ``zim matte`` and ``zim serve``
  do, and in a row of its own with the last answer's low-res logits as ``mask_input``, as SAM;
- nested pairs (models): asked for a part painted on an object and for the object, by box and by
  click, an answer succeeds when its IoU with what was asked for is over 0.5 and over its IoU
  with the other; a pair succeeds when both answers do;
- time per picture at the model's own size, and of the next prompt on the same picture.

``--real`` scores the photographs of ``DATA/mattes`` as well, by the protocol of
``classical_baselines.py``: once per released weight file, never to choose between weights.

Answers go to ``OUTPUT/answers.jsonl`` one by one. Started again, the run goes on where it was; what
a changed model or changed code answers is asked again (answers are kept by a hash of weights and
code); ``--minutes`` ends a piece of a long run with exit code 3. A complete run writes ``nano.md``
and ``nano.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matting_scores import (
    CLASSICAL,
    KINDS,
    METRICS,
    Method,
    Picture,
    bootstrap,
    cell,
    grey,
    iou,
    load_pictures,
    mark_prompts,
    markdown,
    measure,
    set_threads,
    summarise,
    zim_method,
)
from nano_scenes import COUNTS, Case, Drawn, Painter, read_cases, read_header

import zim
import zim.segmenters.classical
from zim import metrics
from zim.benchmarking import hardware, hardware_line, markdown_table, provenance, sample_times
from zim.errors import ZimError
from zim.evaluation.samples import inner_point

#: how many clicks are given, and after which the error is reported
CLICKS, REPORTED = 5, (1, 2, 3, 5)
#: modules of ``zim`` that decide what a model answers, and how answers are scored
ANSWERING = (
    "model/*.py",
    "classical.py",
    "cues.py",
    "framing.py",
    "geometry.py",
    "grabcut.py",
    "metrics.py",
    "predictor.py",
    "prompt_batch.py",
    "prompts.py",
    "second_opinion.py",
    "sureness.py",
    "upsample.py",
    "views.py",
)
#: exit code of a run that has not finished yet
UNFINISHED = 3
NAMES = (*METRICS, "iou")
#: what is given with every correcting click
CORRECTIONS = ("all clicks", "all clicks and the last mask")

_PACKAGE = Path(zim.__file__).parent
_REAL_SIDE = 800


@dataclass(frozen=True)
class Player:
    """A method, the hash of what decides its answers, and the predictor of a model."""

    method: Method
    version: str
    predictor: Any = None


@dataclass(frozen=True)
class Job:
    """A few answers about one case that are asked and stored together."""

    key: tuple[str, str, str]  # version of the method, case, task
    ask: Callable[[], dict[str, Any]]


def classical_players() -> list[Player]:
    """Filled box, GrabCut, and GrabCut with closed-form matting in a band."""
    libraries = [f"{p} {importlib.metadata.version(p)}" for p in ("pymatting", "numpy")]
    files = [Path(module.__file__ or "") for module in (zim.segmenters.classical, metrics)]
    sources = [path.read_bytes() for path in files]
    version = _hash([*sources, cv2.__version__.encode(), *(t.encode() for t in libraries)])
    return [Player(m, f"{m.name} {version}") for m in CLASSICAL]


def model_player(name: str, device: str) -> Player:
    """Load a model by name or path.

    Raises:
        ZimError: it is unknown or has no weights.
    """
    method, predictor = zim_method(name, device, best_of_three=False)
    model = predictor.model
    parts = [repr(model.config).encode()]
    parts += [t.float().cpu().numpy().tobytes() for t in model.state_dict().values()]
    files = sorted(path for pattern in ANSWERING for path in _PACKAGE.glob(pattern))
    version = _hash(parts + [path.read_bytes() for path in files])
    return Player(method, f"{method.name} {version}", predictor)


def _hash(parts: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


# What is asked.


def picture_of(drawn: Drawn, k: int = 0) -> Picture:
    """Pose a case's k-th target as a picture with its prompts."""
    case, target = drawn.case, drawn.case.targets[k]
    box, click = (np.array(v, np.float32) for v in (target.box, target.click))
    return Picture(case.name, case.set, drawn.rgb, drawn.alphas[k], box, click)


def jobs_of(case: Case, players: Sequence[Player], draw: Callable[[], Drawn]) -> Iterator[Job]:
    """List what a case asks of every method; the case is drawn only if something is asked."""
    for player in players:
        if case.set == "nested":
            if player.predictor is not None:
                yield Job((player.version, case.name, "nested"), lambda p=player: nested(p, draw()))
            continue
        for kind in KINDS:
            if kind in player.method.kinds:
                yield Job(
                    (player.version, case.name, kind),
                    lambda p=player, k=kind: measure(p.method, picture_of(draw()), k)[0],
                )
        if player.predictor is not None:
            for task in CORRECTIONS:
                yield Job(
                    (player.version, case.name, task),
                    lambda p=player, t=task: {
                        "mse": correct(p.predictor, picture_of(draw()), t == CORRECTIONS[1])
                    },
                )


def correct(predictor: Any, picture: Picture, feedback: bool) -> list[float]:
    """Click where the answer is most wrong, again and again; MSE x 1000 after every click.

    With ``feedback`` every answer's low-res logits go into the next question.
    """
    predictor.set_image(picture.rgb)
    points, labels = [picture.point], [1]
    low: np.ndarray | None = None
    errors = []
    for number in range(1, CLICKS + 1):
        mattes, _, low = predictor.predict(
            point_coords=np.stack(points),
            point_labels=np.array(labels),
            mask_input=low if feedback else None,
            multimask_output=False,
        )
        errors.append(metrics.mse(mattes[0], picture.alpha))
        point, label = next_click(mattes[0], picture, number)
        points.append(point)
        labels.append(label)
    return errors


def next_click(matte: np.ndarray, picture: Picture, number: int) -> tuple[np.ndarray, int]:
    """Find the deepest mistake at alpha 0.5: missed object (1) or object too much (0)."""
    got, asked = matte > 0.5, picture.alpha > 0.5
    depths = []
    for wrong in (got & ~asked, asked & ~got):
        padded = np.pad(wrong.astype(np.uint8), 1)
        depths.append(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).max())
    label = int(depths[1] >= depths[0])
    wrong = asked & ~got if label else got & ~asked
    if not wrong.any():  # nothing to correct: confirm the object
        return picture.point, 1
    return inner_point(wrong.astype(np.float32), f"{picture.name}:{number}", 0), label


def nested(player: Player, drawn: Drawn) -> dict[str, Any]:
    """Ask for the part and for the whole; IoU of every answer with both, by kind of prompt."""
    pictures = [picture_of(drawn, k) for k in (0, 1)]
    answers: dict[str, Any] = {}
    for kind in KINDS:
        mattes = [player.method.answer(picture, kind) for picture in pictures]
        answers[kind] = [[iou(m, p.alpha) for p in pictures] for m in mattes]
    return answers


def succeeds(ious: Sequence[float], asked: int) -> bool:
    """Decide whether an answer is what was asked for rather than the other of the pair."""
    return ious[asked] > 0.5 and ious[asked] > ious[1 - asked]


# The run.


def run_jobs(
    cases: Sequence[Case],
    players: Sequence[Player],
    painter: Painter,
    done: dict[tuple[str, str, str], dict[str, Any]],
    log: Path,
    until: float,
) -> bool:
    """Ask what is missing and append it to the log; False when time is up before the end."""
    with log.open("a", encoding="utf-8") as file:
        for number, case in enumerate(cases, 1):
            drawn: list[Drawn] = []

            def draw(case: Case = case, drawn: list[Drawn] = drawn) -> Drawn:
                if not drawn:
                    drawn.append(painter.draw(case))
                return drawn[0]

            for job in jobs_of(case, players, draw):
                if job.key in done:
                    continue
                if time.monotonic() > until:
                    return False
                done[job.key] = job.ask() | {"exact": draw().exact}
                file.write(json.dumps([job.key, done[job.key]]) + "\n")
                file.flush()
            if drawn:
                print(f"\r{number}/{len(cases)} {case.name}", end="", file=sys.stderr)
    return True


def read_log(log: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return earlier answers by key; a line cut short by a killed run is left out."""
    done = {}
    if log.is_file():
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                key, value = json.loads(line)
            except ValueError:
                continue
            done[tuple(key)] = value
    return done


def choose_cases(count: int) -> list[Case]:
    """Take the first scenes, and of the other sets a proportional number."""
    cases = []
    for which, total in COUNTS.items():
        cases += read_cases(which)[: max(1, round(total * count / COUNTS["scenes"]))]
    return cases


# What is reported.


def report_sets(
    cases: Sequence[Case], players: Sequence[Player], done: dict[Any, dict[str, Any]], seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Summarise boxes and clicks by set, and the scenes by fine and coarse too."""
    chosen: dict[str, Callable[[Case], bool]] = {
        "scenes": lambda c: c.set == "scenes",
        "scenes, fine": lambda c: c.set == "scenes" and c.targets[0].group == "fine",
        "scenes, coarse": lambda c: c.set == "scenes" and c.targets[0].group == "coarse",
        "filling": lambda c: c.set == "filling",
    }
    tables = {}
    for title, belongs in chosen.items():
        keys = [
            (p.version, c.name, kind)
            for c in cases
            if belongs(c)
            for p in players
            for kind in KINDS
            if kind in p.method.kinds
        ]
        if keys:
            tables[title] = summarise([done[k] for k in keys], seed, NAMES)
    return tables


def report_clicks(
    cases: Sequence[Case], models: Sequence[Player], done: dict[Any, dict[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """Mean MSE after some numbers of clicks, by set."""
    rows = []
    for player in models:
        for which, given in itertools.product(("scenes", "filling"), CORRECTIONS):
            names = [c.name for c in cases if c.set == which]
            errors = np.array([done[player.version, n, given]["mse"] for n in names])
            for count in REPORTED:
                values = errors[:, count - 1]
                low, high = bootstrap(values, seed)
                row: dict[str, Any] = {"set": which, "method": player.method.name}
                row |= {"given": given, "clicks": count}
                row |= {"n": len(values), "mse": float(values.mean()), "low": low, "high": high}
                rows.append(row)
    return rows


def report_nested(
    cases: Sequence[Case], models: Sequence[Player], done: dict[Any, dict[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """Rates of success on nested pairs."""
    rows = []
    names = [c.name for c in cases if c.set == "nested"]
    for player in models:
        for kind in KINDS:
            pairs = [done[player.version, n, "nested"][kind] for n in names]
            hits = np.array([[succeeds(ious, k) for k, ious in enumerate(p)] for p in pairs])
            both = hits.all(1).astype(float)
            low, high = bootstrap(both, seed)
            row: dict[str, Any] = {"method": player.method.name, "prompt": kind, "n": len(names)}
            row |= {"part": float(hits[:, 0].mean()), "whole": float(hits[:, 1].mean())}
            rows.append(row | {"both": float(both.mean()), "low": low, "high": high})
    return rows


def time_model(player: Player, pictures: Sequence[Picture], threads: int) -> dict[str, Any]:
    """Time encoding with decoding, and one more prompt, at the model's own size (seconds)."""
    predictor, side = player.predictor, player.predictor.model.config.image_size
    first, second = [], []
    set_threads(threads)
    for number, picture in enumerate(pictures):
        scale = side / max(picture.rgb.shape[:2])
        rgb = cv2.resize(picture.rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)

        def whole(rgb: np.ndarray = rgb, box: np.ndarray = picture.box * scale) -> None:
            predictor.set_image(rgb)
            predictor.predict(box=box, multimask_output=False)

        def again(point: np.ndarray = picture.point * scale) -> None:
            predictor.predict(
                point_coords=point[None], point_labels=np.ones(1, int), multimask_output=False
            )

        first += sample_times(whole, warmup=int(number == 0), repeats=1)
        second += sample_times(again, warmup=int(number == 0), repeats=1)
    row: dict[str, Any] = {"method": player.method.name, "side": side, "threads": threads}
    row |= {"n": len(first), "first": float(np.median(first)), "first_least": min(first)}
    return row | {"next": float(np.median(second)), "next_least": min(second)}


def write_text(report: dict[str, Any]) -> str:
    """Lay the report out as Markdown."""
    facts = report["conditions"]
    lines = [
        "# nano beside classical methods",
        "",
        f"`{facts['command']}`, commit {facts['commit']}, {facts['date']}.",
        f"{facts['hardware_line']}.",
        "",
        f"Scenes: generator version {facts['scenes']['generator_version']}, seed "
        f"{facts['scenes']['seed']}, manifest {facts['scenes']['sha256'][:12]}; "
        f"{facts['exact']} of {facts['cases']} drawn exactly as frozen, the rest up to rounding.",
        "SAD and Conn in thousands of pixels, MSE, MAE and Grad x 1000; mean and 95 % interval.",
        "",
    ]
    lines += [markdown(title, rows, NAMES) for title, rows in report["tables"].items()]
    lines += ["### Correcting clicks", ""]
    lines += markdown_table(
        ["set", "method", "given", "clicks", "n", "MSE", "95 %"],
        [
            (r["set"], r["method"], r["given"], r["clicks"], r["n"], f"{r['mse']:.2f}", _span(r))
            for r in report["clicks"]
        ],
    )
    lines += ["", "### Nested parts: share of answers that are what was asked for", ""]
    lines += markdown_table(
        ["method", "prompt", "n", "part", "whole", "both", "95 % of both"],
        [
            [r["method"], r["prompt"], r["n"]]
            + [f"{r[k]:.2f}" for k in ("part", "whole", "both")]
            + [_span(r)]
            for r in report["nested"]
        ],
    )
    lines += ["", "### Time on the CPU (seconds of the wall clock, median and least)", ""]
    lines += markdown_table(
        ["method", "side", "threads", "n", "encode + decode", "least", "next prompt", "least"],
        [
            [r["method"], r["side"], r["threads"], r["n"]]
            + [f"{r[k]:.3f}" for k in ("first", "first_least", "next", "next_least")]
            for r in report["time"]
        ],
    )
    return "\n".join(lines) + "\n"


def _span(row: dict[str, Any]) -> str:
    return f"[{row['low']:.2f}, {row['high']:.2f}]"


def result_sheet(player: Player, drawn: Sequence[Drawn], across: int = 4) -> np.ndarray:
    """Results side by side: prompts, truth, answer to the box, answer to the click. RGB uint8."""
    strips = []
    for one in drawn:
        picture = picture_of(one)
        cells = [cell(mark_prompts(picture), picture.name, 92), cell(grey(picture.alpha), "", 92)]
        for kind in KINDS:
            matte = player.method.answer(picture, kind)
            caption = f"{kind} {metrics.mse(matte, picture.alpha):.1f}"
            cells.append(cell(grey(matte), caption, 92))
        strips.append(np.concatenate(cells, axis=1))
    strips += [np.full_like(strips[0], 40)] * (-len(strips) % across)
    rows = [np.concatenate(strips[i : i + across], axis=1) for i in range(0, len(strips), across)]
    return np.concatenate(rows)


def run(args: argparse.Namespace) -> int:
    """Go on with a run and, once it is complete, report it."""
    set_threads(args.threads)
    facts = {**provenance(), "hardware": hardware(), "hardware_line": hardware_line()}
    until = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    cases = choose_cases(4 if args.quick else args.limit)
    painter = Painter(args.data)
    models = [model_player(name, args.device) for name in args.models]
    players = [*(classical_players() if args.classical else []), *models]
    args.output.mkdir(parents=True, exist_ok=True)
    log = args.output / "answers.jsonl"
    done = read_log(log)
    if not run_jobs(cases, players, painter, done, log, until):
        print("\nnot finished; run the same command again to go on", file=sys.stderr)
        return UNFINISHED
    tables = report_sets(cases, players, done, args.seed)
    if args.real:
        tables["real photographs"] = score_real(args, players)
    shown = [painter.draw(c) for c in _spread(read_cases("scenes"), 2 if args.quick else 20)]
    pictures = [picture_of(drawn) for drawn in shown]
    used = {p.version for p in players}
    exact = {key[1]: row["exact"] for key, row in done.items() if key[0] in used}
    facts |= {"scenes": read_header(), "cases": len(cases), "seed": args.seed}
    facts |= {"exact": sum(exact[c.name] for c in cases if c.name in exact)}
    facts |= {"versions": [p.version for p in players]}
    report = {
        "conditions": facts,
        "tables": tables,
        "clicks": report_clicks(cases, models, done, args.seed),
        "nested": report_nested(cases, models, done, args.seed),
        "time": [time_model(p, pictures, args.timed_threads) for p in models],
    }
    text = write_text(report)
    (args.output / "nano.md").write_text(text, encoding="utf-8")
    dump = json.dumps(report, indent=1) + "\n"
    (args.output / "nano.json").write_text(dump, encoding="utf-8")
    print(text)
    if args.sheet and models:
        some = _spread(read_cases("scenes"), 30) + _spread(read_cases("filling"), 10)
        sheet = result_sheet(models[0], [painter.draw(c) for c in some])
        cv2.imwrite(str(args.sheet), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 78])
    return 0


def score_real(args: argparse.Namespace, players: Sequence[Player]) -> list[dict[str, Any]]:
    """Score the photographs with measured or hand-made alpha, as classical_baselines.py does."""
    records = []
    for picture in load_pictures(args.data / "mattes", _REAL_SIDE, seed=0):
        for player in players:
            for kind in player.method.kinds:
                records.append(measure(player.method, picture, kind)[0])
    return summarise(records, args.seed, NAMES)


def _spread(cases: Sequence[Case], count: int) -> list[Case]:
    """Take evenly spaced cases, whatever was answered to them."""
    return [cases[i * len(cases) // count] for i in range(count)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 and one line on a known failure, 3 while unfinished."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the image collection")
    parser.add_argument("--output", type=Path, required=True, help="folder of answers and reports")
    parser.add_argument("--models", nargs="+", default=["nano"], help="names or paths [nano]")
    parser.add_argument("--classical", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--limit", type=int, default=COUNTS["scenes"], help="first scenes [300]")
    parser.add_argument("--minutes", type=float, default=0, help="end this piece then [never]")
    parser.add_argument("--real", action="store_true", help="also DATA/mattes; once per release")
    parser.add_argument("--sheet", type=Path, help="JPG of 40 results to write")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="of torch while scoring [its own]")
    parser.add_argument("--timed-threads", type=int, default=2, help="while timing [2]")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--quick", action="store_true", help="few scenes, to check the script")
    try:
        return run(parser.parse_args(argv))
    except ZimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
