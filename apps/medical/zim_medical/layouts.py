"""The five datasets of the paper's Fig. 8, and any folder of images and masks: what lies where.

Only paths are looked at here; nothing is opened but MSD's ``dataset.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from zim.errors import ZimError, reason
from zim_medical.records import Pair

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VOLUMES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Dataset:
    """What is known about a dataset before it is opened.

    Attributes:
        name: as ``--datasets`` takes it.
        title: for reports.
        about: what it is and how large, for people who have to get it.
        licence: under which terms.
        source: where to get it.
        layout: what must lie below ``--root``.
        norm: how intensities become 8 bits under the preset ``zim``.
        merge: score any label as one class, unless ``--classes each``.
        labels: values a truth may hold; None allows any whole number.
        pairs: lists the cases of its folder.
        find: whether a folder is the dataset's.
    """

    name: str
    title: str
    about: str
    licence: str
    source: str
    layout: str
    norm: str
    merge: bool
    labels: tuple[int, ...] | None
    find: Callable[[Path], bool]
    pairs: Callable[[Path], list[Pair]]

    def how_to_get(self) -> str:
        """Return what to get and where to put it, on one line."""
        return f"{self.name}: {self.about}; {self.licence}; {self.source}; ROOT/{self.layout}"


def locate(dataset: Dataset, root: Path) -> Path | None:
    """Return the dataset's folder at or below the root (three levels), or None."""
    level = [root.resolve()]  # a folder is known by its name, which "." has not
    for _ in range(4):
        for folder in level:
            if dataset.find(folder):
                return folder
        level = [sub for folder in level for sub in _folders(folder)]
    return None


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []


def _files(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Return files by stem, in natural order; macOS ``._*`` companions are passed over."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # of several with one stem the first stays
        if path.name.startswith(".") or not path.is_file():
            continue
        for suffix in suffixes:
            if path.name.lower().endswith(suffix):
                found[path.name[: -len(suffix)]] = path
                break
    return dict(sorted(found.items(), key=lambda item: natural(item[0])))


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts 2 before 10."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", text) if p]


def _matched(images: dict[str, Path], masks: dict[str, Path]) -> list[Pair]:
    """Pair files by stem; one that is alone is listed too, so that its case is counted."""
    pairs = [Pair(stem, stem, image, masks.get(stem)) for stem, image in images.items()]
    folder = next(iter(images.values())).parent
    pairs += [Pair(s, s, folder / m.name, m) for s, m in masks.items() if s not in images]
    return sorted(pairs, key=lambda pair: natural(pair.case_id))


def _is_msd(task: str) -> Callable[[Path], bool]:
    def find(folder: Path) -> bool:
        return folder.name.startswith(task) and (folder / "dataset.json").is_file()

    return find


def _msd_pairs(folder: Path) -> list[Pair]:
    """Return every labelled volume that ``dataset.json`` lists, not a split of them."""
    path = folder / "dataset.json"
    try:
        listed = json.loads(path.read_text(encoding="utf-8-sig"))["training"]
        entries = [(folder / e["image"], folder / e["label"]) for e in listed]
    except (ValueError, KeyError, TypeError) as error:
        raise ZimError(
            f"{path}: no list 'training' of images and labels ({reason(error)}); "
            "unpack the archive again"
        ) from error
    pairs = [
        Pair(name := image.name.removesuffix(".gz").removesuffix(".nii"), name, image, label)
        for image, label in entries
    ]
    return sorted(pairs, key=lambda pair: natural(pair.case_id))


def _nested(folder: Path, name: str) -> Path | None:
    """Return ``folder/name/name`` or ``folder/name``, whichever holds files."""
    for candidate in (folder / name / name, folder / name):
        if candidate.is_dir() and _files(candidate, PICTURES):
            return candidate
    return None


def _kidney_pairs(folder: Path) -> list[Pair]:
    images, masks = _nested(folder, "slice"), _nested(folder, "mask")
    assert images is not None
    assert masks is not None
    return _matched(_files(images, PICTURES), _files(masks, PICTURES))


def _nerve_train(folder: Path) -> Path:
    return folder / "train" if (folder / "train").is_dir() else folder


