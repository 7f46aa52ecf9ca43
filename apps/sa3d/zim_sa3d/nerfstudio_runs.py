"""Trained runs of nerfstudio 1.1.5: make one on a prepared scene, or open one that is there.

Training goes through nerfstudio's own trainer and leaves its usual folder (``config.yml``,
``nerfstudio_models/``), which its other tools read too. What stands in the way of that today is
dealt with here: LPIPS wants to download weights nobody needs, checkpoints hold numpy scalars that
``torch.load`` refuses, and scenes are turned, shifted and scaled on the way in.

nerfstudio is imported when a function needs it: that alone takes half a minute.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zim._extras import require
from zim.errors import CheckpointError, ConfigError, one_line
from zim_sa3d.readers import read_transforms
from zim_sa3d.scene import Scene

EXTRA = "nerfstudio"
#: where a run lies in the folder it was trained into
RUN = Path("nerfstudio")
#: of a model small enough to be trained on a CPU, and how many steps it then makes
_CPU_MODEL: dict[str, Any] = {
    "num_levels": 6,
    "max_res": 256,
    "log2_hashmap_size": 15,
    "num_proposal_samples_per_ray": (32,),
    "num_nerf_samples_per_ray": 20,
    "num_proposal_iterations": 1,
    "proposal_net_args_list": [
        {"hidden_dim": 16, "log2_hashmap_size": 13, "num_levels": 4, "max_res": 64}
    ],
    "hidden_dim": 32,
    "hidden_dim_color": 32,
    "average_init_density": 1.0,
}
_CPU_STEPS, _CPU_RAYS, _CPU_RATE = 1000, 512, 0.02


@dataclass(frozen=True)
class Frame:
    """How a run's coordinates follow from a scene's: ``x -> scale * (R x + t)``.

    Attributes:
        transform: 3 x 4, [R | t].
        scale: run units per scene unit.
    """

    transform: NDArray[np.float64]
    scale: float

    @classmethod
    def between(cls, scene: NDArray[np.float64], run: NDArray[np.float64]) -> Frame:
        """Find the frame from poses (N x 3 x 4, camera to world) of the same cameras in both.

        Raises:
            ConfigError: no turn, shift and scale brings the one onto the other.
        """
        u, _, v = np.linalg.svd((run[:, :, :3] @ scene[:, :, :3].transpose(0, 2, 1)).sum(0))
        turn = u @ np.diag([1.0, 1.0, np.linalg.det(u @ v)]) @ v
        places = scene[:, :, 3] @ turn.T
        wanted = run[:, :, 3]
        away, wanted_away = places - places.mean(0), wanted - wanted.mean(0)
        scale = float((away * wanted_away).sum() / max((away**2).sum(), 1e-12))
        if scale <= 0:
            raise ConfigError("the poses of the run and of the scene do not fit onto each other")
        shift = wanted.mean(0) / scale - places.mean(0)
        found = cls(np.concatenate([turn, shift[:, None]], 1), scale)
        off = np.abs(scale * (places + shift) - wanted).max() / np.abs(wanted_away).max()
        bent = np.abs(turn @ scene[:, :, :3] - run[:, :, :3]).max()
        if off > 0.02 or bent > 0.02:
            raise ConfigError(
                f"the poses of the run and of the scene do not fit onto each other (places differ "
                f"by {off:.0%} of their spread, axes by {bent:.2f}); expected one and the same "
                "capture"
            )
        return found


@dataclass(frozen=True)
class TrainedRun:
    """A trained run: nerfstudio's configuration and the model's tensors."""

    config: Any
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Capture:
    """What a run was trained on: pictures, and in its coordinates poses N x 3 x 4 and box 2 x 3."""

    files: list[str]
    poses: NDArray[np.float64]
    box: Tensor

    def frame(self, scene: Scene) -> Frame:
        """Return how the run's coordinates follow from a scene's, by the views that both have.

        Raises:
            ConfigError: fewer than 3 views are in both, or their poses do not agree.
        """
        numbers = {view.name: i for i, view in enumerate(scene.views)}
        pairs = [
            (numbers[s], k) for k, f in enumerate(self.files) if (s := Path(f).stem) in numbers
        ]
        if len(pairs) < 3:
            raise ConfigError(
                f"the run was trained on {len(self.files)} pictures such as {self.files[0]}, of "
                f"which {scene.name} has {len(pairs)}; expected the same capture (at least 3)"
            )
        ours = np.stack([scene.views[i].camera.c2w for i, _ in pairs])
        return Frame.between(ours, self.poses[[k for _, k in pairs]])


def train_run(
    scene_folder: Path,
    folder: Path,
    *,
    method: str = "nerfacto",
    steps: int | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Path:
    """Train one of nerfstudio's methods on a prepared scene; return the run's ``config.yml``.

    Args:
        scene_folder: holds ``transforms.json`` with the views to train on named in it.
        folder: the run goes into its folder ``nerfstudio``.
        method: a name that ``ns-train`` knows; splatfacto needs a GPU.
        steps: the method's own number if None; on a CPU 1000 of a small model.
        device: ``cpu`` or ``cuda``.
        seed: of everything random.

    Raises:
        MissingExtraError: nerfstudio is not installed.
        ConfigError: the method is unknown, or cannot be trained on this device.
    """
    known: dict[str, Any] = require("nerfstudio.configs.method_configs", EXTRA).method_configs
    if method not in known:
        raise ConfigError(
            f"nerfstudio has no method {method!r}; expected one of {', '.join(known)}"
        )
    config = copy.deepcopy(known[method])
    cpu = not device.startswith("cuda")
    if cpu and not hasattr(config.pipeline.model, "implementation"):
        raise ConfigError(f"{method} cannot be trained on a CPU; use nerfacto, or --backend grid")
    _fit_to_us(config, scene_folder, cpu)
    config.output_dir, config.experiment_name, config.timestamp = folder, str(RUN), "run"
    config.machine.device_type, config.machine.num_devices = ("cpu" if cpu else "cuda"), 1
    config.machine.seed = seed
    if steps is None and cpu:
        steps = _CPU_STEPS
    if steps is not None and steps < config.max_num_iterations:
        _shorten(config, steps)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (nerfstudio draws from the global generator)
    with no_downloads(), redirect_stdout(sys.stderr), torch.enable_grad():
        config.save_config()
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        trainer.train()
        trainer.shutdown()
    return config.get_base_dir() / "config.yml"


def _fit_to_us(config: Any, scene_folder: Path, cpu: bool) -> None:
    """Set what a run on a prepared scene needs: our data and split, no viewer, no evaluation."""
    datamanagers: Any = require("nerfstudio.data.datamanagers.base_datamanager", EXTRA)
    parsers: Any = require("nerfstudio.data.dataparsers.nerfstudio_dataparser", EXTRA)
    manager, model = config.pipeline.datamanager, config.pipeline.model
    if hasattr(manager, "train_num_rays_per_batch"):
        # the methods' default starts worker processes, which a library should not
        rays = _CPU_RAYS if cpu else manager.train_num_rays_per_batch
        manager = datamanagers.VanillaDataManagerConfig(train_num_rays_per_batch=rays)
        config.pipeline.datamanager = manager
    # pictures have their working size already: nothing to reduce, nothing to ask
    parser = parsers.NerfstudioDataParserConfig(data=scene_folder, downscale_factor=1)
    manager.dataparser = parser
    scene = read_transforms(scene_folder)
    if scene.kind == "bounded" and scene.extent is not None:
        # everything is in a box: it becomes the model's own cube, with nothing outside
        parser.orientation_method = parser.center_method = "none"
        parser.auto_scale_poses, parser.scale_factor = False, 1 / scene.extent
        if hasattr(model, "disable_scene_contraction"):
            model.disable_scene_contraction = True
        away = [float(np.linalg.norm(v.camera.position)) / scene.extent for v in scene.views]
        if hasattr(model, "near_plane") and hasattr(model, "far_plane"):
            corner = 3**0.5
            model.near_plane = max(model.near_plane, min(away) - corner)
            model.far_plane = max(away) + corner
    config.data = None
    config.vis = "tensorboard"  # the quietest of the allowed
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 0
    if hasattr(model, "camera_optimizer"):
        model.camera_optimizer.mode = "off"  # poses must stay those of the scene
        config.optimizers.pop("camera_opt", None)
    if hasattr(model, "use_appearance_embedding"):
        model.use_appearance_embedding = False  # one capture, one exposure
    if cpu:
        config.mixed_precision = False
        model.implementation = "torch"
        for group in config.optimizers.values():
            group["optimizer"].lr = _CPU_RATE
        for name, value in _CPU_MODEL.items():
            if hasattr(model, name):
                setattr(model, name, value)


def _shorten(config: Any, steps: int) -> None:
    """Make fewer steps than the method's authors meant, with its schedules in proportion."""
    share = steps / config.max_num_iterations
    config.max_num_iterations = steps
    model = config.pipeline.model
    for name in ("proposal_warmup", "proposal_weights_anneal_max_num_iters"):
        if hasattr(model, name):
            setattr(model, name, max(1, round(getattr(model, name) * share)))
    for group in config.optimizers.values():
        if group["scheduler"] is not None and getattr(group["scheduler"], "max_steps", 0):
            group["scheduler"].max_steps = steps
            group["scheduler"].lr_final = group["optimizer"].lr / 10


