"""SA1B-Matte shards read from front to back: for disks and networks that dislike random access.

Every reader (a worker of a process) has its own endless list of shards, in another order each time
round, and mixes their pictures in a buffer. What a reader yields depends on its arguments alone, so
a run continues by passing over what was used: from the shards' indices, without reading pictures.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zim.errors import ConfigError, reason
from zim_training.data.shards import Sample, finished, read_index, read_range

#: a picture of a shard that is still to be read: the tar and its row of the index
Row = tuple[Path, dict[str, Any]]


def held_out(key: str, share: float) -> bool:
    """Tell whether a picture is kept for validation; by its name alone, so no list is needed."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    return number < share * 2**32


class ShardStream:
    """Pictures of a folder's shards, tar after tar, mixed in a buffer."""

    def __init__(self, folder: Path, buffer: int, share: float) -> None:
        """Find the finished shards; ``share`` of the pictures is left out, for validation.

        Raises:
            ConfigError: there is none, or none with a picture for training.
        """
        self.tars, self.buffer, self.share = finished(folder), buffer, share
        if not any(self._rows(tar) for tar in self.tars):
            raise ConfigError(f"{folder} holds no picture for training; convert more tars")

    def validation(self, most: int) -> list[Row]:
        """Return the first held-out pictures, at most ``most``."""
        rows = ((tar, row) for tar in self.tars for row in read_index(tar))
        return list(
            itertools.islice((r for r in rows if held_out(r[1]["key"], self.share)), max(most, 0))
        )

    def read(self, seed: int, slot: int, slots: int, skip: int) -> Iterator[Sample]:
        """Yield pictures for ever.

        Args:
            seed: of shard order and mixing.
            slot: which of the readers this is.
            slots: how many readers share the shards.
            skip: pictures that were used before and are passed over.

        Raises:
            ConfigError: a shard is damaged.
        """
        rng = np.random.default_rng((seed, slot, 1))
        mixed: list[Sample | Row] = []
        # what comes in before the first that is wanted goes out, is not read but looked up
        skim = self.buffer + skip if skip else 0
        for item in self._items(seed, slot, slots, skim):
            if len(mixed) < self.buffer:
                mixed.append(item)
                continue
            k = int(rng.integers(len(mixed)))
            chosen, mixed[k] = mixed[k], item
            if skip:
                skip -= 1
            else:
                yield chosen if isinstance(chosen, Sample) else read_range(*chosen)

    def _items(self, seed: int, slot: int, slots: int, skim: int) -> Iterator[Sample | Row]:
        """Yield a reader's pictures in the shards' order, the first ``skim`` unread."""
        count = len(self.tars)
        for number in itertools.count(slot, slots):
            order = np.random.default_rng((seed, number // count)).permutation(count)
            tar = self.tars[int(order[number % count])]
            rows = self._rows(tar) if skim > 0 else []
            if skim > len(rows) // 2:  # a shard of which little is wanted is not read through
                skim -= len(rows)
                yield from ((tar, row) for row in rows)
            else:
                skim = 0
                yield from (s for s in read_tar(tar) if not held_out(s.key, self.share))

    def _rows(self, tar: Path) -> list[dict[str, Any]]:
        return [row for row in read_index(tar) if not held_out(row["key"], self.share)]


def read_tar(path: Path) -> Iterator[Sample]:
    """Read a shard's pictures with mattes from front to back, without seeking.

    Raises:
        ConfigError: the shard is damaged.
    """
    expected, count = len(read_index(path)), 0
    try:
        with tarfile.open(path, "r|") as tar:
            members = ((m.name.rpartition("."), tar.extractfile(m)) for m in tar)
            files = ((name[0], name[2], file.read()) for name, file in members if file)
            for key, group in itertools.groupby(files, key=lambda f: f[0]):
                parts = {suffix: data for _, suffix, data in group}
                meta = json.loads(parts["json"])
                if meta["mattes"] and "jpg" in parts:
                    count += 1
                    yield Sample(key, meta, parts["jpg"], parts["mattes"], path)
        if count < expected:  # a broken header looks like the end
            raise ValueError(f"{count} pictures of {expected}")
    except (tarfile.TarError, OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} is damaged ({reason(error)}); convert it again") from error
