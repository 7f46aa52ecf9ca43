"""The review page in a real browser, from a file: accept, reject, paint, save, build. Slow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from zim_training import cli
from zim_training.testset.page import write_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:ResourceWarning"),
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures and three candidates, as ``zim-train testset`` leaves them."""
    out = tmp_path / "a set"
    rows = []
    for part in ("img", "seg", "matte"):
        (out / "candidates" / part).mkdir(parents=True)
    for name, places in (("disc", [(60, 45), (100, 30)]), ("other", [(40, 40)])):
        picture = np.full((90, 140, 3), (60, 120, 40), np.uint8)
        for k, (x, y) in enumerate(places):
            cv2.circle(picture, (x, y), 18, (200, 60, 220), -1)
            matte = np.zeros((90, 140), np.uint8)
            cv2.circle(matte, (x, y), 18, 255, -1)
            key = f"{name}_{k:02d}"
            assert cv2.imwrite(str(out / f"candidates/seg/{key}.png"), matte)
            soft = cv2.GaussianBlur(matte, (0, 0), 3)
            assert cv2.imwrite(str(out / f"candidates/matte/{key}.png"), soft)
            rows.append(
                {"key": key, "image": name, "size": [140, 90], "soft": 0.2, "level": "fine"}
            )
        assert cv2.imwrite(str(out / f"candidates/img/{name}.png"), picture)
    (out / "candidates.json").write_text(json.dumps(rows))
    write_page(out)
    return out


def test_a_review_from_page_to_test_set(folder: Path, tmp_path: Path) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    errors: list[str] = []
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, accept_downloads=True)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.goto((folder / "review.html").as_uri())
        page.wait_for_load_state("networkidle")
        cards = page.locator("section")
        assert cards.count() == 3
        assert page.text_content("#count") == "0 accepted, 0 rejected, 3 open"
        cards.nth(0).get_by_role("button", name="accept").click()
        cards.nth(1).get_by_role("button", name="reject").click()
        cards.nth(2).get_by_role("combobox").select_option("coarse")
        # a stroke of background through the middle of the third accepts it as well
        page.select_option("#value", "0")
        canvas = cards.nth(2).locator("canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        scale = box["width"] / 140
        page.mouse.move(box["x"] + 30 * scale, box["y"] + 40 * scale)
        page.mouse.down()
        page.mouse.move(box["x"] + 50 * scale, box["y"] + 40 * scale, steps=5)
        page.mouse.up()
        assert page.text_content("#count") == "2 accepted, 1 rejected, 0 open"
        page.screenshot(path=tmp_path / "page.png")
        with page.expect_download() as waiting:
            page.click("#save")
        saved = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(saved)
        # what was decided is there again after the page was closed
        page.wait_for_timeout(500)  # the browser's storage follows a moment later
        page.reload()
        page.wait_for_load_state("networkidle")
        assert page.text_content("#count") == "2 accepted, 1 rejected, 0 open"
        browser.close()
    assert errors == []
    assert saved.name == "review.json"
    assert cli.main(["testset", "--review", str(saved), "--output", str(folder)]) == 0
    lines = (folder / "data_list.txt").read_text().splitlines()
    mattes = [line.split()[1] for line in lines]
    assert mattes == ["matte/fine/disc_00.png", "matte/coarse/other_00.png"]
    before = cv2.imread(str(folder / "candidates/matte/other_00.png"), cv2.IMREAD_GRAYSCALE)
    after = cv2.imread(str(folder / mattes[1]), cv2.IMREAD_GRAYSCALE)
    assert before is not None
    assert after is not None
    assert before[40, 40] > 250
    assert after[40, 32:49].max() == 0
    np.testing.assert_array_equal(after[60:], before[60:])
