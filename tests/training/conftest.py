"""A tiny collection laid out as the real one, and Ctrl+C that is heard."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("collection")
    rng = np.random.default_rng(0)
    rows = ["file,kind,source,licence,width,height,notes"]

    def add(file: str, picture: np.ndarray) -> None:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), picture)
        rows.append(f"{file},x,s,MIT,{picture.shape[1]},{picture.shape[0]},")

    def photo() -> np.ndarray:
        return cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (96, 72))

    (root / "segments" / "masks").mkdir(parents=True)
    segments = ["name,value,category,isthing,iscrowd"]
    for k in range(30):
        add(f"photos/wall_{k}.jpg", photo())
        for name in (f"ccp_{k:04d}", f"coco_ins_{k:04d}"):
            labels = np.zeros((72, 96), np.uint8)
            cv2.circle(labels, (40, 36), 22, 1, -1)
            cv2.circle(labels, (40, 30), 10, 2, -1)
            picture = photo()
            picture[labels == 1] = (30, 30, 220)
            picture[labels == 2] = (220, 200, 30)
            add(f"segments/images/{name}.jpg", picture)
            assert cv2.imwrite(str(root / f"segments/masks/{name}.png"), labels)
            segments += [f"{name},{v},thing,1,0" for v in (1, 2)]
        cut = np.zeros((60, 60, 4), np.uint8)
        cut[..., :3] = rng.integers(0, 255, 3)
        yy, xx = np.mgrid[:60, :60]
        cut[..., 3] = ((xx - 30) ** 2 + (yy - 30) ** 2 < 25**2) * 255
        add(f"foregrounds/cut_trellis_{k:02d}abc_{k:03d}.png", cut)
        add(f"foregrounds/fluent_{k:04x}.png", cut)
    add("foregrounds/am2k_sample1.png", np.zeros((8, 8, 4), np.uint8))
    add("mattes/images/x.jpg", photo())
    add("research_only/photos/y.jpg", photo())
    (root / "index.csv").write_text("\n".join(rows) + "\n")
    (root / "segments" / "coco_segments.csv").write_text("\n".join(segments) + "\n")
    return root


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Hear Ctrl+C also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
