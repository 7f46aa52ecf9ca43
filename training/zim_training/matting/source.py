"""Where training pictures come from: SA1B-Matte shards, or one's own pictures and mattes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zim.errors import ConfigError
from zim_training.checkpoint import names_mark
from zim_training.data.readers import check_matte, sound_samples
from zim_training.data.shards import DONE, Sample, ShardSet, read_range
from zim_training.data.stream import ShardStream


@dataclass(frozen=True)
class Picture:
    """A picture and some of its mattes.

    Attributes:
        rgb: H x W x 3 uint8.
        alphas: K x H x W float32, what is to be learnt.
        others: K x H x W bool, the picture's other objects, for negative points.
    """

    rgb: NDArray[np.uint8]
    alphas: NDArray[np.float32]
    others: NDArray[np.bool_]


class Source(Protocol):
    """A list of pictures by number, training ones and held-out ones."""

    train: list[int]
    held_out: list[int]
    #: a hash of the pictures' names
    mark: str

    def read(self, rng: np.random.Generator, number: int, mattes: int) -> Picture:
        """Read a picture with up to ``mattes`` of its mattes, drawn with ``rng``."""
        ...


def open_source(
    path: Path, held_out: float, stream: int = 0, most_held_out: int = 32
) -> Source | StreamedSource:
    """Open a folder of shards, a folder ``image`` + ``alpha``, any matting set, or a manifest.

    Args:
        path: where.
        held_out: share of the pictures kept for validation.
        stream: pictures mixed when shards are read from front to back; 0 reads at random.
        most_held_out: of a stream, how many pictures to keep a list of.

    Raises:
        ConfigError: nothing usable is there, or a stream of something else than shards is asked.
    """
    if path.is_dir() and any(path.glob(f"*{DONE}")):
        if stream:
            return StreamedSource(path, held_out, stream, most_held_out)
        return _Shards(path, held_out)
    if stream:
        raise ConfigError(f"{path} holds no shards to stream; leave out --stream")
    return _Pictures(path, held_out)


def _split(names: list[str], share: float) -> tuple[list[int], list[int]]:
    """Hold out a share by the names' hashes, at least one where there are two."""
    order = sorted(range(len(names)), key=lambda k: hashlib.sha256(names[k].encode()).digest())
    count = min(len(names) - 1, max(1, round(share * len(names)))) if share > 0 else 0
    return sorted(order[count:]), sorted(order[:count])


class _Shards:
    def __init__(self, folder: Path, held_out: float) -> None:
        self.shards = ShardSet(folder)
        keys = [row["key"] for _, row in self.shards.entries]
        self.train, self.held_out = _split(keys, held_out)
        self.mark = names_mark(keys)

    def read(self, rng: np.random.Generator, number: int, mattes: int) -> Picture:
        return draw_mattes(rng, self.shards.read(number), mattes)


def draw_mattes(rng: np.random.Generator, sample: Sample, mattes: int) -> Picture:
    """Decode a picture of a shard with up to ``mattes`` of its mattes, drawn with ``rng``."""
    count = len(sample.meta["mattes"])
    chosen = rng.permutation(count)[:mattes]
    alphas = np.stack([sample.alpha(int(k)) for k in chosen])
    # masks of a picture overlap (parts and wholes); three others are enough to click on
    rest = [k for k in rng.permutation(count)[:6] if k not in chosen][:3]
    other = np.zeros(alphas.shape[1:], bool)
    for k in rest:
        other |= sample.alpha(int(k)) > 0.5
    return Picture(sample.image(), alphas, other & ~(alphas > 0.5))


class StreamedSource:
    """Shards read from front to back; the held-out pictures by number."""

    def __init__(self, folder: Path, held_out: float, buffer: int, most: int) -> None:
        """Find the shards and the first ``most`` held-out pictures."""
        self.shards = ShardStream(folder, buffer, held_out)
        self.rows = self.shards.validation(most)
        self.train: list[int] = []  # comes in the shards' order, not by number
        self.held_out = list(range(len(self.rows)))
        self.mark = names_mark(tar.name for tar in self.shards.tars)

    def read(self, rng: np.random.Generator, number: int, mattes: int) -> Picture:
        """Read a held-out picture."""
        return draw_mattes(rng, read_range(*self.rows[number]), mattes)


class _Pictures:
    def __init__(self, path: Path, held_out: float) -> None:
        self.samples = [s for s in sound_samples(path) if s.kind == "matte"]
        if len(self.samples) < 2:
            raise ConfigError(f"{path} holds {len(self.samples)} pictures with mattes; expected 2+")
        self.mark = names_mark(f"{s.name} {s.image.name}" for s in self.samples)
        tests = [k for k, s in enumerate(self.samples) if s.split == "test"]
        if path.is_file() and len(tests) == len(self.samples):
            raise ConfigError(
                f"{path} holds out all of its {len(tests)} pictures (test, val); call those to "
                "train on train"
            )
        if tests and len(tests) < len(self.samples):
            self.train = [k for k, s in enumerate(self.samples) if s.split != "test"]
            self.held_out = tests
        else:
            self.train, self.held_out = _split([s.name for s in self.samples], held_out)

    def read(self, rng: np.random.Generator, number: int, mattes: int) -> Picture:
        rgb, alpha = self.samples[number].read()
        if alpha.any() or number in self.held_out:  # another is drawn for an empty one
            check_matte(self.samples[number].alpha, alpha)
        none: NDArray[Any] = np.zeros((1, *alpha.shape), bool)
        return Picture(rgb, alpha[None], none)
