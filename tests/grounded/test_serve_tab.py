"""The tab of ``zim serve`` answers offline with the bundled detector."""

from __future__ import annotations

from pathlib import Path

import pytest

import zim_grounded
from zim.images import load_image
from zim.protocols import TabRequest
from zim_grounded.serve_tab import TAB


def test_words_find_things_without_any_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIM_OFFLINE", "1")
    TAB.ready()
    values = {field.name: field.default for field in TAB.fields} | {"text": "umbrella, dog"}
    rgb = load_image(Path(zim_grounded.__file__).parent / "dog.jpg").rgb
    found = TAB.run(TabRequest(image=rgb, alpha=None, values=values, device="cpu")).detections
    assert [d.phrase for d in found] == ["umbrella", "dog"]
    assert found[0].box[0] > rgb.shape[1] / 2 > found[1].box[2]  # the dog sits on the left
