"""What the commands do, on a run folder: prepare, train, segment, render and export, report."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from zim import viz
from zim.api import choose_device
from zim.commandline import Report, UsageError, apply_runtime, timed
from zim.commands.outputs import output_folder
from zim.errors import ZimError, reason
from zim.metrics import mse
from zim.output import atomic_write, save_alpha, save_rgb
from zim.prompt_json import ObjectPrompt, read_entry, read_json
from zim.prompts import Prompt
from zim.protocols import Segmenter
from zim.segmenters import load_segmenter
from zim_sa3d import backends, export, field_note
from zim_sa3d.field import RadianceField, psnr, render_view
from zim_sa3d.folders import folder_name
from zim_sa3d.mask_grid import MaskGrid
from zim_sa3d.oracle import OracleSegmenter
from zim_sa3d.presets import FACTOR, POINTS
from zim_sa3d.readers import prepare, read_transforms
from zim_sa3d.recorded import refuse_other
from zim_sa3d.scene import Scene
from zim_sa3d.segment import ScenePrompt, Segmentation, Settings, iou, segment

#: fields of less PSNR (dB) hardly show the scene
_POOR = 17.0
#: what a run folder holds of its scene and must not outlive it
_OF_SCENE = (field_note.FILE, "field.safetensors", "mask_grid.npz", "views.csv")


class Run:
    """One run folder and the report that grows with it."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Open the folder; nothing is computed yet."""
        apply_runtime(args)
        self.args = args
        default = "runs" if args.output else f"runs/{folder_name(args.scene)}"
        self.folder = output_folder(args.output, default)
        self.report = Report(model=args.model)
        self._segmenter: Segmenter | None = None
        #: the true object that is segmented, where that is known
        self._object: str | None = args.object

    def scene(self) -> Scene:
        """Prepare the scene, or read it if that was done before."""
        inner = self.folder / "scene"
        with timed(self.report.seconds, "prepare"):
            if (inner / "transforms.json").is_file() and not self.args.overwrite:
                found = read_transforms(inner)
                refuse_other(self.args, self.folder, found)
            else:
                data = Path(self.args.data).expanduser() if self.args.data else None
                before = self._prepared(inner)
                factor = self.args.factor or FACTOR
                found = prepare(self.args.scene, inner, data=data, factor=factor)
                if before is not None:  # its field and object are of no use to another scene
                    export.remove_exports(self.folder, before)
                    for name in _OF_SCENE:
                        (self.folder / name).unlink(missing_ok=True)
        self.report.outputs["scene"] = str(inner / "transforms.json")
        return found

    @staticmethod
    def _prepared(folder: Path) -> Scene | None:
        """Return the scene that is about to be replaced, None if there is none to be read."""
        try:
            return read_transforms(folder)
        except ZimError:
            return None

    def field(self, scene: Scene) -> RadianceField:
        """Train the field, or load it if that was done before."""
        args, path = self.args, self.folder / field_note.FILE
        device = str(choose_device(args.device))
        with timed(self.report.seconds, "train"):
            if path.is_file() and not args.overwrite:
                field = backends.load(self.folder, device)
            else:
                field = backends.train(
                    scene,
                    self.folder,
                    backend=args.backend,
                    device=device,
                    steps=args.steps,
                    seed=args.seed,
                    method=args.method,
                    load_config=Path(args.load_config).expanduser() if args.load_config else None,
                )
        self.report.outputs["field"] = str(path)
        self.report.metrics["backend"] = field.backend
        with timed(self.report.seconds, "measure"):
            held = scene.held_out or scene.train[:1]
            values = [
                psnr(render_view(field, scene.views[i].camera).rgb, scene.views[i].rgb())
                for i in held
            ]
        self.report.metrics["psnr"] = round(float(np.mean(values)), 3)
        self.report.metrics["psnr_views"] = "held out" if scene.held_out else "training view"
        if self.report.metrics["psnr"] < _POOR:  # now, before more time goes into it
            sys.stderr.write(f"zim-sa3d: {self._fit()}\n")
        return field

    def prompt(self, scene: Scene) -> ScenePrompt:
        """Return the prompt from flags, a file, the scene's preset, or the named true object.

        Raises:
            UsageError: there is none.
            PromptError: it does not fit its view.
        """
        args = self.args
        first = scene.train[0]
        if args.prompts:
            prompt = read_prompt(Path(args.prompts).expanduser(), scene)
            _check_inside(scene, prompt)
            return prompt
        view = scene.find(args.view.strip()) if args.view is not None else first
        if args.points or args.box:
            points = tuple((x, y) for x, y, _ in args.points or ())
            labels = tuple(label for _, _, label in args.points or ())
            prompt = ScenePrompt(view, points, labels, args.box)
            _check_inside(scene, prompt)
            return prompt
        name = args.object or "ball"
        if name in scene.objects:
            self._object = name
            if args.view is None:  # where most of it is seen
                areas = [float(scene.views[i].matte(name).sum()) for i in scene.train]
                view = scene.train[int(np.argmax(areas))]
            return ScenePrompt(view, (middle_of(scene.views[view].matte(name)),), (1,))
        if scene.objects:
            raise UsageError(f"--object {name}: expected one of {', '.join(scene.objects)}")
        if args.scene is None:
            raise UsageError(
                f"{self.folder} does not tell the prompt; give --points X,Y (and --view), --box, "
                "--prompts FILE.json, or --scene NAME for the preset of a known scene"
            )
        name = folder_name(args.scene)
        if name in POINTS:
            scale = 4 / (scene.reduction or args.factor or FACTOR)
            # the first pixel's centre is at 0, 0
            points = tuple(
                ((x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5) for x, y in POINTS[name]
            )
            prompt = ScenePrompt(first, points, (1,) * len(points))
            _check_inside(scene, prompt)
            return prompt
        raise UsageError(
            f"scene {args.scene} has no preset prompt; give --points X,Y (and --view), --box or "
            "--prompts FILE.json"
        )

    def load_model(self) -> None:
        """Load the model that turns clicks into mattes; the oracle waits for its scene.

        Done first, so that a wrong name is told before anything is made.
        """
        args = self.args
        if self._segmenter is None and args.model != "oracle":
            self._segmenter = load_segmenter(args.model, device=args.device, dtype=args.dtype)

    def segmenter(self, scene: Scene) -> Segmenter:
        """Return the model that turns clicks into mattes, loaded once."""
        self.load_model()
        if self._segmenter is None:
            if not scene.objects:
                raise UsageError(
                    "--model oracle needs true mattes; only synthetic scenes have them"
                )
            self._segmenter = OracleSegmenter(scene)
        return self._segmenter

    def segment(
        self,
        scene: Scene,
        field: RadianceField,
        prompt: ScenePrompt | None = None,
        views: list[int] | None = None,
    ) -> Segmentation:
        """Segment, and write the mask grid, the prompt and the log of views.

        Args:
            scene: prepared.
            field: trained on it.
            prompt: what the flags say if None.
            views: to lift from; the training views if None.
        """
        args = self.args
        prompt = self.prompt(scene) if prompt is None else prompt
        known = self._object if self._object in scene.objects else None
        settings = Settings(
            binarize=args.binarize,
            num_prompts=args.num_prompts,
            penalty=args.penalty,
            first_penalty=args.first_view_penalty,
            iou_gate=args.iou_gate,
            min_weight=args.min_weight,
            score_weight=args.score_weight,
            asking=args.ask_with,
            passes=args.passes,
            source=args.source,
            component=not args.keep_pieces,
            gradient=args.gradient,
        )
        with timed(self.report.seconds, "segment"):
            segmenter = self.segmenter(scene)
            try:
                done = segment(scene, field, segmenter, prompt, settings, views)
            except ZimError as error:
                raise type(error)(f"{error} ({self._fit()})") from error
        paths = {
            "grid": self.folder / "mask_grid.npz",
            "csv": self.folder / "views.csv",
            "prompts": self.folder / "prompts.json",
            "first_matte": self.folder / "first_view.alpha.png",
        }
        export.remove_exports(self.folder, scene)  # they show the object before
        about = {"scene": scene.name, "readout": args.readout, "object": known or ""}
        done.grid.save(paths["grid"], **about)
        export.write_csv(paths["csv"], done.log)
        written = {
            "view": scene.views[prompt.view].name,
            "point": [[x, y, k] for (x, y), k in zip(prompt.points, prompt.labels, strict=True)],
            "bbox": prompt.box,
        }
        atomic_write(paths["prompts"], (json.dumps(written, indent=1) + "\n").encode())
        save_alpha(paths["first_matte"], done.first_matte)
        self.report.outputs |= {kind: str(path) for kind, path in paths.items()}
        self.report.metrics["views_accepted"] = round(done.accepted, 4)
        self.report.metrics["voxels_removed"] = done.removed
        return done

    def _fit(self) -> str:
        """Say how well the field fits; most that goes wrong later comes from there."""
        found = self.report.metrics.get("psnr", float("nan"))
        text = f"the field's PSNR is {found:.1f} dB"
        if found < _POOR:
            text += (
                ", which is low: are the poses right and each its picture's own, "
                "and --steps not too few?"
            )
        return text

    def recall_object(self) -> None:
        """Take up which true object the mask grid holds; unknown if it was clicked on freely."""
        with np.load(self.folder / "mask_grid.npz", allow_pickle=False) as data:
            if "object" in data:
                self._object = str(data["object"]) or None

    def measure(self, scene: Scene, field: RadianceField, grid: MaskGrid) -> None:
        """Compare with the true mattes of the object, if known, in views that were held out."""
        name = self._object
        if name is None or name not in scene.objects or not scene.held_out:
            return
        hits: list[float] = []
        soft_error: list[float] = []
        hard_error: list[float] = []
        for i in scene.held_out:
            truth = scene.views[i].matte(name)
            mask, soft = export.predict_view(
                field, grid, scene.views[i].camera, self.args.readout, self.args.score_weight
            )
            hits.append(iou(mask, truth > 0.5))
            soft_error.append(mse(soft, truth))
            hard_error.append(mse((soft > 0.5).astype(np.float32), truth))
        self.report.metrics |= {
            "object": name,
            "iou": round(float(np.mean(hits)), 4),
            "soft_matte_mse": round(float(np.mean(soft_error)), 4),
            "thresholded_mse": round(float(np.mean(hard_error)), 4),
        }

    def write(self, scene: Scene, field: RadianceField, grid: MaskGrid) -> None:
        """Write pictures, points, mesh and turntable."""
        with timed(self.report.seconds, "render"):
            paths = export.write_views(
                self.folder, scene, field, grid, self.args.readout, self.args.score_weight
            )
        with timed(self.report.seconds, "export"):
            paths["ply"] = self.folder / "object.ply"
            paths["mesh"] = self.folder / "object_mesh.ply"
            self.report.metrics["points"] = export.write_points(paths["ply"], field, grid)
            self.report.metrics["triangles"] = export.write_mesh(paths["mesh"], field, grid)
            paths |= export.write_turntable(self.folder, scene, field, grid)
        self.report.outputs |= {kind: str(path) for kind, path in paths.items()}

    def finish(self, scene: Scene, done: Segmentation | None = None) -> Report:
        """Write the summary picture and ``report.json``, and return the report."""
        rows: list[list[tuple[Any, str]]] = []
        for i in (scene.held_out or scene.train)[:3]:
            name = scene.views[i].name
            cut, over = (self.folder / k / f"{name}.png" for k in ("rgba", "overlay"))
            if cut.is_file() and over.is_file():
                from zim.images import load_image

                loaded = load_image(cut)
                alpha = loaded.alpha if loaded.alpha is not None else np.ones(loaded.rgb.shape[:2])
                rgba = np.dstack([loaded.rgb, np.round(alpha * 255).astype(np.uint8)])
                over_rgb = load_image(over).rgb
                rows.append([(scene.views[i].rgb(), name), (over_rgb, "overlay"), (rgba, "object")])
        if rows:
            summary = self.folder / "summary.png"
            save_rgb(summary, viz.contact_sheet(rows))
            self.report.outputs["summary"] = str(summary)
        if done is not None:
            self.report.extra["views"] = [row.to_dict() for row in done.log]
        path = self.folder / "report.json"
        self.report.outputs["report"] = str(path)
        text = json.dumps(self.report.to_dict(), indent=1, default=str)
        atomic_write(path, (text + "\n").encode())
        self.report.extra.pop("views", None)
        self.report.lines = [f"{kind}: {path}" for kind, path in self.report.outputs.items()]
        self.report.lines += [f"{name}: {value}" for name, value in self.report.metrics.items()]
        return self.report


def middle_of(matte: np.ndarray) -> tuple[float, float]:
    """Return the pixel (x, y) deepest inside a matte, where a person would click."""
    import cv2

    inside = cv2.distanceTransform(np.pad((matte > 0.5).astype(np.uint8), 1), cv2.DIST_L2, 5)[
        1:-1, 1:-1
    ]
    row, col = divmod(int(inside.argmax()), matte.shape[1])
    return float(col), float(row)


def _check_inside(scene: Scene, prompt: ScenePrompt) -> None:
    """Refuse what lies outside the view; raises PromptError."""
    camera = scene.views[prompt.view].camera
    Prompt.create(
        (camera.height, camera.width),
        points=prompt.points or None,
        labels=prompt.labels or None,
        box=prompt.box,
    )


def read_prompt(path: Path, scene: Scene) -> ScenePrompt:
    """Read ``{"view": name, "point": [[x, y, label], ...], "bbox": [x0, y0, x1, y1]}``.

    Raises:
        ZimError: it cannot be understood.
    """
    try:
        data = read_json(path)
        if not isinstance(data, dict):
            raise ValueError("it is no JSON object")
        entry = dict(data)
        name = entry.pop("view", None)
        name = f"{name:g}" if isinstance(name, float) else name
        view = scene.train[0] if name is None else scene.find(str(name))
        asked = read_entry(entry, "its prompt") if entry else ObjectPrompt()
        if not asked.points and asked.box is None:
            raise ValueError("neither point nor bbox")
        if asked.mask or asked.scribble:
            raise ValueError("mask and scribble are not taken here")
    except (OSError, ValueError) as error:
        raise ZimError(
            f'{path}: {reason(error)}; expected {{"view": name, "point": [[x, y, label], ...], '
            f'"bbox": [x0, y0, x1, y1]}}'
        ) from error
    points = tuple((x, y) for x, y, _ in asked.points)
    return ScenePrompt(view, points, tuple(label for _, _, label in asked.points), asked.box)
