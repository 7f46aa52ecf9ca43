"""SA-1B's tars: one ``.jpg`` and one ``.json`` per picture, masks as COCO run lengths.

Members may lie flat or in folders, in any order, the two files of a picture need not be adjacent.
"""

from __future__ import annotations

import json
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zim.errors import ConfigError, ImageError, reason
from zim.images import load_image
from zim.rle import decode_rle


@dataclass(frozen=True)
class Record:
    """One picture as it lies in the tar, still encoded.

    Attributes:
        stem: ``sa_123``.
        jpeg: bytes of the picture.
        meta: the parsed JSON: ``image`` and ``annotations``.
    """

    stem: str
    jpeg: bytes
    meta: dict[str, Any]

    def image(self) -> NDArray[np.uint8]:
        """Decode the picture, H x W x 3 RGB uint8.

        Raises:
            ImageError: damaged, or not of the size the JSON states.
        """
        rgb = load_image(self.jpeg).rgb
        size = [self.meta["image"]["height"], self.meta["image"]["width"]]
        if list(rgb.shape[:2]) != size:
            raise ImageError(f"{self.stem}: picture is {rgb.shape[:2]}, its JSON says {size}")
        return rgb

    def mask(self, annotation: dict[str, Any]) -> NDArray[np.bool_]:
        """Decode a mask, H x W.

        Raises:
            ImageError: the run lengths are broken or of another size.
        """
        try:
            mask = decode_rle(annotation["segmentation"])
        except (KeyError, TypeError, ValueError) as error:
            raise ImageError(f"{self.stem}: broken run lengths ({reason(error)})") from error
        size = (self.meta["image"]["height"], self.meta["image"]["width"])
        if mask.shape != size:
            raise ImageError(f"{self.stem}: mask of {mask.shape}, picture of {size}")
        return mask


def read_tar(path: Path) -> Iterator[Record | tuple[str, str]]:
    """Read a tar's pictures in the order of their names.

    Yields:
        A :class:`Record`, or ``(stem, reason)`` for one that cannot be used.

    Raises:
        ConfigError: the file is missing or no tar.
    """
    try:
        tar = tarfile.open(path)  # noqa: SIM115 (closed below, its opening has its own errors)
        members = [m for m in tar if m.isfile()]
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; expected a tar of SA-1B") from error
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ConfigError(f"{path} is no readable tar ({error}); fetch it again") from error
    with tar:
        by_stem: dict[str, dict[str, tarfile.TarInfo]] = {}
        for member in members:
            name = Path(member.name)
            if name.suffix.lower() in (".jpg", ".jpeg", ".json") and not name.name.startswith("."):
                kind = "json" if name.suffix.lower() == ".json" else "jpg"
                by_stem.setdefault(name.stem, {})[kind] = member
        for stem in sorted(by_stem, key=_number):
            yield _record(tar, stem, by_stem[stem])


def _number(stem: str) -> tuple[int, str]:
    digits = stem.rpartition("_")[2]
    return (int(digits) if digits.isdecimal() else 0, stem)


def _record(
    tar: tarfile.TarFile, stem: str, pair: dict[str, tarfile.TarInfo]
) -> Record | tuple[str, str]:
    if len(pair) < 2:
        return stem, f"no .{'json' if 'jpg' in pair else 'jpg'} beside it"
    try:
        jpeg, text = (_bytes(tar, pair[kind]) for kind in ("jpg", "json"))
        meta = json.loads(text)
        if min(int(meta["image"]["height"]), int(meta["image"]["width"])) < 1:
            raise ValueError("a picture without pixels")
        if not isinstance(meta["annotations"], list):
            raise ValueError("annotations is no list")
    except (OSError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
        return stem, f"unusable json or member ({reason(error)})"
    return Record(stem, jpeg, meta)


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    data = file.read() if file else b""
    if len(data) != member.size:
        raise OSError(f"{member.name} is cut short")
    return data


def choose(
    annotations: list[dict[str, Any]], stem: str, most: int, seed: int, smallest: int = 64
) -> list[dict[str, Any]]:
    """Choose masks of a picture: a seeded sample that depends on nothing but its arguments.

    Args:
        annotations: of one picture.
        stem: its name, part of the seed.
        most: masks to keep; 0 keeps all.
        seed: of the run.
        smallest: masks of fewer pixels are passed over.

    Returns:
        The chosen ones, ordered by id.
    """
    usable = [a for a in annotations if isinstance(a, dict) and a.get("area", 0) >= smallest]
    usable.sort(key=lambda a: a.get("id", 0))
    if most and len(usable) > most:
        usable = random.Random(f"{seed}/{stem}").sample(usable, most)
    return sorted(usable, key=lambda a: a.get("id", 0))


def in_fraction(stem: str, fraction: float, seed: int) -> bool:
    """Tell whether a picture belongs to a share of the whole, by its name alone."""
    return fraction >= 1 or random.Random(f"{seed}:{stem}").random() < fraction
