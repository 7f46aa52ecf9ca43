"""Embeddings by content: least recently used go first, and their bytes have a cap."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


def embedding_id(model: str, data: bytes) -> str:
    """Return the id of a picture's embedding: a hash of model and content, 40 hex digits."""
    digest = hashlib.sha256(model.encode() + b"\0" + hashlib.sha256(data).digest())
    return digest.hexdigest()[:40]


@dataclass(eq=False)
class Entry:
    """A decoded picture, and what the model made of it.

    Attributes:
        key: its id.
        model: name of the model.
        rgb: H x W x 3 uint8.
        alpha: the file's own transparency, H x W float32 in [0, 1], or None.
        worker: index of the worker that encodes it and answers its prompts.
        predictors: by size, ``full`` and ``preview``; filled in by that worker alone.
    """

    key: str
    model: str
    rgb: NDArray[np.uint8]
    alpha: NDArray[np.float32] | None
    worker: int
    predictors: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def size(self) -> tuple[int, int]:
        """Return ``(height, width)``."""
        return self.rgb.shape[0], self.rgb.shape[1]

    def nbytes(self) -> int:
        """Return the bytes this entry holds on to."""
        total = self.rgb.nbytes + (0 if self.alpha is None else self.alpha.nbytes)
        for predictor in list(self.predictors.values()):
            features = predictor.features
            if features is not None:
                tensors = (features.embedding, *features.halves)
                total += sum(t.numel() * t.element_size() for t in tensors)
            if predictor.image is not None and predictor.image is not self.rgb:
                total += predictor.image.nbytes
        return total


class Cache:
    """A dictionary of entries that forgets the least recently used beyond ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        """Set the cap; the newest entry stays even where it alone is larger."""
        self.limit = limit
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[Entry, int]] = OrderedDict()
        self.hits = self.misses = self.evicted = 0

    def get(self, key: str) -> Entry | None:
        """Return an entry and mark it as used."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return found[0]

    def put(self, entry: Entry) -> Entry:
        """Add an entry or measure it again; of two under one key the first one stays."""
        with self._lock:
            known = self._entries.get(entry.key)
            kept = entry if known is None else known[0]
            self._entries[entry.key] = (kept, kept.nbytes())
            self._entries.move_to_end(entry.key)
            while len(self._entries) > 1 and self._total() > self.limit:
                self._entries.popitem(last=False)
                self.evicted += 1
            return kept

    def _total(self) -> int:
        return sum(size for _, size in self._entries.values())

    @property
    def nbytes(self) -> int:
        """Return the bytes of all entries."""
        with self._lock:
            return self._total()

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)
