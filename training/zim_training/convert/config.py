"""Settings of a conversion; together with the converter's weights they determine every byte."""

from __future__ import annotations

from dataclasses import dataclass

from zim_training.options import setting


@dataclass(frozen=True)
class ConvertConfig:
    """What is converted and how."""

    size: int = setting(
        1024, "side of the converter's view in pixels, a multiple of 32", "Sec. 3.1"
    )
    batch: int = setting(8, "masks per pass of the converter")
    fraction: float = setting(1.0, "share of the pictures, by name and seed", "Sec. 5.1: 0.01")
    masks_per_image: int = setting(0, "most masks of a picture, 0 for all (2.2 M of 1 %: 20)")
    smallest: int = setting(64, "masks of fewer pixels are left out")
    margin: float = setting(0.15, "context round a mask's box, as a share of its long side")
    agree: float = setting(0.7, "least IoU of matte and label; below, the label itself is kept")
    pictures: bool = setting(True, "copy the pictures into the shards")
    seed: int = setting(0, "of the choice of pictures and masks")
