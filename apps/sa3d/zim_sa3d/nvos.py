"""NVOS: scribbles in a reference view, the mask of one other view to hit (ZIM paper, Table 6).

Layout under the root: ``scribbles/<target>/pos*.png`` and ``neg*.png``,
``reference_image/<target>/<image>``, ``masks/<target>/<image>_mask.png``. SA3D's own evaluation was
never published in full; our choices: scribbles are thinned to skeletons and sampled with a seed,
the target view takes no part in lifting, the prediction is compared at the mask's size.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim import viz
from zim._extras import require
from zim.commandline import Report, UsageError, error_line
from zim.commands.outputs import output_folder
from zim.errors import ConfigError, ZimError
from zim.images import read_alpha
from zim.output import atomic_write, save_rgb
from zim_sa3d.export import predict_view
from zim_sa3d.folders import pictures
from zim_sa3d.presets import FACTOR
from zim_sa3d.readers import find_scene
from zim_sa3d.runs import Run
from zim_sa3d.segment import ScenePrompt, iou

TARGETS = (
    "fern",
    "flower",
    "fortress",
    "horns_center",
    "horns_left",
    "leaves",
    "orchids",
    "trex",
)
#: mask IoU in percent on the target view, as the paper's Table 6 prints it
TABLE_6: dict[str, dict[str, float]] = {
    "SAM": dict(zip(TARGETS, (84.9, 94.0, 96.5, 94.0, 92.9, 92.2, 89.9, 83.7), strict=True)),
    "ZIM": dict(zip(TARGETS, (86.6, 95.7, 98.1, 97.4, 94.7, 92.9, 91.8, 85.4), strict=True)),
}
#: share of skeleton pixels that become clicks (SA3D)
POSITIVE_SHARE, NEGATIVE_SHARE = 0.02, 0.005


def scribble_clicks(
    painted: NDArray[np.bool_], share: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Thin a scribble to its skeleton and draw clicks from it, N x 2 (x, y), at least one."""
    morphology: Any = require("skimage.morphology", "sa3d")
    rows, cols = np.nonzero(morphology.skeletonize(painted))
    if not len(rows):
        return np.zeros((0, 2))
    chosen = generator.random(len(rows)) < share
    if not chosen.any():
        chosen[generator.integers(len(rows))] = True
    return np.stack([cols[chosen], rows[chosen]], 1).astype(np.float64)


