"""Layers: objects with alpha and backgrounds, drawn by processors once and kept on the device.

A folder of shards like a pack's; each holds as many objects as backgrounds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zim.errors import ConfigError
from zim_training.data.loader import finished_shards
from zim_training.data.pack import GENERATOR_VERSION, save_shard, scene_maker, write_shards
from zim_training.data.scenes import MIN_VISIBLE, SceneMaker
from zim_training.data.sources import Split

Array = NDArray[Any]

#: objects and backgrounds per shard: about 90 MB at 256 pixels
SHARD = 128
#: side of a background in frames, so that a window of it is no blurrier than a background drawn
ROOM = 1.5
#: keeps the seeds apart from those of scenes
_SEED = 31


def write_layers(
    root: Path,
    out: Path,
    split: Split,
    count: int,
    seed: int = 0,
    side: int = 256,
    workers: int = 1,
) -> Iterator[int]:
    """Write the missing shards of a folder of layers; yields how many were looked after so far.

    A shard holds ``object`` (n side side 4 uint8: RGB, not multiplied, and alpha; the longest side
    fills the square, in its middle), ``size`` (n 2 int16: its height and width) and ``background``
    (n s s 3 uint8, s = 1.5 side).

    Args:
        root: the image collection (folder of ``index.csv``).
        out: folder of the layers.
        split: which sources to use.
        count: how many objects, and as many backgrounds.
        seed: another seed gives other layers.
        side: of the squares in pixels.
        workers: processes; a shard is the same whoever writes it.

    Raises:
        ConfigError: the folder holds something else.
    """
    about = {"version": GENERATOR_VERSION, "layers": True, "split": split, "seed": seed}
    about |= {"side": side, "shard": SHARD}
    job = partial(_job, root, out, split, seed, side)
    yield from write_shards(root, out, about, count, SHARD, job, workers)


def check_layers(folder: Path) -> None:
    """Tell whether a folder holds layers.

    Raises:
        ConfigError: it does not, or none is finished, or another generator wrote them.
    """
    info = folder / "pack.json"
    about = json.loads(info.read_text()) if info.is_file() else {}
    if not about.get("layers") or not finished_shards(folder):
        raise ConfigError(
            f"{folder} holds no finished layers; write them with: zim-train data synth --layers"
        )
    if about.get("version") != GENERATOR_VERSION:
        raise ConfigError(
            f"{folder} was written by generator {about.get('version')}, this is "
            f"{GENERATOR_VERSION}; write the layers again"
        )


def layer_rows(shard: dict[str, Array]) -> dict[str, Array]:
    """Pick what a shard of layers has to hold."""
    return {name: shard[name] for name in ("object", "size", "background")}


def _job(root: Path, out: Path, split: Split, seed: int, side: int, shard: tuple[int, int]) -> None:
    number, size = shard
    maker = scene_maker(root, split, side)
    rngs = [np.random.default_rng((seed, _SEED, number, k)) for k in range(size)]
    objects, sizes = zip(*[_object(maker, rng, side) for rng in rngs], strict=True)
    wide = scene_maker(root, split, round(ROOM * side))
    backgrounds = [_bytes(wide.background(rng)) for rng in rngs]
    arrays = {"object": np.stack(objects), "size": np.array(sizes, np.int16)}
    save_shard(out, number, arrays | {"background": np.stack(backgrounds)})


def _object(maker: SceneMaker, rng: np.random.Generator, side: int) -> tuple[Array, Array]:
    """Draw an object that shows, in the middle of a square."""
    while True:
        colour, alpha = maker.object(rng, side)
        if float(alpha.sum()) >= MIN_VISIBLE * side * side:
            break
    picture = np.dstack([_bytes(colour), _bytes(alpha)])
    height, width = alpha.shape
    top, left = (side - height) // 2, (side - width) // 2
    bottom, right = side - height - top, side - width - left
    whole = cv2.copyMakeBorder(picture, top, bottom, left, right, cv2.BORDER_CONSTANT)
    return whole, np.array([height, width])


def _bytes(values: Array) -> NDArray[np.uint8]:
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)
