"""Train a small matting network on packs: one process, time-based schedule, exact resume.

The schedule runs on training time, so ``--minutes`` is what the run takes whatever the machine.
Which scenes of a finished pack a step sees depends on the seed and the step alone.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zim
import zim.api
from zim.config import PREDICTOR_FIELDS, ZimConfig, get_config
from zim.cues import CUE_PLANES, PRIOR_SCALE
from zim.errors import ConfigError
from zim.processor import bfloat16_units
from zim_training import checkpoint
from zim_training.data.loader import Batch, Pack, check_pack, joined
from zim_training.data.prefetch import Lookahead
from zim_training.data.resident import ResidentPack
from zim_training.losses import prompt_loss
from zim_training.prompts import KINDS
from zim_training.render.batches import RecroppedScenes, RenderedScenes
from zim_training.state import is_state, load_state
from zim_training.stopping import leave, stopping

#: settings that a run keeps when it is continued; the others follow the machine
KEPT = ("preset", "minutes", "steps", "scenes", "rate", "ema", "seed", "render", "recrop")


@dataclass(frozen=True)
class MatteConfig:
    """Settings of a run; stored with it."""

    preset: str = "nano"
    minutes: float = 60.0
    steps: int = 0  # when given, the schedule runs on steps instead of minutes
    scenes: int = 6  # per step, each with about three prompts
    rate: float = 1e-3
    warm_up: int = 80
    decay: float = 0.02
    clip: float = 1.0
    ema: float = 0.998
    gradient: float = 2.0
    entropy: float = 0.5
    overlap: float = 0.2
    absolute: float = 0.5
    square: float = 2.0
    seed: int = 0
    workers: int = 0  # threads that prepare batches ahead; 0 prepares them in line
    init: str = ""  # start from: a name or path for zim.load, or a state folder; "" is random
    precision: Literal["auto", "bf16", "float32"] = "auto"  # auto: bf16 where the hardware has it
    resident: bool = False  # keep the pack on the device and make batches there
    compile: bool = False  # fuse a step's kernels; the first step takes a minute or more
    graphs: bool = False  # record them on a GPU, which then waits for nobody to start each
    render: float = 0.0  # share of the scenes that the device composes anew from layers
    recrop: float = 0.0  # of the pack's scenes, share that it cuts and asks anew
    save_minutes: float = 2.0
    eval_minutes: float = 6.0
    eval_scenes: int = 96


class MatteTrainer:
    """The state of a run and its loop."""

    def __init__(
        self,
        config: MatteConfig,
        data: Path,
        run: Path,
        resume: bool = False,
        network: ZimConfig | None = None,
        device: str = "cpu",
    ) -> None:
        """Build or resume a run.

        Args:
            config: settings.
            data: folder with the packs ``train`` and, if there is one, ``dev``, and to render
                with ``layers``.
            run: folder for checkpoints, log and sample sheets.
            resume: continue from ``run/last.pt``.
            network: in place of the preset's.
            device: where to train, as for :func:`zim.load`.

        Raises:
            ConfigError: no pack, the network takes no cues, or the run has other settings.
            CheckpointError: nothing to resume.
        """
        self.config, self.run = config, run
        run.mkdir(parents=True, exist_ok=True)
        self.device = zim.api.choose_device(device)
        side = check_pack(data / "train")  # before anything large happens
        if config.scenes < 1:
            raise ConfigError(f"scenes {config.scenes}: expected at least one a step")
        if config.compile and not config.resident:
            raise ConfigError("compile needs resident batches, whose shapes stay the same")
        for name in ("render", "recrop"):
            share = getattr(config, name)
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} {share}: expected a share from 0 to 1")
            if share and not config.resident:
                raise ConfigError(f"{name} needs a resident pack; set resident, too")
        self.rendering, self.recropping = drawn_scenes(config)
        if config.graphs and not config.compile:
            raise ConfigError("graphs are recorded of compiled steps; set compile, too")
        self.dev = Pack(data / "dev") if (data / "dev" / "pack.json").is_file() else None
        network = network or get_config(config.preset)
        if network.cue_planes != CUE_PLANES:
            raise ConfigError(
                f"{network.name} takes {network.cue_planes} cue planes, packs have {CUE_PLANES}; "
                "this loop trains the preset nano"
            )
        torch.manual_seed(config.seed)
        self.model = zim.build(network, seed=config.seed)
        start_near_prior(self.model)
        self.half = computes_in_half(config.precision, self.device)
        state = load_state(Path(config.init)) if config.init and is_state(config.init) else None
        if state is not None:
            _check_network(config.init, ZimConfig.from_dict(state["network"]), network)
            if config.steps and state["step"] >= config.steps:
                raise ConfigError(
                    f"{config.init} is at step {state['step']} already; give more than --steps "
                    f"{config.steps}, or a new schedule: --minutes"
                )
            for key in ("model", "ema"):
                state[key] = grown(state[key], self.model)
            self.model.load_state_dict(state["model"])
        elif config.init:
            weights = initial_weights(config.init, network)
            self.model.load_state_dict(grown(weights, self.model))
        self.model.to(self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.ema = checkpoint.Ema(self.model, config.ema)
        if state is not None:
            self.ema.model.load_state_dict(state["ema"])
            self.ema.steps = state["ema_steps"]
        groups = parameter_groups(self.model, config.decay)
        fused = self.device.type == "cuda" or None
        self.optimizer = torch.optim.AdamW(groups, config.rate, fused=fused)
        self.step, self.seconds = 0, 0.0
        self.warm_from = 0  # the optimiser's moments are new since this step
        self.batches = Lookahead(self._batch, 0 if config.resident else config.workers)
        self.losses = losses
        if config.compile:
            mode = "reduce-overhead" if config.graphs else None
            self.losses = torch.compile(losses, dynamic=False, mode=mode)
        if config.compile and self.device.type == "cuda":  # shapes stay: try cuDNN's kernels once
            torch.backends.cudnn.benchmark = True
        if state is not None:
            self.step = self.warm_from = state["step"]
        if resume:
            self._load(checkpoint.read(run / "last.pt", "leave out --resume to begin"))
            checkpoint.clear_stale(run)
            if (log := run / "metrics.jsonl").is_file():  # what follows will be written again
                checkpoint.cut_log(log, self.step)
        self.pack: Pack | ResidentPack
        self.recropped = self.rendered = None
        if config.resident:
            self.pack = ResidentPack(data / "train", self.device)
            self.recropped = RecroppedScenes(self.pack)
        else:
            self.pack = Pack(data / "train")
        if self.rendering:
            self.rendered = RenderedScenes(data / "layers", self.device, side)

    def progress(self) -> float:
        """Return how much of the schedule is done, 0 to 1."""
        if self.config.steps:
            return min(1.0, self.step / self.config.steps)
        return min(1.0, self.seconds / (60 * self.config.minutes))

    def fit(self, stop_after: float = math.inf) -> None:
        """Train to the end of the schedule, logging, evaluating and saving on the way.

        Args:
            stop_after: minutes after which to stop for now; resuming goes on.

        Raises:
            SystemExit: the process was interrupted or told to end; the step is saved.
        """
        saved = evaluated = logged = self.seconds
        end = self.seconds + 60 * stop_after
        recent: list[Tensor] = []
        with stopping() as stop:
            while self.progress() < 1.0 and self.seconds < end and not stop.number:
                start = time.perf_counter()
                recent.append(self.train_step())
                told = self.step % 25 == 0
                loss = 0.0
                if told:
                    loss = float(torch.stack(recent).mean())  # a GPU is waited for here
                    self._check(math.isfinite(loss))
                    self.pack.refresh()
                    if self.rendered:
                        self.rendered.refresh()
                self.seconds += time.perf_counter() - start
                if told:
                    pace = 25 * self.config.scenes / max(self.seconds - logged, 1e-6)
                    self._log(kind="train", loss=loss, images_per_s=round(pace, 2))
                    recent.clear()
                    logged = self.seconds
                if self.seconds - saved > 60 * self.config.save_minutes:
                    self.save()
                    saved = self.seconds
                if self.dev and self.seconds - evaluated > 60 * self.config.eval_minutes:
                    self.evaluate()
                    evaluated = self.seconds
        self.save()
        if stop.number:
            self.batches.close()
            leave(stop.number, self.step, "the same command with --resume")
        if self.dev:
            self.evaluate()
        self.batches.close()

    def _batch(self, step: int) -> Batch:
        """Draw the batch of a step."""
        rng = np.random.default_rng((self.config.seed, step))
        left = self.config.scenes - self.rendering - self.recropping
        batches = [self.pack.draw(left, rng)] if left else []
        if self.recropped and self.recropping:
            batches.append(self.recropped.draw(self.recropping, rng))
        if self.rendered:
            batches.append(self.rendered.draw(self.rendering, rng))
        return joined(batches) if len(batches) > 1 else batches[0]

    def train_step(self) -> Tensor:
        """Draw a batch, take one optimiser step, return the mean loss of token 0."""
        config = self.config
        batch = self.batches.get(self.step).to(self.device)
        rate = learning_rate(config, self.step - self.warm_from, self.progress())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        if config.graphs:  # what the last step left in the graphs' memory may go
            torch.compiler.cudagraph_mark_step_begin()
        loss, first = self.losses(
            self.model,
            batch,
            self.half,
            gradient=config.gradient,
            entropy=config.entropy,
            overlap=config.overlap,
            absolute=config.absolute,
            square=config.square,
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        if self.device.type == "cpu":  # a GPU would be waited for; see fit and save
            self._check(bool(norm.isfinite()))
        self.optimizer.step()
        self.ema.update(self.model)
        self.step += 1
        return first.clone() if config.graphs else first

    def _check(self, finite: bool) -> None:
        if not finite:
            raise ConfigError(
                f"training diverged at or before step {self.step + 1}; lower the rate and start "
                "anew, or go on from the last checkpoint"
            )

    @torch.no_grad()
    def evaluate(self) -> dict[str, dict[str, float]]:
        """Score the average model on dev scenes against the classical plane; write a sheet."""
        if self.dev is None:
            raise ConfigError("there is no dev pack beside the training pack")
        table, rows = score(self.ema.model, self.dev, self.config.eval_scenes, half=self.half)
        self._log(kind="dev", scores=table)
        cv2.imwrite(str(self.run / f"sheet_{self.step:06d}.png"), np.vstack(rows)[..., ::-1])
        return table

    def save(self) -> None:
        """Write ``last.pt``: everything needed to go on.

        Raises:
            ConfigError: a weight is not finite; an older checkpoint stays.
        """
        weights = [*self.model.state_dict().values(), *self.ema.model.state_dict().values()]
        floats = [w for w in weights if w.is_floating_point()]
        self._check(bool(torch.stack([w.isfinite().all() for w in floats]).all()))
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "ema_steps": self.ema.steps,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "warm_from": self.warm_from,
            "config": asdict(self.config),
            "network": self.model.config.to_dict(),
        }
        checkpoint.write_atomically(self.run / "last.pt", state)

    def _load(self, state: dict) -> None:
        found, wanted = ZimConfig.from_dict(state["network"]), self.model.config
        if _learnt(found) != _learnt(wanted):
            raise ConfigError(
                f"{self.run} was trained as another network than today's {self.model.config.name}; "
                "start a new run from its weights: --init RUN/export"
            )
        now = asdict(self.config)
        then = {name: state.get("config", {}).get(name, now[name]) for name in KEPT}
        changed = [
            f"{name} {then[name]}, now {now[name]}" for name in KEPT if then[name] != now[name]
        ]
        if changed:
            raise ConfigError(
                f"{self.run} was started with other settings ({'; '.join(changed)}); give those to "
                "go on, or start anew from its weights: --init RUN/export and another --output"
            )
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.ema.steps = state["ema_steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.warm_from = state.get("warm_from", 0)

    def _log(self, **record: object) -> None:
        shared = {"step": self.step, "minutes": round(self.seconds / 60, 2), "pack": len(self.pack)}
        checkpoint.append_line(self.run / "metrics.jsonl", shared | record)


def drawn_scenes(config: MatteConfig) -> tuple[int, int]:
    """Return how many scenes of a step are rendered, and how many of the pack's cut anew.

    Raises:
        ConfigError: a share comes to no scene.
    """
    rendering = int(config.scenes * config.render + 0.5)
    left = config.scenes - rendering
    recropping = int(left * config.recrop + 0.5)
    for name, count, of in (("render", rendering, config.scenes), ("recrop", recropping, left)):
        share = getattr(config, name)
        if share and not count:
            raise ConfigError(f"{name} {share} of {of} scenes is none; raise it or --scenes")
    return rendering, recropping


def initial_weights(name: str, network: ZimConfig) -> dict[str, Tensor]:
    """Return the weights of a model that is the same network.

    Raises:
        ConfigError: it is another network.
        CheckpointError: it is not there.
    """
    model = zim.load(name, device="cpu", dtype="float32")
    if not isinstance(model, zim.Zim):
        raise ConfigError(f"init {name!r} is an exported model and cannot be trained")
    _check_network(name, model.config, network)
    return model.state_dict()


def _check_network(name: str, found: ZimConfig, wanted: ZimConfig) -> None:
    """Refuse weights of another network; a smaller one of the same kind grows."""
    if wanted.encoder.kind != found.encoder.kind or _without_depth(found) != _without_depth(wanted):
        raise ConfigError(f"init {name!r} is another network than {wanted.name}")
    pairs = [(found.cue_planes, wanted.cue_planes), (found.prompt_blocks, wanted.prompt_blocks)]
    pairs += [(getattr(found.encoder, k), getattr(wanted.encoder, k)) for k in _DEPTHS]
    if any(a > b for a, b in pairs):
        raise ConfigError(f"init {name!r} is a larger network than {wanted.name}")


#: of a conv encoder, how often what comes last in its part is repeated
_DEPTHS = ("blocks16", "attn_blocks")


def _learnt(network: ZimConfig) -> dict[str, object]:
    """Return what the weights depend on, not what the predictor makes of them."""
    return {k: v for k, v in network.to_dict().items() if k not in PREDICTOR_FIELDS}


def _without_depth(network: ZimConfig) -> tuple[object, ...]:
    encoder = asdict(network.encoder)
    return {k: v for k, v in encoder.items() if k not in _DEPTHS}, network.decoder


def grown(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Fit the weights of a smaller network to a larger one, which then answers as it did.

    Kernels get zeros for cue planes that are new, which come last. New residual blocks keep their
    random weights, and zeros in what they end with.
    """
    result = dict(weights)
    for name, wanted in model.state_dict().items():
        found = weights.get(name)
        if found is None:
            ends = (".conv2.1.weight", ".proj.weight", ".proj.bias", ".lin2.weight", ".lin2.bias")
            result[name] = torch.zeros_like(wanted) if name.endswith(ends) else wanted
        elif found.ndim == wanted.ndim == 4:
            missing = wanted.shape[1] - found.shape[1]
            result[name] = F.pad(found, (0, 0, 0, 0, 0, missing)) if missing > 0 else found
    return result


