"""ZIM on shards and on own pictures: losses, prompts, fine-tuning, exact continuation."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import zim
from zim.errors import ConfigError, ImageError, OutputError
from zim_training import cli
from zim_training.checkpoint import write_atomically
from zim_training.data import readers
from zim_training.loop import Loop, _Batches, learning_rate
from zim_training.matting.config import PRESETS
from zim_training.matting.corrections import correct
from zim_training.matting.prompting import PAD, box_prompt, point_prompt
from zim_training.matting.source import open_source
from zim_training.matting.task import MatteTask, by_picture

ROOT = Path(__file__).parents[2]
TINY = dataclasses.replace(PRESETS["test"], steps=12, save_every=4, eval_every=100, log_every=3)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of a soft disc in the manner of a user's folder; one matte has 16 bits."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for part in ("image", "alpha"):
        (folder / part).mkdir()
    for k in range(10):
        yy, xx = np.mgrid[:72, :96]
        cx, cy, r = rng.uniform(30, 66), rng.uniform(28, 44), rng.uniform(12, 22)
        alpha = np.clip((r - np.hypot(xx - cx, yy - cy)) / 6 + 0.5, 0, 1)
        colour = rng.integers(0, 255, 3)
        behind = cv2.resize(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8), (96, 72))
        picture = colour * alpha[..., None] + behind * (1 - alpha[..., None])
        assert cv2.imwrite(str(folder / f"image/{k}.jpg"), picture.astype(np.uint8))
        depth = (65535, np.uint16) if k == 0 else (255, np.uint8)
        assert cv2.imwrite(str(folder / f"alpha/{k}.png"), (alpha * depth[0]).astype(depth[1]))
    return folder


def test_sixteen_bit_mattes_keep_their_values(own: Path) -> None:
    source = open_source(own, 0.2)
    assert len(source.train) + len(source.held_out) == 10
    alpha = source.read(np.random.default_rng(0), 0, 1).alphas[0]
    values = cv2.imread(str(own / "alpha/0.png"), cv2.IMREAD_UNCHANGED)
    assert values is not None
    np.testing.assert_allclose(alpha, values / 65535, atol=1e-6)


def test_the_loss_is_the_papers(own: Path) -> None:
    """Token 0's part against Eq. 1 to 3 written out for one picture."""
    config = dataclasses.replace(TINY, multimask=0.0, quality=0.0, resolution="stride2", batch=1)
    task = MatteTask(config, open_source(own, 0.2))
    batch = task.samples([np.random.default_rng(3)])
    task.model.eval()
    got = task.loss(task.model, batch)[0].item()
    h, w = batch["size"][0].tolist()
    mean, std = task.network.pixel_mean, task.network.pixel_std
    image = (batch["image"].float() - mean) / std
    image[..., h:, :] = 0
    image[..., w:] = 0
    logits = task.network(image, batch["points"], batch["labels"]).logits[0, 0]
    alpha = batch["alpha"][0, 0].reshape(32, 2, 32, 2).mean((1, 3))
    d = (logits.sigmoid() - alpha)[: h // 2, : w // 2].detach().numpy()
    gradient = np.abs(np.diff(d, axis=0)).sum() + np.abs(np.diff(d, axis=1)).sum()
    assert got == pytest.approx((np.abs(d).sum() + 10 * gradient) / d.size, rel=1e-4)


def test_prompts_follow_their_rules() -> None:
    rng = np.random.default_rng(0)
    alpha = np.zeros((80, 100), np.float32)
    alpha[20:61, 30:71] = 1
    others = np.zeros(alpha.shape, bool)
    others[5:15, 5:15] = True
    lone = positives = on_others = negatives = 0
    for _ in range(400):
        points, labels = box_prompt(rng, alpha, 0.1)
        assert labels.tolist() == [2, 3]
        assert np.abs(points - [[30, 20], [70, 60]]).max() <= 4.0 + 1e-4
        points, labels = point_prompt(rng, alpha, others, 0.25)
        assert labels[-1] == PAD
        inside = alpha[points[:, 1].astype(int), points[:, 0].astype(int)]
        assert (inside[labels == 1] == 1).all()
        assert (inside[labels == 0] == 0).all()
        lone += len(labels) == 2
        positives += int((labels == 1).sum())
        spots = points[labels == 0].astype(int)
        on_others += int(others[spots[:, 1], spots[:, 0]].sum())
        negatives += len(spots)
    assert 0.2 < lone / 400 < 0.36
    assert 3.0 < positives / 400 < 5.0  # 0.25 x 1 + 0.75 x 4.9 less the truncation
    assert 0.35 < on_others / negatives < 0.5


def test_learning_rate_warms_up_and_ends_at_a_hundredth() -> None:
    config = dataclasses.replace(TINY, steps=100, warm_up=10, rate=1.0)
    assert learning_rate(config, 0) == pytest.approx(0.1, rel=1e-3)
    assert learning_rate(config, 50) == pytest.approx(0.505)
    assert learning_rate(config, 100) == pytest.approx(0.01)


def _same_weights(one: Path, two: Path) -> None:
    first, second = (torch.load(run / "last.pt", weights_only=True) for run in (one, two))
    for part in ("model", "ema"):
        for key, value in first[part].items():
            torch.testing.assert_close(second[part][key], value, rtol=0, atol=0)


def _lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def one_thread() -> Generator[None]:
    """Sums of several threads differ in the last bits from those of one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_killed_run_goes_on_as_if_nothing_happened(
    own: Path, tmp_path: Path, one_thread: None
) -> None:
    config = dataclasses.replace(TINY, steps=20)
    whole = Loop(MatteTask(config, open_source(own, 0.2)), config, tmp_path / "whole", "cpu")
    whole.fit()
    whole.close()
    flags = ["--preset", "test", "--steps", "20", "--save-every", "4", "--eval-every", "100"]
    flags += [
        "--log-every",
        "3",
        "--data",
        str(own),
        "--output",
        str(tmp_path / "cut"),
        "--threads",
        "1",
    ]
    command = [sys.executable, "-m", "zim_training.cli", "matte", *flags, "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while not (tmp_path / "cut" / "checkpoints" / "step_0000004.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert cli.main(["matte", *flags, "--device", "cpu"]) == 0
    # the command also scores the untrained model, at step 0
    assert [r for r in _lines(tmp_path / "cut") if r["step"]] == _lines(tmp_path / "whole")
    _same_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 0), (signal.SIGTERM, 1)])
def test_an_interrupted_run_saves_its_step_and_goes_on_exactly(
    own: Path,
    tmp_path: Path,
    one_thread: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    workers: int,
) -> None:
    words = ["matte", "--preset", "test", "--steps", "10", "--save-every", "4", "--log-every", "3"]
    words += ["--eval-every", "4", "--eval-samples", "2", "--keep-best", "--threads", "1"]
    words += ["--workers", str(workers), "--data", str(own), "--device", "cpu", "--output"]
    assert cli.main([*words, str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    loss, calls, before = MatteTask.loss, [0], signal.getsignal(number)

    def told(task: MatteTask, *args: object):
        calls[0] += 1
        if calls[0] == 5:
            signal.raise_signal(number)
        return loss(task, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(MatteTask, "loss", told)
    assert cli.main([*words, str(tmp_path / "cut")]) == 128 + number
    error = capsys.readouterr().err
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert f"zim-train: {word} at step 5, which is saved; the same command" in error
    assert signal.getsignal(number) == before
    assert torch.load(tmp_path / "cut" / "last.pt", weights_only=True)["step"] == 5
    assert cli.main([*words, str(tmp_path / "cut")]) == 0
    assert _lines(tmp_path / "cut") == _lines(tmp_path / "whole")
    _same_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_interrupt_ends_at_once(
    own: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def told(*_: object):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(MatteTask, "loss", told)
    words = ["matte", "--preset", "test", "--data", str(own), "--output", str(tmp_path / "run")]
    assert cli.main([*words, "--device", "cpu"]) == 130
    assert capsys.readouterr().err.endswith("zim-train matte: interrupted\n")
    assert not (tmp_path / "run" / "last.pt").exists()


def test_an_evaluation_that_was_cut_off_is_made_up_for(
    own: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the checkpoint's own evaluation: scores, best average and log are the same."""
    config = dataclasses.replace(TINY, steps=6, save_every=2, eval_every=2, keep_best=True)
    evaluate = MatteTask.evaluate

    def run(name: str, killed: int = -1) -> Loop:
        loop = Loop(MatteTask(config, open_source(own, 0.2)), config, tmp_path / name, "cpu")

        def cut(task: MatteTask, model: torch.nn.Module):
            if loop.step == killed:
                raise KeyboardInterrupt
            return evaluate(task, model)

        monkeypatch.setattr(MatteTask, "evaluate", cut)
        try:
            if loop.step == 0:
                loop.evaluate()
            loop.fit()
        finally:
            loop.close()
        return loop

    whole = run("whole")
    for killed in (4, 0):  # the second one before anything was saved
        name = f"cut_{killed}"
        with pytest.raises(KeyboardInterrupt):
            run(name, killed)
        (tmp_path / name / f".last.pt.{os.getpid()}").write_bytes(b"half")
        again = run(name)
        assert again.last_scores == whole.last_scores
        assert _lines(tmp_path / name) == _lines(tmp_path / "whole")
        assert not list((tmp_path / name).glob(".*"))
    config = dataclasses.replace(config, keep_best=False)
    run("last")
    assert run("last").last_scores  # a finished run still knows them


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--steps", "3", "--save-every", "1", "--clip", "0"], "loss or gradient"),
        (["--steps", "1"], "an answer on held-out pictures"),
    ],
)
def test_a_run_that_diverges_stops_and_keeps_nothing_of_it(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], what: str
) -> None:
    words = ["matte", "--preset", "test", "--data", str(own), "--output", str(tmp_path / "run")]
    words += ["--device", "cpu", "--warm-up", "0", "--ema", "0"]
    for _ in range(2):  # a second start does not take what the first has spoilt
        assert cli.main([*words, "--rate", "1e30", *flags]) == 1
        error = capsys.readouterr().err
        assert f"training diverged: {what} is not finite" in error
        assert "start anew with a lower --rate (--overwrite" in error
        assert not (tmp_path / "run" / "export").exists()
    last = tmp_path / "run" / "last.pt"
    if last.exists():
        state = torch.load(last, weights_only=True)
        assert all(v.isfinite().all() for v in state["model"].values())
    assert cli.main([*words, *flags, "--rate", "1e-4", "--steps", "1", "--overwrite"]) == 0
    assert zim.load(tmp_path / "run" / "export").config.name == "tiny"