@contextmanager
def no_downloads() -> Iterator[None]:
    """Let nerfstudio's models be built without LPIPS, whose network would be downloaded."""
    lpips: Any = require("torchmetrics.image.lpip", EXTRA).LearnedPerceptualImagePatchSimilarity
    metric: Any = require("torchmetrics", EXTRA).Metric
    original = lpips.__init__

    def bare(self: Any, *_: Any, **__: Any) -> None:
        metric.__init__(self)

    lpips.__init__ = bare
    try:
        yield
    finally:
        lpips.__init__ = original


def open_run(config_path: Path) -> TrainedRun:
    """Read a trained run, ours or anybody's, whatever method it used.

    ``config.yml`` is nerfstudio's and can run code when read: open only what you trust.

    Raises:
        MissingExtraError: nerfstudio is not installed.
        CheckpointError: the run holds no checkpoint.
        ConfigError: the file is no configuration of nerfstudio.
    """
    yaml: Any = require("yaml", EXTRA)
    trainers: Any = require("nerfstudio.engine.trainer", EXTRA)
    if config_path.is_dir():
        config_path = config_path / "config.yml"
    try:
        config = yaml.load(config_path.read_text(encoding="utf-8"), Loader=yaml.Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{config_path} cannot be read ({' '.join(str(error).split())})"
        ) from error
    if not isinstance(config, trainers.TrainerConfig):
        raise ConfigError(f"{config_path} is no config.yml of a nerfstudio run")
    models = config_path.parent / config.relative_model_dir
    found = sorted(models.glob("step-*.ckpt"))
    if not found:
        raise CheckpointError(f"{models} holds no step-*.ckpt; was the run trained to its end?")
    return TrainedRun(config, read_checkpoint(found[-1]))


