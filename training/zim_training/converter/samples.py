"""Samples of the converter: a view of a picture, its coarse label, and the matte it should become.

Mattes come from files or are procedural. With probability ``stl`` a sample is non-transformable: a
hard-edged label whose target is itself (Selective Transformation Learning, Sec. 3.1).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zim.errors import ConfigError
from zim.pools import rank_and_world
from zim_training.checkpoint import names_mark
from zim_training.data import procedural
from zim_training.data.coarse import coarse_label, spatial_cut
from zim_training.data.natural import SegmentReader, read_rgb
from zim_training.data.readers import MatteSample, sound_samples
from zim_training.data.sources import Split, list_sources

Array = NDArray[Any]
Rng = np.random.Generator
#: picture h x w x 3 uint8, label h x w bool, target h x w float32, whether it is an STL sample
View = tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.float32], bool]


def training_samples(
    paths: Sequence[Path], test_splits: bool = False
) -> tuple[list[MatteSample], list[MatteSample]]:
    """List the mattes and the coarse labels to train on; a line on stderr tells of empty mattes.

    Args:
        paths: matting sets, folders of them, or manifests; none is fine.
        test_splits: whether held-out samples are trained on as well.

    Raises:
        ConfigError: something is malformed, or there is nothing to train on where paths are given.
        ImageError: picture and matte differ in size.
    """
    empty: list[MatteSample] = []
    samples = [sample for path in paths for sample in sound_samples(path, empty)]
    used = [s for s in samples if s.split == "train" or test_splits]
    mattes, labels = ([s for s in used if s.kind == kind] for kind in ("matte", "label"))
    if paths and not mattes and (not labels or any(s.kind == "matte" for s in samples)):
        given, count = ", ".join(map(str, paths)), len(samples) + len(empty)
        void = f" ({len(empty)} are empty, the first {empty[0].alpha})" if empty else ""
        raise ConfigError(
            f"{given}: none of {count} samples is a matte for training{void}; --test-splits also "
            "takes those held out, and without --data mattes are procedural"
        )
    if empty and rank_and_world()[0] == 0:  # the others find the same
        some = "1 empty matte is" if len(empty) == 1 else f"{len(empty)} empty mattes are"
        sys.stderr.write(f"{some} passed over, the first is {empty[0].alpha}\n")
    return mattes, labels


class Pool:
    """Where pictures come from: mattes, rigid labels, backgrounds; all by random draw."""

    def __init__(
        self,
        mattes: Sequence[MatteSample] = (),
        labels: Sequence[MatteSample] = (),
        collection: Path | None = None,
        split: Split = "train",
    ) -> None:
        """Collect the sources.

        Args:
            mattes: pictures with mattes; without any, mattes are procedural.
            labels: pictures with coarse labels of rigid things (STL).
            collection: the image collection for backgrounds, objects and rigid labels.
            split: which side of the collection.
        """
        self.mattes, self.labels, self.root = list(mattes), list(labels), collection
        self.photos, self.segments, self.cuts = [], [], []
        if collection is not None:
            self.photos = [s.file for s in list_sources(collection, "photos", split)]
            segments = list_sources(collection, "segments/images", split)
            self.segments = [s.file for s in segments if "coco" in s.group]
            objects = list_sources(collection, "foregrounds", split)
            self.cuts = [s.file for s in objects if "/cut_" in s.file]
            self.reader = SegmentReader(collection)
        given = ([f"{s.name} {s.image.name}" for s in some] for some in (self.mattes, self.labels))
        #: a hash of the sources' names
        self.mark = names_mark(*given, self.photos, self.segments, self.cuts)

    def matte(self, rng: Rng, size: int) -> tuple[NDArray[np.uint8], Array, bool]:
        """Draw a picture with a true matte: from the files, or composed of procedural parts.

        Returns:
            Picture, matte, and whether they were made as a view of ``size`` and need no crop.
        """
        if self.mattes:
            return *self.mattes[int(rng.integers(len(self.mattes)))].read(), False
        picture = None
        if self.photos and rng.random() < 0.5:
            picture = self._background(rng, size).astype(np.float32) / 255
        colour, alpha = procedural.foreground(rng, size, picture)
        behind = self._background(rng, size).astype(np.float32) / 255
        mixed = colour * alpha[..., None] + behind * (1 - alpha[..., None])
        return (np.clip(mixed, 0, 1) * 255 + 0.5).astype(np.uint8), alpha.astype(np.float32), True

    def rigid(self, rng: Rng, size: int) -> tuple[NDArray[np.uint8], Array, bool]:
        """Draw a picture with a hard-edged label of something that must stay as it is.

        Returns:
            As :meth:`matte`.
        """
        if self.labels:
            return *self.labels[int(rng.integers(len(self.labels)))].read(), False
        if self.segments and rng.random() < 0.5:
            assert self.root is not None
            rgb, regions = self.reader.read(self.segments[int(rng.integers(len(self.segments)))])
            if regions:
                return rgb, regions[int(rng.integers(len(regions)))].astype(np.float32), False
        label = procedural.shape(rng, size) > 0.5
        rgb = self._background(rng, size).copy()
        paint = (procedural.texture(rng, size) * 255).astype(np.uint8)
        rgb[label] = paint[label]
        return rgb, label.astype(np.float32), True

    def _background(self, rng: Rng, size: int) -> NDArray[np.uint8]:
        if self.photos and rng.random() < 0.8:
            assert self.root is not None
            rgb = read_rgb(self.root / self.photos[int(rng.integers(len(self.photos)))])
            side = int(rng.uniform(0.4, 1.0) * min(rgb.shape[:2]))
            y, x = (int(rng.integers(n - side + 1)) for n in rgb.shape[:2])
            crop = rgb[y : y + side, x : x + side]
            small = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
            return small.astype(np.uint8, copy=False)
        return (procedural.texture(rng, size) * 255).astype(np.uint8)


def draw_view(rng: Rng, pool: Pool, size: int, sga: float, stl: float) -> View:
    """Draw one sample; label first, then the cut of SGA on both, as Sec. 3.1 asks."""
    keep = rng.random() < stl
    rgb, alpha = _seen(rng, pool, size, keep)
    if rng.random() < 0.5:
        rgb, alpha = rgb[:, ::-1], alpha[:, ::-1]
    if keep:  # the target is the label itself, whatever greys the file has at its edge
        alpha = (alpha > 0.5).astype(np.float32)
    label: NDArray[np.bool_] = alpha > 0.5 if keep else coarse_label(rng, alpha)[0]
    if rng.random() < sga:
        label, alpha = spatial_cut(rng, label, alpha)
    tint = rng.uniform(0.85, 1.15, 3)
    rgb = np.clip(rgb * tint, 0, 255).astype(np.uint8)
    return rgb, label, np.ascontiguousarray(alpha, np.float32), keep


def _seen(rng: Rng, pool: Pool, size: int, keep: bool) -> tuple[NDArray[np.uint8], Array]:
    """Draw until the view shows its object."""
    for _ in range(20):
        rgb, alpha, made = pool.rigid(rng, size) if keep else pool.matte(rng, size)
        if not made:
            rgb, alpha = crop_view(rng, rgb, alpha, size, nearest=keep)
        if (alpha > 0.5).sum() >= 16:
            return rgb, alpha
    raise ConfigError("twenty draws gave no view with an object; zim-train data check says more")


def crop_view(
    rng: Rng, rgb: NDArray[np.uint8], alpha: Array, size: int, *, nearest: bool
) -> tuple[NDArray[np.uint8], Array]:
    """Cut a square view round the object, as conversion does, and scale it to ``size``."""
    rows, columns = np.nonzero(alpha > 0.5)
    height, width = alpha.shape
    if len(rows):
        half = max(np.ptp(rows), np.ptp(columns), 16) * rng.uniform(1.1, 1.8) / 2
        cy, cx = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
        y0, y1 = int(max(0, cy - half)), int(min(height, cy + half + 1))
        x0, x1 = int(max(0, cx - half)), int(min(width, cx + half + 1))
        rgb, alpha = rgb[y0:y1, x0:x1], alpha[y0:y1, x0:x1]
    if alpha.shape == (size, size):
        return rgb, alpha
    method = cv2.INTER_AREA if max(alpha.shape) > size else cv2.INTER_LINEAR
    label_method = cv2.INTER_NEAREST if nearest else method
    shape = (size, size)
    return (
        cv2.resize(rgb, shape, interpolation=method).astype(np.uint8, copy=False),
        cv2.resize(alpha.astype(np.float32), shape, interpolation=label_method),
    )


def stack(views: Sequence[View]) -> dict[str, Tensor]:
    """Views to tensors: ``image`` b 3 s s in 0..255, ``label`` and ``alpha`` b 1 s s."""
    return {
        "image": torch.from_numpy(np.stack([v[0] for v in views]).transpose(0, 3, 1, 2).copy()),
        "label": torch.from_numpy(np.stack([v[1] for v in views])[:, None].astype(np.float32)),
        "alpha": torch.from_numpy(np.stack([v[2] for v in views])[:, None]),
        "rigid": torch.tensor([v[3] for v in views]),
    }