def test_weights_that_are_not_finite_are_not_saved(own: Path, tmp_path: Path) -> None:
    loop = Loop(MatteTask(TINY, open_source(own, 0.2)), TINY, tmp_path, "cpu")
    loop.save()
    before = (tmp_path / "last.pt").read_bytes()
    with torch.no_grad():
        next(loop.ema.model.parameters()).fill_(math.inf)
    with pytest.raises(ConfigError, match=r"a weight is not finite .* zim-train bundle .*0000.pt"):
        loop.save()
    loop.close()
    assert (tmp_path / "last.pt").read_bytes() == before


def test_two_micro_batches_are_one_batch(own: Path, tmp_path: Path) -> None:
    """Accumulated gradients make the same kind of step; the run says how it was split."""
    config = dataclasses.replace(TINY, steps=2, accumulate=2)
    loop = Loop(MatteTask(config, open_source(own, 0.2)), config, tmp_path, "cpu")
    assert loop.micro == 2
    before = {k: v.clone() for k, v in loop.task.model.state_dict().items()}
    loop.fit()
    loop.close()
    assert any(not torch.equal(before[k], v) for k, v in loop.task.model.state_dict().items())
    assert zim.load(tmp_path / "export").config.name == "tiny"


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2)])
def test_batches_are_the_same_for_any_number_of_processes(
    own: Path, world: int, accumulate: int
) -> None:
    task = MatteTask(dataclasses.replace(TINY, corrections=0.5), open_source(own, 0.2))
    step, whole = 5, _Batches(task, 0, 4, 0, 1, 1)[5]
    count = 4 // (world * accumulate)
    parts = [
        _Batches(task, 0, count, rank, world, accumulate)[step * accumulate + part]
        for part in range(accumulate)
        for rank in range(world)
    ]
    for key in ("image", "points", "alpha"):
        torch.testing.assert_close(torch.cat([p[key] for p in parts]), whole[key], rtol=0, atol=0)
    again = [
        {
            bool(
                _Batches(task, 0, count, rank, world, accumulate)[step * accumulate + part]["again"]
            )
            for part in range(accumulate)
            for rank in range(world)
        }
        for step in range(12)
    ]
    assert {len(some) for some in again} == {1}  # all of a step, or none
    assert again == [{bool(_Batches(task, 0, 4, 0, 1, 1)[step]["again"])} for step in range(12)]
    assert len(set().union(*again)) == 2


