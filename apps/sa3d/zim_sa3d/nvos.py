"""NVOS: scribbles in a reference view, the mask of one other view to hit (ZIM paper, Table 6).

Layout under the root: ``scribbles/<target>/pos*.png`` and ``neg*.png``,
``reference_image/<target>/<image>``, ``masks/<target>/<image>_mask.png``. SA3D's own evaluation was
never published in full; our choices: scribbles are thinned to skeletons and sampled with a seed,
the target view takes no part in lifting, the prediction is compared at the mask's size.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim._extras import require
from zim.commandline import Report, UsageError, error_line
from zim.errors import ConfigError, ZimError
from zim.images import read_alpha
from zim_sa3d.export import predict_view
from zim_sa3d.folders import pictures
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
    report = Report(model=args.model, items=[])
    assert report.items is not None
    for target in targets:
        item: dict[str, Any] = {"input": target, "outputs": {}, "metrics": {}, "error": None}
        try:
            item |= _target(args, root, target)
            paper = {f"paper_{name}": row.get(target) for name, row in TABLE_6.items()}
            item["metrics"] |= paper
        except (ZimError, OSError) as error:
            item["error"] = error_line(error)
            report.failed = True
        report.items.append(item)
        shown = item["error"] or item["metrics"]
        report.lines.append(f"{target}: {shown}")
    done = [item["metrics"] for item in report.items if item["error"] is None]
    for name in ("iou", "accuracy"):
        if done:
            report.metrics[name] = round(float(np.mean([m[name] for m in done])), 3)
    report.metrics["targets"] = len(done)
    return report


def _target(args: argparse.Namespace, root: Path, target: str) -> dict[str, Any]:
    data = Path(args.data).expanduser() if args.data else root
    own = copy.copy(args)
    own.scene = str(find_scene(target, data))
    own.output = str(Path(args.output or "runs/nvos") / target)
    work = Run(own)
    scene = work.scene()
    reference = scene.find(pictures(root / "reference_image" / target)[0].stem)
    mask_file = next((p for p in pictures(root / "masks" / target) if "_mask" in p.stem), None)
    if mask_file is None:
        raise ConfigError(f"{root / 'masks' / target} holds no *_mask.png")
    aim = scene.find(mask_file.stem.removesuffix("_mask"))
    field = work.field(scene)
    prompt = _prompt(root / "scribbles" / target, scene.views[reference].camera, args.seed)
    prompt = ScenePrompt(reference, prompt.points, prompt.labels)
    done = work.segment(scene, field, prompt, [i for i in scene.train if i != aim])
    mask, _ = predict_view(field, done.grid, scene.views[aim].camera, args.readout)
    metrics = {**work.report.metrics, **scores(mask, read_alpha(mask_file) > 0.5)}
    return {"outputs": work.report.outputs, "metrics": metrics}


def _prompt(folder: Path, camera: Any, seed: int) -> ScenePrompt:
    generator = np.random.default_rng(seed)
    points: list[tuple[float, float]] = []
    labels: list[int] = []
    for start, label, share in (("pos", 1, POSITIVE_SHARE), ("neg", 0, NEGATIVE_SHARE)):
        for file in (p for p in pictures(folder) if p.stem.startswith(start)):
            painted = read_alpha(file) > 0.5
            scale = np.array([camera.width, camera.height]) / painted.shape[::-1]
            for x, y in scribble_clicks(painted, share, generator) * scale:
                points.append((float(x), float(y)))
                labels.append(label)
    if 1 not in labels:
        raise ConfigError(f"{folder} holds no painted pos*.png")
    return ScenePrompt(0, tuple(points), tuple(labels))
