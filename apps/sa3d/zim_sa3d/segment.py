"""The loop of SA3D: the user's view first, then every other view prompted by the object so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zim._progress import track
from zim.errors import PromptError, ZimError
from zim.protocols import Segmenter
from zim_sa3d.field import RadianceField, render_view, trace_camera
from zim_sa3d.mask_grid import (
    HAZE,
    MaskGrid,
    add_view,
    add_view_gradient,
    keep_component,
    render_mask,
)
from zim_sa3d.scene import Scene
from zim_sa3d.self_prompt import Matte, ask, box_around, find_points

Source = Literal["photo", "render"]
Asking = Literal["points", "box", "both"]


@dataclass(frozen=True)
class Settings:
    """How to segment; the defaults are SA3D's and the ZIM paper's where they state one.

    Attributes:
        binarize: mattes above this are masks (ZIM paper: 0.3).
        num_prompts: clicks per view at most (ZIM paper: 10).
        penalty: lambda of the self-prompted views.
        first_penalty: lambda of the user's view.
        iou_gate: a view whose mask agrees less with the object so far is rejected.
        min_weight: samples of less weight do not vote. SA3D's 0.1 is meant for fields of which
            a surface is one or two samples; of a field trained for a minute it would drop most.
        score_weight: samples of less weight are left out of the rendered score (SA3D: 0.1).
        asking: how other views are prompted: by SA3D's clicks, by the box around the object so
            far, or by both (ours).
        passes: over all views; SA3D makes one.
        source: what the segmenter looks at, the photographs or the field's renderings (SA3D).
        side: voxels per side of the mask grid.
        component: keep only the connected piece that was clicked on, else the largest (ours).
        gradient: take the step by automatic differentiation instead of in closed form.
    """

    binarize: float = 0.3
    num_prompts: int = 10
    penalty: float = 1.0
    first_penalty: float = 5.0
    iou_gate: float = 0.5
    min_weight: float = 0.01
    score_weight: float = HAZE
    asking: Asking = "points"
    passes: int = 1
    source: Source = "photo"
    side: int = 96
    component: bool = True
    gradient: bool = False


@dataclass(frozen=True)
class ScenePrompt:
    """The user's prompt: in which view, and where.

    Attributes:
        view: number of the view.
        points: (x, y) pixels.
        labels: 1 on the object, 0 not.
        box: x0, y0, x1, y1 or None.
    """

    view: int
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None


@dataclass
class ViewLog:
    """What happened in one view: a row of ``views.csv``."""

    view: str
    status: str
    reason: str = ""
    iou: float | None = None
    max_score: float | None = None
    points: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    box: tuple[float, float, float, float] | None = None
    turn: int = 1
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the row."""
        return asdict(self)


@dataclass
class Segmentation:
    """An object in 3D and how it came about."""

    grid: MaskGrid
    log: list[ViewLog]
    first_matte: Matte
    removed: int = 0

    @property
    def accepted(self) -> float:
        """Share of the self-prompted views that were accepted; 1 if there were none."""
        asked = self.log[1:]
        return sum(row.status == "accepted" for row in asked) / len(asked) if asked else 1.0