def test_pictures_weigh_the_same_however_many_mattes_they_have() -> None:
    values, owner = torch.tensor([4.0, 1.0, 2.0, 3.0, 8.0]), torch.tensor([0, 1, 1, 1, 2])
    whole = by_picture(values, owner)
    assert whole == pytest.approx((4 + 2 + 8) / 3)
    parts = by_picture(values[:1], owner[:1]), by_picture(values[1:4], owner[1:4])
    parts += (by_picture(values[4:], owner[4:]),)
    assert sum(parts) / 3 == pytest.approx(whole.item())
    assert torch.equal(by_picture(values, torch.arange(5)), values.mean())


def test_a_correction_is_a_click_where_the_answer_is_wrong(own: Path) -> None:
    """The answer of an untrained network with its mask: the click tells it what it missed."""
    config = dataclasses.replace(TINY, corrections=1.0, box=1.0)
    task = MatteTask(config, open_source(own, 0.2))
    batch = task.samples([np.random.default_rng(k) for k in range(3)])
    assert batch["again"]
    logits = torch.full((3, 1, 32, 32), -4.0)
    logits[1] = 4.0
    h, w = batch["size"][2].tolist()
    logits[2] = 8 * torch.nn.functional.avg_pool2d(batch["alpha"][2], 2) - 4
    changed, mask, lone = correct(batch, logits, cue_planes=0)
    assert mask is logits
    assert not lone.any()
    for row, label in ((0, 1), (1, 0)):  # all missing: a positive click; all there: a negative one
        new = torch.nonzero(changed["labels"][row] != batch["labels"][row])[:, 0]
        assert changed["labels"][row, new].tolist() == [label]
        x, y = changed["points"][row, new[0]].int().tolist()
        assert (batch["alpha"][row, 0, y, x] > 0.5) == bool(label)
        inside = batch["alpha"][row, 0, :h, :w].numpy() > 0.5
        wrong = np.pad(inside if label else ~inside, 1).astype(np.uint8)
        depth = cv2.distanceTransform(wrong, cv2.DIST_L2, 5)[1:-1, 1:-1]
        assert depth[y, x] == depth.max()
    difference = (changed["labels"][2] != batch["labels"][2]).sum()
    assert difference <= 1  # a nearly right answer may still be wrong in a pixel
    loss, _ = task.loss(task.model, batch)
    loss.backward()
    weights = dict(task.network.named_parameters())
    down = weights["prompt_encoder.mask_downscaling.0.weight"].grad
    assert down is not None
    assert down.abs().sum() > 0  # the mask was read


