"""One SA-1B tar to one SA1B-Matte shard: a pure function of tar, weights and settings.

A finished shard has its marker and is not touched again; an interrupted one leaves a temporary file
that the next start removes. Broken records are counted and listed, never fatal.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zim.errors import ImageError, one_line
from zim_training.convert.config import ConvertConfig
from zim_training.converter.task import convert_views
from zim_training.data.sa1b import Record, choose, in_fraction, read_tar
from zim_training.data.shards import (
    DONE,
    INDEX,
    CroppedMatte,
    ShardWriter,
    finished,
    read_index,
    sha256,
)

#: bump when the same input would give other bytes
VERSION = 1
#: at most so much of the converter's answer may lie outside the widened label
LEAK = 0.01


def weights_hash(model: nn.Module) -> str:
    """Hash a network's weights, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def recipe(config: ConvertConfig, weights: str) -> dict[str, Any]:
    """Return what the output depends on besides the tar."""
    return {"version": VERSION, "weights": weights, "config": dataclasses.asdict(config)}


def is_done(source: Path, out: Path, what: dict[str, Any]) -> dict[str, Any] | None:
    """Return the marker of a shard that is finished and of this recipe, else None."""
    marker, tar = out / f"{source.stem}{DONE}", out / f"{source.stem}.tar"
    there = tar.is_file() and tar.with_suffix(INDEX).is_file()
    try:
        done = json.loads(marker.read_text())
    except (OSError, ValueError):
        return None
    same = all(done.get(k) == v for k, v in what.items())
    fits = done.get("source_bytes") == source.stat().st_size
    return done if same and fits and there else None


def convert_shard(
    source: Path,
    out: Path,
    model: nn.Module,
    config: ConvertConfig,
    weights: str,
    tick: Callable[[int], None] = lambda count: None,
    again: bool = False,
) -> dict[str, Any]:
    """Convert one tar, unless it is done.

    Args:
        source: tar of SA-1B.
        out: folder of the shards.
        model: the converter, in evaluation mode, on its device.
        config: settings.
        weights: :func:`weights_hash` of the model.
        tick: called after every picture with the number of mattes so far.
        again: convert it even if it is done.

    Returns:
        The marker: counts, hashes, and ``skipped`` when nothing was to do; ``quarantine`` lists
        what could not be used. Speed is kept out of the marker: it must not depend on the machine.

    Raises:
        ConfigError: the tar is missing or unreadable as a whole.
        OutputError: the output cannot be written.
    """
    what = recipe(config, weights)
    if not again and source.is_file() and (done := is_done(source, out, what)):
        return done | {"skipped": True}
    records = read_tar(source)
    first = next(records, None)  # an unreadable tar is reported before anything is written
    target = out / f"{source.stem}.tar"
    clear_stale(target)
    target.with_suffix(DONE).unlink(missing_ok=True)
    writer = ShardWriter(target)
    quarantine: list[list[str]] = []
    fallbacks = 0
    start = time.perf_counter()
    try:
        while first is not None:
            record, first = first, next(records, None)
            if isinstance(record, tuple):
                quarantine.append(list(record))
                continue
            if not in_fraction(record.stem, config.fraction, config.seed):
                continue
            try:
                mattes, broken = convert_record(record, model, config)
            except (ImageError, KeyError, TypeError, ValueError) as error:
                quarantine.append([record.stem, one_line(error)])
                continue
            quarantine += [[record.stem, reason] for reason in broken]
            fallbacks += sum("fallback" in m.flags for m in mattes)
            size = (record.meta["image"]["height"], record.meta["image"]["width"])
            jpeg = record.jpeg if config.pictures else b""
            writer.add(record.stem, size, source.name, mattes, jpeg)
            tick(writer.mattes)
    except BaseException:
        writer.abandon()
        raise
    spent = time.perf_counter() - start
    report = what | {
        "source": source.name,
        "source_bytes": source.stat().st_size,
        "quarantined": len(quarantine),
        "quarantine": quarantine,
        "fallbacks": fallbacks,
    }
    return writer.close(report) | {"skipped": False, "seconds": spent}


def clear_stale(target: Path) -> None:
    """Remove temporary files of processes that are gone."""
    for path in target.parent.glob(f".{target.name}.*.tmp"):
        pid = path.name.split(".")[-2]
        if not pid.isdecimal() or int(pid) == os.getpid() or not Path(f"/proc/{pid}").exists():
            path.unlink(missing_ok=True)


def convert_record(
    record: Record, model: nn.Module, config: ConvertConfig
) -> tuple[list[CroppedMatte], list[str]]:
    """Convert the chosen masks of a picture; also returns what was wrong with others."""
    rgb = record.image()
    annotations = record.meta["annotations"]
    chosen = choose(annotations, record.stem, config.masks_per_image, config.seed, config.smallest)
    masks, ids, broken = [], [], []
    for annotation in chosen:
        try:
            mask = record.mask(annotation)
            if not mask.any():
                raise ImageError(f"{record.stem}: the mask is empty")
            masks.append(mask)
            ids.append(int(annotation["id"]))
        except (ImageError, KeyError, TypeError, ValueError) as error:
            broken.append(f"annotation {annotation.get('id')}: {error}")
    alphas = convert_masks(model, rgb, masks, config)
    out = []
    for number, mask, (alpha, flags) in zip(ids, masks, alphas, strict=True):
        out.append(_crop(number, alpha if alpha.any() else mask.astype(np.float32), flags))
    return out, broken


