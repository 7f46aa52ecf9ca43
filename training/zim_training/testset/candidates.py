"""Propose mattes for pictures: automatic masks, each turned into a matte by the converter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from zim.automatic import ZimAutomaticMaskGenerator
from zim.errors import ConfigError, one_line, reason
from zim.images import load_image
from zim.output import atomic_write, encode_alpha, encode_rgb
from zim_training.convert.config import ConvertConfig
from zim_training.convert.shard import convert_masks

FOLDER, LIST = "candidates", "candidates.json"


def propose(
    images: list[Path],
    out: Path,
    generator: ZimAutomaticMaskGenerator,
    converter: nn.Module,
    config: ConvertConfig,
    most: int,
    smallest: float = 0.001,
) -> Iterator[tuple[str, int, str | None]]:
    """Write ``candidates/{img,seg,matte}`` and the list that the review page reads.

    Args:
        images: picture files.
        out: folder of the test set.
        generator: finds masks.
        converter: turns them into mattes.
        config: the converter's view.
        most: mattes per picture, the best predicted first.
        smallest: least share of the picture.

    Yields:
        Name, number of candidates, and what was wrong with the picture, if anything.
    """
    for part in ("img", "seg", "matte"):
        (out / FOLDER / part).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    names: set[str] = set()
    for path in images:
        name = re.sub(r"[^\w.-]", "_", path.stem)  # data_list.txt separates by spaces
        if name in names:
            yield path.name, 0, "another picture has this name"
            continue
        names.add(name)
        try:
            rgb = load_image(path).rgb
        except ValueError as error:
            yield path.name, 0, one_line(error)
            continue
        records = [r for r in generator.generate(rgb) if r["area"] >= smallest * rgb[..., 0].size]
        records.sort(key=lambda r: -r["predicted_iou"])
        masks = [np.asarray(r["segmentation"], bool) for r in records[:most]]
        mattes = convert_masks(converter, rgb, masks, config)
        atomic_write(out / FOLDER / "img" / f"{name}.png", encode_rgb(rgb))
        for k, (mask, (alpha, flags)) in enumerate(zip(masks, mattes, strict=True)):
            key = f"{name}_{k:02d}"
            atomic_write(out / FOLDER / "seg" / f"{key}.png", encode_alpha(mask.astype(float)))
            atomic_write(out / FOLDER / "matte" / f"{key}.png", encode_alpha(alpha))
            visible = max(1, int((alpha > 0.02).sum()))
            soft = float(((alpha > 0.02) & (alpha < 0.98)).sum() / visible)
            rows.append(
                {
                    "key": key,
                    "image": name,
                    "size": [rgb.shape[1], rgb.shape[0]],
                    "soft": round(soft, 4),
                    "level": "fine" if soft > 0.15 else "coarse",
                    "flags": list(flags),
                }
            )
        yield path.name, len(masks), None
    atomic_write(out / LIST, (json.dumps(rows, indent=1) + "\n").encode())


def read_candidates(out: Path) -> list[dict[str, Any]]:
    """Read the list of candidates.

    Raises:
        ConfigError: there is none.
    """
    try:
        return json.loads((out / LIST).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{out} holds no candidates ({reason(error)}); make them first: "
            f"zim-train testset IMAGES --converter RUN --output {out}"
        ) from error
