"""``zim bench``: every stage measured in a process of its own, with a tiny random model."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zim import benchmark, benchmarking, memory, processor
from zim.benchmark import IMPORTS, UNITS, Case
from zim.cli import main

SIZE = (1000, 750)
BATCHES = (6, 1)  # the large one first: nothing of it may be seen in the small one
PROMPTS = (1, 3)
MATTE_MIB = SIZE[0] * SIZE[1] * 4 / 2**20
STEPS = [("preprocess", None), ("encode", None), ("decode", 1), ("decode", 3), ("enlarge", 1)]
STEPS.append(("matte", 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measure once: the machine need not be quiet, but starting interpreters takes seconds."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        # importing torch afresh is what the real rows do; a small package shows the same
        patch.setattr(benchmark, "IMPORTS", (*IMPORTS[:1], ("import json", "import json")))
        words = ["--models", "tiny", "--devices", "cpu", "--dtypes", "float32", "--threads", "1"]
        words += ["--size", f"{SIZE[0]}x{SIZE[1]}", "--repeats", "2", "--warmup", "1"]
        words += ["--batches", *map(str, BATCHES), "--prompts", *map(str, PROMPTS)]
        code = main(["bench", *words, "--output", str(folder / "bench.json")])
    assert code == 0
    return folder


@pytest.fixture(scope="module")
def data(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "bench.json").read_text())


def of(data: dict[str, Any], batch: int | None) -> list[dict[str, Any]]:
    return [row for row in data["rows"] if row["batch"] == batch]


@pytest.mark.parametrize("batch", BATCHES)
def test_all_stages_are_measured_in_order(data: dict[str, Any], batch: int) -> None:
    rows = of(data, batch)
    assert [(row["stage"], row["prompts"]) for row in rows] == STEPS
    for row in rows:
        assert row["error"] is None
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
        assert (row["model"], row["device"], row["dtype"]) == ("tiny", "cpu", "float32")
        assert row["unit"] == UNITS[row["stage"]]
        # throughput is the number of results of one call over its median time
        assert row["count"] == batch * (row["prompts"] or 1)
        assert math.isclose(row["per_second"] * row["median_s"], row["count"], rel_tol=1e-6)


def test_the_json_has_the_promised_keys(data: dict[str, Any], folder: Path) -> None:
    assert {"outputs", "seconds", "model", "metrics", "rows", "hardware", "hardware_line"} <= set(
        data
    )
    assert data["model"] == "tiny"
    assert data["outputs"] == {"report": str(folder / "bench.json")}
    assert data["size"] == list(SIZE)
    assert data["hardware"]["threads"] == 1
    assert {"commit", "date", "command"} <= set(data)
    assert set(data["hardware"]["cpu_flags"]) <= set(processor.CPU_FLAGS)
    assert data["hardware"]["torch"] in data["hardware_line"]
    for row in data["rows"]:
        assert tuple(row) == benchmark.COLUMNS


def test_models_without_weights_are_called_random(data: dict[str, Any]) -> None:
    assert {row["weights"] for row in of(data, 1)} == {"random weights"}
    assert "tiny (random weights)" in "\n".join(benchmark.table(data["rows"]))


def test_imports_are_rows(data: dict[str, Any]) -> None:
    rows = of(data, None)
    assert [row["stage"] for row in rows] == ["import zim", "import json"]
    assert all(0 < row["median_s"] < 60 for row in rows)


def test_what_the_import_rows_are() -> None:
    assert [name for name, _ in IMPORTS] == ["import zim", "import torch", "zim --help"]


def test_help_is_timed_as_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "IMPORTS", IMPORTS[2:])
    start = time.perf_counter()
    (row,) = benchmark.import_rows(warmup=0, repeats=1, threads=1)
    assert row["stage"] == "zim --help"
    assert 0.005 < row["median_s"] < time.perf_counter() - start


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@linux
def test_a_case_does_not_inherit_the_memory_of_the_one_before(data: dict[str, Any]) -> None:
    big, small = (
        max(row["peak_rss_mib"] for row in of(data, batch) if row["stage"] == "enlarge")
        for batch in BATCHES
    )
    # six float32 maps of logits (turned into mattes in place) and the pictures against one
    assert big - small > 5 * MATTE_MIB


@linux
def test_peaks_start_over_with_every_stage(data: dict[str, Any]) -> None:
    rows = of(data, BATCHES[0])
    if any(row["peak_of"] == "process" for row in rows):
        pytest.skip("this system cannot start a peak over")
    for row in rows:
        assert row["held_rss_mib"] <= row["peak_rss_mib"]
    peaks = {row["stage"]: row["peak_rss_mib"] for row in rows}
    held = {row["stage"]: row["held_rss_mib"] for row in rows}
    # what enlarging took was given back and forgotten
    assert held["matte"] < peaks["enlarge"] - 4 * MATTE_MIB


@linux
def test_a_peak_can_be_started_over_where_the_system_allows_it() -> None:
    memory.give_memory_back()  # or the block fits into what earlier tests left behind
    if not memory.reset_peak():
        pytest.skip("this system cannot start a peak over")
    before = memory.peak_resident()
    block = bytearray(b"x") * (64 << 20)
    high = memory.peak_resident()
    del block
    memory.give_memory_back()
    assert memory.reset_peak()
    low = memory.peak_resident()
    assert before is not None
    assert high is not None
    assert low is not None
    assert high - before > 60 << 20
    assert high - low > 60 << 20


def case(**changes: Any) -> Case:
    values: dict[str, Any] = {
        "model": "tiny", "device": "cpu", "dtype": "float32", "batch": 1, "prompts": (1, 8),
        "size": (64, 48), "stages": tuple(UNITS), "repeats": 1, "warmup": 0, "threads": 1,
    }  # fmt: skip
    return Case(**values | changes)


def test_without_starting_over_every_stage_has_its_own_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Case] = []

    def run_case(one: Case) -> list[dict[str, Any]]:
        started.append(one)
        return [{"stage": stage, "prompts": prompts} for stage, prompts in one.steps()]

    monkeypatch.setattr(benchmark, "reset_peak", lambda: False)
    monkeypatch.setattr(benchmark, "run_case", run_case)
    rows = list(benchmark.run([case()]))
    assert len(started) == 6
    assert [(row["stage"], row["prompts"]) for row in rows] == case().steps()


def test_a_case_survives_the_way_through_json() -> None:
    import dataclasses

    one = case(stages=("decode",))
    assert Case.from_dict(json.loads(json.dumps(dataclasses.asdict(one)))) == one


def test_combinations_are_measured_once_each() -> None:
    same = {
        k: getattr(case(), k)
        for k in ("prompts", "size", "stages", "repeats", "warmup", "threads")
    }  # fmt: skip
    cases = benchmark.plan(["a", "b", "a"], ["cpu"], ["float32", "bfloat16"], [1, 1], **same)
    assert [(c.model, c.dtype) for c in cases] == [
        ("a", "float32"), ("a", "bfloat16"), ("b", "float32"), ("b", "bfloat16"),
    ]  # fmt: skip


def failing(one: Case) -> list[dict[str, Any]]:
    if one.batch == 8:
        raise benchmark.BenchError("the measuring process was ended by signal 9")
    done = dict.fromkeys(("median_s", "min_s", "max_s", "per_second"), 0.5)
    return [{"stage": "encode", "model": one.model, "batch": one.batch, "unit": "images"} | done]


def test_a_case_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "run_case", failing)
    words = ["bench", "--models", "tiny", "--stages", "encode", "--device", "cpu", "--json"]
    assert main([*words, "--batches", "8", "1"]) == 1
    streams = capsys.readouterr()
    data = json.loads(streams.out)
    assert [row["error"] is None for row in data["rows"]] == [False, True]
    assert data["error"] == "1 of 2 measurements failed"
    assert streams.err == (
        "zim bench: tiny cpu auto batch 8, start: the measuring process was ended by signal 9\n"
    )
    assert main([*words[:-1], "--batches", "8"]) == 1  # nothing at all was measured
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["--models", "nonesuch"], 2, "unknown model 'nonesuch'"),
        (["--models", "sam_vit_b"], 2, "is for zim matte, batch and eval"),
        (["--repeats", "0"], 2, "whole number of at least 1"),
        (["--warmup", "-1"], 2, "whole number of at least 0"),
        (["--size", "1024"], 2, "not WIDTHxHEIGHT"),
        (["--size", "8x8"], 2, "sides of at least 16"),
        (["--size", "99999x99999"], 2, "million pixels"),
        (["--stages", "decoding"], 2, "not one of import, preprocess, encode, decode"),
        (["--dtypes", "int8"], 2, "'int8' is unknown; expected auto, float32"),
        (["--devices", "tpu"], 1, "device 'tpu' is unknown"),
        (["--device", "cpu", "--devices", "cpu"], 2, "use one of them"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == code
    streams = capsys.readouterr()
    assert streams.out == ""
    assert expected in streams.err
    assert streams.err.count("\n") == 1


def test_an_existing_file_is_seen_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "run", lambda _: pytest.fail("measured"))
    there = tmp_path / "there.json"
    there.write_text("{}")
    assert main(["bench", "--output", str(there)]) == 1
    assert "exists; use --overwrite" in capsys.readouterr().err
    assert main(["bench", "--output", str(there), "--skip-existing"]) == 0
    assert there.read_text() == "{}"


def test_the_help_names_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"some of {', '.join(benchmark.STAGES)} [all]" in text


def test_times_are_those_of_the_counted_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    lasts = iter([7.0, 2.0, 1.0, 4.0])  # the first is the warm-up
    now = 0.0

    def work() -> None:
        nonlocal now
        now += next(lasts)

    monkeypatch.setattr(benchmarking, "time", SimpleNamespace(perf_counter=lambda: now))
    assert benchmarking.sample_times(work, warmup=1, repeats=3) == [2.0, 1.0, 4.0]
    lasts = iter([2.0, 1.0, 4.0])
    assert benchmarking.median_time(work, warmup=0, repeats=3) == 2.0


@linux
def test_flags_are_the_kernels() -> None:
    text = Path("/proc/cpuinfo").read_text().split()
    assert set(processor.cpu_flags()) == set(processor.CPU_FLAGS) & set(text)


def test_markdown() -> None:
    lines = benchmarking.markdown_table(["name", "ms"], [["a|b", "1,234.5"], ["c", None]])
    assert lines == [
        "| name |      ms |",
        "| ---- | ------: |",
        "| a\\|b | 1,234.5 |",
        "| c    |         |",
    ]
