"""Fetching MSD: checked by MD5, unpacked, only when it is missing; here from a local file."""

from __future__ import annotations

import hashlib
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest

from zim.errors import DownloadError
from zim_medical.download import download
from zim_medical.layouts import REGISTRY, locate


@pytest.fixture
def archive(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.apps.datasets import DecathlonDataset
    path = tmp_path / "served" / "Task09_Spleen.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        tar.add(demo / "Task09_Spleen", "Task09_Spleen")
    resource: dict[str, Any] = {"Task09_Spleen": path.as_uri()}
    monkeypatch.setattr(DecathlonDataset, "resource", resource)
    digest = {"Task09_Spleen": hashlib.md5(path.read_bytes()).hexdigest()}
    monkeypatch.setattr(DecathlonDataset, "md5", digest)
    monkeypatch.delenv("ZIM_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return path


@pytest.mark.filterwarnings("ignore")
def test_the_archive_is_checked_and_unpacked(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    download("spleen", root)
    folder = locate(REGISTRY["spleen"], root)
    assert folder is not None
    assert len(REGISTRY["spleen"].pairs(folder)) == 6
    archive.unlink()
    download("spleen", root)  # it is there: nothing is fetched


@pytest.mark.filterwarnings("ignore")
def test_a_changed_archive_is_refused_and_removed(archive: Path, tmp_path: Path) -> None:
    with archive.open("ab") as file:
        file.write(b"x")
    root = tmp_path / "root"
    with pytest.raises(DownloadError, match="Task09_Spleen could not be fetched"):
        download("spleen", root)
    assert list(root.iterdir()) == []


def test_offline_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIM_OFFLINE", "1")
    with pytest.raises(DownloadError, match="the network is forbidden"):
        download("hippocampus", tmp_path)
