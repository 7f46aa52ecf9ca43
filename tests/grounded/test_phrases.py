import pytest

from zim.errors import PromptError
from zim_grounded.phrases import (
    Part,
    batches,
    has_relation,
    head_word,
    part_of,
    plain,
    split_phrases,
    token_spans,
    without_articles,
)

CLS, SEP, DOT, PAD = 101, 102, 1012, 0


@pytest.mark.parametrize(
    ("typed", "phrases"),
    [
        (["dog . red ball"], ["dog", "red ball"]),
        (["Dog. Red ball."], ["Dog", "Red ball"]),
        (["dog", "cat . dog", "DOG"], ["dog", "cat"]),
        (["st.bernard"], ["st.bernard"]),
        (["  the   dog's fur "], ["the dog's fur"]),
    ],
)
def test_typed_text_becomes_phrases_in_order(typed, phrases):
    assert split_phrases(typed) == phrases


@pytest.mark.parametrize("typed", [[""], [" . . "], ["?"]])
def test_no_phrase_is_refused(typed):
    with pytest.raises(PromptError, match="no phrase"):
        split_phrases(typed)


def test_plain_text_holds_no_delimiter():
    assert plain("St.Bernard?  Big") == "st bernard big"
    assert plain("the dog\u2019s fur") == "the dog's fur"


@pytest.mark.parametrize(
    ("phrase", "part", "head"),
    [
        ("the dog's fur", Part("the dog", "fur"), "fur"),
        ("The dogs' long ears", Part("The dogs", "long ears"), "ears"),
        ("handle of the mug", Part("the mug", "handle"), "handle"),
        ("dog > red collar", Part("dog", "red collar"), "collar"),
        ("red ball", None, "ball"),
        ("the cat on the table", None, "cat"),
        ("woman with a hat", None, "woman"),
        ("the man who is on the left", None, "man"),
        ("the woman standing next to the car", None, "woman"),
        ("glass of water", None, "glass"),
        ("stem of the glass", Part("the glass", "stem"), "stem"),
        ("glass of the lamp", Part("the lamp", "glass"), "glass"),
        ("a pair of my shoes", None, "shoes"),
        ("left of the dog", None, "left"),
        ("it's a dog", None, "dog"),
        ("white running dog", None, "dog"),
        ("old running shoes", None, "shoes"),
        ("dog running in a field", None, "dog"),
        ("the dog that's on the left", None, "dog"),
        ("man in front of the car", None, "man"),
        ("cat on top of the table", None, "cat"),
        ("one of the dogs", None, "dogs"),
        ("the left of two dogs", None, "left"),
        ("group of people on a bench", None, "people"),
        ("a lot of people", None, "people"),
        ("parking lot of the mall", None, "lot"),
        ("bar of soap", None, "bar"),
        ("loaves of bread", None, "loaves"),
        ("tube of toothpaste", None, "tube"),
        ("person without a hat", None, "person"),
        ("bike against the wall", None, "bike"),
        ("bird among flowers", None, "bird"),
        ("chest of drawers", None, "chest"),
        ("plate of this car", Part("this car", "plate"), "plate"),
    ],
)
def test_parts_and_heads(phrase, part, head):
    assert part_of(phrase) == part
    assert head_word(phrase) == head


def test_relations_are_told_from_plain_phrases():
    assert has_relation("cat on the table")
    assert has_relation("the dog's fur")
    assert has_relation("person without hat")
    assert not has_relation("big red ball")
    assert not has_relation("on")
    assert without_articles("The red ball") == "red ball"
    assert without_articles("the") == "the"


@pytest.mark.parametrize(
    ("ids", "spans"),
    [
        ([CLS, 5, 6, DOT, 7, DOT, SEP], [(1, 3), (4, 5)]),
        ([CLS, 5, SEP], [(1, 2)]),  # closed by the end alone
        ([CLS, 5, DOT, 5, DOT, SEP, PAD, PAD], [(1, 2), (3, 4)]),  # repeated
        ([CLS, DOT, DOT, 5], [(3, 4)]),
        ([CLS, SEP], []),
    ],
)
def test_spans(ids, spans):
    assert token_spans(ids, [CLS, SEP, DOT, PAD]) == spans


def test_batches_fill_up_and_keep_order():
    assert batches([3, 3, 3, 4, 10, 1], 10) == [[0, 1, 2], [3], [4], [5]]
    assert batches([], 5) == []
    lengths = [4] * 40
    passes = batches(lengths, 254)
    assert [len(p) for p in passes] == [40]
    passes = batches(lengths, 62)
    assert [len(p) for p in passes] == [15, 15, 10]
    assert [i for some in passes for i in some] == list(range(40))
