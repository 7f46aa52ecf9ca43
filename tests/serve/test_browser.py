"""The page in a real browser: the system's Chromium, driven by Playwright. Marked slow."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

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
    model = zim.load("nano")
    app = create_app(Settings(models=("nano", "other")), models={"nano": model, "other": model})
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
    made.on("console", lambda m: errors.append(m.text) if wrong(m) else None)
    made.goto(address)
    made.wait_for_selector("body[data-ready]")
    yield made
    context.close()
    assert errors == []


def wrong(message) -> bool:
    """Tell an error on the console from an answer of the service that is none."""
    return message.type == "error" and "/v1/" not in message.location["url"]


def upload(page, picture="examples/rabbit.jpg") -> None:
    page.set_input_files("#file", picture)
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


def file(name: str, width: int = 40, height: int = 20, **options) -> dict:
    """Return a picture file of one colour, as Playwright takes files."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "orange").save(buffer, name.split(".")[1], **options)
    return {"name": name, "mimeType": "", "buffer": buffer.getvalue()}


def data_url(value: int = 255) -> str:
    buffer = io.BytesIO()
    Image.new("L", (800, 533), value).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def matte_answer(score: float) -> dict:
    return {"objects": [{"candidates": [{"candidate": 0, "score": score, "alpha": data_url()}]}]}


def hold(page, path: str) -> list:
    """Keep requests from the service; the test answers them when it likes."""
    held: list = []
    page.route(f"**/v1/{path}", lambda route: held.append(route))
    return held


def held_one(page, held: list):
    for _ in range(100):
        if held:
            return held.pop(0)
        page.wait_for_timeout(20)
    raise AssertionError("no request came")


def rows(page) -> list[str]:
    return page.locator("#objects li").all_text_contents()


def uploads(page) -> list:
    seen: list = []
    page.on("request", lambda r: seen.append(r) if r.url.endswith("/v1/embeddings") else None)
    return seen


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


def test_a_picture_is_sent_again_after_a_failure_and_after_it_was_forgotten(page):
    sent = uploads(page)
    page.route("**/v1/embeddings", lambda route: route.fulfill(status=503, json={"detail": "down"}))
    page.set_input_files("#file", "examples/rabbit.jpg")
    until(page, "document.querySelector('#status').textContent === 'down'")
    page.unroute("**/v1/embeddings")
    act(page, 520, 300)
    assert len(sent) == 2
    gone = {"status": 404, "json": {"detail": "no such embedding"}}
    mattes, removals = hold(page, "matte"), hold(page, "inpaint")
    for _ in range(2):
        page.keyboard.press("n")
        page.mouse.click(*spot(page, 60, 100))
    asked = [held_one(page, mattes) for _ in range(2)]
    [route.fulfill(**gone) for route in asked]
    [held_one(page, mattes).fulfill(json=matte_answer(0.5)) for _ in range(2)]
    until(page, "document.querySelectorAll('#objects li').length === 3")
    assert len(sent) == 3  # once for both
    page.click("[data-tab=remove]")
    page.click("#run")
    held_one(page, removals).fulfill(**gone)
    held_one(page, removals).fulfill(json={"notes": [], "image": data_url()})
    until(page, "!document.querySelector('#compare').hidden")
    assert len(sent) == 4


def test_answers_about_another_picture_or_model_are_dropped(page):
    upload(page)
    mattes = hold(page, "matte")
    page.mouse.click(*spot(page, 520, 300))
    old = held_one(page, mattes)
    page.select_option("#model", "other")
    new = held_one(page, mattes)
    assert new.request.post_data_json["embedding"] != old.request.post_data_json["embedding"]
    old.fulfill(json=matte_answer(0.11))
    new.fulfill(json=matte_answer(0.77))
    until(page, "document.querySelector('#objects').textContent.includes('77%')")
    held_one(page, mattes).fulfill(json=matte_answer(0.5))  # the alternatives

    everything, removals, words = (hold(page, path) for path in ("auto", "inpaint", "grounded"))
    found = {"box": [1, 2, 30, 40], "score": 0.5, "alpha": data_url()}
    late = [(everything, "auto", "#auto", {"objects": [found]})]
    late += [(removals, "remove", "#run", {"notes": [], "image": data_url()})]
    late += [(words, "words", "#run", {"notes": [], "objects": [found | {"phrase": "dog"}]})]
    for held, tab, button, answer in late:
        page.click("[data-tab=cut]")
        page.mouse.click(*spot(page, 100, 100))
        held_one(page, mattes).fulfill(json=matte_answer(0.5))
        page.click(f"[data-tab={tab}]")
        page.click(button)
        asked = held_one(page, held)
        upload(page, "examples/coffee.jpg")
        asked.fulfill(json=answer)
        page.wait_for_timeout(200)
        assert page.locator("#found button").count() == 0
        assert page.locator("#compare").is_hidden()
        assert rows(page) == ["Object 1click the picture✕"]
        upload(page)


