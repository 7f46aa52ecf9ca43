"""The training loop of every model here: steps, on Accelerate, with exact resume.

A sample is a pure function of seed, step and place in the batch, so the position in the data is the
step, a run that was killed goes on exactly as it would have, and the number of processes decides
only who makes which sample. Data read as a stream depends on the numbers of processes and workers
as well. Run folder::

    config.json  env.json  metrics.jsonl  tensorboard/  last.pt  checkpoints/step_0001000.pt
    samples/step_0001000.png  best.pt  export/
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from zim import __version__
from zim._extras import require
from zim.errors import ConfigError, OutputError
from zim.output import atomic_write, save_rgb
from zim_training import checkpoint


class LoopConfig(Protocol):
    """The settings the loop reads; every training configuration has them."""

    @property
    def batch(self) -> int: ...  # noqa: D102
    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def rate(self) -> float: ...  # noqa: D102
    @property
    def warm_up(self) -> int: ...  # noqa: D102
    @property
    def clip(self) -> float: ...  # noqa: D102
    @property
    def ema(self) -> float: ...  # noqa: D102
    @property
    def accumulate(self) -> int: ...  # noqa: D102
    @property
    def precision(self) -> str: ...  # noqa: D102
    @property
    def workers(self) -> int: ...  # noqa: D102
    @property
    def save_every(self) -> int: ...  # noqa: D102
    @property
    def eval_every(self) -> int: ...  # noqa: D102
    @property
    def keep(self) -> int: ...  # noqa: D102
    @property
    def keep_best(self) -> bool: ...  # noqa: D102
    @property
    def log_every(self) -> int: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Reader:
    """What one reader of a stream has to make; a reader is a worker of a process.

    Attributes:
        numbers: of the batches that this reader makes, in order.
        done: batches this reader has made before them.
        slot: which of the ``slots`` readers of all processes this is.
        count: samples in a batch.
        seed: of the run.
    """

    numbers: Sequence[int]
    done: int
    slot: int
    slots: int
    count: int
    seed: int


class Task(Protocol):
    """What is trained: the model, its data and its loss."""

    model: nn.Module

    @property
    def streams(self) -> bool:
        """Tell whether batches come from :meth:`stream` instead of :meth:`samples`."""
        ...

    def stream(self, reader: Reader) -> Iterator[Any]:
        """Make the batches of a reader of a stream, in order."""
        ...

    def samples(self, rngs: Sequence[np.random.Generator]) -> Any:
        """Make a batch of a sample for every ``rng``, its only source of randomness."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch (on the model's device), and numbers for the log."""
        ...

    def groups(self) -> list[dict[str, Any]]:
        """Return parameter groups; ``scale`` multiplies the learning rate."""
        ...

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], np.ndarray | None]:
        """Score a model on held-out data; return numbers and a sheet, H x W x 3 uint8."""
        ...

    def rank(self, scores: dict[str, float], first: dict[str, float]) -> float:
        """Rate scores of :meth:`evaluate` against the run's first; less is better."""
        ...

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model for inference."""
        ...

    def extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint should hold besides."""
        ...


@dataclass(frozen=True)
class _Batches(Dataset[Any]):
    """Micro-batches by number, for a DataLoader whose workers may make them ahead of time.

    ``count`` samples each, ``accumulate`` of them a step. All processes' micro-batches of a step
    make up the same batch however many there are.
    """

    task: Task
    seed: int
    count: int
    rank: int
    world: int
    accumulate: int

    def __getitem__(self, number: int) -> Any:
        step, part = divmod(number, self.accumulate)
        first = (part * self.world + self.rank) * self.count
        places = range(first, first + self.count)
        return self.task.samples([np.random.default_rng((self.seed, step, k)) for k in places])


