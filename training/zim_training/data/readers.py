"""Readers of the public matting sets, all as one list of samples, and what is wrong with them.

The set is recognised by its folders. Every matte is read with :func:`zim.images.read_alpha`, so
16-bit files and mattes kept as colour or transparency are fine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from zim.errors import ConfigError, ImageError, one_line, reason
from zim.folders import pictures_in
from zim.images import load_image, read_alpha

Kind = Literal["matte", "label"]


@dataclass(frozen=True)
class MatteSample:
    """A picture and its matte on disk.

    Attributes:
        image: picture file.
        alpha: matte file, or a label map.
        name: unique within the set.
        source: name of the set.
        split: ``train`` or ``test``.
        kind: ``matte``, or ``label`` for coarse categories that must not change (STL).
        value: of a label map, the value that is the object; None for mattes.
    """

    image: Path
    alpha: Path
    name: str
    source: str
    split: str = "train"
    kind: Kind = "matte"
    value: int | None = None

    def read(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Read the picture H x W x 3 uint8 and the matte H x W float32 in [0, 1].

        Raises:
            ImageError: unreadable, of different sizes, or a pixel wide.
        """
        rgb = load_image(self.image).rgb
        if self.value is None:
            alpha = read_alpha(self.alpha)
        else:
            with Image.open(self.alpha) as file:
                alpha = (np.asarray(file) == self.value).astype(np.float32)
        self._compare((rgb.shape[1], rgb.shape[0]), (alpha.shape[1], alpha.shape[0]))
        return rgb, alpha

    def check_sizes(self) -> None:
        """Compare the sizes by the files' headers alone, where they tell.

        Raises:
            ImageError: they differ, or are a pixel wide.
        """
        picture, matte = _header_size(self.image), _header_size(self.alpha)
        if picture and matte:
            self._compare(picture, matte)

    def _compare(self, picture: tuple[int, int], matte: tuple[int, int]) -> None:
        if min(picture) < 2:
            raise ImageError(
                f"{self.image} is {picture[0]} x {picture[1]}; expected 2 pixels or more a side"
            )
        if picture != matte:
            raise ImageError(
                f"{self.alpha} is {matte[0]} x {matte[1]}, {self.image.name} is "
                f"{picture[0]} x {picture[1]}; both must have one size"
            )


