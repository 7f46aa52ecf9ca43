"""Conversion: true-format tars in, the same shards out whatever happens on the way."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from zim.rle import encode_coco
from zim_training import cli
from zim_training.convert.config import ConvertConfig
from zim_training.convert.engines import share_of_rank
from zim_training.convert.shard import convert_masks, convert_record
from zim_training.converter.model import Converter, ConverterOutput
from zim_training.data.sa1b import Record, choose, read_tar
from zim_training.data.shards import ShardSet

SIZE = 32


def put(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, BytesIO(data))


def record(number: int, masks: int = 3) -> tuple[bytes, dict]:
    rng = np.random.default_rng(number)
    rgb = cv2.resize(rng.integers(0, 255, (5, 6, 3), dtype=np.uint8), (120, 90))
    annotations = []
    for k in range(masks):
        mask = np.zeros((90, 120), np.uint8)
        cv2.circle(mask, (int(rng.integers(20, 100)), int(rng.integers(20, 70))), 10 + 3 * k, 1, -1)
        x, y, w, h = cv2.boundingRect(mask)
        annotations.append(
            {
                "id": number * 100 + k,
                "segmentation": encode_coco(mask > 0),
                "bbox": [x, y, w, h],
                "area": int(mask.sum()),
                "predicted_iou": 0.9,
                "stability_score": 0.95,
                "crop_box": [0, 0, 120, 90],
                "point_coords": [[x + w / 2, y + h / 2]],
            }
        )
    done, jpeg = cv2.imencode(".jpg", rgb)
    assert done
    name = f"sa_{number}.jpg"
    image = {"image_id": number, "width": 120, "height": 90, "file_name": name}
    return jpeg.tobytes(), {"image": image, "annotations": annotations}


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tars; the first has broken records among good ones."""
    folder = tmp_path_factory.mktemp("sa1b")
    for shard in range(4):
        with tarfile.open(folder / f"sa_{shard:06d}.tar", "w") as tar:
            pairs = [(shard * 10 + k, *record(shard * 10 + k)) for k in range(3)]
            for number, jpeg, _ in reversed(pairs):  # pictures first, in another order
                put(tar, f"./sa_{number}.jpg", jpeg)
            for number, _, meta in pairs:
                put(tar, f"./sa_{number}.json", json.dumps(meta).encode())
            if shard == 0:
                jpeg, meta = record(7)
                put(tar, "sa_7.jpg", jpeg[:200])
                put(tar, "sa_7.json", json.dumps(meta).encode())
                put(tar, "sa_8.jpg", jpeg)
                meta["annotations"][0]["segmentation"]["counts"] = "!!"
                put(tar, "sa_8.json", json.dumps(meta).encode())
                put(tar, "sa_9.json", b"{}")
    return folder


@pytest.fixture(scope="module")
def converter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return Converter("tiny").save_pretrained(tmp_path_factory.mktemp("converter"))


def convert(tars: list[Path], converter: Path, out: Path, *more: str) -> int:
    flags = ["--converter", str(converter), "--output", str(out), "--size", str(SIZE)]
    flags += ["--device", "cpu", "--json"]
    return cli.main(["convert", *map(str, tars), *flags, *more])


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tars: Path, converter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert convert([tars], converter, out) == 0
    return out


def test_counts_quarantine_and_masks(whole: Path, tars: Path) -> None:
    done = json.loads((whole / "sa_000000.done.json").read_text())
    assert (done["images"], done["mattes"], done["quarantined"]) == (4, 11, 3)
    reasons = dict(done["quarantine"])
    assert set(reasons) == {"sa_7", "sa_8", "sa_9"}
    assert "annotation 700" in reasons["sa_8"]
    assert "no .jpg" in reasons["sa_9"]
    shards = ShardSet(whole)
    assert len(shards) == 13
    originals = {}
    for path in sorted(tars.glob("*.tar")):
        originals |= {r.stem: r for r in read_tar(path) if isinstance(r, Record)}
    for number in range(len(shards)):
        sample = shards.read(number)
        source = originals[sample.key]
        np.testing.assert_array_equal(sample.image(), source.image())
        by_id = {a["id"]: a for a in source.meta["annotations"]}
        for k, row in enumerate(sample.meta["mattes"]):
            mask = source.mask(by_id[row["ann_id"]])
            alpha = sample.alpha(k)
            assert alpha.shape == mask.shape
            overlap = ((alpha > 0.5) & mask).sum() / ((alpha > 0.5) | mask).sum()
            assert overlap >= 0.7  # the gate, whatever an untrained network says


# webdataset leaves the closing of its files to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_shards_are_what_webdataset_reads(whole: Path) -> None:
    wds = pytest.importorskip("webdataset")
    url = str(whole / "sa_000001.tar")
    samples = list(wds.WebDataset(url, shardshuffle=False, empty_check=False))
    gc.collect()
    assert [s["__key__"] for s in samples] == ["sa_10", "sa_11", "sa_12"]
    meta = json.loads(samples[0]["json"])
    assert sum(m["nbytes"] for m in meta["mattes"]) == len(samples[0]["mattes"])


