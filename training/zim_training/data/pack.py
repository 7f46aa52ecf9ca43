"""Packs: scenes with prompts and cues computed beforehand, so that training never waits.

A pack is a folder of shards; a shard is a folder of ``.npy`` arrays that training maps into
memory. A shard is written under a temporary name and renamed when complete, and its contents follow
from the seed alone, so an interrupted run continues where it stopped and training may start on
the shards that are there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np

from zim._progress import track
from zim.cues import CUE_PLANES, compute_cues
from zim.errors import ConfigError, reason
from zim.output import atomic_write
from zim.pools import worker_processes
from zim_training.data.outlines import outlines_hash
from zim_training.data.scenes import NATURAL, Scene, SceneMaker
from zim_training.data.sources import Split, split_table
from zim_training.prompts import KINDS, MASK_SIDE, MAX_POINTS, Prompt, draw

#: bump when scenes, prompts or cues change: packs of another version are refused
GENERATOR_VERSION = 3
#: scenes per shard: about 60 MB
SHARD = 96
#: how the third prompt of a scene is drawn
EXTRA_KINDS = {"box": 0.14, "click": 0.24, "clicks": 0.2, "box_click": 0.1, "scribble": 0.07}
EXTRA_KINDS |= {"whole": 0.03, "correction": 0.22}
_SPLIT_SEED = {"train": 0, "dev": 1}
#: quantisation of cues and old logits
CUE_SCALE, MASK_SCALE = 127.0, 16.0


def scene_prompts(scene: Scene, rng: np.random.Generator, frame: int) -> list[tuple[int, Prompt]]:
    """Draw a box and a click for the framed target and one more prompt for any target."""
    kinds = list(EXTRA_KINDS)
    weights = np.array(list(EXTRA_KINDS.values()))
    extra = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
    count = len(scene.alphas)
    target = int(rng.integers(count)) if extra != "whole" else 0
    prompts = []
    for index, kind in ((0, "box"), (0, "click"), (target, extra)):
        rest = [i for i in range(count) if i != index]
        others = scene.alphas[rest].max(0) if rest else np.zeros_like(scene.alphas[0])
        prompt = draw(rng, kind, scene.alphas[index], others, frame)
        if prompt is not None:
            prompts.append((index, prompt))
    return prompts


def write_pack(
    root: Path,
    out: Path,
    split: Split,
    scenes: int,
    seed: int = 0,
    side: int = 256,
    workers: int = 1,
    outlined: float = 0.0,
    natural: float = NATURAL,
) -> Iterator[int]:
    """Write the missing shards of a pack; yields the number of shards looked after so far.

    Args:
        root: the image collection (folder of ``index.csv``).
        out: folder of the pack.
        split: which sources to use.
        scenes: how many scenes in all.
        seed: another seed gives other scenes.
        side: of the model frame in pixels, a multiple of 4.
        workers: processes; a shard is the same whoever writes it.
        outlined: of the scenes that are photographs, the share taken from ``outlines.json``.
        natural: share of scenes that are photographs.

    Raises:
        ConfigError: the folder holds a pack of other settings.
    """
    about = {"version": GENERATOR_VERSION, "split": split, "seed": seed, "side": side}
    about |= {"shard": SHARD, "cue_planes": CUE_PLANES}
    if outlined:
        about |= {"outlined": outlined, "outlines": outlines_hash(root)}
    if natural != NATURAL:
        about |= {"natural": natural}
    job = partial(_shard_job, root, out, split, seed, side, (natural, outlined))
    yield from write_shards(root, out, about, scenes, SHARD, job, workers)


def write_shards(
    root: Path,
    out: Path,
    about: dict[str, object],
    count: int,
    each: int,
    job: Callable[[tuple[int, int]], None],
    workers: int = 1,
) -> Iterator[int]:
    """Write the missing shards of a folder; yields how many were looked after so far.

    Args:
        root: the image collection, whose splits are put down beside the shards.
        out: the folder; ``pack.json`` there says what it holds.
        about: what it is to hold.
        count: items in all.
        each: items per shard.
        job: writes the shard of a number and a size with :func:`save_shard`.
        workers: processes.

    Raises:
        ConfigError: the folder holds something else.
    """
    cv2.setNumThreads(1)
    splits = json.dumps(split_table(root), indent=1) + "\n"  # a wrong root is told first
    out.mkdir(parents=True, exist_ok=True)
    info = out / "pack.json"
    if info.exists() and _read_about(info) != about:
        raise ConfigError(f"{out} holds a pack of other settings; choose another folder")
    atomic_write(info, (json.dumps(about, indent=1) + "\n").encode())
    atomic_write(out / "splits.json", splits.encode())
    wanted = [(n, min(each, count - n * each)) for n in range(-(-count // each))]
    # the last shard of a smaller pack is short
    missing = [(n, size) for n, size in wanted if shard_length(shard_path(out, n)) < size]
    if not missing:
        return
    name = f"{out.name} shards"
    if workers <= 1:
        yield from (done for done, _ in enumerate(track(map(job, missing), name, len(missing)), 1))
        return
    with worker_processes(workers) as pool:
        futures = [pool.submit(job, one) for one in missing]
        for done, future in enumerate(track(futures, name), 1):
            future.result()
            yield done


def _read_about(info: Path) -> object:
    try:
        return json.loads(info.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{info} is damaged ({reason(error)}); choose another folder") from error


def shard_length(folder: Path) -> int:
    """Return how many items a shard holds, 0 where there is none."""
    sizes = folder / "size.npy"
    return len(np.load(sizes, mmap_mode="r")) if sizes.is_file() else 0


def shard_path(out: Path, number: int) -> Path:
    """Return where a shard is kept."""
    return out / f"shard_{number:05d}"


def save_shard(out: Path, number: int, arrays: dict[str, np.ndarray]) -> None:
    """Write a shard; it has its name only once it is complete. A shorter one makes way."""
    folder = shard_path(out, number)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        if folder.exists():
            folder.rename(temporary / "old")
        temporary.rename(folder)
        shutil.rmtree(folder / "old", ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@lru_cache(maxsize=2)
def scene_maker(root: Path, split: Split, side: int, *shares: float) -> SceneMaker:
    """Return the process's maker of scenes, which knows its sources; layers need two sizes."""
    cv2.setNumThreads(1)
    return SceneMaker(root, split, side, *shares)


