"""Settings of a conversion; together with the converter's weights they determine every byte."""

from __future__ import annotations

from dataclasses import dataclass

from zim_training.options import setting


@dataclass(frozen=True)
class ConvertConfig:
    """What is converted and how."""

    size: int = setting(
        1024,
        "side of the converter's view in pixels, a multiple of 32",
        "Sec. 3.1",
        low=32,
        multiple=32,
    )
    batch: int = setting(8, "masks per pass of the converter", low=1)
    fraction: float = setting(
        1.0, "share of the pictures, by name and seed", "Sec. 5.1: 0.01", above=0, high=1
    )
    masks_per_image: int = setting(
        0, "most masks of a picture, 0 for all (2.2 M of 1 %: 20)", low=0
    )
    smallest: int = setting(64, "masks of fewer pixels are left out", low=0)
    margin: float = setting(0.15, "context round a mask's box, as a share of its long side", low=0)
    agree: float = setting(
        0.7, "least IoU of matte and label; below, the label itself is kept", low=0, high=1
    )
    pictures: bool = setting(True, "copy the pictures into the shards")
    seed: int = setting(0, "of the choice of pictures and masks", low=0)
