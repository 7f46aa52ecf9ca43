"""Packs on the training device: batches keep pictures, prompts, cues and mattes together."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import zim
from zim.cues import CUE_PLANES
from zim.errors import ConfigError
from zim.testing import TINY_NANO
from zim_training.data import pack as packing
from zim_training.data.loader import Pack
from zim_training.data.pack import CUE_SCALE, MASK_SCALE
from zim_training.data.resident import GRABCUT_PLANES, SLOTS, ResidentPack
from zim_training.data.variation import mixed
from zim_training.matte import MatteConfig, MatteTrainer, forward
from zim_training.prompts import KINDS

SIDE = 64
NETWORK = replace(TINY_NANO, cue_planes=CUE_PLANES)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resident") / "train"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SHARD", 4)
        list(packing.write_pack(collection, folder, "train", 12, side=SIDE))
    return folder


def test_prompts_stay_on_their_object(folder: Path) -> None:
    pack = ResidentPack(folder, CPU, without_grabcut=0)
    rng = np.random.default_rng(0)
    seen = {"click": 0, "box": 0, "flat": 0}
    for _ in range(60):
        batch = pack.draw(6, rng)
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
        image = resident.store.rows["image"][number].permute(2, 0, 1)
        assert torch.equal(image.float(), batch.image[0])
        for slot in range(SLOTS):
            k = slot % len(batch.points)
            stored = {key: values[number, slot] for key, values in resident.store.rows.items()
                      if key not in ("image", "size", "alpha")}  # fmt: skip
            assert torch.equal(stored["points"], batch.points[k])
            assert torch.equal(stored["labels"].long(), batch.labels[k])
            assert torch.equal(stored["cues"].float() / CUE_SCALE, batch.cues[k])
            if batch.has_mask[k]:
                assert torch.equal(stored["mask"].float() / MASK_SCALE, batch.mask[k, 0])
            alpha = resident.store.rows["alpha"][number, int(stored["target"])].float() / 255
            assert torch.equal(alpha, batch.alpha[k, 0])


def test_a_narrow_picture_is_mirrored_within_its_own_width(folder: Path) -> None:
    pack = ResidentPack(folder, CPU, without_grabcut=0)
    for key in ("image", "cues", "alpha"):
        pack.store.rows[key][:] = 0
    pack.store.rows["size"][:] = torch.tensor([50, 40], dtype=torch.int16)
    pack.store.rows["image"][:, 10, 4] = 200
    pack.store.rows["alpha"][:, :, 10, 4] = 255
    pack.store.rows["cues"][:, :, :, 5, 2] = 127
    seen = set()
    for k in range(24):
        batch = pack.draw(6, np.random.default_rng(k))
        for b, scene in enumerate(batch.scene.tolist()):
            where = divmod(int(batch.alpha[b, 0].argmax()), SIDE)
            seen.add(where)
            assert divmod(int(batch.image[scene, 0].argmax()), SIDE) == where
            half = divmod(int(batch.cues[b, 1].argmax()), SIDE // 2)
            assert half == (where[0] // 2, where[1] // 2)
    assert seen == {(10, 4), (10, 35), (4, 10), (35, 10)}


def test_grabcuts_planes_are_blanked_for_a_share_of_prompts(folder: Path) -> None:
    pack = ResidentPack(folder, CPU, without_grabcut=0.5)
    batch = pack.draw(60, np.random.default_rng(1))
    blank = ~batch.cues[:, GRABCUT_PLANES[0]].flatten(1).any(1)
    assert 0.3 < blank.float().mean() < 0.7
    assert batch.cues[blank, 5].flatten(1).any(1).all()


def test_answers_do_not_depend_on_how_prompts_find_their_image(folder: Path) -> None:
    batch = ResidentPack(folder, CPU).draw(3, np.random.default_rng(2))
    assert batch.slots == SLOTS
    assert batch.to(CPU).slots == SLOTS
    model = zim.build(replace(TINY_NANO, cue_planes=CUE_PLANES), seed=1).eval()
    repeated, _ = forward(model, batch, half=False)
    batch.slots = 0
    indexed, _ = forward(model, batch, half=False)
    torch.testing.assert_close(repeated, indexed, rtol=1e-5, atol=1e-5)


def test_mixed_colours_keep_greys_and_change_some_pictures() -> None:
    rng = np.random.default_rng(0)
    grey = torch.full((60, 3, 4, 4), 100.0)
    torch.testing.assert_close(mixed(rng, grey), grey)
    colour = torch.rand(200, 3, 4, 4) * 255
    other = mixed(rng, colour)
    changed = (other - colour).abs().flatten(1).amax(1) > 0.01
    assert 0.2 < changed.float().mean() < 0.45
    assert (other >= 0).all()
    assert (other <= 255).all()


def test_scenes_take_turns_where_not_all_fit(folder: Path) -> None:
    pack, plain = ResidentPack(folder, CPU, capacity=8), Pack(folder)
    pictures = [plain.batch([k]).image[0] for k in range(12)]
    seen: set[int] = set()
    for _ in range(12):
        assert len(pack) == 8
        here = [image.permute(2, 0, 1).float() for image in pack.store.rows["image"]]
        found = [k for k, p in enumerate(pictures) if any(torch.equal(p, one) for one in here)]
        assert len(found) == 8
        seen |= set(found)
        _settle(pack)
    assert seen == set(range(12))


def test_a_pack_grows_while_it_is_drawn(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "pack.json", tmp_path)
    shards = sorted(folder.glob("shard_*"))
    shutil.copytree(shards[0], tmp_path / shards[0].name)
    pack = ResidentPack(tmp_path, CPU)
    assert len(pack) == 4
    for k, shard in enumerate(shards[1:], 2):
        shutil.copytree(shard, tmp_path / shard.name)
        _settle(pack)
        assert len(pack) == 4 * k
        assert torch.equal(
            pack.store.rows["image"][4 * k - 1].permute(2, 0, 1).float(),
            Pack(folder).batch([4 * k - 1]).image[0],
        )


def _settle(pack: ResidentPack) -> None:
    """Refresh until what is being read is there."""
    pack.refresh()
    for _, reading in list(pack.store._coming):
        reading.result()
    pack.refresh()


def test_a_damaged_shard_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "pack")
    broken = tmp_path / "pack" / "shard_00001"
    (broken / "image.npy").write_bytes(b"no array")
    with pytest.raises(ConfigError, match="shard_00001 is damaged"):
        ResidentPack(tmp_path / "pack", CPU)


def test_a_resident_run_resumes_exactly_from_a_finished_pack(folder: Path, tmp_path: Path) -> None:
    def trainer(run: str, steps: int, resume: bool = False) -> MatteTrainer:
        config = MatteConfig(steps=steps, scenes=2, resident=True, precision="float32")
        return MatteTrainer(config, folder.parent, tmp_path / run, resume, NETWORK)

    whole = trainer("whole", 4)
    whole.fit()
    part = trainer("part", 4)
    for _ in range(2):
        part.train_step()
    part.save()
    rest = trainer("part", 4, resume=True)
    rest.fit()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[key]), key


@pytest.mark.filterwarnings("ignore:invalid value")
def test_weights_that_are_not_finite_are_not_saved(folder: Path, tmp_path: Path) -> None:
    config = MatteConfig(steps=8, scenes=2, resident=True, precision="float32")
    trainer = MatteTrainer(config, folder.parent, tmp_path / "run", network=NETWORK)
    trainer.train_step()
    trainer.save()
    good = (tmp_path / "run" / "last.pt").read_bytes()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))
    with pytest.raises(ConfigError, match="diverged"):
        trainer.save()
    with pytest.raises(ConfigError, match="diverged"):
        trainer.train_step()
    assert (tmp_path / "run" / "last.pt").read_bytes() == good


def test_a_batch_follows_from_the_generator_alone(folder: Path) -> None:
    pack = ResidentPack(folder, CPU)
    one, two = (pack.draw(4, np.random.default_rng(3)) for _ in range(2))
    for name in ("image", "points", "cues", "alpha", "mask", "size"):
        assert torch.equal(getattr(one, name), getattr(two, name))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, while it compiles
def test_compiled_steps_learn_what_eager_ones_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is traced, forwards and backwards; writing kernels takes a CPU ten minutes."""
    real, asked = torch.compile, []

    def traced(function: object, *, dynamic: bool, mode: str | None) -> object:
        asked.append((dynamic, mode))
        return real(function, dynamic=dynamic, backend="aot_eager")  # pyright: ignore

    def losses(graphs: bool) -> list[torch.Tensor]:
        config = MatteConfig(
            steps=3,
            scenes=2,
            resident=True,
            precision="float32",
            compile=graphs,
            graphs=graphs,
        )
        run = tmp_path / str(graphs)
        trainer = MatteTrainer(config, folder.parent, run, network=NETWORK)
        return [trainer.train_step() for _ in range(3)]

    plain = losses(False)
    monkeypatch.setattr(torch, "compile", traced)
    torch.testing.assert_close(losses(True), plain, rtol=2e-3, atol=1e-4)
    assert asked == [(False, "reduce-overhead")]


def test_graphs_are_of_compiled_steps(folder: Path, tmp_path: Path) -> None:
    config = MatteConfig(resident=True, graphs=True)
    with pytest.raises(ConfigError, match="set compile"):
        MatteTrainer(config, folder.parent, tmp_path / "run", network=NETWORK)