def test_the_best_average_is_exported(own: Path, tmp_path: Path) -> None:
    """A rate that wrecks the network: the start is what is kept, also after a second start."""
    config = dataclasses.replace(TINY, rate=0.5, warm_up=1, eval_every=4, keep_best=True, steps=8)
    task = MatteTask(config, open_source(own, 0.2))
    start = {k: v.clone() for k, v in task.network.state_dict().items()}
    ranks = iter([1.0, 0.9, 1.1, 0.9, 1.1])
    task.rank = lambda scores, first: next(ranks)  # pyright: ignore[reportAttributeAccessIssue]
    loop = Loop(task, config, tmp_path, "cpu")
    loop.evaluate()
    kept = loop.best["ema"]
    torch.testing.assert_close(kept, start, check_dtype=False)
    loop.fit()
    loop.close()
    assert loop.last_scores["best_step"] == 4
    exported = zim.load(tmp_path / "export", dtype="float32").state_dict()
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    for key, value in best["ema"].items():
        torch.testing.assert_close(exported[key].float(), value.float())


def test_worse_boxes_are_not_bought_with_better_clicks(own: Path) -> None:
    rank = MatteTask(TINY, open_source(own, 0.2)).rank
    first = {"box_mse": 50.0, "point_mse": 100.0, "middle_mse": 80.0}
    assert rank(first, first) == 1
    assert rank(first | {"point_mse": 70.0}, first) == pytest.approx(0.9)
    assert rank(first | {"box_mse": 60.0, "point_mse": 70.0}, first) > 1


def test_held_boxes_ask_for_the_answer_of_the_start(own: Path) -> None:
    """Before the first step both halves of a held box's loss meet the same answer."""
    config = dataclasses.replace(
        TINY, prompts="people", hold=0.5, multimask=0.0, quality=0.0, gradient=0.0
    )
    task = MatteTask(config, open_source(own, 0.2))
    batch = task.samples([np.random.default_rng(k) for k in range(8)])
    boxes = (batch["labels"] == 2).any(1)
    assert 0 < boxes.sum() < 8
    task.model.eval()
    half = task.loss(task.model, batch)[0]
    object.__setattr__(config, "hold", 0.0)
    task.start = None
    full = task.loss(task.model, batch)[0]
    only = {k: v[~boxes] for k, v in batch.items() if k not in ("image", "size")}
    only |= {"image": batch["image"], "size": batch["size"]}
    clicks = task.loss(task.model, only)[0] * (~boxes).sum()
    # the held half is the distance of an answer to itself: nothing
    torch.testing.assert_close(half * 8, (full * 8 - clicks) / 2 + clicks, rtol=1e-4, atol=1e-4)


