"""What may be trained on, and which source object belongs to which split.

Only the permissive part of the collection is ever listed: nothing under ``research_only/``, no
``mattes/`` and no ``foregrounds/am2k_*`` (other views of validation objects). The split is by
source object: every file that shows the same object or photograph falls on the same side.
"""

from __future__ import annotations

import csv
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zim.errors import ConfigError

Split = Literal["train", "dev"]

#: share of source objects held out for development
DEV_PERCENT = 8
#: folders that may be read at all
FOLDERS = ("foregrounds", "photos", "segments/images")
_EXCLUDED = ("am2k",)


@dataclass(frozen=True)
class Source:
    """One picture of the collection: path below the data root, and the object it shows."""

    file: str
    group: str
    licence: str

    @property
    def split(self) -> Split:
        """Return the side this object is on."""
        return split_of(self.group)


def group_of(file: str) -> str:
    """Name the source object of a file: its stem without view, tone and size suffixes."""
    stem = Path(file).stem.lower()
    stem = re.sub(r"^(fluent|noto)_(emoji_)?u?", "emoji_", stem)
    stem = re.sub(r"^cut_[a-z0-9\-.]+?_", "cut_", stem) if stem.startswith("cut_") else stem
    return re.sub(r"(_view)?_\d{3}$", "", stem) if stem.startswith("cut_") else stem


def split_of(group: str) -> Split:
    """Put a group on one side for ever: a hash of its name decides."""
    number = int(hashlib.sha256(group.encode()).hexdigest()[:8], 16)
    return "dev" if number % 100 < DEV_PERCENT else "train"


def list_sources(root: Path, folder: str, split: Split | None = None) -> list[Source]:
    """List usable pictures of a folder in a fixed order.

    Raises:
        ConfigError: the collection's ``index.csv`` is missing or the folder is not usable.
    """
    if folder not in FOLDERS:
        raise ConfigError(f"{folder!r} must not be trained on; expected one of {FOLDERS}")
    index = root / "index.csv"
    if not index.is_file():
        raise ConfigError(
            f"{index} does not exist; expected the image collection (docs/nano.md), "
            "which is not part of the package; give its folder with --data-root"
        )
    sources = []
    with index.open(newline="") as handle:
        for row in csv.DictReader(handle):
            file = row["file"]
            name = Path(file).name.lower()
            if str(Path(file).parent) != folder or name.startswith(_EXCLUDED):
                continue
            sources.append(Source(file, group_of(file), row["licence"]))
    chosen = [s for s in sources if split is None or s.split == split]
    return sorted(chosen, key=lambda s: s.file)


def split_table(root: Path) -> dict[str, object]:
    """Describe the split for ``splits.json``: the rule, and every held-out group by folder."""
    dev = {f: sorted({s.group for s in list_sources(root, f, "dev")}) for f in FOLDERS}
    counts = {f: len({s.group for s in list_sources(root, f)}) for f in FOLDERS}
    return {
        "rule": f"dev when int(sha256(group)[:8], 16) % 100 < {DEV_PERCENT}, else train",
        "excluded": ["research_only/*", "mattes/*", "foregrounds/am2k_*"],
        "groups": counts,
        "dev": dev,
    }