def _header_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an upright picture; None where the header cannot be read."""
    try:
        with Image.open(path) as file:
            width, height = file.size
            lies = file.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except (OSError, ValueError, TypeError, SyntaxError):
        return None
    return (height, width) if lies else (width, height)


@dataclass
class Found:
    """What a folder holds."""

    name: str
    samples: list[MatteSample]
    malformed: list[str] = field(default_factory=list[str])

    def counts(self) -> dict[str, int]:
        """Count samples by split and kind."""
        return dict(Counter(f"{s.split} {s.kind}" for s in self.samples))


def _pairs(
    root: Path, images: str, alphas: str, source: str, split: str, bad: list[str]
) -> Iterator[MatteSample]:
    """Match pictures with mattes of the same stem."""
    mattes = {p.stem: p for p in _files(root / alphas)}
    for image in _files(root / images):
        if image.stem in mattes:
            alpha = mattes.pop(image.stem)
            yield MatteSample(image, alpha, f"{source}/{image.stem}", source, split)
        else:
            bad.append(f"{image}: no matte of this name in {root / alphas}")
    bad += [f"{path}: no picture of this name in {root / images}" for path in mattes.values()]


def _files(folder: Path) -> list[Path]:
    return pictures_in(folder) if folder.is_dir() else []


def _aim500(root: Path, bad: list[str]) -> Iterator[MatteSample]:
    yield from _pairs(root, "original", "mask", "AIM-500", "test", bad)


def _am2k(root: Path, bad: list[str]) -> Iterator[MatteSample]:
    yield from _pairs(root, "train/original", "train/mask", "AM-2K", "train", bad)
    yield from _pairs(root, "validation/original", "validation/mask", "AM-2K", "test", bad)


def _p3m(root: Path, bad: list[str]) -> Iterator[MatteSample]:
    yield from _pairs(root, "train/blurred_image", "train/mask", "P3M-10K", "train", bad)
    for name, images in (("P3M-500-P", "blurred_image"), ("P3M-500-NP", "original_image")):
        base = f"validation/{name}"
        yield from _pairs(root, f"{base}/{images}", f"{base}/mask", name, "test", bad)


def _plain(root: Path, bad: list[str]) -> Iterator[MatteSample]:
    name = "RWP-636" if (root / "detailmap").is_dir() else root.resolve().name
    yield from _pairs(root, "image", "alpha", name, "train", bad)


def _him2k(root: Path, bad: list[str]) -> Iterator[MatteSample]:
    for part in ("natural", "comp"):
        for image in _files(root / "images" / part):
            instances = _files(root / "alphas" / part / image.stem)
            if not instances:
                bad.append(f"{image}: no instances in {root / 'alphas' / part / image.stem}")
            for alpha in instances:
                name = f"HIM-2K/{part}/{image.stem}/{alpha.stem}"
                yield MatteSample(image, alpha, name, "HIM-2K")


def _refmatte(root: Path, bad: list[str]) -> Iterator[MatteSample]:
    for split in ("train", "test"):
        folder = "img_full" if (root / split / "img_full").is_dir() else "img"
        images = {p.stem: p for p in _files(root / split / folder)}
        for alpha in _files(root / split / "mask"):
            stem = alpha.stem if alpha.stem in images else alpha.stem.rpartition("_")[0]
            if stem in images:
                yield MatteSample(images[stem], alpha, f"RefMatte/{alpha.stem}", "RefMatte", split)
            else:
                bad.append(f"{alpha}: no picture of this name in {root / split / folder}")


#: ADE20K categories (1 to 150) with hard edges that a converter must leave alone (Sec. 3.1)
ADE_RIGID = {
    1: "wall", 2: "building", 4: "floor", 6: "ceiling", 8: "bed", 9: "windowpane", 11: "cabinet",
    15: "door", 16: "table", 21: "car", 24: "sofa", 25: "shelf", 31: "armchair", 34: "desk",
    36: "wardrobe", 46: "counter", 48: "sink", 51: "refrigerator", 56: "case", 57: "pool table",
    64: "bookcase", 68: "book", 71: "toilet", 72: "stove", 75: "computer", 77: "boat", 81: "bus",
    84: "truck", 90: "television", 100: "poster", 108: "washer", 116: "bag", 119: "oven",
    125: "microwave", 130: "dishwasher", 131: "screen", 142: "crt screen", 145: "bulletin board",
}  # fmt: skip


def _ade20k(root: Path, bad: list[str]) -> Iterator[MatteSample]:
    for split, name in (("train", "training"), ("test", "validation")):
        maps = {p.stem: p for p in _files(root / "annotations" / name)}
        for image in _files(root / "images" / name):
            if image.stem not in maps:
                bad.append(f"{image}: no annotation")
                continue
            path = maps[image.stem]
            try:
                with Image.open(path) as file:
                    values, counts = np.unique(np.asarray(file), return_counts=True)
            except OSError as error:
                bad.append(f"{path}: unreadable ({error})")
                continue
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                if value in ADE_RIGID and count >= 0.005 * counts.sum():
                    yield MatteSample(
                        image, path, f"ADE20K/{image.stem}/{value}", "ADE20K", split, "label", value
                    )


def _manifest(path: Path, bad: list[str]) -> Iterator[MatteSample]:
    """JSON lines ``{"image": ..., "alpha": ..., "split": "train"}``, paths relative to the file.

    ``split`` is train, test or val; the last two are held out. ``"kind": "label"`` may be given.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        bad.append(f"{path}: expected JSON lines in UTF-8 ({reason(error)})")
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            image, alpha = path.parent / row["image"], path.parent / row["alpha"]
            split = {"train": "train", "test": "test", "val": "test"}.get(row.get("split", "train"))
        except (ValueError, KeyError, TypeError) as error:
            bad.append(
                f'{path} line {number}: expected {{"image": ..., "alpha": ...}} ({reason(error)})'
            )
            continue
        missing = [str(p) for p in (image, alpha) if not p.is_file()]
        if missing:
            bad.append(f"{path} line {number}: {', '.join(missing)} does not exist")
            continue
        if split is None:
            bad.append(
                f"{path} line {number}: split {row['split']!r}; expected train, or test or val to "
                "hold it out"
            )
            continue
        kind: Kind = "label" if row.get("kind") == "label" else "matte"
        name = f"{path.stem}/{number}"
        yield MatteSample(image, alpha, name, path.stem, split, kind)