def test_a_rerun_is_free_and_a_lost_shard_comes_back(
    whole: Path, tars: Path, converter: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = contents(whole)
    times = {p: p.stat().st_mtime_ns for p in whole.iterdir()}
    capsys.readouterr()
    assert convert([tars], converter, whole) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["skipped"] == 4
    assert {p: p.stat().st_mtime_ns for p in whole.iterdir()} == times
    (whole / "sa_000002.done.json").unlink()
    assert convert([tars], converter, whole) == 0
    assert contents(whole) == before
    capsys.readouterr()
    assert cli.main(["convert", "--verify", "--output", str(whole)]) == 0


def test_an_index_is_looked_after_and_a_shard_can_be_made_again(
    whole: Path, tars: Path, converter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    verify = ["convert", "--verify", "--output", str(out)]
    assert cli.main(verify) == 0
    index = out / "sa_000001.index.jsonl"
    for spoil in (index.unlink, lambda: index.write_text("", encoding="utf-8")):
        spoil()
        capsys.readouterr()
        assert cli.main(verify) == 1
        assert "sa_000001.tar: differs from its marker; convert it" in capsys.readouterr().out
        again = [] if not index.exists() else ["--overwrite"]
        assert convert([tars / "sa_000001.tar"], converter, out, *again) == 0
        assert contents(out) == contents(whole)
    marker = out / "sa_000002.done.json"  # as an earlier version wrote it
    done = json.loads(marker.read_text())
    del done["index_sha256"]
    marker.write_text(json.dumps(done))
    assert cli.main(verify) == 0
    assert cli.main(["convert", "--verify", "--output", str(tmp_path / "nowhere")]) == 1
    assert "holds no finished shard" in capsys.readouterr().err
    assert cli.main(["data", "check", str(out)]) == 1
    assert "holds SA1B-Matte shards; zim-train convert --verify" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("part", ["jpg", "json"])
def test_a_damaged_shard_is_named_on_one_line(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str, part: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for tar in out.glob("*.tar"):
        data = bytearray(tar.read_bytes())
        for line in tar.with_suffix(".index.jsonl").read_text().splitlines():
            start, size = json.loads(line)[part]
            data[start : start + size] = b"\xff" * size
        tar.write_bytes(data)
    words = ["matte", "--preset", "test", "--data", str(out), "--output", str(tmp_path / "run")]
    words += ["--workers", workers, "--eval-samples", "0", "--device", "cpu"]
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.fullmatch(r".*sa_00000\d.tar: (picture )?sa_\d+ is damaged .*again\n", error)
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--batch", "0"], 2, "--batch 0: expected 1 or more"),
        (["--masks-per-image", "-1"], 2, "--masks-per-image -1: expected 0 or more"),
        (["--fraction", "0"], 2, "--fraction 0.0: expected more than 0, at most 1"),
        (["--agree", "7"], 2, "--agree 7.0: expected 0 or more, at most 1"),
        (["--size", "65"], 2, "--size 65: expected a multiple of 32"),
        (["--engine", "ray", "--actors", "0"], 2, "'0' is not a whole number of at least 1"),
        (["--engine", "torchrun"], 2, "--engine torchrun is for processes that torchrun starts"),
        (["--dtype", "float16"], 2, "a conversion computes in float32"),
    ],
)
def test_wrong_flags_convert_nothing(
    tars: Path,
    converter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    code: int,
    message: str,
) -> None:
    assert convert([tars], converter, tmp_path / "out", *flags) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tar_of_which_nothing_can_be_used_is_a_failure(
    converter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "sa_000000.tar", "w") as tar:
        put(tar, "sa_1.json", b"{}")
    for _ in range(2):  # and stays one
        assert convert([tmp_path / "sa_000000.tar"], converter, tmp_path / "out") == 1
        captured = capsys.readouterr()
        assert "no picture could be used (1 set aside); sa_1: no .jpg" in captured.err
        assert json.loads(captured.out)["items"][0]["error"]


def test_masks_go_through_the_converter_in_passes_of_the_size_asked_for() -> None:
    passes = []

    class Copy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, image: torch.Tensor, label: torch.Tensor):
            passes.append(len(image))
            logits = 20 * (2 * label - 1)
            return ConverterOutput(logits, logits, logits)

    mask = np.zeros((80, 100), bool)
    mask[20:50, 30:60] = True
    rgb = np.zeros((80, 100, 3), np.uint8)
    convert_masks(Copy(), rgb, [mask] * 15, ConvertConfig(size=64, batch=12))
    assert passes == [12, 12]


