"""Packs and the loop: shards resume, mirrored prompts stay on their object, runs resume exactly."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import zim
from zim.config import ConvEncoderConfig, DecoderConfig, ZimConfig
from zim.cues import CUE_PLANES
from zim.errors import CheckpointError, ConfigError
from zim_training import cli
from zim_training.data import pack as packing
from zim_training.data.loader import Batch, Pack
from zim_training.matte import MatteConfig, MatteTrainer, forward
from zim_training.prompts import KINDS

SIDE = 64
NETWORK = ZimConfig(
    "small",
    ConvEncoderConfig(width8=8, width16=16, blocks8=1, blocks16=1, attn_blocks=1, heads=2),
    image_size=SIDE,
    decoder=DecoderConfig(
        dim=16, heads=2, mlp_dim=32, iou_hidden=16, stem=(8, 8, 8), fusion=(8, 8, 8)
    ),
    cue_planes=CUE_PLANES,
    prompt_blocks=1,
)


@pytest.fixture(scope="module")
def data(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SHARD", 4)
        assert list(packing.write_pack(collection, folder / "dev", "dev", 2, side=SIDE)) == [1]
        done = list(packing.write_pack(collection, folder / "train", "train", 6, side=SIDE))
        assert done == [1, 2]
        # a lost shard comes back byte for byte
        lost = folder / "train" / "shard_00001"
        before = {p.name: p.read_bytes() for p in lost.iterdir()}
        lost.rename(folder / "gone")
        list(packing.write_pack(collection, folder / "train", "train", 6, side=SIDE))
        assert {p.name: p.read_bytes() for p in lost.iterdir()} == before
        # and it is the same when other processes write it
        lost.rename(folder / "gone_too")
        list(packing.write_pack(collection, folder / "train", "train", 6, side=SIDE, workers=2))
        assert {p.name: p.read_bytes() for p in lost.iterdir()} == before
        with pytest.raises(ConfigError, match="other settings"):
            list(packing.write_pack(collection, folder / "train", "train", 6, seed=1, side=SIDE))
    return folder


def test_a_pack_grows_and_its_short_shard_with_it(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SHARD", 4)
    for folder, counts in (("grown", (1, 5)), ("at_once", (5,))):
        for count in counts:
            list(packing.write_pack(collection, tmp_path / folder, "train", count, side=SIDE))
    assert len(Pack(tmp_path / "grown")) == 5
    one, two = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")}
        for name in ("grown", "at_once")
    )
    assert one == two
    (tmp_path / "grown" / "pack.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"pack\.json is damaged"):
        list(packing.write_pack(collection, tmp_path / "grown", "train", 5, side=SIDE))


def test_loader_mirrors_everything_together(data: Path) -> None:
    pack = Pack(data / "train")
    assert len(pack) == 6
    mirrored = 0
    for seed in range(8):
        plain = pack.batch([seed % 6])
        turned = pack.batch([seed % 6], np.random.default_rng(seed))
        width = int(plain.size[0, 1])
        if torch.equal(plain.alpha, turned.alpha):
            torch.testing.assert_close(plain.points, turned.points)
            continue
        mirrored += 1
        flip = turned.alpha.clone()
        flip[..., :width] = flip[..., :width].flip(-1)
        torch.testing.assert_close(flip, plain.alpha)
        cues = turned.cues.clone()
        cues[..., : width // 2] = cues[..., : width // 2].flip(-1)
        torch.testing.assert_close(cues, plain.cues)
        for b, (points, labels) in enumerate(zip(turned.points, turned.labels, strict=True)):
            for (x, y), label in zip(points.tolist(), labels.tolist(), strict=True):
                if label == 1 and plain.kind[b] == KINDS.index("click"):
                    assert turned.alpha[b, 0, int(y), int(x)] > 0.3
            if (labels == 2).any():
                assert (points[labels == 2] < points[labels == 3]).all()
    assert mirrored


def test_loss_falls_on_one_batch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MatteConfig(steps=40, rate=3e-3, warm_up=1)
    trainer = MatteTrainer(config, data, tmp_path / "run", network=NETWORK)
    batch = Pack(data / "train").batch([0, 1, 2, 3])
    monkeypatch.setattr(trainer.pack, "draw", lambda count, rng: batch)
    losses = [float(trainer.train_step()) for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_run_resumes_exactly(data: Path, tmp_path: Path) -> None:
    config = MatteConfig(steps=12, scenes=4, warm_up=1, eval_minutes=1e9, eval_scenes=2)
    whole = MatteTrainer(config, data, tmp_path / "whole", network=NETWORK)
    for _ in range(12):
        whole.train_step()

    half = MatteTrainer(config, data, tmp_path / "half", network=NETWORK)
    for _ in range(5):
        half.train_step()
    half.save()
    half._log(kind="train", loss=1.0)
    half.step = 9
    half._log(kind="train", loss=1.0)  # of steps that were lost when it was killed
    (tmp_path / "half" / ".last.pt.1").write_bytes(b"half")
    rest = MatteTrainer(config, data, tmp_path / "half", resume=True, network=NETWORK)
    assert rest.step == 5
    assert not (tmp_path / "half" / ".last.pt.1").exists()
    rest.fit()
    assert rest.step == 12
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(rest.model.state_dict()[key], value, rtol=0, atol=0)
    for key, value in whole.ema.model.state_dict().items():
        torch.testing.assert_close(rest.ema.model.state_dict()[key], value, rtol=0, atol=0)
    lines = (tmp_path / "half" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 12]
    scores = json.loads(lines[-1])["scores"]
    assert scores["box"]["n"] >= 2
    assert (tmp_path / "half" / "sheet_000012.png").is_file()

    assert cli.main(["bundle", str(tmp_path / "half"), "--output", str(tmp_path / "out")]) == 0
    loaded = zim.Zim.from_pretrained(tmp_path / "out" / "small.safetensors")
    assert loaded.config == NETWORK
    for key, value in whole.ema.model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=1e-3, atol=1e-4)


def test_a_run_resumes_whatever_the_predictor_makes_of_its_answers(
    data: Path, tmp_path: Path
) -> None:
    config = MatteConfig(steps=2, scenes=2, warm_up=1)
    run = MatteTrainer(config, data, tmp_path / "run", network=NETWORK)
    run.train_step()
    run.save()
    newer = dataclasses.replace(NETWORK, sharpen=2.0, quick_click=True, framing=1.1)
    assert MatteTrainer(config, data, tmp_path / "run", True, newer).step == 1
    older = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    del older["network"]["sharpen"]
    torch.save(older, tmp_path / "run" / "last.pt")
    assert MatteTrainer(config, data, tmp_path / "run", True, NETWORK).step == 1
    with pytest.raises(ConfigError, match="another network"):
        MatteTrainer(
            config, data, tmp_path / "run", True, dataclasses.replace(NETWORK, prompt_blocks=2)
        )


def test_batches_prepared_ahead_change_nothing(data: Path, tmp_path: Path) -> None:
    drawn: dict[int, list[Batch]] = {}
    for workers in (0, 2):
        config = MatteConfig(scenes=3, warm_up=1, workers=workers)
        run = tmp_path / str(workers)
        trainer = MatteTrainer(config, data, run, network=NETWORK)
        drawn[workers] = [trainer.batches.get(step) for step in range(5)]
        trainer.batches.close()
    # bit by bit; losses are not compared so: under load one in the last digit was seen
    for plain, ahead in zip(drawn[0], drawn[2], strict=True):
        for field in dataclasses.fields(Batch):
            one, other = getattr(plain, field.name), getattr(ahead, field.name)
            assert one == other if field.name == "slots" else torch.equal(one, other)


def test_a_state_goes_on_with_weights_average_and_step(data: Path, tmp_path: Path) -> None:
    config = MatteConfig(steps=12, scenes=2, warm_up=2, eval_scenes=2)
    first = MatteTrainer(config, data, tmp_path / "run", network=NETWORK)
    for _ in range(4):
        first.train_step()
    first.save()
    folder = tmp_path / "state"
    assert cli.main(["bundle", str(tmp_path / "run"), "--state", str(folder)]) == 0
    assert sum(p.stat().st_size for p in folder.iterdir()) < 0.5 * (
        (tmp_path / "run" / "last.pt").stat().st_size
    )
    onward = dataclasses.replace(config, init=str(folder))
    second = MatteTrainer(onward, data, tmp_path / "next", network=NETWORK)
    assert second.step == 4
    assert second.ema.steps == first.ema.steps
    for model, source in ((second.model, first.model), (second.ema.model, first.ema.model)):
        for key, value in source.state_dict().items():
            torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-3, atol=1e-4)
    # the moments are new, so the rate warms up again from here
    second.train_step()
    assert second.optimizer.param_groups[0]["lr"] < 0.6 * config.rate
    (folder / "ema.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="readable state"):
        MatteTrainer(onward, data, tmp_path / "broken", network=NETWORK)


def test_a_state_past_the_schedules_end_is_refused(data: Path, tmp_path: Path) -> None:
    """Nothing would be trained, and the export would be the start."""
    config = MatteConfig(steps=2, scenes=2, eval_scenes=2)
    first = MatteTrainer(config, data, tmp_path / "run", network=NETWORK)
    first.train_step()
    first.train_step()
    first.save()
    state = tmp_path / "state"
    assert cli.main(["bundle", str(tmp_path / "run"), "--state", str(state)]) == 0
    config = dataclasses.replace(config, init=str(state))
    with pytest.raises(ConfigError, match="is at step 2 already; give more than --steps 2"):
        MatteTrainer(config, data, tmp_path / "next", network=NETWORK)
    longer = dataclasses.replace(config, steps=3)
    run = tmp_path / "longer"
    MatteTrainer(longer, data, run, network=NETWORK).fit()
    assert MatteTrainer(longer, data, run, resume=True, network=NETWORK).step == 3


@pytest.mark.gpu
def test_a_gpu_takes_the_steps_of_the_cpu(data: Path, tmp_path: Path) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        config = MatteConfig(scenes=3, warm_up=1, precision="float32")
        run = tmp_path / device
        trainer = MatteTrainer(config, data, run, network=NETWORK, device=device)
        losses[device] = [float(trainer.train_step()) for _ in range(3)]
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-2)


def test_a_slice_stops_and_goes_on(data: Path, tmp_path: Path) -> None:
    config = MatteConfig(steps=3, scenes=2, warm_up=1, eval_scenes=2)
    part = MatteTrainer(config, data, tmp_path / "run", network=NETWORK)
    part.fit(stop_after=0.0)
    assert part.step == 0
    rest = MatteTrainer(config, data, tmp_path / "run", resume=True, network=NETWORK)
    rest.fit()
    assert rest.step == 3


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_its_step(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    config = MatteConfig(steps=6, scenes=2, warm_up=1, eval_scenes=2)
    whole = MatteTrainer(config, data, tmp_path / "whole", network=NETWORK)
    whole.fit()
    part = MatteTrainer(config, data, tmp_path / "run", network=NETWORK)
    step = part.train_step

    def told() -> torch.Tensor:
        if part.step == 3:
            signal.raise_signal(number)
        return step()

    part.train_step = told  # pyright: ignore[reportAttributeAccessIssue]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a command has one
    try:
        with pytest.raises(SystemExit) as ended:
            part.fit()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 128 + number
    assert "at step 4, which is saved; the same command with --resume" in capsys.readouterr().err
    rest = MatteTrainer(config, data, tmp_path / "run", resume=True, network=NETWORK)
    assert rest.step == 4
    rest.fit()
    for key, value in whole.ema.model.state_dict().items():
        torch.testing.assert_close(rest.ema.model.state_dict()[key], value, rtol=0, atol=0)


def test_the_untrained_network_answers_with_the_prior(data: Path, tmp_path: Path) -> None:
    trainer = MatteTrainer(MatteConfig(steps=1), data, tmp_path / "run", network=NETWORK)
    scores = trainer.evaluate()
    for row in scores.values():
        assert row["net"] == pytest.approx(row["prior"], rel=0.1, abs=2.0)


def test_a_run_starts_from_given_weights(data: Path, tmp_path: Path) -> None:
    source = zim.build(NETWORK, seed=3)
    source.save_pretrained(tmp_path / "source")
    config = MatteConfig(steps=1, init=str(tmp_path / "source"), precision="float32")
    trainer = MatteTrainer(config, data, tmp_path / "run", network=NETWORK)
    for key, value in source.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[key], value, rtol=0, atol=0)
        torch.testing.assert_close(trainer.ema.model.state_dict()[key], value, rtol=0, atol=0)
    other = MatteConfig(steps=1, init="nano")
    with pytest.raises(ConfigError, match="another network"):
        MatteTrainer(other, data, tmp_path / "other", network=NETWORK)


def test_weights_of_fewer_cue_planes_answer_as_before(data: Path, tmp_path: Path) -> None:
    source = zim.build(dataclasses.replace(NETWORK, cue_planes=CUE_PLANES - 1), seed=3).eval()
    source.save_pretrained(tmp_path / "source")
    config = MatteConfig(steps=1, init=str(tmp_path / "source"), precision="float32")
    trainer = MatteTrainer(config, data, tmp_path / "run", network=NETWORK)
    grown = trainer.model.eval()
    batch = Pack(data / "train").batch([0, 1])
    wanted, _ = forward(grown, batch, half=False)
    batch.cues = batch.cues[:, :-1]
    found, _ = forward(source, batch, half=False)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_deeper_network_answers_as_the_one_it_grew_from(data: Path, tmp_path: Path) -> None:
    source = zim.build(NETWORK, seed=3).eval()
    source.save_pretrained(tmp_path / "source")
    encoder = dataclasses.replace(NETWORK.encoder, blocks16=2, attn_blocks=3)
    deeper = dataclasses.replace(NETWORK, encoder=encoder, prompt_blocks=3)
    config = MatteConfig(steps=1, init=str(tmp_path / "source"), precision="float32")
    trainer = MatteTrainer(config, data, tmp_path / "run", network=deeper)
    batch = Pack(data / "train").batch([0, 1])
    wanted, _ = forward(source, batch, half=False)
    found, _ = forward(trainer.model.eval(), batch, half=False)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    trainer.train_step()
    new = dict(trainer.model.named_parameters())["image_encoder.blocks.2.proj.weight"]
    assert new.detach().abs().max() > 0  # and it learns
    zim.build(deeper, seed=3).save_pretrained(tmp_path / "deeper")
    smaller = MatteConfig(steps=1, init=str(tmp_path / "deeper"))
    with pytest.raises(ConfigError, match="larger network"):
        MatteTrainer(smaller, data, tmp_path / "smaller", network=NETWORK)


def test_a_bundle_can_be_less_sure(data: Path, tmp_path: Path) -> None:
    config = MatteConfig(steps=4, scenes=2, warm_up=1, eval_scenes=2)
    trainer = MatteTrainer(config, data, tmp_path / "run", network=NETWORK)
    trainer.train_step()
    trainer.save()
    state = tmp_path / "state"
    assert cli.main(["bundle", str(tmp_path / "run"), "--state", str(state)]) == 0
    models = {}
    for name, more in (("plain", []), ("less", ["--scale", "0.5"])):
        out = tmp_path / name
        assert cli.main(["bundle", str(state), "--output", str(out), *more]) == 0
        models[name] = zim.Zim.from_pretrained(out / "small.safetensors", dtype="float32").eval()
    batch = Pack(data / "train").batch([0, 1])
    (plain, quality), (less, same) = (forward(m, batch, half=False) for m in models.values())
    torch.testing.assert_close(less, 0.5 * plain, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(same, quality)
    for scale in ("0", "nan"):
        call = ["bundle", str(state), "--output", str(tmp_path / "no"), "--scale", scale]
        assert cli.main(call) == 1
    assert not (tmp_path / "no").exists()


def test_a_run_is_neither_lost_nor_continued_with_other_settings(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MatteConfig(steps=2, scenes=2, rate=1e-4)
    run = tmp_path / "run"
    first = MatteTrainer(config, data, run, network=NETWORK)
    first.save()
    kept = (run / "last.pt").read_bytes()
    words = ["matte", "--preset", "nano", "--data", str(data), "--output", str(run)]
    assert cli.main(words) == 1
    assert "holds a run; go on with --resume" in capsys.readouterr().err
    assert cli.main([*words, "--resume", "--overwrite"]) == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main([*words, "--resume"]) == 2
    assert "runs as one process, not as one of 2" in capsys.readouterr().err
    for change in ({"scenes": 3}, {"rate": 2e-4}, {"ema": 0.9}, {"seed": 1}, {"minutes": 5.0}):
        with pytest.raises(ConfigError, match=f"other settings .{next(iter(change))}"):
            MatteTrainer(dataclasses.replace(config, **change), data, run, True, NETWORK)
    workers = dataclasses.replace(config, workers=1)
    assert MatteTrainer(workers, data, run, True, NETWORK).step == 0
    assert (run / "last.pt").read_bytes() == kept


def test_errors_say_what_to_do(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="zim-train data synth"):
        Pack(tmp_path)
    with pytest.raises(CheckpointError, match="leave out --resume"):
        MatteTrainer(MatteConfig(), data, tmp_path / "new", resume=True, network=NETWORK)


def test_help_imports_no_torch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [m for m in sys.modules if m == "torch" or m.startswith("zim_training.matte")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)  # an import would now fail
    assert cli.main(["matte", "--help"]) == 0
    assert "--minutes" in capsys.readouterr().out


def test_command_line_makes_a_pack(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packs"
    flags = ["--data-root", str(collection), "--scenes", "1", "--dev-scenes", "1", "--json"]
    assert cli.main(["data", "synth", str(out), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"] == {"pack": str(out)}
    assert (out / "train" / "shard_00000" / "image.npy").is_file()
    assert cli.main(["data", "synth", "--data-root", str(collection)]) == 2