def iou(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return intersection over union of two bool masks; 1 if both are empty."""
    union = np.logical_or(first, second).sum()
    return float(np.logical_and(first, second).sum() / union) if union else 1.0


def segment(
    scene: Scene,
    radiance: RadianceField,
    segmenter: Segmenter,
    prompt: ScenePrompt,
    settings: Settings,
    views: Sequence[int] | None = None,
) -> Segmentation:
    """Segment one object in 3D.

    Args:
        scene: with its pictures.
        radiance: trained on it.
        segmenter: anything that turns clicks into mattes. One that has ``set_view(index)`` is told
            the view's number first.
        prompt: the user's.
        settings: see :class:`Settings`.
        views: the views to use besides the prompt's; the training views if None.

    Raises:
        PromptError: the prompt selects nothing, or nothing of the field lies behind its mask.
        ZimError: not one other view was accepted.
    """
    work = _Work(scene, radiance, segmenter, settings)
    first = work.first(prompt)
    log = [first[0]]
    others = [i for i in (scene.train if views is None else views) if i != prompt.view]
    for turn in range(1, settings.passes + 1):
        for index in track(others, f"segmenting, pass {turn}"):
            log.append(work.other(index, turn))
    if others and not any(row.status == "accepted" for row in log[1:]):
        seen = [row.iou for row in log[1:] if row.iou is not None]
        best = f"best agreement {max(seen):.2f}" if seen else "no click was found in any"
        raise ZimError(
            f"{scene.name}: all {len(log) - 1} views were rejected ({best}, needed "
            f"{settings.iou_gate:g}); look at the field's PSNR, add clicks on the object in "
            f"view {scene.views[prompt.view].name}, or lower --iou-gate"
        )
    removed = keep_component(work.grid, work.clicked) if settings.component else 0
    return Segmentation(work.grid, log, first[1], removed)


class _Work:
    """One object's grid while it grows."""

    def __init__(
        self, scene: Scene, radiance: RadianceField, segmenter: Segmenter, settings: Settings
    ) -> None:
        self.scene, self.radiance, self.segmenter = scene, radiance, segmenter
        self.settings = settings
        self.grid = MaskGrid.empty(settings.side)
        self._traces: dict[int, list[Any]] = {}
        self.clicked: Tensor | None = None

    def first(self, prompt: ScenePrompt) -> tuple[ViewLog, Matte]:
        """Vote the user's view."""
        start = time.perf_counter()
        view = self.scene.views[prompt.view]
        self._show(prompt.view)
        matte = ask(self.segmenter, prompt.points, prompt.labels or None, prompt.box)
        mask = matte > self.settings.binarize
        share = float(mask.mean())
        rim = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()
        where = f"view {view.name}"
        if share == 0:
            raise PromptError(
                f"the prompt selects nothing in {where}; click on the object's middle or draw a box"
            )
        if share > 0.9 or rim > 0.9:
            raise PromptError(
                f"the prompt selects {share:.0%} of {where} and {rim:.0%} of the picture's edge, "
                "which is the background rather than "
                "an object; click on the object, add clicks with label 0, or draw a box"
            )
        self._vote(prompt.view, matte, self.settings.first_penalty)
        peak = float(self._score(prompt.view).max())
        if not peak > 0:
            raise PromptError(
                f"the mask of {where} meets nothing in 3D (highest rendered score {peak:.3g}): the "
                "field is empty there or its poses are wrong; look at its PSNR, try another view, "
                "or lower --score-weight and --min-weight"
            )
        self.clicked = self._surface(prompt)
        row = ViewLog(view.name, "prompt", "the user's view", None, peak, list(prompt.points))
        row.seconds = round(time.perf_counter() - start, 3)
        return row, matte

    def other(self, index: int, turn: int) -> ViewLog:
        """Prompt one view by the object so far, and vote its mask if it agrees."""
        start = time.perf_counter()
        row = ViewLog(self.scene.views[index].name, "skipped", turn=turn)
        score = self._score(index)
        row.max_score = float(score.max())
        if row.max_score <= 0:
            row.reason = "nothing of the object is visible"
        else:
            self._show(index)
            gate, limit = self.settings.iou_gate, self.settings.binarize
            so_far = score > max(float(score.mean()), 0.0)
            if self.settings.asking != "box":
                count, depth = self.settings.num_prompts, self._depth(index)
                points = find_points(score, depth, count, self.segmenter, limit)
                row.points = [(float(x), float(y)) for x, y in points]
            row.box = None if self.settings.asking == "points" else box_around(so_far)
            matte = ask(self.segmenter, row.points, box=row.box)
            row.iou = iou(matte > limit, so_far)
            if row.iou < gate:
                row.status = "rejected"
                row.reason = f"IoU {row.iou:.2f} with the object so far is below {gate:g}"
            else:
                row.status = "accepted"
                self._vote(index, matte, self.settings.penalty)
        row.seconds = round(time.perf_counter() - start, 3)
        return row

    def _show(self, index: int) -> None:
        tell = getattr(self.segmenter, "set_view", None)
        if tell is not None:
            tell(index)
        view = self.scene.views[index]
        photo = self.settings.source == "photo"
        self.segmenter.set_image(
            view.rgb() if photo else render_view(self.radiance, view.camera).rgb
        )

    def _trace(self, index: int) -> Any:
        """Return the view's chunks of samples; those of small views are kept for reuse."""
        camera = self.scene.views[index].camera
        if camera.width * camera.height > 500_000:
            return trace_camera(self.radiance, camera)
        if index not in self._traces:
            self._traces.clear()
            with torch.no_grad():
                self._traces[index] = list(trace_camera(self.radiance, camera))
        return self._traces[index]

    def _size(self, index: int) -> tuple[int, int]:
        camera = self.scene.views[index].camera
        return camera.height, camera.width

    def _score(self, index: int) -> NDArray[np.float32]:
        return render_mask(
            self._trace(index),
            lambda at: self.grid.read(at, "score"),
            self._size(index),
            self.settings.score_weight,
        )

    def _depth(self, index: int) -> NDArray[np.float32]:
        depth = np.concatenate([_expected_depth(part, s) for part, _, s in self._trace(index)])
        depth[~np.isfinite(depth)] = np.max(depth, initial=0.0, where=np.isfinite(depth))
        return depth.reshape(self._size(index))

    def _surface(self, prompt: ScenePrompt) -> Tensor:
        """Return where the rays of the positive clicks meet the field, K x 3 of its unit cube."""
        camera = self.scene.views[prompt.view].camera
        labels = prompt.labels or [1] * len(prompt.points)
        pixels = [
            min(int(y + 0.5), camera.height - 1) * camera.width
            + min(int(x + 0.5), camera.width - 1)  # whole numbers are the pixels' centres
            for (x, y), label in zip(prompt.points, labels, strict=True)
            if label == 1
        ]
        if not pixels:
            return torch.zeros(0, 3)
        samples = self.radiance.trace(*camera.rays(torch.tensor(pixels)))
        rays = [samples.ray == k for k in range(len(pixels))]
        heaviest = [samples.grid[ray][samples.weight[ray].argmax()] for ray in rays if ray.any()]
        return torch.stack(heaviest).detach() if heaviest else torch.zeros(0, 3)

    def _vote(self, index: int, matte: Matte, penalty: float) -> None:
        vote = add_view_gradient if self.settings.gradient else add_view
        vote(
            self.grid,
            self._trace(index),
            matte,
            penalty=penalty,
            binarize=self.settings.binarize,
            min_weight=self.settings.min_weight,
        )


def _expected_depth(part: slice, samples: Any) -> NDArray[np.float32]:
    """Return expected distances of a chunk's rays; infinite where nothing is."""
    rays = part.stop - part.start
    weight = np.bincount(samples.ray, samples.weight, rays)
    reach = np.bincount(samples.ray, samples.weight * samples.t, rays)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(weight > 0.1, reach / weight, np.inf).astype(np.float32)
