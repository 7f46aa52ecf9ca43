"""Which files of a folder are pictures."""

from __future__ import annotations

from pathlib import Path

from zim.folders import pictures_in


def test_pictures_by_name_and_without_what_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.JPG", "a.png", "._a.png", ".b.png", "notes.txt", "in/c.webp", "in/._c.webp"):
        (tmp_path / name).touch()
    assert pictures_in(tmp_path) == [tmp_path / "a.png", tmp_path / "b.JPG"]
    assert pictures_in(tmp_path, deep=True)[2:] == [tmp_path / "in" / "c.webp"]
