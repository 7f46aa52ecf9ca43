"""Score a converter on a test set: segmentation label in, matte out, compared with the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from zim import metrics
from zim.errors import ConfigError
from zim.images import load_image, read_alpha
from zim_training.convert.config import ConvertConfig
from zim_training.convert.shard import convert_masks
from zim_training.data.coarse import coarse_label
from zim_training.data.readers import find_sets

Scores = dict[str, dict[str, float]]


def evaluate_set(model: nn.Module, root: Path, size: int) -> Scores:
    """Score a folder: MicroMat's layout (``data_list.txt``), or a matting set with made-up labels.

    Args:
        model: the converter.
        root: folder of the set.
        size: side of the converter's view.

    Returns:
        Means by split (``fine``, ``coarse``, or the set's name), in ``zim.metrics``' units; the
        keys ending in ``_label`` score the label itself.

    Raises:
        ConfigError: nothing usable is there.
    """
    rows: dict[str, list[dict[str, float]]] = {}
    config = ConvertConfig(size=size, batch=1)
    for split, rgb, label, alpha in _items(root):
        if not label.any():
            continue
        matte = convert_masks(model, rgb, [label], config)[0][0]
        both = {"": matte, "_label": label.astype(np.float32)}
        row = {
            f"{name}{end}": getattr(metrics, name)(predicted, alpha)
            for end, predicted in both.items()
            for name in ("sad", "mse", "grad")
        }
        rows.setdefault(split, []).append(row)
    if not rows:
        raise ConfigError(f"{root} holds no label to convert")
    return {
        split: {"n": float(len(some))}
        | {k: round(float(np.mean([r[k] for r in some])), 4) for k in some[0]}
        for split, some in rows.items()
    }


def _items(root: Path) -> Any:
    listing = root / "data_list.txt"
    if not listing.is_file():
        for found in find_sets(root):
            for number, sample in enumerate(s for s in found.samples if s.kind == "matte"):
                rgb, alpha = sample.read()
                yield found.name, rgb, coarse_label(np.random.default_rng(number), alpha)[0], alpha
        return
    for line in listing.read_text().splitlines():
        parts = line.split()
        if len(parts) != 4:
            raise ConfigError(f"{listing}: {line!r}; expected picture, matte, prompt and seg paths")
        image, matte, _, seg = (root / p for p in parts)
        split = "fine" if "/fine/" in f"/{parts[1]}" else "coarse"
        yield split, load_image(image).rgb, read_alpha(seg) > 0.5, read_alpha(matte)


def table(scores: Scores) -> list[str]:
    """Lay scores out for people, the label beside the converter."""
    lines = [f"{'split':10} {'':9} {'SAD':>9} {'MSE':>9} {'Grad':>9}"]
    for split, row in scores.items():
        for name, end in (("label", "_label"), ("converter", "")):
            values = " ".join(f"{row[k + end]:9.3f}" for k in ("sad", "mse", "grad"))
            lines.append(f"{split:10} {name:9} {values}")
    return lines