def _shard_job(
    root: Path,
    out: Path,
    split: Split,
    seed: int,
    side: int,
    shares: tuple[float, float],
    shard: tuple[int, int],
) -> None:
    number, size = shard
    seeds = [(seed, _SPLIT_SEED[split], number, k) for k in range(size)]
    save_shard(out, number, _scenes(scene_maker(root, split, side, *shares), seeds))


def _scenes(maker: SceneMaker, seeds: list[tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draw scenes with prompts and cues."""
    side, half = maker.side, maker.side // 2
    images = np.zeros((len(seeds), side, side, 3), np.uint8)
    sizes = np.zeros((len(seeds), 2), np.int16)
    natural = np.zeros(len(seeds), np.bool_)
    alphas, columns = [], {k: [] for k in ("scene", "target", "kind", "points", "labels")}
    cues, masks = [], []
    for k, seed in enumerate(seeds):
        scene = maker.make(seed)
        h, w = scene.image.shape[:2]
        images[k, :h, :w], sizes[k], natural[k] = scene.image, (h, w), scene.kind == "natural"
        prompts = scene_prompts(scene, np.random.default_rng((*seed, 7)), side)
        used: dict[int, int] = {}
        for index, prompt in prompts:
            if index not in used:
                used[index] = len(alphas)
                padded = np.zeros((side, side), np.uint8)
                padded[:h, :w] = np.round(scene.alphas[index] * 255)
                alphas.append(padded)
            columns["scene"].append(k)
            columns["target"].append(used[index])
            columns["kind"].append(KINDS.index(prompt.kind))
            columns["points"].append(prompt.points)
            columns["labels"].append(prompt.labels)
            old = np.full((MASK_SIDE, MASK_SIDE), np.nan) if prompt.mask is None else prompt.mask
            masks.append(old)
        cues.append(_cues(scene, [p for _, p in prompts], side))
    return {
        "image": images,
        "size": sizes,
        "natural": natural,
        "alpha": np.stack(alphas),
        "scene": np.array(columns["scene"], np.int32),
        "target": np.array(columns["target"], np.int32),
        "kind": np.array(columns["kind"], np.int8),
        "points": np.array(columns["points"], np.float32).reshape(-1, MAX_POINTS, 2),
        "labels": np.array(columns["labels"], np.int8).reshape(-1, MAX_POINTS),
        "cues": np.concatenate(cues).reshape(-1, CUE_PLANES, half, half),
        # int8 sixteenths of a logit; -128 marks "no earlier mask"
        "mask": np.where(
            np.isnan(masks), -128, np.clip(np.round(np.nan_to_num(masks) * MASK_SCALE), -127, 127)
        ).astype(np.int8),
    }


def _cues(scene: Scene, prompts: list[Prompt], side: int) -> np.ndarray:
    """Cues of a scene's prompts as int8, prompt by prompt (only some carry a mask)."""
    planes = []
    for prompt in prompts:
        mask = None if prompt.mask is None else prompt.mask[None]
        cue = compute_cues(scene.image, prompt.points[None], prompt.labels[None], side, mask)
        planes.append(np.round(cue[0] * CUE_SCALE).astype(np.int8))
    return np.array(planes, np.int8).reshape(-1, CUE_PLANES, side // 2, side // 2)
