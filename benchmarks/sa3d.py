"""What ``zim-sa3d`` reaches on its built-in scene, and what mask inverse rendering costs.

    python benchmarks/sa3d.py quality --work runs/sa3d --seeds 0 1 2 --models oracle nano
    python benchmarks/sa3d.py cost

``quality``: held-out PSNR per seed; then, in the field of the first seed, every object's held-out
IoU with true mattes voted from all training views (no self-prompting), and from one click with
every model, by every way of asking. The soft 3D matte's squared error stands beside that of the
same matte cut at 0.5. Scene and fields are kept in ``--work`` and used again.
``cost``: time and memory of voting one view, by picture size and samples per ray, up to 12 million
pixels, on a ball of known opacity.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from zim.benchmarking import hardware_line, markdown_table, provenance
from zim.errors import ZimError
from zim.memory import peak_resident, reset_peak
from zim.metrics import mse
from zim.protocols import Segmenter
from zim.segmenters import load_segmenter
from zim_sa3d.cameras import look_at
from zim_sa3d.export import predict_view
from zim_sa3d.field import psnr, render_view, trace_camera
from zim_sa3d.grid_field import GridField, GridSettings, train_grid
from zim_sa3d.mask_grid import MaskGrid, add_view
from zim_sa3d.oracle import OracleSegmenter
from zim_sa3d.readers import read_transforms
from zim_sa3d.runs import middle_of
from zim_sa3d.scene import Scene
from zim_sa3d.segment import ScenePrompt, Settings, iou, segment
from zim_sa3d.space import Space
from zim_sa3d.synthetic import synthetic_scene


def quality(args: argparse.Namespace) -> None:
    """Print the table of PSNR, then that of objects; rows go to stderr as they are found."""
    work = Path(args.work)
    folder = work / "scene"
    known = (folder / "transforms.json").is_file()
    scene = read_transforms(folder) if known else synthetic_scene(folder)
    rows: list[list[object]] = []
    for seed in args.seeds:
        field = _field(scene, work / f"seed{seed}", seed)
        found = [
            psnr(render_view(field, scene.views[i].camera).rgb, scene.views[i].rgb())
            for i in scene.held_out
        ]
        _add(rows, [seed, f"{np.mean(found):.2f}", f"{min(found):.2f}"])
    _print(["seed", "held-out PSNR, dB", "worst view"], rows)
    rows = []
    field = _field(scene, work / f"seed{args.seeds[0]}", args.seeds[0])
    loaded: dict[str, Segmenter] = {
        name: OracleSegmenter(scene) if name == "oracle" else load_segmenter(name)
        for name in args.models
    }
    for name in args.objects:
        if args.all_views:
            grid = MaskGrid.empty(Settings.side)
            for i in scene.train:
                _vote(grid, field, scene, i, name)
            scores = _scores(scene, field, grid, name)
            _add(rows, [name, "true mattes, all views", "", "", *scores])
        areas = [float(scene.views[i].matte(name).sum()) for i in scene.train]
        first = scene.train[int(np.argmax(areas))]
        click = ScenePrompt(first, (middle_of(scene.views[first].matte(name)),), (1,))
        for model, segmenter in loaded.items():
            for asking in args.asking:
                settings = Settings(asking=asking, passes=args.passes)
                try:
                    done = segment(scene, field, segmenter, click, settings)
                except ZimError as error:
                    print(error, file=sys.stderr)
                    _add(rows, [name, model, asking, "0 %", "", "", ""])
                    continue
                scores = _scores(scene, field, done.grid, name)
                _add(rows, [name, model, asking, f"{done.accepted:.0%}", *scores])
    _print(
        ["object", "segmenter", "asked with", "accepted", "IoU", "soft MSE x1e3", "cut at 0.5"],
        rows,
    )


def _field(scene: Scene, folder: Path, seed: int) -> GridField:
    if (folder / "field.json").is_file():
        return GridField.load(folder)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    field = train_grid(scene, GridSettings(), seed)
    print(f"seed {seed}: trained in {time.process_time() - start:.0f} s", file=sys.stderr)
    field.save(folder)
    return field


def _vote(grid: MaskGrid, field: GridField, scene: Scene, view: int, name: str) -> None:
    traced = trace_camera(field, scene.views[view].camera)
    with torch.no_grad():
        add_view(
            grid,
            traced,
            scene.views[view].matte(name),
            penalty=1.0,
            binarize=Settings.binarize,
            min_weight=Settings.min_weight,
        )


def _scores(scene: Scene, field: GridField, grid: MaskGrid, name: str) -> list[str]:
    hits, soft_error, hard_error = [], [], []
    for i in scene.held_out:
        truth = scene.views[i].matte(name)
        mask, soft = predict_view(field, grid, scene.views[i].camera, "indicator")
        hits.append(iou(mask, truth > 0.5))
        soft_error.append(mse(soft, truth))
        hard_error.append(mse((soft > 0.5).astype(np.float32), truth))
    return [f"{np.mean(hits):.3f}", f"{np.mean(soft_error):.2f}", f"{np.mean(hard_error):.2f}"]


def cost(args: argparse.Namespace) -> None:
    """Print time and peak memory of voting one view by size and samples."""
    rows: list[list[object]] = []
    for side, samples in [(256, 48), (256, 96), (512, 96), (1024, 96), (args.largest, 96)]:
        field = _ball(samples)
        camera = look_at((2.4, 0.3, 0.6), (0, 0, 0), size=(side, side), fov=42.0)
        matte = np.ones((side, side), np.float32)
        grid = MaskGrid.empty(Settings.side)
        reset_peak()
        start = time.process_time()
        with torch.no_grad():
            add_view(
                grid,
                trace_camera(field, camera),
                matte,
                penalty=1.0,
                binarize=Settings.binarize,
                min_weight=Settings.min_weight,
            )
        seconds = time.process_time() - start
        work = side * side * samples
        peak = (peak_resident() or 0) / 2**20
        _add(
            rows,
            [
                f"{side} x {side}",
                samples,
                f"{seconds:.2f}",
                f"{1e9 * seconds / work:.0f}",
                f"{peak:.0f}",
            ],
        )
    _print(
        ["picture", "samples per ray", "CPU s", "ns per pixel and sample", "peak memory, MiB"], rows
    )


def _ball(samples: int) -> GridField:
    """Return a fog without empty cells around a solid ball: every sample is read and voted."""
    line = torch.linspace(-1, 1, 80)
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    inside = (x**2 + y**2 + z**2).sqrt() < 0.7
    voxels = torch.where(inside, 6.0, 0.0).expand(1, 4, 80, 80, 80).contiguous()
    return GridField(Space("box", (0.0, 0.0, 0.0), 1.0, 0.05), voxels, torch.zeros(3), samples)


def _add(rows: list[list[object]], row: list[object]) -> None:
    rows.append(row)
    print(*row, file=sys.stderr, flush=True)


def _print(headings: list[str], rows: list[list[object]]) -> None:
    print("\n".join(markdown_table(headings, rows)), end="\n\n")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    part = parser.add_subparsers(required=True)
    one = part.add_parser("quality")
    one.set_defaults(run=quality)
    one.add_argument("--work", default="runs/sa3d")
    one.add_argument("--seeds", nargs="+", type=int, default=[0])
    one.add_argument("--objects", nargs="*", default=["ball", "cube", "barrel", "plant"])
    one.add_argument("--models", nargs="*", default=["oracle", "nano"])
    one.add_argument("--asking", nargs="+", default=["points"])
    one.add_argument("--passes", type=int, default=1)
    one.add_argument("--all-views", action="store_true")
    two = part.add_parser("cost")
    two.set_defaults(run=cost)
    two.add_argument("--largest", type=int, default=3464, help="side of the largest picture")
    args = parser.parse_args()
    print(f"{hardware_line()}; commit {provenance()['commit']}\n")
    args.run(args)


if __name__ == "__main__":
    main()
