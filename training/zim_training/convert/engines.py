"""Who converts which shard: this process, the processes of torchrun, or Ray's actors."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from zim._extras import require
from zim.api import choose_device
from zim.errors import ZimError, one_line
from zim.pools import rank_and_world
from zim_training.convert.config import ConvertConfig
from zim_training.convert.shard import convert_shard, weights_hash
from zim_training.converter.model import Converter

Report = dict[str, Any]


class Worker:
    """Holds a converter and turns shard after shard into a report; one per process."""

    def __init__(
        self, converter: str, out: str, config: ConvertConfig, device: str, again: bool = False
    ) -> None:
        """Load the converter onto a device (``auto`` takes a GPU where there is one).

        ``again`` converts what is finished, too.
        """
        self.model = Converter.from_pretrained(converter).to(choose_device(device))
        self.weights = weights_hash(self.model)
        self.out, self.config, self.again = Path(out), config, again

    def convert(self, source: str) -> Report:
        """Convert a tar; what makes the whole tar unusable is reported, not raised."""
        try:
            return convert_shard(
                Path(source), self.out, self.model, self.config, self.weights, again=self.again
            )
        except ZimError as error:
            return {"source": Path(source).name, "error": one_line(error)}

    def __call__(self, rows: Any) -> Any:
        """Serve Ray's ``map_batches``: a column of tars to a column of reports."""
        import json

        return {"report": [json.dumps(self.convert(str(s))) for s in rows["source"]]}


def share_of_rank(sources: Sequence[str]) -> list[str]:
    """Return this process's tars under torchrun (``RANK``, ``WORLD_SIZE``); all without it."""
    rank, world = rank_and_world()
    return list(sources)[rank::world]


def run_local(
    worker: Worker, sources: Sequence[str], seen: Callable[[Report], None]
) -> list[Report]:
    """Convert one after another in this process."""
    reports = []
    for source in sources:
        reports.append(worker.convert(source))
        seen(reports[-1])
    return reports


def run_ray(
    converter: str,
    out: str,
    config: ConvertConfig,
    sources: Sequence[str],
    actors: int,
    device: str,
    again: bool = False,
) -> list[Report]:
    """Convert with a pool of Ray actors; joins a running cluster or starts a local one.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    import json

    ray = require("ray", "ray")
    data = require("ray.data", "ray")
    started = not ray.is_initialized()
    if started:
        options: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False}
        if not os.environ.get("RAY_ADDRESS"):
            options["num_cpus"] = max(actors + 1, os.cpu_count() or 1)
        ray.init(**options)
    try:
        data.DataContext.get_current().enable_progress_bars = False
        gpu = device != "cpu" and torch.cuda.is_available()
        table = data.from_items([{"source": s} for s in sources]).repartition(len(sources))
        mapped = table.map_batches(
            Worker,
            fn_constructor_args=(converter, out, config, "cuda" if gpu else "cpu", again),
            batch_size=1,
            batch_format="numpy",
            num_gpus=1 if gpu else 0,
            num_cpus=1,
            compute=data.ActorPoolStrategy(size=actors),
        )
        return [json.loads(row["report"]) for row in mapped.take_all()]
    finally:
        if started:
            ray.shutdown()