def capture_of(run: TrainedRun) -> Capture:
    """Read the poses a run was trained on, as nerfstudio turned, shifted and scaled them.

    Raises:
        CheckpointError: its pictures are gone.
    """
    parser = run.config.pipeline.datamanager.dataparser
    if run.config.data is not None:
        parser.data = run.config.data
    try:
        with redirect_stdout(sys.stderr):
            outputs = parser.setup().get_dataparser_outputs(split="train")
    except (OSError, AssertionError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the pictures and poses that the run was trained on cannot be read from {parser.data} "
            f"({' '.join(str(error).split()) or type(error).__name__}); its "
            "coordinates cannot be known without them"
        ) from error
    poses = outputs.cameras.camera_to_worlds.double().numpy()
    files = [str(path) for path in outputs.image_filenames]
    return Capture(files, poses, outputs.scene_box.aabb)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the model's tensors of one of nerfstudio's checkpoints, without running code in it.

    Raises:
        CheckpointError: it cannot be read.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    # schedules put numpy scalars beside the tensors; both names numpy gave their constructor
    allowed = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    kinds = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "b1")]
    try:
        with torch.serialization.safe_globals([*allowed, np.dtype, *kinds]):
            data = torch.load(path, map_location="cpu", weights_only=True)
        tensors: dict[str, Tensor] = data["pipeline"]
    except Exception as error:
        text = one_line(error, 200)
        raise CheckpointError(f"{path} is no checkpoint of nerfstudio ({text})") from error
    start = "_model."
    return {
        name.removeprefix("module.").removeprefix(start): value
        for name, value in tensors.items()
        if name.removeprefix("module.").startswith(start)
    }


def build_model(run: TrainedRun, box: Tensor, views: int, device: str) -> Any:
    """Build the run's model with its tensors, ready to be evaluated.

    Args:
        run: opened.
        box: of the capture it was trained on.
        views: how many these were.
        device: ``cpu`` or ``cuda``.

    Raises:
        CheckpointError: the tensors are not those of the model that ``config.yml`` describes.
    """
    boxes: Any = require("nerfstudio.data.scene_box", EXTRA)
    with no_downloads():
        model = run.config.pipeline.model.setup(
            scene_box=boxes.SceneBox(aabb=box),
            num_train_data=views,
            metadata={},
            device=device,
            grad_scaler=None,
        )
    try:
        missing = [
            name
            for name in model.load_state_dict(run.state, strict=False).missing_keys
            if not name.startswith("lpips")
        ]
    except RuntimeError as error:
        missing = [one_line(error, 120)]
    if missing:
        raise CheckpointError(
            f"the checkpoint does not fit the model of {run.config.method_name} ({missing[0]}); "
            "was it trained with tiny-cuda-nn, which is not installed here?"
        )
    return model.to(device).eval().requires_grad_(False)
