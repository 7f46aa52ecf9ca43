"""Work spread over threads: everything once, torch's threads shared out and given back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import zim
from zim.model.fast import plain_forms, plain_requested
from zim.parallel import each, processors, spread
from zim.testing import TINY_NANO, picture, tiny_model


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_every_job_once_with_half_of_the_threads() -> None:
    seen: list[Any] = []
    meet = threading.Barrier(2)

    def work(job: int) -> None:
        if job < 2:
            meet.wait(30)  # passes only when two jobs run at once
        torch.ones(1 << 18).add_(1)
        seen.append((job, torch.get_num_threads(), processors(), plain_requested()))

    with plain_forms():
        spread(work, range(5))
    assert sorted(seen) == [(job, 1, 1, True) for job in range(5)]
    assert (torch.get_num_threads(), processors()) == (2, 2)
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]


@pytest.mark.usefixtures("two_threads")
def test_workers_are_in_the_callers_modes_of_torch() -> None:
    seen: list[Any] = []

    def work(job: int) -> None:
        modes = (torch.is_inference_mode_enabled(), torch.is_grad_enabled())
        seen.append((*modes, (torch.ones(2, 2) @ torch.ones(2, 2)).dtype))

    with torch.inference_mode():
        spread(work, range(2))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        spread(work, range(2))
    spread(work, range(2))
    assert seen[::2] == seen[1::2]
    assert seen[::2] == [
        (True, False, torch.float32),
        (False, False, torch.bfloat16),
        (False, True, torch.float32),
    ]


@pytest.mark.usefixtures("two_threads")
def test_opencv_has_one_thread_meanwhile_however_many_callers_there_are() -> None:
    before, seen = cv2.getNumThreads(), []
    cv2.setNumThreads(2)
    meet, first_ends = threading.Barrier(2), threading.Event()

    def first(job: int) -> None:
        if job == 0:
            meet.wait(30)  # the other caller has begun, too

    def second(job: int) -> None:
        if job == 0:
            meet.wait(30)
            first_ends.wait(30)
            seen.append(cv2.getNumThreads())

    try:
        thread = threading.Thread(target=spread, args=(second, range(2)))
        thread.start()
        spread(first, range(2))
        seen.append(cv2.getNumThreads())
        first_ends.set()
        thread.join()
        assert (seen, cv2.getNumThreads()) == ([1, 1], 2)
    finally:
        cv2.setNumThreads(before)


@pytest.mark.usefixtures("two_threads")
def test_the_first_error_is_raised_and_ends_it() -> None:
    done: list[int] = []

    def work(job: int) -> None:
        if job == 0:
            raise ValueError("job 0")
        done.append(job)
        time.sleep(0.001)

    with pytest.raises(ValueError, match="job 0"):
        spread(work, range(10_000))
    assert len(done) < 9_999


@pytest.mark.usefixtures("two_threads")
@pytest.mark.timeout(60)
def test_jobs_that_end_at_once_do_not_leave_it_waiting() -> None:
    """A worker may still be on its way when all is done, or the first job has failed."""
    for _ in range(100):
        spread(lambda job: None, range(2))
        with pytest.raises(ZeroDivisionError):
            spread(lambda job: 1 // 0, range(2))
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_parts_of_what_is_spread_are_not_spread_again() -> None:
    assert each(lambda job: (job, processors()), range(3)) == [(job, 1) for job in range(3)]
    outer: list[list[int]] = each(lambda job: each(lambda _: threading.get_ident(), [0, 1]), [0, 1])
    assert all(len(set(threads)) == 1 for threads in outer)


def test_a_batch_hardly_longer_than_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirteen crops on four processors: some halves of the last parts are empty."""
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        predictor = zim.ZimPredictor(tiny_model(TINY_NANO))
        predictor.set_image(picture(96, 128))
        for count in (13, 15):
            boxes = [{"box": (5 + k, 6, 40 + k, 50)} for k in range(count)]
            assert len(predictor.predict_batch(boxes)[0]) == count
    finally:
        torch.set_num_threads(before)


def test_one_thread_works_in_order_where_it_is() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        names: list[tuple[int, int]] = []
        spread(lambda job: names.append((job, threading.get_ident())), range(3))
    finally:
        torch.set_num_threads(before)
    assert names == [(job, threading.get_ident()) for job in range(3)]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("config", "size", "tolerance"),
    [(TINY_NANO, (301, 397), 1e-4), ("nano", (131, 223), 1e-3)],
    ids=["tiny_nano", "nano"],
)
def test_a_batch_over_threads_equals_one_by_one(
    config: Any, size: tuple[int, int], tolerance: float
) -> None:
    """Boxes, clicks, both, masks and nothing at all, on a picture of odd sides."""
    height, width = size
    predictor = zim.ZimPredictor(tiny_model(config))
    predictor.set_image(picture(height, width))
    mask = np.zeros(size, np.float32)
    mask[20:60, 20:70] = 1
    prompts: list[dict[str, Any]] = [
        {"box": (10, 12, 51, 60)},
        {"points": [(60, 41, 1)]},
        {"box": (30, 21, 99, 64), "points": [(50, 40, 1), (35, 25, 0)]},
        {},
        {"box": (15, 15, 75, 70), "mask": mask},
        {"box": (100, 50, 121, 81)},
    ]
    together = predictor.predict_batch(prompts)
    for i, prompt in enumerate(prompts):
        alone = predictor.predict_batch([prompt])
        np.testing.assert_allclose(together[0][i], alone[0][0], atol=tolerance)
        np.testing.assert_allclose(together[1][i], alone[1][0], atol=tolerance)
        np.testing.assert_allclose(together[2][i], alone[2][0], atol=10 * tolerance)