def test_checkpointing_changes_nothing_but_memory(own: Path) -> None:
    batches, gradients = [], []
    for on in (False, True):
        config = dataclasses.replace(TINY, checkpointing=on)
        task = MatteTask(config, open_source(own, 0.2))
        batches.append(task.samples([np.random.default_rng(k) for k in (0, 1)]))
        task.loss(task.model, batches[-1])[0].backward()
        gradients.append(
            {k: p.grad for k, p in task.model.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_full_disk_keeps_the_older_checkpoint(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        write_atomically(small / "last.pt", {"step": 1})
        with pytest.raises(OutputError, match="cannot be written"):
            write_atomically(small / "last.pt", {"x": torch.zeros(1 << 20)})
        assert [p.name for p in small.iterdir()] == ["last.pt"]
        assert torch.load(small / "last.pt", weights_only=True) == {"step": 1}
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_frozen_encoder_stays(own: Path, tmp_path: Path) -> None:
    flags = [
        "--init",
        "nano",
        "--no-keep-best",
        "--freeze",
        "image_encoder",
        "--max-steps",
        "2",
        "--batch",
        "2",
    ]
    flags += ["--eval-samples", "1", "--rate", "1e-3", "--warm-up", "1", "--device", "cpu"]
    out = tmp_path / "run"
    assert cli.main(["matte", "--data", str(own), *flags, "--output", str(out)]) == 0
    tuned, nano = zim.load(out / "export").state_dict(), zim.load("nano").state_dict()
    changed = {k for k, v in nano.items() if not torch.equal(tuned[k].float(), v.float())}
    assert changed
    assert not any(k.startswith("image_encoder.") for k in changed)
    assert not any("running" in k for k in changed)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--freeze", "head"], "expected image_encoder or prompt_encoder"),
        (["--batch", "5", "--accumulate", "2"], "choose a multiple"),
        (["--init", "sam:/nowhere.pth"], "no SAM weights at /nowhere.pth"),
        (["--data", "/nowhere"], "/nowhere does not exist"),
        (["--device", "nonsense"], "device 'nonsense' is unknown"),
    ],
)
def test_wrong_settings_are_one_line(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    base = ["matte", "--preset", "test", "--data", str(own), "--output", str(tmp_path / "run")]
    assert cli.main([*base, "--device", "cpu", *flags]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_wrong_sizes_are_found_before_training(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("image", "alpha"):
        (tmp_path / part).mkdir()
    (tmp_path / "image/a.jpg").write_bytes((own / "image/1.jpg").read_bytes())
    assert cv2.imwrite(str(tmp_path / "alpha/a.png"), np.zeros((10, 12), np.uint8))
    (tmp_path / "image/b.jpg").write_bytes((own / "image/2.jpg").read_bytes())
    assert cli.main(["data", "check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "1 train matte; 2 malformed" in out
    assert "is 12 x 10, a.jpg is 96 x 72" in out
    assert "b.jpg: no matte of this name" in out
    (tmp_path / "image/b.jpg").unlink()
    for k in "cd":
        (tmp_path / f"image/{k}.jpg").write_bytes((own / "image/1.jpg").read_bytes())
        (tmp_path / f"alpha/{k}.png").write_bytes((own / "alpha/1.png").read_bytes())
    run = ["--preset", "test", "--data", str(tmp_path), "--output", str(tmp_path / "run")]
    assert cli.main(["matte", *run, "--device", "cpu"]) == 1
    assert "alpha/a.png is 12 x 10, a.jpg is 96 x 72" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.main(["data", "check", str(own)]) == 0


@pytest.mark.parametrize(
    ("size", "value", "message"),
    [
        ((20, 30), 0, "1.png: the matte is empty; remove it"),
        ((20, 30), 1, "1.png: the largest value is 1 of 255; the object must be 255, not 1"),
        ((20, 1), 255, "1.jpg is 1 x 20; expected 2 pixels or more a side"),
        (None, 0, "no picture with a matte"),
    ],
)
def test_useless_mattes_are_found_before_training(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    size: tuple[int, int] | None,
    value: int,
    message: str,
) -> None:
    for part in ("image", "alpha"):
        (tmp_path / part).mkdir()
    for k, some in (("0", 255), ("1", value)) if size else ():
        shape = size if size and k == "1" else (20, 30)
        assert cv2.imwrite(str(tmp_path / f"image/{k}.jpg"), np.zeros((*shape, 3), np.uint8))
        matte = np.zeros(shape, np.uint8)
        matte[: shape[0] // 2] = some
        assert cv2.imwrite(str(tmp_path / f"alpha/{k}.png"), matte)
    assert cli.main(["data", "check", str(tmp_path)]) == 1
    assert message in capsys.readouterr().out
    words = ["matte", "--preset", "test", "--steps", "1", "--data", str(tmp_path)]
    assert cli.main([*words, "--output", str(tmp_path / "run"), "--device", "cpu"]) == 1
    assert (message if size else "holds 0 pictures with mattes") in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_empty_matte_far_down_a_large_set_does_not_end_a_run(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is past those that are opened first; without it the run would not go on: other data."""
    monkeypatch.setattr(readers, "OPENED", 1)
    for k in range(3):
        for part, end in ("image", "jpg"), ("alpha", "png"):
            (tmp_path / part).mkdir(exist_ok=True)
            shutil.copy(own / part / f"{k}.{end}", tmp_path / part)
    alpha = tmp_path / "alpha" / "2.png"
    assert cv2.imwrite(str(alpha), np.zeros((72, 96), np.uint8))
    for framing in 0.0, 1.5:
        task = MatteTask(TINY, open_source(tmp_path, 0.0))
        changed = dataclasses.replace(task.network.config, framing=framing)
        monkeypatch.setattr(task.network, "config", changed)
        for k in range(8):
            batch = task.samples([np.random.default_rng(k)])
            assert batch["alpha"].max() > 0.9
    assert cv2.imwrite(str(alpha), np.ones((72, 96), np.uint8))
    task = MatteTask(TINY, open_source(tmp_path, 0.0))
    with pytest.raises(ImageError, match="the object must be 255, not 1"):
        task.samples([np.random.default_rng(k) for k in range(8)])


def test_a_manifest_that_holds_everything_out_is_refused(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.jsonl"
    rows = [
        {"image": str(own / f"image/{k}.jpg"), "alpha": str(own / f"alpha/{k}.png")} for k in "12"
    ]
    words = ["matte", "--preset", "test", "--data", str(path), "--output", str(tmp_path / "run")]
    path.write_text("\n".join(json.dumps(row | {"split": "val"}) for row in rows), encoding="utf-8")
    assert cli.main([*words, "--device", "cpu"]) == 1
    assert "m.jsonl holds out all of its 2 pictures (test, val)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    rows[0]["split"], rows[1]["split"] = "train", "test"
    path.write_text(
        "\n".join(json.dumps(row) for row in rows), encoding="utf-8-sig"
    )  # as Windows does
    source = open_source(path, 0.2)
    assert (source.train, source.held_out) == ([0], [1])


def test_a_runs_own_settings_are_taken_with_its_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"seed": 7}), encoding="utf-8")
    for command in ("matte", "converter", "convert"):
        for more, seed in ([], 7), (["--seed", "0"], 0), (["--seed", "3"], 3):
            words = [command, "--config", str(path), *more, "--print-config", "--json"]
            assert cli.main(words) == 0
            assert json.loads(capsys.readouterr().out)["config"]["seed"] == seed


def test_a_run_goes_on_with_its_own_data_only(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And gives its best weights to a bundle, or those of a checkpoint that is named."""
    run = tmp_path / "run"
    words = ["matte", "--preset", "test", "--steps", "2", "--save-every", "1", "--eval-samples"]
    words += ["2", "--keep", "1", "--keep-best", "--output", str(run), "--device", "cpu"]
    assert cli.main([*words, "--data", str(own)]) == 0
    assert len(list((run / "checkpoints").iterdir())) == 2  # one besides the last
    other = tmp_path / "other"
    shutil.copytree(own, other)
    capsys.readouterr()
    assert cli.main([*words, "--data", str(other)]) == 1
    assert "was started with other data" in capsys.readouterr().err
    best = torch.load(run / "best.pt", weights_only=True)
    best["ema"] = {k: v + 1 for k, v in best["ema"].items()}
    torch.save(best, run / "best.pt")
    step1 = torch.load(run / "checkpoints" / "step_0000001.pt", weights_only=True)
    key = "mask_decoder.iou_token.weight"
    key = key if key in step1["ema"] else next(iter(step1["ema"]))
    for source, wanted in (run, best), (run / "checkpoints" / "step_0000001.pt", step1):
        bundle = ["bundle", str(source), "--output", str(tmp_path / "weights")]
        assert cli.main([*bundle, "--overwrite"]) == 0
        loaded = zim.load(tmp_path / "weights" / "tiny.safetensors", dtype="float32")
        torch.testing.assert_close(loaded.state_dict()[key], wanted["ema"][key].half().float())
        assert cli.main(bundle) == 1
        assert "tiny.safetensors exists; use --overwrite" in capsys.readouterr().err
    (run / "last.pt").write_bytes(b"x")
    assert cli.main([*words, "--data", str(own)]) == 1
    error = capsys.readouterr().err
    assert "last.pt is damaged" in error
    assert "step_0000001.pt" in error
    (run / "last.pt").unlink()
    shutil.copy(run / "checkpoints" / "step_0000001.pt", run / "last.pt")
    (run / "config.json").write_text("{", encoding="utf-8")
    assert cli.main([*words, "--data", str(own)]) == 1
    assert "config.json holds no settings of a run" in capsys.readouterr().err


def test_an_older_run_is_told_once_that_its_loss_has_changed(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = tmp_path / "run" / "last.pt"
    words = ["matte", "--preset", "test", "--steps", "2", "--save-every", "1", "--device", "cpu"]
    words += ["--data", str(own), "--output", str(tmp_path / "run")]
    assert cli.main(words) == 0
    shutil.copy(last.parent / "checkpoints" / "step_0000001.pt", last)
    state = torch.load(last, weights_only=True)
    del state["data"], state["pending"]  # as checkpoints were then
    torch.save(state, last)
    told = []
    for _ in range(2):
        assert cli.main(words) == 0
        told.append("was begun by an earlier version" in capsys.readouterr().err)
    assert told == [True, False]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--save-every", "0"], "--save-every 0: expected 1 or more"),
        (["--workers", "-1"], "--workers -1: expected 0 or more"),
        (["--rate", "nan"], "--rate nan: expected 0 or more"),
        (["--hold", "3"], "--hold 3.0: expected 0 or more, at most 1"),
        (["--steps", "-3"], "--steps -3: expected 1 or more"),
        (["--init", "nano", "--model", "vit_b"], "--init nano is a nano; leave out --model vit_b"),
        (["--minutes", "1"], "--minutes is for packs"),
        (["--resume"], "--resume is for packs (--preset nano); "),
        (["--dtype", "float16"], "--dtype float16 does not apply here; training takes --precision"),
        (["--minutes", "nan"], "nan: expected more than 0"),
        (["--preset", "nano", "--steps", "-4"], "--steps -4: expected 1 or more"),
        (["--preset", "nano", "--rate", "nan"], "--rate nan: expected 0 or more"),
    ],
)
def test_flags_that_cannot_be_are_wrong_usage(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    base = ["matte", "--preset", "test", "--data", str(own), "--output", str(tmp_path / "run")]
    assert cli.main([*base, *flags, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_print_config_names_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["matte", "--preset", "paper", "--gradient", "5", "--print-config"]) == 0
    out = capsys.readouterr().out
    assert "steps = 500000" in out
    assert "Sec. 5.1" in out
    assert "gradient = 5.0" in out
    assert cli.main(["converter", "--preset", "paper", "--print-config", "--json"]) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    assert (config["rate"], config["sga"], config["stl"], config["size"]) == (1e-3, 0.5, 0.5, 1024)


def test_help_says_whose_values_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["matte", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "those of the preset default (with --init it is finetune, for packs nano" in shown
    assert "--print-config shows those in force" in shown
    default = PRESETS["default"]
    assert f"times rate [{default.new_rate}]" in shown
    assert f"sam:PATH, or none [{default.init}]" in shown
    assert "empty for the model's [Eq. 5]" in shown
    assert "prompt_encoder --freeze-norm" in shown  # no default, no brackets
    assert cli.main(["--help"]) == 0
    assert "``" not in capsys.readouterr().out


def test_packs_have_settings_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nano = ["matte", "--preset", "nano", "--rate", "0.002"]
    assert cli.main([*nano, "--scenes", "64", "--print-config", "--json"]) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    assert (config["rate"], config["scenes"], config["ema"]) == (0.002, 64, 0.998)
    run = ["--data", str(tmp_path), "--output", str(tmp_path / "run")]
    assert cli.main([*nano, *run, "--batch", "3", "--held-out", "0.1"]) == 2
    assert "does not take --batch, --held-out; it takes --init" in capsys.readouterr().err
    assert cli.main([*nano, *run, "--config", "run.json"]) == 2
    assert "does not take --config" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "bfloat16"}, "precision is 'bfloat16'; expected auto, bf16, float32"),
        ({"batch": "4"}, "batch is '4'; expected int"),
        ({"speed": 1}, "unknown setting 'speed'"),
    ],
)
def test_a_config_file_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, object], message: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    base = ["matte", "--preset", "test", "--config", str(path), "--print-config"]
    assert cli.main(base) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_train(own: Path, tmp_path: Path, launcher: str) -> None:
    """Two processes on the CPU; one goes on from their checkpoint with the same pictures."""
    # accelerate launch --cpu starts one process without MPI; --multi_gpu is its torchrun
    accelerate = ["--multi_gpu", "--num_machines", "1", "--num_processes"]
    launch = {
        "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "-m"],
        "accelerate": ["accelerate.commands.launch", *accelerate, "2", "--module"],
    }[launcher]
    flags = ["matte", "--preset", "test", "--data", str(own), "--steps", "6", "--device", "cpu"]
    flags += ["--freeze-norm", "--corrections", "0.5", "--json"]
    out = tmp_path / "run"
    flags += ["--save-every", "3", "--log-every", "1", "--output", str(out), "--threads", "1"]
    command = [sys.executable, "-m", *launch, "zim_training.cli", *flags]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert json.loads(done.stdout)["metrics"]["steps"] == 6  # one of them reports
    assert json.loads((out / "env.json").read_text())["processes"] == 2
    lines = _lines(out)
    assert lines[-1]["step"] == 6
    shutil.copy(out / "checkpoints" / "step_0000003.pt", out / "last.pt")
    assert cli.main(flags) == 0
    assert json.loads((out / "env.json").read_text())["processes"] == 1
    two, one = ([r["loss"] for r in some if r.get("loss")] for some in (lines, _lines(out)))
    assert two[:3] == one[:3]
    assert one[3:] == pytest.approx(two[3:], rel=1e-3)  # of the whole batch


@pytest.mark.slow
def test_two_processes_stop_at_one_step(own: Path, tmp_path: Path) -> None:
    """The second process alone is told to end; both save and go on as if nothing had happened."""
    script = tmp_path / "told.py"
    script.write_text(
        "import os, signal, sys\n"
        "from zim_training import cli, loop\n"
        "from zim_training.matting.task import MatteTask\n"
        "loop.AGREE_EVERY = 2\n"
        "loss, calls = MatteTask.loss, [0]\n"
        "def told(*args):\n"
        "    calls[0] += 1\n"
        "    if calls[0] == 3 and os.environ['RANK'] == '1' and 'cut' in os.environ:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    return loss(*args)\n"
        "MatteTask.loss = told\n"
        "raise SystemExit(cli.main(sys.argv[1:]))\n"
    )
    flags = ["matte", "--preset", "test", "--data", str(own), "--steps", "6", "--log-every", "3"]
    flags += ["--device", "cpu", "--threads", "1", "--output"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    for name, mark in (("whole", {}), ("run", {"cut": "1"}), ("run", {})):
        command = [*launch, *flags, str(tmp_path / name)]
        environment = os.environ | mark
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert bool(done.returncode) == bool(mark), done.stderr
        if mark:
            assert done.stderr.count("zim-train: terminated at step 4, which is saved") == 1
            assert torch.load(tmp_path / name / "last.pt", weights_only=True)["step"] == 4
    whole, run = (_lines(tmp_path / name) for name in ("whole", "run"))
    for one, two in zip(whole, run, strict=True):
        assert two.pop("kind") == one.pop("kind")
        assert two == pytest.approx(one, rel=1e-6)


@pytest.mark.slow
def test_the_whole_chain(tmp_path: Path) -> None:
    collection = ROOT.parent / "shared" / "data"
    if not (collection / "index.csv").is_file():
        pytest.skip(f"no image collection at {collection}")
    script = runpy.run_path(str(ROOT / "benchmarks" / "training_chain.py"))
    start = time.monotonic()
    got = script["chain"](collection, tmp_path, converter_steps=200, matte_steps=120, pictures=16)
    assert time.monotonic() - start < 600
    assert got["converter"]["matte"]["mse"] < got["converter"]["matte"]["mse_label"]
    for run in ("converter_loss", "matte_loss"):
        assert np.mean(got[run][-3:]) < np.mean(got[run][:3])
    assert got["convert"]["mattes"] > 20
    assert got["matte"]["box_mse"] < got["matte"]["start_box_mse"]
    assert zim.load(got["model"]).config.name == "tiny"


@pytest.mark.slow
def test_two_processes_make_one_table(own: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    words = ["ablate", "--table", "8a", "--tiny", "--max-steps", "1", "--data", str(own), "--json"]
    words += ["--output", str(tmp_path), "--device", "cpu", "--threads", "1"]
    for _ in range(2):  # trained, and once more from what is there
        command = [*launch, "zim_training.cli", *words]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120)
        scores = json.loads(done.stdout)["metrics"]
        assert json.loads((tmp_path / "table.json").read_text()) == scores
        assert list(scores) == ["sigma 11", "sigma 21", "sigma 41"]


@pytest.mark.slow
def test_ablation_trains_every_row_once(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ablate", "--table", "4a", "--tiny", "--max-steps", "2", "--data", str(own)]
    words += ["--output", str(tmp_path), "--device", "cpu", "--json"]
    assert cli.main(words) == 0
    scores = json.loads(capsys.readouterr().out)["metrics"]
    assert list(scores) == ["neither", "masked attention", "pixel decoder", "both"]
    kinds = {name: zim.load(tmp_path / name.replace(" ", "_") / "export").config for name in scores}
    assert kinds["neither"].decoder.pixel_decoder == "sam"
    assert kinds["both"].decoder.pixel_decoder == "hierarchical"
    assert kinds["pixel decoder"].attention.mode == "none"
    states = {n: (tmp_path / n.replace(" ", "_") / "last.pt").stat().st_mtime_ns for n in scores}
    assert cli.main(words) == 0  # nothing is trained twice
    assert json.loads(capsys.readouterr().out)["metrics"] == scores
    again = {n: (tmp_path / n.replace(" ", "_") / "last.pt").stat().st_mtime_ns for n in scores}
    assert again == states
