"""Readers: folders as their authors publish them, to lists of samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from zim.errors import ConfigError, ImageError, reason
from zim.evaluation.samples import Sample
from zim.folders import SUFFIXES, pictures_in

NAMES = ("micromat3k", "am2k", "aim500", "p3m", "refmatte_rw100", "folder", "manifest")
#: what was looked for and not there becomes a path that fails, so that it is counted and named
_PAIRS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "am2k": (("validation/original", "validation/mask", "all"),),
    "aim500": (("original", "mask", "all"),),
    "p3m": (
        ("validation/P3M-500-P/blurred_image", "validation/P3M-500-P/mask", "P3M-500-P"),
        ("validation/P3M-500-NP/original_image", "validation/P3M-500-NP/mask", "P3M-500-NP"),
        ("P3M-500-P/blurred_image", "P3M-500-P/mask", "P3M-500-P"),
        ("P3M-500-NP/original_image", "P3M-500-NP/mask", "P3M-500-NP"),
    ),
    "folder": (
        ("images", "alphas", "all"),
        ("image", "alpha", "all"),
        ("original", "mask", "all"),
    ),
}


def read_dataset(name: str, root: Path) -> list[Sample]:
    """List the samples of a data set, sorted by picture.

    Args:
        name: one of ``NAMES``.
        root: its folder, or the manifest file.

    An entry of a list that cannot be used, and one whose name was used before, becomes a sample
    with an error, so that it is counted and named.

    Raises:
        ConfigError: the name is unknown.
        ImageError: the layout is not what the data set's authors publish.
    """
    root = Path(root)
    if name not in NAMES:
        raise ConfigError(f"data set {name!r} is unknown; expected one of {', '.join(NAMES)}")
    if not root.exists():
        raise ImageError(f"{root} does not exist; --root is the folder of the data set")
    if name == "manifest":
        samples = _manifest(root)
    elif name == "micromat3k":
        samples = _micromat(root)
    elif name == "refmatte_rw100":
        samples = _rw100(root)
    else:
        samples = _pairs(name, root)
    first: dict[str, Sample] = {}
    for number, sample in enumerate(samples):
        if first.setdefault(sample.key, sample) is not sample:
            samples[number] = replace(
                sample,
                key=f"{sample.key} (entry {number + 1})",
                error=f"the name {sample.key} belongs to {first[sample.key].alpha} already",
            )
    return sorted(samples, key=lambda s: (str(s.image), s.group, s.key))


def _unusable(listing: Path, number: int, why: str) -> Sample:
    """Return a stand-in for a line that names no usable sample."""
    place = listing.parent / f"{listing.name}:{number}"
    return Sample(f"{listing.name}:{number}", place, place, error=f"line {number}: {why}")


def _lines(listing: Path) -> list[tuple[int, str]]:
    try:
        text = listing.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise ImageError(f"{listing} cannot be read ({error.strerror})") from error
    return [(k, line) for k, line in enumerate(text.splitlines(), 1) if line.strip()]


def _micromat(root: Path) -> list[Sample]:
    """``data_list.txt``: lines of image, matte, prompt JSON and segmentation, in that order."""
    listing = root / "data_list.txt"
    if not listing.is_file():
        return _micromat_glob(root)
    samples = []
    for number, line in _lines(listing):
        parts = line.split()
        if len(parts) not in (3, 4):
            why = f"{len(parts)} fields; expected image, matte, prompt, seg"
            samples.append(_unusable(listing, number, why))
            continue
        image, matte, prompt = (root / part for part in parts[:3])
        seg = root / parts[3] if len(parts) == 4 else None
        group = "fine" if "fine" in parts[1] else "coarse"
        samples.append(Sample(f"{group}/{matte.stem}", image, matte, group, prompt, seg))
    return samples


def _micromat_glob(root: Path) -> list[Sample]:
    samples = []
    for group in ("fine", "coarse"):
        for matte in sorted((root / "matte" / group).glob("*.png")):
            image = root / "img" / f"{matte.stem.rsplit('_', 1)[0]}.png"
            if not image.is_file():
                image = root / "img" / matte.name
            prompt = root / "prompt" / group / f"{matte.stem}.json"
            seg = root / "seg" / group / matte.name
            samples.append(
                Sample(
                    f"{group}/{matte.stem}",
                    image,
                    matte,
                    group,
                    prompt,
                    seg if seg.is_file() else None,
                )
            )
    if not samples:
        raise ImageError(
            f"{root}: neither data_list.txt nor matte/fine/*.png; --root is the folder MicroMat3K"
        )
    return samples


def _pairs(name: str, root: Path) -> list[Sample]:
    samples = []
    tried = []
    for images, alphas, group in _PAIRS[name]:
        folder = root / alphas
        tried.append(f"{images} with {alphas}")
        mattes, pictures = _pictures(folder), _pictures(root / images)
        partners, done = _by_stem(pictures), {alpha.stem for alpha in mattes}
        for alpha in mattes:
            key = alpha.stem if group == "all" else f"{group}/{alpha.stem}"
            image = partners.get(alpha.stem, root / images / f"{alpha.stem}.jpg")
            samples.append(Sample(key, image, alpha, group))
        for image in pictures:  # a picture without a matte is counted too
            if folder.is_dir() and image.stem not in done:
                key = image.stem if group == "all" else f"{group}/{image.stem}"
                samples.append(Sample(key, image, folder / f"{image.stem}.png", group))
        if samples and name == "folder":
            break
    if not samples:
        raise ImageError(
            f"{root} has not the layout of {name}; looked for {', '.join(dict.fromkeys(tried))}"
        )
    return samples


def _rw100(root: Path) -> list[Sample]:
    """Masks are called ``<image>_<n>``, one per person."""
    folder = root / "image" if (root / "image").is_dir() else root / "image_all"
    partners = _by_stem(_pictures(folder))
    samples = [
        Sample(mask.stem, partners.get(stem, folder / f"{stem}.jpg"), mask)
        for mask in _pictures(root / "mask")
        for stem in [mask.stem.rsplit("_", 1)[0]]
    ]
    if not samples:
        raise ImageError(f"{root} has not the layout of refmatte_rw100; looked for image and mask")
    return samples


def _manifest(path: Path) -> list[Sample]:
    if path.is_dir():
        raise ImageError(f"{path} is a folder; --root of a manifest is its .jsonl file")
    samples = []
    for number, line in _lines(path):
        try:
            row: dict[str, Any] = json.loads(line)
            image, alpha = path.parent / row["image"], path.parent / row["alpha"]
            prompt = row.get("prompt")
            if not isinstance(prompt, str | dict | None):
                raise ValueError("its prompt is neither a file nor a JSON object")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"expected a JSON object with image and alpha ({reason(error)})"
            samples.append(_unusable(path, number, why))
            continue
        key = str(row.get("key") or Path(row["alpha"]).with_suffix("").as_posix())
        where = path.parent / prompt if isinstance(prompt, str) else prompt
        samples.append(Sample(key, image, alpha, str(row.get("group") or "all"), where))
    if not samples:
        raise ImageError(f"{path}: an empty manifest")
    return samples


def _pictures(folder: Path) -> list[Path]:
    return pictures_in(folder) if folder.is_dir() else []


def _by_stem(pictures: list[Path]) -> dict[str, Path]:
    """Return pictures by their stems; of several, that whose suffix is first in ``SUFFIXES``."""
    return {p.stem: p for p in sorted(pictures, key=lambda p: -SUFFIXES.index(p.suffix.lower()))}