def convert_masks(
    model: nn.Module,
    rgb: NDArray[np.uint8],
    masks: list[NDArray[np.bool_]],
    config: ConvertConfig,
) -> list[tuple[NDArray[np.float32], tuple[str, ...]]]:
    """Convert binary masks of one picture to mattes at its size.

    Args:
        model: the converter.
        rgb: H x W x 3 uint8.
        masks: H x W bool each.
        config: view size, margin and the gate.

    Returns:
        For every mask its matte H x W float32 in [0, 1], and flags: ``fallback`` where the answer
        left its label and the label itself was kept.
    """
    windows = [_window(mask, config.margin) for mask in masks]
    views = [_view(rgb, m, w, config.size) for m, w in zip(masks, windows, strict=True)]
    answers: list[np.ndarray] = []
    for start in range(0, len(views), config.batch):
        part = views[start : start + config.batch]
        # always full batches: the sum order of a convolution may depend on the batch's size
        padded = part + [part[-1]] * (config.batch - len(part))
        with torch.inference_mode():
            answers += convert_views(model, padded, config.batch)[: len(part)]
    out = []
    for mask, (x0, y0, x1, y1), answer in zip(masks, windows, answers, strict=True):
        method = cv2.INTER_AREA if max(x1 - x0, y1 - y0) < config.size else cv2.INTER_LINEAR
        inner = cv2.resize(answer, (x1 - x0, y1 - y0), interpolation=method)
        out.append(_gate(inner, mask, (x0, y0, x1, y1), config))
    return out


def _window(mask: NDArray[np.bool_], margin: float) -> tuple[int, int, int, int]:
    """Square view round a mask, cut at the picture; the whole picture for large masks."""
    height, width = mask.shape
    if mask.mean() > 0.6:
        return 0, 0, width, height
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x0, x1, y0, y1 = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    longest = max(x1 - x0, y1 - y0)
    half = max(longest + 2 * max(16, round(margin * longest)), 256) // 2
    cx, cy = (x0 + x1) // 2, (y0 + y1) // 2
    left, top = max(0, cx - half), max(0, cy - half)
    return int(left), int(top), int(min(width, cx + half)), int(min(height, cy + half))


def _view(
    rgb: NDArray[np.uint8], mask: NDArray[np.bool_], window: tuple[int, int, int, int], size: int
) -> tuple[np.ndarray, np.ndarray]:
    x0, y0, x1, y1 = window
    shape = (size, size)
    method = cv2.INTER_AREA if max(x1 - x0, y1 - y0) > size else cv2.INTER_LINEAR
    picture = cv2.resize(rgb[y0:y1, x0:x1], shape, interpolation=method)
    label = cv2.resize(mask[y0:y1, x0:x1].astype(np.uint8), shape, interpolation=cv2.INTER_NEAREST)
    return picture, label > 0


def _gate(
    inner: np.ndarray, mask: NDArray[np.bool_], window: tuple[int, int, int, int], c: ConvertConfig
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Keep an answer that follows its label; clear what lies far from it."""
    x0, y0, x1, y1 = window
    label = mask[y0:y1, x0:x1]
    reach = 2 * max(2, round(0.05 * max(label.shape))) + 1
    near = cv2.dilate(label.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0
    inner = np.clip(inner, 0, 1).astype(np.float32)
    leaked = float(inner[~near].sum()) > LEAK * max(1.0, float(inner.sum()))
    inner[~near] = 0
    solid = inner > 0.5
    either = (solid | label).sum()
    agrees = either > 0 and (solid & label).sum() >= c.agree * either
    alpha = np.zeros(mask.shape, np.float32)
    if not agrees:
        alpha[mask] = 1
        return alpha, ("fallback",)
    alpha[y0:y1, x0:x1] = inner
    return alpha, ("leak",) if leaked else ()


def _crop(number: int, alpha: NDArray[np.float32], flags: tuple[str, ...]) -> CroppedMatte:
    """Cut to what is visible in 8 bits."""
    seen = alpha >= 0.5 / 255
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return CroppedMatte(number, int(x0), int(y0), alpha[y0:y1, x0:x1], flags)


def verify(out: Path) -> list[str]:
    """Compare every finished shard and its index with the marker's hashes.

    Returns:
        The names of the tars that differ, or whose index or marker is missing or damaged.

    Raises:
        ConfigError: there is no finished shard.
    """
    return [tar.name for tar in finished(out) if not _as_written(tar)]


def _as_written(tar: Path) -> bool:
    index = tar.with_suffix(INDEX)
    try:
        done = json.loads(tar.with_suffix(DONE).read_text(encoding="utf-8"))
        # a marker of before has no hash of the index: it must fit the tar
        same = "index_sha256" not in done or done["index_sha256"] == sha256(index)
        read_index(tar)
        return same and done["sha256"] == sha256(tar)
    except (OSError, ValueError, LookupError, TypeError):  # ConfigError is a ValueError
        return False