def test_killed_in_the_middle(whole: Path, tars: Path, converter: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    out.mkdir()
    command = [sys.executable, "-m", "zim_training.cli", "convert", str(tars), "--device", "cpu"]
    command += ["--converter", str(converter), "--output", str(out), "--size", str(SIZE)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    # wait for work in progress: a finished shard, and a temporary file of the next
    while not (list(out.glob("*.done.json")) and list(out.glob(".*.tmp"))):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list(out.glob("*.done.json"))) < 4
    assert convert([tars], converter, out) == 0
    assert contents(out) == contents(whole)


def test_two_ranks_make_the_same(
    whole: Path, tars: Path, converter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert len(share_of_rank(["a", "b", "c", "d"])) == 2
        assert convert([tars], converter, tmp_path / "alone") == 2  # each would convert all
        assert not (tmp_path / "alone").exists()
        assert convert([tars], converter, tmp_path, "--engine", "torchrun") == 0
    assert contents(tmp_path) == contents(whole)


@pytest.mark.slow
def test_torchrun_and_ray_make_the_same(
    whole: Path, tars: Path, converter: Path, tmp_path: Path
) -> None:
    flags = ["convert", str(tars), "--converter", str(converter), "--size", str(SIZE)]
    flags += ["--device", "cpu", "--threads", "1"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    subprocess.run(
        [
            *launch,
            "zim_training.cli",
            *flags,
            "--engine",
            "torchrun",
            "--output",
            str(tmp_path / "t"),
        ],
        check=True,
    )
    assert contents(tmp_path / "t") == contents(whole)
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "zim_training.cli", *flags, "--engine", "ray"]
    subprocess.run([*command, "--actors", "2", "--output", str(tmp_path / "r")], check=True)
    assert contents(tmp_path / "r") == contents(whole)


def test_unusable_tars_are_one_line_and_the_others_go_on(
    tars: Path, converter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "sa_999999.tar"
    broken.write_bytes(b"no tar at all" * 100)
    out = tmp_path / "out"
    good = tars / "sa_000001.tar"
    assert convert([broken, good, tmp_path / "none.tar"], converter, out) == 1
    captured = capsys.readouterr()
    items = json.loads(captured.out)["items"]
    assert [bool(i["error"]) for i in items] == [True, False, True]
    assert "sa_999999.tar is no readable tar" in captured.err
    assert sorted(p.suffix for p in out.iterdir()) == [".json", ".jsonl", ".tar"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_full_disk_is_one_line_and_nothing_is_lost(
    tars: Path, converter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        assert convert([tars], converter, small) == 1
        captured = capsys.readouterr()
        assert "free space and start again" in captured.err
        assert "No space left" in captured.err
        first = json.loads((small / "sa_000000.done.json").read_text())
        assert first["mattes"] == 11
        assert not list(small.glob(".*.tmp"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_the_choice_of_masks_depends_on_nothing_else() -> None:
    annotations = [{"id": k, "area": 100} for k in range(50)] + [{"id": 99, "area": 3}]
    one = choose(annotations, "sa_1", 20, 0)
    assert [a["id"] for a in one] == [a["id"] for a in choose(annotations[::-1], "sa_1", 20, 0)]
    assert len(one) == 20
    assert one != choose(annotations, "sa_2", 20, 0)
    assert len(choose(annotations, "sa_1", 0, 0)) == 50


def test_an_answer_that_leaves_its_label_is_refused() -> None:
    class Inverse(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, image: torch.Tensor, label: torch.Tensor):
            logits = 20 * (1 - 2 * label)
            return ConverterOutput(logits, logits, logits)

    mask = np.zeros((80, 100), bool)
    mask[20:50, 30:60] = True
    rgb = np.zeros((80, 100, 3), np.uint8)
    (alpha, flags), *_ = convert_masks(Inverse(), rgb, [mask], ConvertConfig(size=64))
    assert flags == ("fallback",)
    np.testing.assert_array_equal(alpha, mask.astype(np.float32))
    jpeg, meta = record(1)
    mattes, broken = convert_record(Record("sa_1", jpeg, meta), Inverse(), ConvertConfig(size=64))
    assert [m.flags for m in mattes] == [("fallback",)] * 3
    assert not broken


def test_plan_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--plan", "--preset", "paper", "--rate", "100", "--matte-bytes", "8000", "--json"]
    assert cli.main(["convert", *flags]) == 0
    numbers = json.loads(capsys.readouterr().out)["metrics"]
    assert numbers["mattes"] == pytest.approx(2.238e6, rel=1e-3)  # 111,900 pictures times 20
    assert numbers["gpu_hours"] == pytest.approx(2.238e6 / 100 / 3600, abs=0.1)
    assert cli.main(["convert", "--plan"]) == 2


def test_a_plan_is_for_the_tars_that_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--plan", "--rate", "100", "--matte-bytes", "8000", "--json"]
    tar = tmp_path / "x.tar"
    assert cli.main(["convert", str(tar), *flags]) == 1
    assert f"{tar} does not exist" in capsys.readouterr().err
    tar.touch()
    assert cli.main(["convert", str(tmp_path), *flags]) == 0
    numbers = json.loads(capsys.readouterr().out)["metrics"]
    assert (numbers["source_tars"], numbers["images"]) == (1, 11190)