def scores(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> dict[str, float]:
    """Return IoU and accuracy in percent, at the truth's size (nearest neighbour)."""
    height, width = truth.shape
    fitted = cv2.resize(
        predicted.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST
    )
    hit = fitted > 0
    return {"iou": 100 * iou(hit, truth), "accuracy": 100 * float((hit == truth).mean())}


def evaluate(args: argparse.Namespace) -> Report:
    """Score the targets that are there; one that fails does not stop the others.

    Raises:
        UsageError: no target is there.
    """
    root = Path(args.nvos).expanduser()
    targets = args.targets or [t for t in TARGETS if (root / "masks" / t).is_dir()]
    if not targets:
        raise UsageError(
            f"{root} holds no NVOS target; expected masks/<target>, scribbles/<target> and "
            f"reference_image/<target> for some of {', '.join(TARGETS)}"
        )
    models: list[str] = args.models or [args.model]
    report = Report(model=", ".join(models), items=[])
    assert report.items is not None
    for target in targets:
        for model in models:
            item: dict[str, Any] = {"input": target, "model": model}
            item |= {"outputs": {}, "metrics": {}, "error": None}
            try:
                item |= _target(args, root, target, model)
                paper = {f"paper_{name}": row.get(target) for name, row in TABLE_6.items()}
                item["metrics"] |= paper
            except (ZimError, OSError) as error:
                item["error"] = error_line(error)
                report.failed = True
            report.items.append(item)
    done = [item for item in report.items if item["error"] is None]
    for name in ("iou", "accuracy"):
        if done:
            values = [item["metrics"][name] for item in done]
            report.metrics[name] = round(float(np.mean(values)), 3)
            if len(models) > 1:
                report.metrics[f"{name}_by_model"] = {
                    model: round(float(np.mean(of)), 3)
                    for model in models
                    if (of := [i["metrics"][name] for i in done if i["model"] == model])
                }
    report.metrics["targets"] = len({item["input"] for item in done})
    table = _table(report.items, models)
    out = _folder(args)
    out.mkdir(parents=True, exist_ok=True)
    for kind, name, text in (
        ("table", "nvos.md", f"{_choices(args)}\n\n{table}\n"),
        ("report", "nvos.json", json.dumps(report.to_dict(), indent=1, default=str) + "\n"),
    ):
        report.outputs[kind] = str(out / name)
        atomic_write(out / name, text.encode())
    report.lines = [table]
    return report


def _folder(args: argparse.Namespace) -> Path:
    return output_folder(args.output, "runs/nvos")


def _choices(args: argparse.Namespace) -> str:
    """Say how the figures came about, for the head of the report."""
    return (
        "Mask IoU and accuracy in percent on the target view. The paper's columns are its Table 6, "
        "quoted. Ours: scribbles thinned to skeletons and sampled (2 % of the positive, 0.5 % of "
        f"the negative pixels, seed {args.seed}; the clicks are in each prompts.json), the target "
        "view takes no part in lifting, compared at the mask's size, pictures at 1/"
        f"{args.factor or FACTOR}, read-out {args.readout}."
    )


def _table(items: list[dict[str, Any]], models: list[str]) -> str:
    """Lay out the scores as a Markdown table, the paper's beside ours."""
    heads = [f"{model} {what}" for model in models for what in ("IoU", "accuracy")]
    papers = [f"paper {name}" for name in TABLE_6]
    rows = [["target", *heads, *papers], ["---"] * (1 + len(heads) + len(papers))]
    columns: dict[str, list[float]] = {head: [] for head in (*heads, *papers)}
    errors: list[str] = []
    for target in dict.fromkeys(item["input"] for item in items):
        row = [target]
        for item in (i for i in items if i["input"] == target):
            if item["error"]:
                errors.append(f"{target}, {item['model']}: {item['error']}")
            for what in ("IoU", "accuracy"):
                value = item["metrics"].get(what.lower())
                row.append("failed" if value is None else f"{value:.1f}")
                if value is not None:
                    columns[f"{item['model']} {what}"].append(value)
        for name, figures in TABLE_6.items():
            value = figures.get(target)
            row.append("" if value is None else f"{value:.1f}")
            if value is not None and "failed" not in row:  # means are of the same targets
                columns[f"paper {name}"].append(value)
        rows.append(row)
    rows.append(["mean", *(f"{np.mean(c):.1f}" if c else "" for c in columns.values())])
    return "\n".join([*("| " + " | ".join(row) + " |" for row in rows), *errors])


def _target(args: argparse.Namespace, root: Path, target: str, model: str) -> dict[str, Any]:
    data = Path(args.data).expanduser() if args.data else root
    own = copy.copy(args)
    own.scene, own.model = str(find_scene(target, data)), model
    own.output = str(_folder(args) / target)
    work = Run(own)
    scene = work.scene()
    reference = scene.find(pictures(root / "reference_image" / target)[0].stem)
    mask_file = next((p for p in pictures(root / "masks" / target) if "_mask" in p.stem), None)
    if mask_file is None:
        raise ConfigError(f"{root / 'masks' / target} holds no *_mask.png")
    aim = scene.find(mask_file.stem.removesuffix("_mask"))
    if aim == reference:
        raise ConfigError(f"{target}: the scribbled view is the target view itself")
    field = work.field(scene)
    # models share the field; what they make of it lies apart
    work.folder = work.folder / Path(model).name
    work.folder.mkdir(exist_ok=True)
    prompt = _prompt(root / "scribbles" / target, scene.views[reference].camera, args.seed)
    prompt = ScenePrompt(reference, prompt.points, prompt.labels)
    done = work.segment(scene, field, prompt, [i for i in scene.train if i != aim])
    mask, soft = predict_view(
        field, done.grid, scene.views[aim].camera, args.readout, args.score_weight
    )
    metrics = {**work.report.metrics, **scores(mask, read_alpha(mask_file) > 0.5)}
    picture = work.folder / "target.overlay.png"
    save_rgb(picture, viz.overlay(scene.views[aim].rgb(), soft))
    outputs = {**work.report.outputs, "target": str(picture)}
    return {"outputs": outputs, "metrics": metrics}


def _prompt(folder: Path, camera: Any, seed: int) -> ScenePrompt:
    generator = np.random.default_rng(seed)
    points: list[tuple[float, float]] = []
    labels: list[int] = []
    for start, label, share in (("pos", 1, POSITIVE_SHARE), ("neg", 0, NEGATIVE_SHARE)):
        for file in (p for p in pictures(folder) if p.stem.startswith(start)):
            painted = read_alpha(file) > 0.5
            scale = np.array([camera.width, camera.height]) / painted.shape[::-1]
            # whole numbers are the pixels' centres
            for x, y in (scribble_clicks(painted, share, generator) + 0.5) * scale - 0.5:
                points.append((float(x), float(y)))
                labels.append(label)
    if 1 not in labels:
        raise ConfigError(f"{folder} holds no painted pos*.png")
    return ScenePrompt(0, tuple(points), tuple(labels))
