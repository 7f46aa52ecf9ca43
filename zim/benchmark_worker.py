"""One case of ``zim bench``, measured in a process of its own: a case in on stdin, rows out.

    python -m zim.benchmark_worker < case.json

What a process has held stays part of its peak and of its caches, so that nothing else may have run
in it before. See :mod:`zim.benchmark`, which starts these processes.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from zim.api import choose_device, choose_dtype, load
from zim.benchmark import MIB, UNITS, Case
from zim.benchmarking import sample_times
from zim.builder import build
from zim.config import PRESETS
from zim.errors import ZimError, one_line
from zim.memory import give_memory_back, peak_resident, reset_peak, resident
from zim.model.matting import ImageFeatures, ZimNetwork
from zim.predictor import ZimPredictor, enlarge_low_res
from zim.prompts import Prompt
from zim.testing import picture
from zim.views import View, decode_views, encode_views
from zim.weights import REGISTRY

Work = Callable[[], object]


class Bench:
    """A model and the pictures it is measured on; every stage's input is made when asked for."""

    def __init__(self, case: Case) -> None:
        """Load the model, or build it with random weights where nothing is installed.

        Raises:
            ZimError: model, device or type cannot be used.
        """
        self.case = case
        self.model, self.weights = _model(case)
        if case.compile:
            self.model.compile_encoder()
        width, height = case.size
        first = picture(height, width, seed=case.seed)
        self.pictures = [np.roll(first, 16 * i, 1) for i in range(case.batch)]

    def prepare(self, stage: str, prompts: int | None) -> Work:
        """Make what a stage needs and return the stage itself."""
        if stage != "decode":
            self.__dict__.pop("features", None)  # large, and part of no other stage's memory
        if stage == "preprocess":
            return self.preprocess
        if stage == "encode":
            images = self.preprocess()
            return lambda: self.model.encode_image(images)
        if stage == "decode":
            return self.decoding(prompts or 1)
        return self.enlarging() if stage == "enlarge" else self.matting()

    def preprocess(self) -> Tensor:
        """Scale the pictures to the model's frame, normalise and pad: ``b 3 S S``."""
        device = self.model.device
        small = [torch.tensor(view.picture).to(device) for view in self.views()]
        return torch.cat([self.model.preprocess(s.permute(2, 0, 1)[None]) for s in small])

    def views(self) -> list[View]:
        """Scale the pictures to the model's frame."""
        return [View.of(rgb, self.model.config.image_size) for rgb in self.pictures]

    @cached_property
    def features(self) -> ImageFeatures:
        """The pictures' features, for all stages of decoding."""
        return encode_views(self.model, self.views())

    def decoding(self, count: int) -> Work:
        """Prepare: ``count`` boxes on each picture to low-res logits, as the predictor does it.

        That includes the cue planes of models that want them, and chunks bounded in memory; not a
        second look at crops or at the mirrored view, which is part of the stage ``matte``.
        """
        prompts = self.boxes(count) * self.case.batch
        where = np.repeat(np.arange(self.case.batch), count).tolist()
        views, features = self.views(), self.features
        return lambda: decode_views(self.model, features, views, where, prompts, slice(0, 1))

    def enlarging(self) -> Work:
        """Prepare: one map of low-res logits per picture to a matte of its size, in numpy."""
        side = self.model.config.image_size // 2
        noise = torch.Generator().manual_seed(self.case.seed)
        low = torch.randn(1, 1, side, side, generator=noise).to(self.model.device)
        frame, edges = self.views()[0].frame, self.model.config.edges

        def work() -> list[np.ndarray]:
            full = [enlarge_low_res(low, frame, rgb, edges) for rgb in self.pictures]
            return [logits.sigmoid_().cpu().numpy() for logits in full]

        return work

    def matting(self) -> Work:
        """Prepare: picture and box in, matte out, everything between included."""
        predictor = ZimPredictor(self.model)
        prompts = [self.boxes(1)] * self.case.batch

        def work() -> None:
            predictor.set_image_batch(self.pictures)
            predictor.predict_batch(prompts)

        return work

    def boxes(self, count: int) -> list[Prompt]:
        """Return boxes of a fifth to three fifths of the picture, the same for the same seed."""
        rng = np.random.default_rng(self.case.seed)
        sides = rng.uniform(0.2, 0.6, (count, 2))
        corners = rng.uniform(0, 1 - sides)
        scaled = np.concatenate([corners, corners + sides], 1) * np.tile(self.case.size, 2)
        width, height = self.case.size
        return [Prompt.create((height, width), box=box) for box in scaled]


def _model(case: Case) -> tuple[ZimNetwork, str]:
    """Return the model and where its weights come from."""
    row = REGISTRY.get(case.model)
    if case.model not in PRESETS or (row is not None and row.installed()):
        return load(case.model, device=case.device, dtype=case.dtype), "loaded"
    device = choose_device(case.device)
    model = build(case.model, seed=case.seed).eval()
    return model.to(device, choose_dtype(case.dtype, device)), "random weights"


@torch.inference_mode()
def measure(case: Case) -> list[dict[str, Any]]:
    """Measure a case; a stage that fails becomes a row with ``error``.

    Raises:
        ZimError: the model cannot be had, so there is nothing to measure.
    """
    with torch.inference_mode(False):
        bench = Bench(case)
    device = str(bench.model.device)
    head = {
        "model": case.model,
        "weights": bench.weights,
        "device": device,
        "dtype": str(bench.model.dtype).removeprefix("torch."),
        "batch": case.batch,
    }
    rows: list[dict[str, Any]] = []
    for stage, prompts in case.steps():
        row = head | {"stage": stage, "prompts": prompts}
        try:
            row |= measure_stage(bench.prepare(stage, prompts), case, device)
        except (RuntimeError, MemoryError, ZimError) as error:  # no memory, type not supported
            row["error"] = one_line(error)
        else:
            count = case.batch * (prompts or 1)
            row |= {"count": count, "unit": UNITS[stage], "per_second": count / row["median_s"]}
        rows.append(row)
    return rows


def measure_stage(work: Work, case: Case, device: str) -> dict[str, Any]:
    """Run one stage: its times and its peak memory."""
    cuda = device.startswith("cuda")
    give_memory_back()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    own = reset_peak()
    held = resident()
    times = sample_times(work, warmup=case.warmup, repeats=case.repeats, device=device)
    return {
        "median_s": statistics.median(times),
        "min_s": min(times),
        "max_s": max(times),
        "repeats": case.repeats,
        "peak_rss_mib": _mib(peak_resident()),
        "held_rss_mib": _mib(held),
        "peak_cuda_mib": _mib(torch.cuda.max_memory_allocated(device)) if cuda else None,
        "peak_of": "stage" if own else "process",
        "error": None,
    }


def _mib(count: int | None) -> float | None:
    return None if count is None else round(count / MIB, 1)


def main() -> None:
    """Read a case from stdin, write ``{"rows": ...}`` or ``{"error": ...}`` to stdout."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not get into the answer
    case = Case.from_dict(json.load(sys.stdin))
    torch.set_num_threads(case.threads)
    cv2.setNumThreads(case.threads)
    torch.manual_seed(case.seed)
    try:
        result: dict[str, Any] = {"rows": measure(case)}
    except ZimError as error:
        result = {"error": one_line(error)}
    with answer:
        json.dump(result, answer)


if __name__ == "__main__":
    main()
