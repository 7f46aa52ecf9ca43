"""What a conversion will take: pictures, masks, bytes and GPU-hours, from counts and a rate."""

from __future__ import annotations

from typing import Any

from zim_training.convert.config import ConvertConfig

#: SA-1B as published: 1000 tars, 11.19 M pictures, 1.1 billion masks, about 11 GB a tar
SA1B_TARS, SA1B_IMAGES, SA1B_MASKS, TAR_BYTES = 1000, 11_190_000, 1_100_000_000, 11e9


def plan(
    config: ConvertConfig, rate: float, matte_bytes: float, gpus: int, tars: int = SA1B_TARS
) -> dict[str, Any]:
    """Estimate a conversion.

    Args:
        config: fraction and masks per picture.
        rate: mattes per second of one GPU (or process), measured.
        matte_bytes: mean size of a PNG, measured on finished shards.
        gpus: how many work at once.
        tars: of the source.
    """
    images = SA1B_IMAGES * tars / SA1B_TARS * config.fraction
    per_image = SA1B_MASKS / SA1B_IMAGES
    if config.masks_per_image:
        per_image = min(per_image, config.masks_per_image)
    mattes = images * per_image
    hours = mattes / rate / 3600
    return {
        "source_tars": tars,
        "images": round(images),
        "mattes": round(mattes),
        "matte_gigabytes": round(mattes * matte_bytes / 1e9, 1),
        "picture_gigabytes": round(images * TAR_BYTES * SA1B_TARS / SA1B_IMAGES / 1e9, 1)
        if config.pictures
        else 0.0,
        "rate_per_gpu": round(rate, 3),
        "gpu_hours": round(hours, 1),
        "days": round(hours / gpus / 24, 2),
        "gpus": gpus,
    }
