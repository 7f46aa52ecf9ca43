import asyncio
import threading
import time

import numpy as np
import pytest

from zim._progress import track
from zim.serve.cache import Cache, Entry, embedding_id
from zim.serve.engine import Engine
from zim.serve.problems import Problem
from zim.serve.schemas import AutoBody, MatteBody
from zim.serve.service import Service
from zim.serve.settings import Settings
from zim.serve.worker import Job, Lane


@pytest.fixture
def lane():
    made = Lane("test", 4)
    yield made
    made.close()


def blocked(lane: Lane) -> threading.Event:
    """Keep the lane's thread busy until the event is set."""
    gate, begun = threading.Event(), threading.Event()
    lane.submit(Job(lambda _: [begun.set() or gate.wait(10)], None))
    assert begun.wait(5)
    return gate


def test_jobs_of_one_group_share_a_run_and_keep_their_answers(lane):
    seen = []

    def run(values):
        seen.append(list(values))
        return [10 * v for v in values]

    gate = blocked(lane)
    groups = "abaa"
    futures = [lane.submit(Job(run, i, group)) for i, group in enumerate(groups)]
    gate.set()
    assert [f.result(5) for f in futures] == [0, 10, 20, 30]
    assert seen == [[0, 2, 3], [1]]


def test_the_queue_is_bounded_whatever_the_groups(lane):
    gate = blocked(lane)
    for turn in range(4):
        lane.submit(Job(lambda values: list(values), turn, turn))
    with pytest.raises(Problem) as refused:
        lane.submit(Job(lambda values: list(values), 9, 9))
    assert refused.value.status == 429
    gate.set()


def test_a_request_is_queued_as_a_whole_and_takes_one_place(lane):
    gate = blocked(lane)
    futures = []
    for turn in range(4):
        jobs = [Job(lambda values: list(values), n, turn) for n in range(32)]
        lane.submit(*jobs)
        futures += [job.future for job in jobs]
    assert lane.waiting == 4
    more = [Job(lambda values: list(values), n) for n in range(2)]
    with pytest.raises(Problem):
        lane.submit(*more)
    gate.set()
    assert [f.result(5) for f in futures] == 4 * list(range(32))
    assert lane.waiting == 0
    assert not any(job.future.done() for job in more)


def test_held_jobs_count_as_waiting(lane):
    first, second = threading.Event(), threading.Event()
    gate = blocked(lane)
    lane.submit(Job(lambda v: [first.set() or second.wait(10)], 0, "first"))
    for turn in range(3):
        lane.submit(Job(lambda values: list(values), turn, turn))
    gate.set()
    assert first.wait(5)
    assert lane.waiting == 3
    second.set()


def test_memory_is_handed_back_in_pauses_and_at_the_latest_after_many_jobs(lane, monkeypatch):
    tidied, done = threading.Event(), []
    monkeypatch.setattr("zim.serve.worker.give_memory_back", lambda: (done.append(1), tidied.set()))
    monkeypatch.setattr("zim.serve.worker.PAUSE", 60)
    monkeypatch.setattr("zim.serve.worker.LATEST", 25)

    def work(count: int) -> None:
        for _ in range(count):
            lane.submit(Job(lambda _: [0], None)).result(5)

    work(12)
    assert not done  # no pause yet
    work(14)
    assert len(done) == 1  # after 25 jobs it is no longer put off
    tidied.clear()
    monkeypatch.setattr("zim.serve.worker.PAUSE", 0.01)
    assert not tidied.wait(0.2)  # a pause, but after one job only
    work(12)
    assert tidied.wait(5)


def test_a_bad_job_fails_alone(lane):
    def run(values):
        if 1 in values:
            raise ValueError("one")
        return list(values)

    gate = blocked(lane)
    futures = [lane.submit(Job(run, i, "same")) for i in range(3)]
    gate.set()
    assert futures[0].result(5) == 0
    assert futures[2].result(5) == 2
    with pytest.raises(ValueError, match="one"):
        futures[1].result(5)


def test_a_job_nobody_waits_for_is_dropped(model):
    engine = Engine(Settings(models=("tiny",)), {"tiny": model})
    ran = []
    gate = blocked(engine.long_lane)
    service = Service(engine)

    async def impatient() -> None:
        await service.wait(engine.long(lambda: ran.append(1)), 0.05)

    with pytest.raises(Problem) as refused:
        asyncio.run(impatient())
    assert refused.value.status == 429
    gate.set()
    engine.close()
    assert ran == []