def computes_in_half(precision: str, device: torch.device) -> bool:
    """Tell whether to train in bfloat16; a CPU without its instructions is far slower in it."""
    if precision == "auto":
        if device.type == "cuda":
            return torch.cuda.is_bf16_supported()
        return bfloat16_units() is not None
    return precision == "bf16"


def losses(model: nn.Module, batch: Batch, half: bool, **weights: float) -> tuple[Tensor, Tensor]:
    """Answer a batch and compare with the truth: the mean loss, and that of token 0 (detached)."""
    logits, quality = forward(model, batch, half)
    alpha, valid = F.avg_pool2d(batch.alpha, 2), batch.inside[batch.scene]
    loss, first = prompt_loss(logits, quality, alpha, valid, batch.single.float(), **weights)
    return loss, first.mean()


def forward(model: nn.Module, batch: Batch, half: bool = True) -> tuple[Tensor, Tensor]:
    """Encode the batch's images and decode its prompts, in bf16 where ``half``.

    Returns:
        Logits ``b 4 S/2 S/2`` and quality ``b 4``.
    """
    with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=half):
        images = model.preprocess(batch.image)  # pyright: ignore[reportCallIssue]
        images = padded_zero(images, batch).contiguous(memory_format=torch.channels_last)
        features = model.encode_image(images)  # pyright: ignore[reportCallIssue]
        if batch.slots:  # the way back is then a sum; through an index it is a slow scatter
            features = features.repeated(batch.slots)
        out = model.decode(  # pyright: ignore[reportCallIssue]
            features,
            batch.points,
            batch.labels,
            mask_input=batch.mask,
            has_mask=batch.has_mask,
            cues=batch.cues.contiguous(memory_format=torch.channels_last),
            image_index=None if batch.slots else batch.scene,
        )
    return out.logits.float(), out.iou.float()


