"""Prompts as people type them and as files hold them."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zim.commandline import OneLineParser, UsageError, shield_negative_numbers
from zim.commands.prompt_flags import (
    add_prompt_flags,
    object_prompts,
    parse_box,
    parse_point,
)
from zim.errors import PromptError
from zim.prompt_json import ObjectPrompt, read_prompts


def parse(*words: str) -> list[ObjectPrompt]:
    parser = OneLineParser(prog="test")
    parser.add_argument("images", nargs="+")
    add_prompt_flags(parser)
    return object_prompts(parser.parse_args(shield_negative_numbers(["a.jpg", *words])))


def test_points_with_and_without_label() -> None:
    (prompt,) = parse("--points", "120,80", "300,200.5,0")
    assert prompt == ObjectPrompt(points=((120.0, 80.0, 1), (300.0, 200.5, 0)))


def test_a_flag_given_twice_adds_up() -> None:
    (prompt,) = parse("--points", "1,2", "--points", "3,4,0")
    assert prompt.points == ((1, 2, 1), (3, 4, 0))


def test_negative_coordinates_are_no_option() -> None:
    (prompt,) = parse("--points", "-5,10", "-.5,3,0", "--box", "-2,-3,10,20")
    assert prompt.points == ((-5, 10, 1), (-0.5, 3, 0))
    assert prompt.box == (-2, -3, 10, 20)


def test_points_and_one_box_are_one_object() -> None:
    (prompt,) = parse("--points", "5,6", "--box", "1,2,30,40")
    assert prompt == ObjectPrompt(points=((5, 6, 1),), box=(1, 2, 30, 40))


def test_several_boxes_are_several_objects() -> None:
    first, second = parse("--box", "1,2,3,4", "5,6,7,8")
    assert (first.box, second.box) == ((1, 2, 3, 4), (5, 6, 7, 8))


def test_no_prompt_is_one_empty_object() -> None:
    assert parse() == [ObjectPrompt()]


def test_files_are_handed_on_unread() -> None:
    assert parse("--scribble", "s.png", "--mask", "m.png") == [
        ObjectPrompt(scribble="s.png", mask="m.png")
    ]


@given(
    st.floats(-1e6, 1e6),
    st.floats(-1e6, 1e6),
    st.sampled_from([None, 0, 1]),
)
def test_a_printed_point_is_read_back(x: float, y: float, label: int | None) -> None:
    text = f"{x!r},{y!r}" + ("" if label is None else f",{label}")
    assert parse_point(text) == (x, y, 1 if label is None else label)


@pytest.mark.parametrize(
    "text", ["", "1", "1,2,3,4", "nan,2", "1,inf", "1,2,7", "1,2,-1", "1,2,0.5", "a,b", "1;2", "1,"]
)
def test_a_malformed_point_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
        parse_point(text)


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,4,5", "1,2,3,nan", "x"])
def test_a_malformed_box_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
        parse_box(text)


@pytest.mark.parametrize("text", ["300,200,150,100", "10,20,10,40", "10,20,40,20"])
def test_a_box_of_width_and_height_is_noticed(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="nor X,Y,WIDTH,HEIGHT"):
        parse_box(text)


@pytest.mark.parametrize("text", ["420", "(420,350)", "420 350", "(420, 350)"])
def test_spaces_and_brackets_get_a_hint(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="with commas and without spaces"):
        parse_point(text)
    with pytest.raises(argparse.ArgumentTypeError) as error:
        parse_point("a,b")
    assert "spaces" not in str(error.value)


def test_an_image_behind_the_points_gets_a_hint(tmp_path: Path) -> None:
    image = tmp_path / "photo.jpg"
    image.touch()
    with pytest.raises(UsageError, match="put images before --points"):
        parse("--points", "1,2", str(image))


@pytest.mark.parametrize(
    "words",
    [
        ("--box", "1,2,3,4", "5,6,7,8", "--points", "1,2"),
        ("--box", "1,2,3,4", "5,6,7,8", "--mask", "m.png"),
        ("--prompts", "p.json", "--points", "1,2"),
        ("--prompts", "p.json", "--mask", "m.png"),
        ("--points",),
    ],
)
def test_flags_that_leave_the_object_open_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        parse(*words)


def written(tmp_path: Path, data: object) -> Path:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(data))
    return path


def test_a_file_in_the_data_sets_style(tmp_path: Path) -> None:
    # MicroMat-3K pads its points with (-1, -1, -1).
    data = {"point": [[10, 20, 1], [30, 40, 0], [-1, -1, -1]], "bbox": [1, 2, 50, 60]}
    assert read_prompts(written(tmp_path, data)) == [
        ObjectPrompt(points=((10, 20, 1), (30, 40, 0)), box=(1, 2, 50, 60))
    ]


def test_the_flags_names_are_taken_too(tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path, {"points": [[1, 2]], "box": [1, 2, 3, 4]})) == [
        ObjectPrompt(points=((1, 2, 1),), box=(1, 2, 3, 4))
    ]


def test_a_list_is_one_object_each(tmp_path: Path) -> None:
    data = [{"point": [[1, 2]]}, {"bbox": [1, 2, 3, 4]}]
    assert read_prompts(written(tmp_path, data)) == [
        ObjectPrompt(points=((1, 2, 1),)),
        ObjectPrompt(box=(1, 2, 3, 4)),
    ]


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        3,
        [[1, 2, 1]],
        {"clicks": [[1, 2, 1]]},
        {"point": [[1, 2]], "points": [[1, 2]]},
        {"point": [[1, 2, 3, 4]]},
        {"point": [[1, "2"]]},
        {"point": [[1, 2, 5]]},
        {"point": {"x": 1}},
        {"point": {}},
        {"points": ""},
        {"mask": ""},
        {"scribble": ""},
        {"point": [[float("nan"), 2]]},
        {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, 3, True]},
    ],
)
def test_a_malformed_file_is_refused_by_name(tmp_path: Path, data: object) -> None:
    with pytest.raises(PromptError, match=r"prompts\.json"):
        read_prompts(written(tmp_path, data))


@pytest.mark.parametrize("box", [[], [1, 2], [1, 2, 3, 4, 5], [1, 2, 3, "4"], "1,2,3,4"])
def test_a_box_is_four_numbers(tmp_path: Path, box: object) -> None:
    with pytest.raises(PromptError, match=r"object 1: bbox .* is not four numbers"):
        read_prompts(written(tmp_path, {"box": box}))


def test_a_file_that_is_not_json_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(b"\xff\xd8 not json")
    with pytest.raises(PromptError, match=r"p\.json: not JSON"):
        read_prompts(path)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(b'\xef\xbb\xbf{"bbox": [1, 2, 30, 40]}')
    assert read_prompts(path) == [ObjectPrompt(box=(1, 2, 30, 40))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"point": [[1' + "0" * 400 + ", 5]]}", r"object 1: point \[inf, 5.0\] is not \[x, y\]"),
        ('{"bbox": [0, 0, 9, 1' + "0" * 5000 + "]}", "object 1: bbox"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"point": [[' + "[" * 300 + "]" * 300 + "]]}", "object 1: point"),
    ],
    ids=["400-digits", "5000-digits", "100000-brackets", "300-brackets"],
)
def test_numbers_and_nesting_beyond_reason_are_refused_on_a_short_line(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(PromptError, match=expected) as refused:
        read_prompts(path)
    assert len(str(refused.value)) < len(str(path)) + 150
