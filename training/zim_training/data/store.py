"""Shards kept on the training device, so that a GPU never waits for a disk or a core.

Threads read shards as they are finished; on the device they stay as bytes. When the room is used up
a shard takes the place of the oldest, which waits for its turn to come back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zim.errors import ConfigError, one_line
from zim_training.data.loader import finished_shards

#: shards that are read ahead at a time
_AHEAD = 4

Array = NDArray[Any]
Arrays = dict[str, Array]


class ResidentStore:
    """Arrays of a folder's shards in device memory, row by row.

    Attributes:
        rows: by name, the arrays of all shards that are there, one after the other.
        count: how many rows are in use.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        capacity: int = 0,
        arrange: Callable[[Arrays], Arrays] = dict,
        share: float = 0.55,
    ) -> None:
        """Take in the shards that are finished.

        Args:
            folder: of the shards.
            device: where they stay.
            capacity: most rows at a time; 0 takes what a share of a GPU's free memory holds, or on
                a CPU as many as there are.
            arrange: brings a shard's arrays into rows that belong together.
            share: of a GPU's free memory that may be taken.

        Raises:
            ConfigError: a shard is damaged.
        """
        self.folder, self.device, self.capacity = folder, device, capacity
        self.rows: dict[str, Tensor] = {}
        self.count = self._next = 0
        self._arrange, self._share = arrange, share
        self._readers = ThreadPoolExecutor(_AHEAD, "shards")
        self._listed: set[str] = set()
        self._new: deque[Path] = deque()  # finished, never here
        self._gone: deque[Path] = deque()  # here once, replaced
        self._here: deque[tuple[Path, slice]] = deque()  # with their places, oldest first
        self._coming: deque[tuple[Path, Future[Arrays]]] = deque()
        self.refresh(wait=True)

    def refresh(self, wait: bool = False) -> None:
        """Take in finished shards that threads have read, and let them read on.

        Where not all fit, those that are not there take turns, one at a call.

        Args:
            wait: until everything that is finished, or fits, is on the device.
        """
        for shard in finished_shards(self.folder):
            if shard.name not in self._listed:
                self._listed.add(shard.name)
                self._new.append(shard)
        while True:
            while self._new and len(self._coming) < _AHEAD and not (wait and self._gone):
                self._read(self._new.popleft())
            if self._gone and not self._coming:
                self._read(self._gone.popleft())
                if wait:
                    return
            if not self._coming or not (wait or self._coming[0][1].done()):
                return
            shard, arrays = self._coming.popleft()
            self._take(shard, arrays.result())

    def _read(self, shard: Path) -> None:
        self._coming.append((shard, self._readers.submit(read_shard, shard, self._arrange)))

    def _take(self, shard: Path, arrays: Arrays) -> None:
        """Copy a shard to the next free places, or to those of the oldest."""
        new = len(next(iter(arrays.values())))
        if not self.rows:
            self._make_room(arrays)
        room = len(next(iter(self.rows.values())))
        if not self.capacity and self._next + new > room:  # on a CPU; doubled, as lists are
            for key, values in self.rows.items():
                more = values.new_zeros(max(new, room), *values.shape[1:])
                self.rows[key] = torch.cat([values, more])
        elif self.capacity and self._next + new > self.capacity:
            self._next, new = 0, min(new, self.capacity)
        places = slice(self._next, self._next + new)
        for old, where in list(self._here):
            if where.start < places.stop and places.start < where.stop:
                self._here.remove((old, where))
                self._gone.append(old)
        for key, values in arrays.items():
            self.rows[key][places] = torch.from_numpy(values[:new]).to(self.device)
        self._here.append((shard, places))
        self._next = places.stop
        self.count = max(self.count, places.stop)

    def _make_room(self, arrays: Arrays) -> None:
        if not self.capacity and self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            each = sum(a[0].nbytes for a in arrays.values())
            self.capacity = max(1, int(self._share * free / each))
        room = self.capacity or len(next(iter(arrays.values())))
        for key, values in arrays.items():
            kind = torch.from_numpy(values[:1]).dtype
            self.rows[key] = torch.zeros((room, *values.shape[1:]), dtype=kind, device=self.device)


def read_shard(shard: Path, arrange: Callable[[Arrays], Arrays] = dict) -> Arrays:
    """Read a shard and bring it into rows that belong together.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        return arrange({p.stem: np.load(p) for p in shard.glob("*.npy")})
    except (OSError, ValueError, KeyError, EOFError) as error:
        reason = one_line(error, 200)
        raise ConfigError(
            f"{shard} is damaged ({type(error).__name__}: {reason}); delete it and run "
            "zim-train data synth again"
        ) from error