@dataclass(frozen=True)
class _Stream(IterableDataset[Any]):
    """Batches ``first`` to ``end`` of a stream; a DataLoader takes them from its workers in turn.

    A batch is made by the worker that its number names, so that a run which continues at any step
    finds every reader where it was.
    """

    task: Task
    seed: int
    count: int
    rank: int
    world: int
    first: int
    end: int

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        place, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        mine = (self.first + place) % workers
        reader = Reader(
            numbers=range(self.first + place, self.end, workers),
            done=len(range(mine, self.first, workers)),
            slot=self.rank * workers + mine,
            slots=self.world * workers,
            count=self.count,
            seed=self.seed,
        )
        return self.task.stream(reader)


class Loop:
    """A run: model, optimiser, schedule and folder."""

    def __init__(self, task: Task, config: LoopConfig, run: Path, device: str = "auto") -> None:
        """Prepare; continues from ``run/last.pt`` when it is there.

        Args:
            task: what is trained.
            config: a settings dataclass.
            run: the run folder.
            device: ``auto``, ``cpu`` or ``cuda``.

        Raises:
            ConfigError: the batch does not divide, or the run has other settings.
            CheckpointError: ``last.pt`` is damaged.
        """
        accelerate = require("accelerate", "train")
        cpu = device == "cpu" or not torch.cuda.is_available()
        precision = config.precision
        if precision == "auto":
            precision = "float32" if cpu else "bf16"
        ddp = accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator = accelerate.Accelerator(
            cpu=cpu,
            mixed_precision="bf16" if precision == "bf16" else "no",
            gradient_accumulation_steps=config.accumulate,
            kwargs_handlers=[ddp],
        )
        self.task, self.config, self.run = task, config, run
        world = self.accelerator.num_processes
        if config.batch % (world * config.accumulate):
            raise ConfigError(
                f"batch {config.batch} cannot be split over {world} processes times "
                f"{config.accumulate} micro-batches; choose a multiple"
            )
        self.micro = config.batch // (world * config.accumulate)
        self.ema = checkpoint.Ema(task.model, config.ema)
        optimizer = torch.optim.AdamW(task.groups(), config.rate)
        self.model, self.optimizer = self.accelerator.prepare(task.model, optimizer)
        self.ema.model.to(self.accelerator.device)
        self.step, self.seconds = 0, 0.0
        self.last_scores: dict[str, float] = {}
        #: with ``keep_best``: averaged weights, their step, scores and rank, and the first scores
        self.best: dict[str, Any] = {}
        self._writer: Any = None
        if self.main:
            self._open_folder()
        self.accelerator.wait_for_everyone()
        if (run / "last.pt").is_file():
            self._load()

    @property
    def main(self) -> bool:
        """Tell whether this process writes."""
        return self.accelerator.is_main_process

    def _open_folder(self) -> None:
        settings = asdict(self.config)  # pyright: ignore[reportArgumentType]
        try:
            (self.run / "samples").mkdir(parents=True, exist_ok=True)
            (self.run / "checkpoints").mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.run} cannot be written: {error.strerror}") from error
        path = self.run / "config.json"
        if path.is_file() and (self.run / "last.pt").is_file():
            old = json.loads(path.read_text())
            free = {"save_every", "eval_every", "keep", "log_every"}
            if not self.task.streams:
                free.add("workers")
            # settings that are newer than the run had their default then
            old = asdict(type(self.config)()) | old  # pyright: ignore[reportArgumentType]
            changed = sorted(k for k in settings if k not in free and old.get(k) != settings[k])
            if changed:
                raise ConfigError(
                    f"{self.run} was started with other settings ({', '.join(changed)}); "
                    f"continue with --config {path}, or choose another --output"
                )
        atomic_write(path, (json.dumps(settings, indent=1) + "\n").encode())
        env = {"zim": __version__, "torch": torch.__version__, "python": platform.python_version()}
        env |= {"device": str(self.accelerator.device), "processes": self.accelerator.num_processes}
        atomic_write(self.run / "env.json", (json.dumps(env, indent=1) + "\n").encode())
        log = self.run / "metrics.jsonl"
        if log.is_file():  # lines past the checkpoint will be written again
            last = self.run / "last.pt"
            step = checkpoint.read(last)["step"] if last.is_file() else 0
            lines = []
            for line in log.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        lines.append(line + "\n")
                except (ValueError, KeyError):  # the line that was being written
                    continue
            atomic_write(log, "".join(lines).encode())

    def fit(self) -> None:
        """Train to the last step, logging, evaluating and saving on the way."""
        config = self.config
        pending: list[Tensor] = []
        numbers: list[dict[str, float]] = []
        batches = self._batches()
        start = last = time.perf_counter()
        while self.step < config.steps:
            loss, more = self._one_step(batches)
            pending.append(loss)
            numbers.append(more)
            self.step += 1
            saves = self.step % config.save_every == 0 or self.step == config.steps
            # a line at every checkpoint: a run that continues there writes the same lines
            if self.step % config.log_every == 0 or saves:
                now = time.perf_counter()
                pace = len(pending) * config.batch / max(now - last, 1e-9)
                self._log("train", loss=float(torch.stack(pending).mean()), **_means(numbers))
                self._scalar("images_per_s", pace)
                pending, numbers, last = [], [], now
            if saves:
                self.seconds += time.perf_counter() - start
                start = time.perf_counter()
                self.save()
            if self.step % config.eval_every == 0 or self.step == config.steps:
                self.evaluate()
                last = time.perf_counter()
        if self.main:
            if self.best:
                self.ema.model.load_state_dict(self.best["ema"])
                self.last_scores = self.best["scores"] | {"best_step": self.best["step"]}
            self.task.export(self.ema.model, self.run / "export")
        self.accelerator.wait_for_everyone()

    def _batches(self) -> Iterator[Any]:
        config = self.config
        first, end = self.step * config.accumulate, config.steps * config.accumulate
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        options: dict[str, Any] = {"batch_size": None}
        data: Dataset[Any]
        if self.task.streams:
            data = _Stream(self.task, config.seed, self.micro, rank, world, first, end)
        else:
            data = _Batches(self.task, config.seed, self.micro, rank, world, config.accumulate)
            options["sampler"] = range(first, end)
        if config.workers:
            options |= {"num_workers": config.workers, "prefetch_factor": 2}
        return iter(DataLoader(data, collate_fn=_same, **options))

    def _one_step(self, batches: Iterator[Any]) -> tuple[Tensor, dict[str, float]]:
        config = self.config
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        self.model.train()
        total, numbers = torch.zeros((), device=self.accelerator.device), []
        for _ in range(config.accumulate):
            batch = _to(next(batches), self.accelerator.device)
            with self.accelerator.accumulate(self.model):
                loss, more = self.task.loss(self.model, batch)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and config.clip:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            total = total + loss.detach() / config.accumulate
            numbers.append(more)
        if not torch.isfinite(total):
            raise ConfigError(
                f"the loss is {total.item()} at step {self.step}; lower the rate, the run goes on "
                f"from {self.run / 'last.pt'}"
            )
        self.ema.update(self.accelerator.unwrap_model(self.model))
        return total, _means(numbers)

    def evaluate(self) -> dict[str, float]:
        """Score the averaged model on the main process; write numbers and a sheet."""
        scores: dict[str, float] = {}
        if self.main:
            scores, sheet = self.task.evaluate(self.ema.model)
            self.last_scores = scores
            if scores:
                self._log("dev", **scores)
            if scores and self.config.keep_best:
                self._remember(scores)
            if sheet is not None:
                save_rgb(self.run / "samples" / f"step_{self.step:07d}.png", sheet)
        self.accelerator.wait_for_everyone()
        return scores

    def _remember(self, scores: dict[str, float]) -> None:
        """Keep the averaged weights if none were better."""
        first = self.best.get("first", scores)
        rank = self.task.rank(scores, first)
        if not self.best or rank < self.best["rank"]:
            weights = {k: v.cpu().clone() for k, v in self.ema.model.state_dict().items()}
            self.best = {"rank": rank, "step": self.step, "scores": scores, "first": first}
            self.best["ema"] = weights
            checkpoint.write_atomically(self.run / "best.pt", self.best)

    def save(self) -> None:
        """Write ``last.pt`` with everything needed to go on, and keep older ones."""
        if not self.main:
            self.accelerator.wait_for_everyone()
            return
        model = self.accelerator.unwrap_model(self.model)
        state = {
            "model": model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "ema_steps": self.ema.steps,
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "step": self.step,
            "processes": self.accelerator.num_processes,
            "seconds": self.seconds,
            "config": asdict(self.config),  # pyright: ignore[reportArgumentType]
        } | self.task.extra_state()
        checkpoint.write_atomically(self.run / "last.pt", state)
        kept = self.run / "checkpoints" / f"step_{self.step:07d}.pt"
        if self.config.keep:
            kept.unlink(missing_ok=True)
            try:
                os.link(self.run / "last.pt", kept)
            except OSError:  # a file system without links
                shutil.copyfile(self.run / "last.pt", kept)
            for old in sorted(kept.parent.glob("step_*.pt"))[: -self.config.keep]:
                old.unlink()
        self.accelerator.wait_for_everyone()

    def _load(self) -> None:
        state = checkpoint.read(self.run / "last.pt")
        before, now = state.get("processes"), self.accelerator.num_processes
        if self.task.streams and before != now:
            raise ConfigError(
                f"{self.run} streams its data with {before} processes and there are {now} now; "
                f"start {before}, or read at random (--stream 0) in a new --output"
            )
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.ema.steps = state["ema_steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if self.config.keep_best and (self.run / "best.pt").is_file():
            self.best = checkpoint.read(self.run / "best.pt")
        self.step, self.seconds = state["step"], state["seconds"]

    def _log(self, kind: str, **values: float) -> None:
        if not self.main:
            return
        rate = self.optimizer.param_groups[0]["lr"]
        record = {"step": self.step, "kind": kind} | ({"rate": rate} if kind == "train" else {})
        checkpoint.append_line(self.run / "metrics.jsonl", record | values)
        for name, value in values.items():
            self._scalar(f"{kind}/{name}", value)

    def _scalar(self, name: str, value: float) -> None:
        """Write to TensorBoard where it is installed."""
        if not self.main:
            return
        if self._writer is None:
            try:
                board = require("torch.utils.tensorboard", "train")
                self._writer = board.SummaryWriter(str(self.run / "tensorboard"))
            except ImportError:
                self._writer = False
        if self._writer:
            self._writer.add_scalar(name, value, self.step)
            self._writer.flush()

    def close(self) -> None:
        """Release what the run holds open."""
        if self._writer:
            self._writer.close()


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to one percent of the peak."""
    warm = min(1.0, (step + 1) / max(1, config.warm_up))
    progress = min(1.0, step / max(1, config.steps))
    return config.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def parameter_groups(
    model: nn.Module, decay: float, scales: dict[str, float] | None = None
) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels only; ``scales`` maps name prefixes to rate factors."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = next((s for p, s in (scales or {}).items() if name.startswith(p)), 1.0)
            key = (decay if parameter.ndim > 1 else 0.0, scale)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ConfigError("nothing is left to train; freeze less")
    return [{"params": p, "weight_decay": d, "scale": s} for (d, s), p in groups.items()]


def _means(numbers: list[dict[str, float]]) -> dict[str, float]:
    keys = {k for row in numbers for k in row}
    return {k: float(np.mean([r[k] for r in numbers if k in r])) for k in sorted(keys)}


def _same(value: Any) -> Any:
    return value


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {k: _to(v, device) for k, v in value.items()}
    if hasattr(value, "to"):
        return value.to(device)
    return value
