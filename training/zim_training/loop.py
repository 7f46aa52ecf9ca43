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
import sys
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
from zim._progress import track
from zim.api import choose_device
from zim.errors import CheckpointError, ConfigError, OutputError, ZimError, one_line, reason
from zim.output import atomic_write, save_rgb
from zim_training import checkpoint
from zim_training.stopping import leave, leave_it_to_the_parent, stopping

#: steps after which several processes ask each other whether one was told to end
AGREE_EVERY = 10


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
        accumulate: batches of every process in a step.
    """

    numbers: Sequence[int]
    done: int
    slot: int
    slots: int
    count: int
    seed: int
    accumulate: int = 1


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Return the source of what all samples of a step share; it is none of the samples' own."""
    return np.random.default_rng((seed, step, 0, 1))


class Task(Protocol):
    """What is trained: the model, its data and its loss."""

    model: nn.Module

    @property
    def streams(self) -> bool:
        """Tell whether batches come from :meth:`stream` instead of :meth:`samples`."""
        ...

    @property
    def data_mark(self) -> str:
        """Return a hash of what data there are, by their names."""
        ...

    def stream(self, reader: Reader) -> Iterator[Any]:
        """Make the batches of a reader of a stream, in order."""
        ...

    def samples(
        self, rngs: Sequence[np.random.Generator], shared: np.random.Generator | None = None
    ) -> Any:
        """Make a batch of a sample for every ``rng``, its only source of randomness.

        ``shared`` is for what all samples of the step have in common, on all processes.
        """
        ...

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch (on the model's device), and numbers for the log."""
        ...

    def groups(self) -> list[dict[str, Any]]:
        """Return parameter groups; ``scale`` multiplies the learning rate."""
        ...

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], np.ndarray | None]:
        """Score a model on held-out data; return numbers and a sheet, H x W x 3 uint8.

        Raises:
            FloatingPointError: an answer is not finite; names it.
        """
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
class _Failed:
    """An error of a worker, whose traceback a DataLoader would put into the message."""

    text: str


def _told(error: ZimError) -> _Failed:
    """Hand an error to the main process; where this is it, raise it."""
    if get_worker_info() is None:
        raise error
    return _Failed(one_line(error))


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
        rngs = [np.random.default_rng((self.seed, step, k)) for k in places]
        try:
            return self.task.samples(rngs, step_rng(self.seed, step))
        except ZimError as error:
            return _told(error)


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
    accumulate: int

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
            accumulate=self.accumulate,
        )
        try:
            yield from self.task.stream(reader)
        except ZimError as error:
            yield _told(error)


