"""The page in a real browser: the system's Chromium, driven by Playwright. Marked slow."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

import zim
from zim.serve.app import create_app
from zim.serve.settings import Settings
from zim.testing import served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:ResourceWarning"),
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    app = create_app(Settings(), models={"nano": zim.load("nano")})
    with served(app) as made:
        yield made


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with api.sync_playwright() as play:
        made = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    made = context.new_page()
    errors: list[str] = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    made.goto(address)
    made.wait_for_selector("body[data-ready]")
    yield made
    context.close()
    assert errors == []


def upload(page) -> None:
    page.set_input_files("#file", "examples/rabbit.jpg")
    until(page, "document.querySelector('#status').textContent.startsWith('Click on')")


def act(page, x: float, y: float, **options) -> None:
    """Click at a pixel of the picture and wait for the answer."""
    before = int(page.evaluate("document.body.dataset.answers || 0"))
    page.mouse.click(*spot(page, x, y), **options)
    wait(page, before)


def wait(page, before: int) -> None:
    until(page, f"Number(document.body.dataset.answers || 0) > {before}")


def until(page, condition: str) -> None:
    """Wait; the page's policy forbids the eval that Playwright's own waiting needs."""
    for _ in range(300):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {condition}; {page.text_content('#status')}")


def spot(page, x: float, y: float) -> tuple[float, float]:
    """Return where a pixel of the 800 x 533 picture is on the screen."""
    box = page.locator("#canvas").bounding_box()
    free = box["width"] - 76 - 28, box["height"] - 28 - 28
    scale = min(free[0] / 800, free[1] / 533, 4)
    left = 76 + (free[0] - 800 * scale) / 2
    top = 28 + (free[1] - 533 * scale) / 2
    return box["x"] + left + (x + 0.5) * scale, box["y"] + top + (y + 0.5) * scale


def downloaded(page) -> np.ndarray:
    with page.expect_download() as waiting:
        page.click("#download")
    return np.array(Image.open(waiting.value.path()))


def from_api(address: str, **prompt) -> np.ndarray:
    files = {"image": Path("examples/rabbit.jpg").read_bytes()}
    key = httpx.post(f"{address}/v1/embeddings", files=files).json()["id"]
    body = {"embedding": key, "objects": [prompt], "output": "rgba"}
    answer = httpx.post(f"{address}/v1/matte", json=body, timeout=60)
    return np.array(Image.open(io.BytesIO(answer.content)))


def test_click_box_negative_undo_download(page, address):
    upload(page)
    act(page, 520, 300)
    points = [[520, 300, 1]]
    assert np.array_equal(downloaded(page), from_api(address, points=points))
    before = int(page.evaluate("document.body.dataset.answers"))
    page.mouse.move(*spot(page, 320, 40))
    page.mouse.down()
    page.mouse.move(*spot(page, 500, 300), steps=4)
    page.mouse.move(*spot(page, 745, 525), steps=4)
    page.mouse.up()
    wait(page, before)
    act(page, 60, 480, button="right")
    with page.expect_request(
        lambda r: r.url.endswith("/v1/matte") and "rgba" in r.post_data
    ) as sent:
        picture = downloaded(page)
    (prompt,) = sent.value.post_data_json["objects"]
    assert prompt["points"] == [*points, [60, 480, 0]]
    assert np.abs(np.array(prompt["box"]) - (320, 40, 745, 525)).max() <= 1
    assert np.array_equal(picture, from_api(address, **prompt))
    assert 0.1 < (picture[..., 3] > 127).mean() < 0.6
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert np.array_equal(downloaded(page), from_api(address, points=points))
    page.click("#redo")
    with page.expect_request(
        lambda r: r.url.endswith("/v1/matte") and "rgba" in r.post_data
    ) as sent:
        downloaded(page)
    assert "box" in sent.value.post_data_json["objects"][0]


def test_alternatives_objects_views_and_brush(page):
    upload(page)
    act(page, 520, 300)
    page.wait_for_selector("#candidates button:nth-child(4)")
    page.click("#candidates button:nth-child(3)")
    assert page.evaluate("document.querySelector('#candidates .on').dataset.candidate") == "2"
    page.keyboard.press("n")
    page.keyboard.press("b")
    before = int(page.evaluate("document.body.dataset.answers"))
    page.mouse.move(*spot(page, 60, 100))
    page.mouse.down()
    page.mouse.move(*spot(page, 200, 120), steps=5)
    page.mouse.up()
    wait(page, before)
    assert page.locator("#objects li").count() == 2
    page.click("[data-back='#000000']")
    assert page.locator("[data-view=cutout].on").count() == 1
    page.select_option("#kind", "alpha,png,16")
    assert downloaded(page).dtype == np.uint16
    page.click("#clear")
    assert page.locator("#download").is_disabled()


def test_a_phone_fits_and_can_take_away(browser, address):
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    page.click("[data-sample='rabbit.jpg']")
    page.wait_for_selector("#sign", state="visible")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click("#sign")
    assert page.get_attribute("#sign", "aria-pressed") == "true"
    context.close()


def test_a_file_that_is_no_picture_is_said(page):
    page.set_input_files("#file", "README.md")
    page.wait_for_selector("#status.bad")
    assert "no picture" in page.text_content("#status")