def test_a_result_belongs_to_its_tab(page):
    upload(page)
    act(page, 520, 300)
    removals = hold(page, "inpaint")
    page.click("[data-tab=remove]")
    page.click("#run")
    asked = held_one(page, removals)
    page.click("[data-tab=cut]")
    asked.fulfill(json={"notes": [], "image": data_url()})
    page.wait_for_timeout(200)
    assert page.locator("#compare").is_hidden()
    assert page.text_content("#status") == "Remove: stopped."
    act(page, 100, 100)
    page.click("[data-tab=remove]")

    def remove() -> None:
        page.click("#run")
        held_one(page, removals).fulfill(json={"notes": [], "image": data_url()})
        until(page, "!document.querySelector('#compare').hidden")
        assert page.locator(".actions button").count() == 3

    remove()
    before = rows(page)
    page.mouse.click(*spot(page, 300, 300))  # closes the comparison, and is no prompt
    assert page.locator("#compare").is_hidden()
    assert page.locator(".actions button").count() == 0
    assert rows(page) == before
    remove()
    page.click("text=Go on with this picture")
    until(page, "document.querySelector('#status').textContent.startsWith('Click on')")
    assert page.locator(".actions button").count() == 0
    act(page, 520, 300)
    with page.expect_download() as waiting:
        page.keyboard.press("s")
    assert waiting.value.suggested_filename == "rabbit.rgba.png"


def test_the_brush_takes_away_too(page):
    upload(page)
    page.keyboard.press("b")
    page.keyboard.press("x")
    with page.expect_request(lambda r: r.url.endswith("/v1/matte")) as sent:
        page.mouse.move(*spot(page, 100, 100))
        page.mouse.down()
        page.mouse.move(*spot(page, 450, 100), steps=20)
        page.mouse.up()
    prompt = sent.value.post_data_json
    assert "scribble" not in prompt
    points = np.array(prompt["points"])
    assert len(points) == 8
    assert (points[:, 2] == 0).all()
    assert np.abs(np.diff(points[:, 0]) - 50).max() <= 20
    assert points[0, 0] <= 101
    assert points[-1, 0] >= 449


def test_objects_keep_their_limits_and_their_places(page):
    seen = page.evaluate("""async () => {
        const { Store, MOST } = await import("/js/store.js");
        const said = [];
        const store = new Store(() => {}, (sentence) => said.push(sentence));
        const fill = (s) => s.current.points.push([1, 1, 1]);
        store.edit((s) => s.add());
        const steps = store.past.length;
        for (let i = 0; i < MOST.objects; i += 1) {
            store.edit((s) => { s.add(); fill(s); s.current.points[0][0] = i; });
            store.keep(store.key(store.current), {});
        }
        for (let i = 0; i < 80; i += 1) store.keep(`alternative ${i}`, {});
        const shown = store.objects.filter((o) => store.matte(o)).length;
        store.edit((s) => s.add());
        store.active = 5;
        store.edit((s) => s.remove(2));
        const active = store.current.number;
        for (let i = 0; i < MOST.points + 1; i += 1) store.edit(fill);
        const stroke = (s) => s.current.scribble.push([[1, 1]]);
        for (let i = 0; i < MOST.strokes + 1; i += 1) store.edit(stroke);
        return { said, steps, shown, active, mattes: store.mattes.size,
            points: store.current.points.length, strokes: store.current.scribble.length };
    }""")
    assert (seen["steps"], seen["shown"], seen["active"]) == (1, 32, 6)
    assert (seen["points"], seen["strokes"], seen["mattes"]) == (200, 100, 80)
    assert [sentence.split(",")[0] for sentence in dict.fromkeys(seen["said"])] == [
        "There are 32 objects",
        "This object has 200 clicks",
        "This object has 100 strokes",
    ]


