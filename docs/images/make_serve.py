"""Make the pictures of ``zim serve`` in docs/images: the page after a click, a removal, a phone.

Needs zim-toolkit[ui], Playwright and the system's Chromium. Run it from anywhere:
python docs/images/make_serve.py
"""

from __future__ import annotations

import io
import shutil
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

import zim
from zim.serve.app import create_app
from zim.serve.settings import Settings
from zim.testing import served

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples"
DESKTOP: dict[str, Any] = {"viewport": {"width": 1440, "height": 900}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
}
#: seconds that anything may take
PATIENCE = 60

Spot = tuple[float, float]


def main() -> None:
    """Drive the page as a person would."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("no Chromium on this machine (Debian: apt-get install chromium)")
    app = create_app(Settings(), models={"nano": zim.load("nano")})
    with served(app) as address, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        one = Visit(browser, address, "rabbit.jpg", DESKTOP)
        one.click((0.65, 0.56))
        one.pause()  # alternatives appear when the clicking pauses
        one.shoot("serve-desktop")

        two = Visit(browser, address, "hyrax.jpg", DESKTOP | {"color_scheme": "dark"})
        two.drag((0.08, 0.08), (0.83, 0.95))
        two.page.click("#tabs >> text=Remove")
        two.page.click("#page-tab button.primary")
        two.until("!document.querySelector('#compare').hidden")
        two.pause()
        two.shoot("serve-remove")

        three = Visit(browser, address, "coffee.jpg", PHONE)
        three.click((0.5, 0.62))
        three.page.click("[data-view=cutout]")
        three.page.evaluate("window.scrollTo(0, 0)")
        three.pause()
        three.shoot("serve-phone")
        browser.close()


class Visit:
    """A visitor with a picture."""

    def __init__(self, browser: Any, address: str, picture: str, options: dict[str, Any]) -> None:
        """Open the page and the picture."""
        self.size = Image.open(EXAMPLES / picture).size
        self.page = browser.new_context(**options).new_page()
        self.page.goto(address)
        self.page.wait_for_selector("body[data-ready]")
        self.page.set_input_files("#file", str(EXAMPLES / picture))
        self.until("document.querySelector('#status').textContent.startsWith('Click on')")

    def click(self, where: Spot) -> None:
        """Click at a place given in shares of the picture's sides, and wait for the answer."""
        before = self.answers()
        self.page.mouse.click(*self.spot(where))
        self.until(f"Number(document.body.dataset.answers || 0) > {before}")

    def drag(self, start: Spot, end: Spot) -> None:
        """Draw a box, and wait for the answer."""
        before = self.answers()
        self.page.mouse.move(*self.spot(start))
        self.page.mouse.down()
        self.page.mouse.move(*self.spot(end), steps=6)
        self.page.mouse.up()
        self.until(f"Number(document.body.dataset.answers || 0) > {before}")

    def answers(self) -> int:
        """Return how many answers the page has had."""
        return int(self.page.evaluate("document.body.dataset.answers || 0"))

    def until(self, condition: str) -> None:
        """Wait; the page's policy forbids the eval that Playwright's own waiting needs."""
        end = time.monotonic() + PATIENCE
        while not self.page.evaluate(condition):
            if time.monotonic() > end:
                raise SystemExit(f"never true: {condition}; {self.page.text_content('#status')}")
            self.page.wait_for_timeout(50)

    def pause(self) -> None:
        """Wait for what comes without being asked for, and for messages to go."""
        self.page.wait_for_timeout(5000)

    def spot(self, where: Spot) -> Spot:
        """Return where a place of the picture is on the screen; ``fit`` of view.js."""
        box, (width, height) = self.page.locator("#canvas").bounding_box(), self.size
        left, edge, bottom = (12, 12, 66) if box["width"] < 640 else (76, 28, 28)
        room = box["width"] - left - edge, box["height"] - edge - bottom
        scale = min(room[0] / width, room[1] / height, 4)
        x = left + (room[0] - width * scale) / 2 + where[0] * width * scale
        y = edge + (room[1] - height * scale) / 2 + where[1] * height * scale
        return box["x"] + x, box["y"] + y

    def shoot(self, name: str) -> None:
        """Write docs/images/NAME.jpg."""
        shot = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        shot.save(HERE / f"{name}.jpg", quality=88, optimize=True)


if __name__ == "__main__":
    main()
