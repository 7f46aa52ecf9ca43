"""Packs on the training device: batches keep pictures, prompts, cues and mattes together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from zim_training.data import pack as packing
from zim_training.data.loader import Pack
from zim_training.data.resident import GRABCUT_PLANES, SLOTS, ResidentPack
from zim_training.prompts import KINDS

SIDE = 64
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resident")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SHARD", 4)
        list(packing.write_pack(collection, folder, "train", 12, side=SIDE))
    return folder


def test_prompts_stay_on_their_object(folder: Path) -> None:
    pack = ResidentPack(folder, CPU, without_grabcut=0)
    rng = np.random.default_rng(0)
    seen = {"click": 0, "box": 0, "flat": 0}
    for _ in range(12):
        batch = pack.batch(6, rng)
        assert batch.image.shape == (6, 3, SIDE, SIDE)
        assert len(batch.points) == 6 * SLOTS
        alpha = batch.alpha[:, 0]
        for b, kind in enumerate(batch.kind.tolist()):
            height, width = batch.size[batch.scene[b]].tolist()
            assert not batch.image[batch.scene[b], :, height:].any()
            assert not batch.image[batch.scene[b], :, :, width:].any()
            assert not alpha[b, height:].any()
            assert not alpha[b, :, width:].any()
            marks = {int(k): p for p, k in zip(batch.points[b], batch.labels[b], strict=True)}
            if KINDS[kind] == "click":
                x, y = marks[1].round().long().tolist()
                assert alpha[b, y, x] > 0.4 * alpha[b].max()
                peak = batch.cues[b, 3].argmax().item()
                assert abs(peak % (SIDE // 2) - x / 2) <= 1
                assert abs(peak // (SIDE // 2) - y / 2) <= 1
                seen["click"] += 1
            if KINDS[kind] == "box":
                rows, columns = torch.nonzero(alpha[b] > min(0.1, 0.5 * float(alpha[b].max()))).T
                (x0, y0), (x1, y1) = marks[2].tolist(), marks[3].tolist()
                loose = 0.16 * max(int(columns.max() - columns.min()), 2) + 3
                assert abs(x0 - columns.min()) <= loose
                assert abs(x1 - columns.max()) <= loose
                loose = 0.16 * max(int(rows.max() - rows.min()), 2) + 3
                assert abs(y0 - rows.min()) <= loose
                assert abs(y1 - rows.max()) <= loose
                seen["box"] += 1
            seen["flat"] += width < height
    assert min(seen.values()) > 3


def test_every_scene_and_prompt_of_the_pack_is_there(folder: Path) -> None:
    plain, resident = Pack(folder), ResidentPack(folder, CPU)
    assert len(resident) == len(plain) == 12
    for number in range(12):
        batch = plain.batch([number])
        image = resident.store["image"][number].permute(2, 0, 1)
        assert torch.equal(image.float(), batch.image[0])
        slots = range(SLOTS) if len(batch.points) == SLOTS else range(len(batch.points))
        for slot in slots:
            assert torch.equal(resident.store["points"][number, slot], batch.points[slot])
            target = resident.store["target"][number, slot]
            alpha = resident.store["alpha"][number, target].float() / 255
            assert torch.equal(alpha, batch.alpha[slot, 0])


def test_grabcuts_planes_are_blanked_for_a_share_of_prompts(folder: Path) -> None:
    pack = ResidentPack(folder, CPU, without_grabcut=0.5)
    batch = pack.batch(60, np.random.default_rng(1))
    blank = ~batch.cues[:, GRABCUT_PLANES[0]].flatten(1).any(1)
    assert 0.3 < blank.float().mean() < 0.7
    assert batch.cues[blank, 5].flatten(1).any(1).all()


def test_new_shards_replace_the_oldest_when_the_room_is_used_up(folder: Path) -> None:
    pack = ResidentPack(folder, CPU, capacity=8)
    assert len(pack) == 8
    third = Pack(folder).batch([8])
    assert torch.equal(pack.store["image"][0].permute(2, 0, 1).float(), third.image[0])
    pack.refresh()  # nothing new
    assert len(pack) == 8


def test_a_batch_follows_from_the_generator_alone(folder: Path) -> None:
    pack = ResidentPack(folder, CPU)
    one, two = (pack.batch(4, np.random.default_rng(3)) for _ in range(2))
    for name in ("image", "points", "cues", "alpha", "mask", "size"):
        assert torch.equal(getattr(one, name), getattr(two, name))