def test_the_picture_chosen_last_is_shown_and_seen_as_the_service_sees_it(page):
    page.evaluate("""() => {
        const decode = window.createImageBitmap;
        window.createImageBitmap = async (blob) => {
            if (blob.size > 50000) await new Promise((done) => setTimeout(done, 300));
            return decode(blob);
        };
    }""")
    sent = uploads(page)
    page.set_input_files("#file", "examples/rabbit.jpg")
    page.set_input_files("#file", file("small.png"))
    page.wait_for_timeout(600)
    assert len(sent) == 1
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("turned.webp", "turned.png"):
        with page.expect_response(lambda r: r.url.endswith("/v1/embeddings")) as answer:
            page.set_input_files("#file", file(name, exif=turned))
        size = answer.value.json()["width"], answer.value.json()["height"]
        # Chromium turns the PNG, but not the WebP
        assert size == ((40, 20) if name.endswith("webp") else (20, 40))


def test_keys_and_screen_readers(page):
    upload(page)
    act(page, 520, 300)
    assert page.get_attribute("[data-tool=click]", "aria-pressed") == "true"
    page.focus("[data-view=alpha]")
    page.keyboard.press("Space")
    pressed = [page.get_attribute(f"[data-view={v}]", "aria-pressed") for v in ("overlay", "alpha")]
    assert pressed == ["false", "true"]
    assert page.get_attribute("[data-back=checker]", "aria-pressed") == "true"
    page.check("#refine")
    page.keyboard.press("n")
    page.select_option("#kind", "rgba,webp,8")
    page.focus("#kind")
    page.keyboard.press("b")
    assert page.get_attribute("[data-tool=brush]", "aria-pressed") == "true"
    page.keyboard.press("v")
    assert len(rows(page)) == 2
    page.focus("#objects li:first-child button")
    page.keyboard.press("Enter")
    assert page.locator("#objects li.on").text_content().startswith("Object 1")
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.focus("#canvas")
    page.keyboard.down("Space")
    page.evaluate("window.dispatchEvent(new Event('blur'))")
    act(page, 100, 100)  # a click, and nothing is moved
    page.keyboard.up("Space")


def test_background_zoom_and_tiles(page):
    upload(page)
    act(page, 520, 300)
    page.wait_for_selector("#candidates button:nth-child(4)")
    page.set_input_files("#backfile", file("back.png"))
    page.wait_for_selector("#backpic.on")
    page.set_input_files("#backfile", "README.md")
    page.wait_for_selector("#status.bad")
    page.select_option("#kind", "composite,png,8")
    mattes = hold(page, "matte")
    page.click("#download")
    asked = held_one(page, mattes)
    page.click("#add")  # the list is drawn anew
    assert page.locator("#download").is_disabled()
    sent = asked.request.post_data_json["background_image"]
    assert base64.b64decode(sent.partition(",")[2]) == file("back.png")["buffer"]
    asked.fulfill(status=422, json={"detail": "no"})
    until(page, "!document.querySelector('#download').disabled")
    page.unroute("**/v1/matte")

    page.click("#in")
    zoomed = page.text_content("#fit")
    page.set_viewport_size({"width": 1200, "height": 800})
    page.wait_for_timeout(200)
    assert page.text_content("#fit") == zoomed
    page.click("#fit")
    assert page.text_content("#fit") != zoomed

    everything = hold(page, "auto")
    page.click("[data-tab=auto]")
    page.click("#auto")
    asked = held_one(page, everything)
    act(page, 100, 100)
    assert page.locator("#auto").is_disabled()
    found = {"box": [100.04, 100, 300, 300], "score": 0.5, "alpha": data_url()}
    asked.fulfill(json={"objects": [found]})
    before = len(rows(page))
    for _ in range(2):
        page.click("#found button")
    assert len(rows(page)) == before + 1


def test_a_token_that_needs_quoting(browser):
    token = "a&b%+c"
    app = create_app(Settings(token=token), models={"nano": None}, tabs={})
    with served(app) as address:
        for shown in (quote(token, safe=""), "a%26b%+c%"):  # the second is no valid quoting
            context = browser.new_context()
            page = context.new_page()
            page.goto(f"{address}/#token={shown}")
            page.wait_for_selector("body[data-ready]" if shown[-1] != "%" else "#status.bad")
            if shown[-1] != "%":
                with page.expect_download() as waiting:
                    page.click("#api")
                assert "openapi" in json.loads(Path(waiting.value.path()).read_text())
            context.close()