def padded_zero(images: Tensor, batch: Batch) -> Tensor:
    """Set the padding to zero after normalisation, as the predictor does."""
    rows, columns = (torch.arange(n, device=images.device) for n in images.shape[-2:])
    height, width = batch.size[:, :1], batch.size[:, 1:]
    picture = (rows < height)[:, None, :, None] & (columns < width)[:, None, None]
    return images * picture


def start_near_prior(model: nn.Module) -> None:
    """Shrink the hypernetworks' last layers: the untrained network answers with the prior."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "output_hypernetworks_mlps" in name and ".layers.2." in name:
                weight.mul_(0.1)


def parameter_groups(model: nn.Module, decay: float) -> list[dict]:
    """Weight decay for matrices and kernels only."""
    large = [p for p in model.parameters() if p.ndim > 1]
    small = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": large, "weight_decay": decay}, {"params": small, "weight_decay": 0.0}]


def learning_rate(config: MatteConfig, step: int, progress: float) -> float:
    """Linear warm-up over steps, then half a cosine over the schedule down to one percent."""
    warm = min(1.0, (step + 1) / max(1, config.warm_up))
    return config.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def score(
    model: nn.Module, pack: Pack, scenes: int, sheet: int = 12, half: bool = True
) -> tuple[dict[str, dict[str, float]], list[np.ndarray]]:
    """MSE x 1e3 at stride 2 per prompt kind, of the network (token 0) and of the prior plane.

    Returns:
        ``{kind: {n, net, prior}}``, further split into natural and composite scenes for boxes and
        clicks, ``click_best`` being the token a lone click would get by predicted quality; and
        picture rows for a sample sheet (image, truth, prior, network).
    """
    model.eval()
    values: dict[str, list[tuple[float, float]]] = {}
    rows: list[np.ndarray] = []
    for start in range(0, min(scenes, len(pack)), 8):
        numbers = list(range(start, min(start + 8, scenes, len(pack))))
        device = next(model.parameters()).device
        batch = pack.batch(numbers).to(device)
        logits, quality = forward(model, batch, half)
        alpha = F.avg_pool2d(batch.alpha, 2)[:, 0]
        valid = batch.inside[batch.scene, 0]
        predicted = logits.sigmoid()
        prior = torch.sigmoid(PRIOR_SCALE * batch.cues[:, 0])
        area = valid.sum((1, 2))
        error = (((predicted - alpha[:, None]) ** 2) * valid[:, None]).sum((2, 3)) / area[:, None]
        reference = (((prior - alpha) ** 2) * valid).sum((1, 2)) / area
        best = quality[:, 1:].argmax(1) + 1
        for k in range(len(logits)):
            kind = KINDS[int(batch.kind[k])]
            name, index = pack.index[numbers[int(batch.scene[k])]]
            scene_kind = "natural" if pack.shards[name]["natural"][index] else "composite"
            pair = (float(error[k, 0]), float(reference[k]))
            values.setdefault(kind, []).append(pair)
            if kind in ("box", "click"):
                values.setdefault(f"{kind}_{scene_kind}", []).append(pair)
            if kind == "click":
                values.setdefault("click_best", []).append((float(error[k, best[k]]), pair[1]))
            if kind in ("box", "click") and len(rows) < sheet:
                rows.append(_row(batch, k, alpha[k], prior[k], predicted[k, 0]))
    table = {
        kind: {
            "n": len(pairs),
            "net": round(1e3 * float(np.mean([p[0] for p in pairs])), 2),
            "prior": round(1e3 * float(np.mean([p[1] for p in pairs])), 2),
        }
        for kind, pairs in sorted(values.items())
    }
    return table, rows


def _row(batch: Batch, row: int, *mattes: Tensor) -> np.ndarray:
    picture = F.avg_pool2d(batch.image[batch.scene[row]][None], 2)[0]
    image = np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy().astype(np.uint8))
    marks = zip(batch.points[row].tolist(), batch.labels[row].tolist(), strict=True)
    spots = [(x / 2, y / 2, label) for (x, y), label in marks if label >= 0]
    corners = [(round(x), round(y)) for x, y, label in spots if label >= 2]
    if len(corners) == 2:
        cv2.rectangle(image, corners[0], corners[1], (255, 220, 0), 1)
    for x, y, label in spots:
        if label < 2:
            colour = (0, 255, 0) if label else (255, 0, 0)
            cv2.circle(image, (round(x), round(y)), 2, colour, -1)
    greys = [np.dstack([(m.cpu().numpy() * 255).astype(np.uint8)] * 3) for m in mattes]
    return np.hstack([image, *greys])
