"""Fetch the two datasets of the Medical Segmentation Decathlon, checked by MD5, on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zim._extras import require
from zim.errors import DownloadError
from zim.weights.store import offline

TASKS = {"hippocampus": "Task04_Hippocampus", "spleen": "Task09_Spleen"}


def download(dataset: str, root: Path) -> None:
    """Fetch and unpack a dataset with MONAI, unless it is there.

    Args:
        dataset: ``hippocampus`` (27 MB) or ``spleen`` (1.5 GB).
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
    try:
        apps.download_and_extract(
            known.resource[task],
            root / f"{task}.tar",
            root,
            hash_val=known.md5[task],
            hash_type="md5",
            progress=False,
        )
    except (OSError, RuntimeError, ValueError) as error:
        (root / f"{task}.tar").unlink(missing_ok=True)
        detail = " ".join(str(error).split())
        raise DownloadError(f"{task} could not be fetched ({detail}); try again") from error