Reader = Callable[[Path, list[str]], Iterator[MatteSample]]
#: what is looked for, in order: name, folders that must exist, reader
SETS: tuple[tuple[str, tuple[str, ...], Reader], ...] = (
    ("ADE20K", ("images/training", "annotations/training"), _ade20k),
    ("HIM-2K", ("images/natural", "alphas/natural"), _him2k),
    ("P3M-10K", ("train/blurred_image", "train/mask"), _p3m),
    ("P3M-10K", ("validation/P3M-500-P", "validation/P3M-500-NP"), _p3m),
    ("AM-2K", ("train/original", "train/mask"), _am2k),
    ("RefMatte", ("train/img_full", "train/mask"), _refmatte),
    ("RefMatte", ("train/img", "train/mask"), _refmatte),
    ("AIM-500", ("original", "mask"), _aim500),
    ("image + alpha", ("image", "alpha"), _plain),
)


def read_set(root: Path) -> Found:
    """Recognise a set (or a manifest file) and list its samples.

    Raises:
        ConfigError: nothing is recognised.
    """
    bad: list[str] = []
    if root.is_file() and root.suffix == ".jsonl":
        return Found("manifest", list(_manifest(root, bad)), bad)
    for name, folders, reader in SETS:
        if all((root / folder).is_dir() for folder in folders):
            return Found(name, list(reader(root, bad)), bad)
    layouts = "; ".join(f"{name}: {' + '.join(folders)}" for name, folders, _ in SETS)
    raise ConfigError(
        f"{root} is no data set known here; expected a manifest.jsonl or one of {layouts}"
    )


def find_sets(root: Path) -> list[Found]:
    """Read a set, or every set one level below a folder.

    Raises:
        ConfigError: nothing is recognised.
    """
    if not root.exists():
        raise ConfigError(f"{root} does not exist; expected a folder of data sets or a manifest")
    try:
        return [read_set(root)]
    except ConfigError:
        if not root.is_dir():
            raise
        found = []
        if any(root.glob("*.done.json")):
            raise ConfigError(
                f"{root} holds SA1B-Matte shards; zim-train convert --verify --output {root} "
                "checks them"
            ) from None
        for child in sorted(p for p in root.iterdir() if p.is_dir() or p.suffix == ".jsonl"):
            try:
                found.append(read_set(child))
            except ConfigError:
                continue
        if not found:
            raise
        return found


#: so many pictures' headers are read before training; of larger sets, data check reads all
CHECKED = 2000
#: and so many mattes are read
OPENED = 100


def sound_samples(path: Path, empty: list[MatteSample] | None = None) -> list[MatteSample]:
    """List the samples of a set, or of the sets in a folder, for training.

    Args:
        path: where.
        empty: takes the samples whose matte is empty; without it they are refused.

    Raises:
        ConfigError: nothing is recognised, or something is malformed.
        ImageError: picture and matte differ in size, or a matte is empty.
    """
    found = find_sets(path)
    bad = [line for some in found for line in some.malformed]
    if bad:
        more = f" (and {len(bad) - 1} more; see zim-train data check)" if len(bad) > 1 else ""
        raise ConfigError(f"{bad[0]}{more}")
    samples = [sample for some in found for sample in some.samples]
    for sample in samples[:CHECKED]:  # before training, not in the middle of it
        sample.check_sizes()
    void: set[MatteSample] = set()
    for sample in samples[:OPENED]:
        if sample.value is None:
            alpha = read_alpha(sample.alpha)
            if empty is not None and not alpha.any():
                void.add(sample)
                empty.append(sample)
            else:
                check_matte(sample.alpha, alpha)
    return [sample for sample in samples if sample not in void]


def check_matte(path: Path, alpha: NDArray[np.float32]) -> None:
    """Refuse a matte, H x W in [0, 1], in which nothing is the object.

    Raises:
        ImageError: it is empty, or a mask whose 1 should be 255.
    """
    most = float(alpha.max(initial=0))
    if most == 0:
        raise ImageError(f"{path}: the matte is empty; remove it")
    if most < 1.5 / 255:
        raise ImageError(
            f"{path}: the largest value is {255 * most:.3g} of 255; the object must be 255, not 1"
        )


def examine(found: Found, most: int = 0) -> list[str]:
    """Open samples (all, or ``most`` spread over the set) and list what is malformed."""
    bad = list(found.malformed)
    if not found.samples and not bad:
        bad.append(f"{found.name}: no picture with a matte")
    step = max(1, len(found.samples) // most) if most else 1
    for sample in found.samples[::step]:
        try:
            check_matte(sample.alpha, sample.read()[1])
        except (ImageError, OSError) as error:
            bad.append(one_line(error))
    return bad