def _is_nerve(folder: Path) -> bool:
    train = _nerve_train(folder)
    return any(re.fullmatch(r"\d+_\d+_mask\.tif", p.name) for p in train.glob("*_mask.tif"))


def _nerve_pairs(folder: Path) -> list[Pair]:
    files = _files(_nerve_train(folder), (".tif",))
    return [
        Pair(stem, stem.split("_")[0], path, files.get(f"{stem}_mask"))
        for stem, path in files.items()
        if not stem.endswith("_mask")
    ]


def _beside(images: str, masks: str, suffixes: tuple[str, ...]) -> Callable[[Path], bool]:
    def find(folder: Path) -> bool:
        both = (folder / images, folder / masks)
        return all(p.is_dir() for p in both) and bool(_files(both[0], suffixes))

    return find


def _hip_pairs(folder: Path) -> list[Pair]:
    return _matched(_files(folder / "images", VOLUMES), _files(folder / "labels", VOLUMES))


def _folder_pairs(folder: Path) -> list[Pair]:
    kinds = (*VOLUMES, *PICTURES)
    for part in (folder / "images", folder / "masks"):
        taken = {path.name for path in _files(part, kinds).values()}
        for path in sorted(part.iterdir()):
            usable = path.name.lower().endswith(kinds) and not path.name.startswith(".")
            if usable and path.is_file() and path.name not in taken:
                raise ZimError(
                    f"{path} has the name of another file there, but for its suffix; keep one"
                )
    return _matched(_files(folder / "images", kinds), _files(folder / "masks", kinds))


_ALL = (
    Dataset(
        "hippocampus",
        "Hippocampus, T1 MRI (MSD Task04)",
        "MSD Task04, about 260 labelled volumes",
        "CC BY-SA 4.0",
        "medicaldecathlon.com or --download",
        "Task04_Hippocampus/{dataset.json,imagesTr,labelsTr}",
        "mr",
        True,
        (0, 1, 2),
        _is_msd("Task04"),
        _msd_pairs,
    ),
    Dataset(
        "spleen",
        "Spleen, portal CT (MSD Task09)",
        "MSD Task09, 41 labelled volumes, 1.5 GB",
        "CC BY-SA 4.0",
        "medicaldecathlon.com or --download",
        "Task09_Spleen/{dataset.json,imagesTr,labelsTr}",
        "ct",
        True,
        (0, 1),
        _is_msd("Task09"),
        _msd_pairs,
    ),
    Dataset(
        "us_kidney",
        "Kidney, synthetic ultrasound (CT2US)",
        "CT2US, 4586 synthetic ultrasound pictures made from CT",
        "tagged GPL-2",
        "kaggle.com/datasets/siatsyx/ct2usforkidneyseg (login)",
        "ct2usforkidneyseg/{slice/slice,mask/mask}/*.png",
        "minmax",
        True,
        None,
        lambda folder: bool(_nested(folder, "slice") and _nested(folder, "mask")),
        _kidney_pairs,
    ),
    Dataset(
        "us_nerve",
        "Brachial plexus, ultrasound (Kaggle 2016)",
        "5635 pictures, 2323 of them with a nerve",
        "competition rules",
        "kaggle.com/c/ultrasound-nerve-segmentation (login)",
        "ultrasound-nerve-segmentation/train/{S_I.tif,S_I_mask.tif}",
        "minmax",
        True,
        (0, 255),
        _is_nerve,
        _nerve_pairs,
    ),
    Dataset(
        "xray_hip",
        "Hip, X-ray (Mendeley zm6bxzhmfz)",
        "140 radiographs with two classes",
        "CC BY 4.0",
        "data.mendeley.com/datasets/zm6bxzhmfz/1",
        "zm6bxzhmfz/{images,labels}/*.nii.gz",
        "minmax",
        False,
        (0, 1, 2),
        _beside("images", "labels", VOLUMES),
        _hip_pairs,
    ),
    Dataset(
        "folder",
        "Your folder",
        "any pictures or volumes with masks of the same file names",
        "your own",
        "nothing to fetch",
        "{images,masks}/*",
        "minmax",
        True,
        None,
        _beside("images", "masks", (*VOLUMES, *PICTURES)),
        _folder_pairs,
    ),
)
REGISTRY: dict[str, Dataset] = {dataset.name: dataset for dataset in _ALL}