def test_an_automatic_search_ends_when_nobody_waits_for_it_any_more(model, png, monkeypatch):
    engine = Engine(Settings(models=("tiny",)), {"tiny": model})
    service, begun, seen = Service(engine), threading.Event(), []

    def search(self, points):
        for turn in track(range(1000), "searching"):
            begun.set()
            seen.append(turn)
            time.sleep(0.01)
        return []

    monkeypatch.setattr("zim.click_search.ClickSearch.run", search)

    async def impatient() -> None:
        task = asyncio.ensure_future(service.auto(AutoBody.model_validate({"image": png})))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(impatient())
    assert engine.long(lambda: "free").result(5) == "free"
    assert len(seen) < 500
    service.close()
    engine.close()


def test_mattes_that_would_take_too_much_memory_together_are_refused(model, png, monkeypatch):
    engine = Engine(Settings(models=("tiny",)), {"tiny": model})
    service = Service(engine)
    clicks = [{"points": [[5, 5]]}] * 4
    sent = {"image": png, "objects": clicks}
    height, width = engine.open(png, "tiny").size
    monkeypatch.setattr("zim.serve.service.ANSWER_PIXELS", 6 * height * width)
    with pytest.raises(Problem, match=r"12 mattes of .* expected at most 6") as refused:
        asyncio.run(service.matte(MatteBody.model_validate(sent | {"candidates": 3})))
    assert refused.value.status == 422
    for other in ({"candidates": 1}, {"candidates": 3, "preview": True}):
        answer = asyncio.run(service.matte(MatteBody.model_validate(sent | other)))
        assert isinstance(answer, dict)
        assert len(answer["objects"]) == 4
    service.close()
    engine.close()


def test_full_size_files_do_not_hold_up_clicks(model, png):
    engine = Engine(Settings(models=("tiny",), queue=1, long_timeout=5), {"tiny": model})
    service, gate = Service(engine), threading.Event()
    for _ in range(2):
        service.slow.pool.submit(gate.wait, 10)
    body = {"image": png, "objects": [{"points": [[5, 5]]}, {"box": [1, 1, 9, 9]}], "preview": True}
    answer = asyncio.run(service.matte(MatteBody(**body)))
    assert isinstance(answer, dict)
    assert len(answer["objects"]) == 2
    gate.set()
    service.close()
    engine.close()


def entry(number: int, worker: int = 0) -> Entry:
    return Entry(str(number), "tiny", np.zeros((10, 10, 3), np.uint8), None, worker)


def test_the_least_recently_used_goes_first():
    cache = Cache(900)
    for number in range(3):
        cache.put(entry(number))
    assert cache.get("0") is not None
    cache.put(entry(3))
    assert cache.get("1") is None
    assert all(cache.get(k) is not None for k in "023")
    assert cache.nbytes == 900
    assert cache.evicted == 1


def test_ids_depend_on_model_and_content():
    ids = {embedding_id(m, d) for m in ("a", "b") for d in (b"x", b"y")}
    assert len(ids) == 4
    assert embedding_id("a", b"x") == embedding_id("a", b"x")


def test_prompts_that_arrive_together_equal_those_that_come_alone(model, png):
    engine = Engine(Settings(models=("tiny",), workers=2), {"tiny": model})
    opened = engine.open(png, "tiny")
    prompts = [{"points": [(x, 20, 1)]} for x in (10, 30, 50)]
    asked = [engine.prompt(opened, p, "full") for p in prompts]
    alone = [engine.ask(opened, [(p, 1)], "full")[0].result(20).mattes for p in asked]
    before = sum(lane.batched for lane in engine.lanes)
    gate = blocked(engine.lanes[opened.worker])
    futures = [engine.ask(opened, [(p, 1)], "full")[0] for p in asked]
    gate.set()
    for future, matte in zip(futures, alone, strict=True):
        assert np.abs(future.result(20).mattes - matte).max() < 1e-4
    assert sum(lane.batched for lane in engine.lanes) == before + 1
    engine.close()


def test_a_large_picture_is_answered_small_while_clicking(model):
    engine = Engine(Settings(models=("tiny",)), {"tiny": model})
    large = Entry("k", "tiny", np.zeros((1000, 2560, 3), np.uint8), None, 0)
    prompt = engine.prompt(
        large, {"points": [(2559, 999, 1)], "box": (0, 0, 2560, 1000)}, "preview"
    )
    assert prompt.box is not None
    assert prompt.box.tolist() == [0, 0, 1280, 500]
    assert prompt.points.tolist() == [[1279.25, 499.25]]
    start = time.perf_counter()
    whole = engine.prompt(large, {}, "preview")
    (answer,) = engine.ask(large, [(whole, 1)], "preview")
    assert answer.result(60).mattes.shape == (1, 500, 1280)
    assert time.perf_counter() - start < 60
    engine.close()
