"""Fetch the two datasets of the Medical Segmentation Decathlon, checked by MD5, on request."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from zim._extras import require
from zim.errors import DownloadError, one_line
from zim.weights.store import offline

TASKS = {"hippocampus": "Task04_Hippocampus", "spleen": "Task09_Spleen"}


def download(dataset: str, root: Path) -> None:
    """Fetch and unpack a dataset with MONAI, unless it is there.

    Args:
        dataset: ``hippocampus`` or ``spleen`` (1.5 GB).
        root: where to put it.

    Raises:
        DownloadError: there is no network, or what arrived is not the published file.
    """
    task = TASKS[dataset]
    if (root / task / "dataset.json").is_file():
        return
    if offline():
        raise DownloadError(f"{task}: the network is forbidden (ZIM_OFFLINE); copy it to {root}")
    apps: Any = require("monai.apps", "medical")
    known = apps.DecathlonDataset
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{task}-", dir=root) as name:
        # unpacked beside its place and then renamed: a broken download leaves nothing behind
        archive = Path(name) / f"{task}.tar"
        try:
            apps.download_url(
                known.resource[task], archive, known.md5[task], hash_type="md5", progress=False
            )
            apps.extractall(archive, Path(name) / "unpacked", has_base=False)
            (Path(name) / "unpacked" / task).rename(root / task)
        except (OSError, RuntimeError, ValueError) as error:
            detail = one_line(error)
            raise DownloadError(f"{task} could not be fetched ({detail}); try again") from error