class Loop:
    """A run: model, optimiser, schedule and folder."""

    def __init__(
        self,
        task: Task,
        config: LoopConfig,
        run: Path,
        device: str = "auto",
        anew: bool = False,
    ) -> None:
        """Prepare; continues from ``run/last.pt`` when it is there.

        Args:
            task: what is trained.
            config: a settings dataclass.
            run: the run folder.
            device: where to train, as for :func:`zim.load`.
            anew: remove a run that is there.

        Raises:
            ConfigError: no such device, the batch does not divide, or the run has other settings or
                other data.
            CheckpointError: ``last.pt`` is damaged.
        """
        accelerate = require("accelerate", "train")
        where = choose_device(device)
        if where.type == "cuda" and where.index is not None:
            torch.cuda.set_device(where)
        precision = config.precision
        if precision == "auto":
            precision = "bf16" if where.type == "cuda" else "float32"
        ddp = accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator = accelerate.Accelerator(
            cpu=where.type == "cpu",
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
        #: losses and numbers of the steps since the log's last line
        self._pending: list[tuple[Tensor, dict[str, float]]] = []
        self._writer: Any = None
        if self.main:
            if anew and (run / "last.pt").is_file():
                checkpoint.start_over(run)
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
        checkpoint.clear_stale(self.run)
        last = self.run / "last.pt"
        kept = checkpoint.read(last) if last.is_file() else {"step": -1}
        path = self.run / "config.json"
        if last.is_file():
            self._compare(path, settings, kept)
            if "data" not in kept and "network" in self.task.extra_state():  # older than that key
                sys.stderr.write(
                    f"{self.run} was begun by an earlier version: from here on the gradient loss "
                    "leaves out the edge to the padding, and every picture weighs the same\n"
                )
        atomic_write(path, (json.dumps(settings, indent=1) + "\n").encode())
        env = {"zim": __version__, "torch": torch.__version__, "python": platform.python_version()}
        env |= {"device": str(self.accelerator.device), "processes": self.accelerator.num_processes}
        atomic_write(self.run / "env.json", (json.dumps(env, indent=1) + "\n").encode())
        log = self.run / "metrics.jsonl"
        if log.is_file():  # lines past the checkpoint will be written again
            checkpoint.cut_log(log, kept["step"])

    def _compare(self, path: Path, settings: dict[str, Any], kept: dict[str, Any]) -> None:
        """Refuse to go on with other settings than those in ``path``, or with other data."""
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(old, dict):
                raise ValueError("no JSON object")
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} holds no settings of a run ({reason(error)}); start anew with --overwrite "
                "or another --output"
            ) from error
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
        if kept.get("data", self.task.data_mark) != self.task.data_mark:
            raise ConfigError(
                f"{self.run} was started with other data; continue with those (--data), or choose "
                "another --output"
            )

    def fit(self) -> None:
        """Train to the last step, logging, evaluating and saving on the way.

        Raises:
            SystemExit: one of the processes was interrupted or told to end; the step is saved.
        """
        config = self.config
        batches = self._batches()
        start = last = time.perf_counter()
        since, told = self.step, 0
        with stopping(self.main) as stop:
            for _ in track(range(config.steps - self.step), "training"):
                self._pending.append(self._one_step(batches))
                self.step += 1
                saves = self.step % config.save_every == 0 or self.step == config.steps
                evaluates = self.step % config.eval_every == 0 or self.step == config.steps
                # a line at every checkpoint: a run that continues there writes the same lines
                if self.step % config.log_every == 0 or saves:
                    now = time.perf_counter()
                    pace = (self.step - since) * config.batch / max(now - last, 1e-9)
                    losses, numbers = zip(*self._pending, strict=True)
                    means = {"loss": float(torch.stack(losses).mean()), **_means(numbers)}
                    self._log("train", **self._over_processes(means))
                    self._scalar("images_per_s", pace)
                    self._pending, since, last = [], self.step, now
                if evaluates:  # before the checkpoint: a run that continues there has these scores
                    self.evaluate()
                    last = time.perf_counter()
                told = self._agreed(stop.number, saves)
                if saves or told:
                    self.seconds += time.perf_counter() - start
                    start = time.perf_counter()
                    self.save()
                if told:
                    break
        if told:
            self.close()
            leave(told, self.step, "the same command, without --overwrite,", self.main)
        if self.main:
            if self.best:
                self.ema.model.load_state_dict(self.best["ema"])
                self.last_scores = self.best["scores"] | {"best_step": self.best["step"]}
            self.task.export(self.ema.model, self.run / "export")
        self.last_scores = self._shared(self.last_scores)
        self.accelerator.wait_for_everyone()

    def _over_processes(self, values: dict[str, float]) -> dict[str, float]:
        """Average numbers over the processes, which have equal shares of a batch."""
        if self.accelerator.num_processes == 1:
            return values
        mine = torch.tensor(list(values.values()), device=self.accelerator.device)
        means: Any = self.accelerator.reduce(mine, reduction="mean")
        return dict(zip(values, means.tolist(), strict=True))

    def _agreed(self, number: int, saves: bool) -> int:
        """Return the largest number of all processes, so that all stop at one step.

        They ask each other now and then only, and where they meet anyway: a GPU is waited for.
        """
        if self.accelerator.num_processes == 1:
            return number
        if self.step % AGREE_EVERY and not saves:
            return 0
        mine = torch.tensor([number], device=self.accelerator.device)
        gathered: Any = self.accelerator.gather(mine)
        return int(gathered.max())

    def _shared(self, value: Any) -> Any:
        """Return the main process's value on every process."""
        if self.accelerator.num_processes == 1:
            return value
        values = [value]
        require("accelerate.utils", "train").broadcast_object_list(values)
        return values[0]

    def _batches(self) -> Iterator[Any]:
        config = self.config
        first, end = self.step * config.accumulate, config.steps * config.accumulate
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        options: dict[str, Any] = {"batch_size": None}
        data: Dataset[Any]
        if self.task.streams:
            each = config.accumulate
            data = _Stream(self.task, config.seed, self.micro, rank, world, first, end, each)
        else:
            data = _Batches(self.task, config.seed, self.micro, rank, world, config.accumulate)
            options["sampler"] = range(first, end)
        if config.workers:
            options |= {"num_workers": config.workers, "prefetch_factor": 2}
            options["worker_init_fn"] = leave_it_to_the_parent
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
            if isinstance(batch, _Failed):
                raise ConfigError(batch.text)
            with self.accelerator.accumulate(self.model):
                loss, more = self.task.loss(self.model, batch)
                self.accelerator.backward(loss)
                total = total + loss.detach() / config.accumulate
                if self.accelerator.sync_gradients:
                    # infinity measures without clipping
                    norm = self.accelerator.clip_grad_norm_(
                        self.model.parameters(), config.clip or math.inf
                    )
                    if not torch.isfinite(total + norm):
                        raise self._diverged("loss or gradient", self.step + 1)
                self.optimizer.step()
                self.optimizer.zero_grad()
            numbers.append(more)
        self.ema.update(self.accelerator.unwrap_model(self.model))
        return total, _means(numbers)

    def _diverged(self, what: str, step: int) -> ConfigError:
        """Say what is not finite, and what can be done."""
        older = sorted((self.run / "checkpoints").glob("step_*.pt"))
        advice = ""
        if older and "network" in self.task.extra_state():
            advice = (
                f", or from weights of before: zim-train bundle {older[0]} --output W, --init W/..."
            )
        return ConfigError(
            f"training diverged: {what} is not finite at step {step}; start anew with a lower "
            f"--rate (--overwrite, or another --output){advice}"
        )

    def evaluate(self) -> dict[str, float]:
        """Score the averaged model on the main process; write numbers and a sheet.

        Returns:
            The scores, on every process.

        Raises:
            ConfigError: an answer is not finite.
        """
        scores: dict[str, float] = {}
        if self.main:
            try:
                scores, sheet = self.task.evaluate(self.ema.model)
            except FloatingPointError as error:
                raise self._diverged(str(error), self.step) from error
            if scores:
                self._log("dev", **scores)
            if scores and self.config.keep_best:
                self._remember(scores)
            if sheet is not None:
                save_rgb(self.run / "samples" / f"step_{self.step:07d}.png", sheet)
        self.last_scores = self._shared(scores)
        self.accelerator.wait_for_everyone()
        return self.last_scores

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
        """Write ``last.pt`` with everything needed to go on, and keep older ones.

        Raises:
            ConfigError: a weight is not finite; older checkpoints stay.
        """
        rows = [{"loss": float(loss)} | more for loss, more in self._pending]
        pending = [self._over_processes(row) for row in rows]
        if not self.main:
            self.accelerator.wait_for_everyone()
            return
        model = self.accelerator.unwrap_model(self.model)
        weights = [*model.state_dict().values(), *self.ema.model.state_dict().values()]
        finite = [w.isfinite().all() for w in weights if w.is_floating_point()]
        if not torch.stack(finite).all():
            raise self._diverged("a weight", self.step)
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
            "data": self.task.data_mark,
            "scores": self.last_scores,
            "pending": pending,
        } | self.task.extra_state()
        checkpoint.write_atomically(self.run / "last.pt", state)
        kept = self.run / "checkpoints" / f"step_{self.step:07d}.pt"
        if self.config.keep:
            kept.unlink(missing_ok=True)
            try:
                os.link(self.run / "last.pt", kept)
            except OSError:  # a file system without links
                shutil.copyfile(self.run / "last.pt", kept)
            for old in sorted(kept.parent.glob("step_*.pt"))[: -self.config.keep - 1]:
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
        self.last_scores = state.get("scores", {})
        for row in state.get("pending", []):
            loss = torch.tensor(row.pop("loss"), device=self.accelerator.device)
            self._pending.append((loss, row))

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
    """Group for AdamW: decay for matrices, kernels and tables of positions, none for vectors.

    ``scales`` maps name prefixes to factors of the rate.

    Raises:
        ConfigError: nothing is left to train.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = next((s for p, s in (scales or {}).items() if name.startswith(p)), 1.0)
            key = (decay if parameter.ndim > 1 else 0.0, scale)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ConfigError("nothing is left to train; freeze less")
    return [{"params": p, "weight_decay": d, "scale": s} for (d, s), p in groups.items()]


def _means(numbers: Sequence[dict[str, float]]) -> dict[str, float]:
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
