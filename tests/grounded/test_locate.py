import numpy as np
import pytest

from zim_grounded.candidates import Found, Thresholds
from zim_grounded.locate import crop_round, locate, word_score


class Scripted:
    """Answers from a table and remembers what it was asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def candidates(self, image, phrases):
        self.asked.append((image.shape, list(phrases)))
        return [
            f for p in phrases for f in self.answers.get((image.shape[:2] == (100, 200), p), [])
        ]

    detect = candidates


@pytest.fixture
def image():
    return np.zeros((100, 200, 3), np.uint8)


def test_a_part_is_looked_for_inside_its_owner(image):
    dog = Found((50, 20, 110, 80), "the dog", 0.8)
    fur = Found((10, 5, 30, 25), "fur", 0.6)
    detector = Scripted({(True, "the dog"): [dog], (False, "fur"): [fur]})
    located = locate(detector, image, ["the dog's fur"], Thresholds())
    (found,) = located.found
    assert crop_round(dog.box, (100, 200)) == (44, 14, 117, 87)
    assert found.box == (54, 19, 74, 39)  # moved by the crop's corner
    assert (found.phrase, found.score, found.fallback) == ("the dog's fur", 0.6, None)
    assert found.owner == dog.box
    assert [s[:2] for s, _ in detector.asked] == [(100, 200), (73, 73)]


def test_parts_of_several_owners_are_once_and_best_first(image):
    mugs = [Found((0, 10, 60, 90), "the mug", 0.9), Found((40, 10, 110, 90), "the mug", 0.8)]
    mugs.append(Found((130, 10, 190, 90), "the mug", 0.7))
    # one handle lies in the crops of two mugs that overlap, another belongs to the last
    handles = {67: (44, 58, 0.4), 85: (11, 25, 0.5), 73: (10, 20, 0.6)}

    class Mugs(Scripted):
        def candidates(self, image, phrases):
            if phrases == ["the mug"]:
                return mugs
            x0, x1, score = handles[image.shape[1]]
            return [Found((x0, 30, x1, 50), "handle", score)]

    located = locate(Mugs({}), image, ["handle of the mug"], Thresholds())
    assert [(f.box[0], f.score) for f in located.found] == [(134, 0.6), (44, 0.5)]
    top = locate(Mugs({}), image, ["handle of the mug"], Thresholds(), top=1)
    assert [f.score for f in top.found] == [0.6]


def test_without_the_part_the_owner_stands_in_and_says_so(image):
    dog = Found((50, 20, 110, 80), "the dog", 0.8)
    weak = Found((1, 1, 5, 5), "fur", 0.2)
    detector = Scripted({(True, "the dog"): [dog], (False, "fur"): [weak]})
    located = locate(detector, image, ["the dog's fur"], Thresholds())
    (found,) = located.found
    assert (found.box, found.phrase, found.fallback) == (dog.box, "the dog's fur", "owner")
    assert located.best == {"the dog's fur": 0.2}


def test_nothing_found_keeps_the_best_score(image):
    detector = Scripted({(True, "the dog"): [Found((0, 0, 9, 9), "the dog", 0.1)]})
    located = locate(detector, image, ["the dog's fur", "cat"], Thresholds())
    assert located.found == []
    assert located.best == {"the dog's fur": 0.1, "cat": 0.0}


def test_order_of_phrases_is_kept_with_parts_between(image):
    answers = {
        (True, "cat"): [Found((0, 0, 9, 9), "cat", 0.4)],
        (True, "dog"): [Found((20, 20, 90, 90), "dog", 0.9)],
        (True, "red ball"): [Found((0, 50, 9, 59), "red ball", 0.5)],
    }
    phrases = ["red ball", "ear of dog", "cat"]
    located = locate(Scripted(answers), image, phrases, Thresholds())
    assert [f.phrase for f in located.found] == phrases
    whole = locate(Scripted(answers), image, phrases, Thresholds(), parts=False)
    assert [f.phrase for f in whole.found] == ["red ball", "cat"]


def test_the_best_of_a_picture_stay_and_what_stands_in_goes_first(image):
    answers = {
        (True, "dog"): [Found((20, 20, 90, 90), "dog", 0.9)],
        (True, "ball"): [
            Found((0, 50, 9, 59), "ball", 0.4),
            Found((60, 50, 69, 59), "ball", 0.5),
        ],
    }
    detector, phrases = Scripted(answers), ["ear of dog", "ball"]
    one = locate(detector, image, phrases, Thresholds(most=1))
    assert [(f.phrase, f.score) for f in one.found] == [("ball", 0.5)]
    assert one.left_out == ("ear of dog",)
    top = locate(detector, image, phrases, Thresholds(most=2), top=1)
    assert [(f.phrase, f.score) for f in top.found] == [("ear of dog", 0.9), ("ball", 0.5)]
    assert top.left_out == ()


def test_the_head_word_ranks(image):
    tokens_table = (("cat", 0.3), ("on", 0.1), ("table", 0.9))
    tokens_cat = (("cat", 0.7), ("on", 0.1), ("table", 0.2))
    phrase = "cat on table"
    table = Found((0, 50, 99, 99), phrase, 0.9, tokens_table)
    cat = Found((0, 0, 30, 30), phrase, 0.7, tokens_cat)
    detector = Scripted({(True, phrase): [table, cat]})
    located = locate(detector, image, [phrase], Thresholds())
    assert [(f.box, f.score) for f in located.found] == [(cat.box, 0.7), (table.box, 0.3)]
    focused = locate(detector, image, [phrase], Thresholds(), focus="table")
    assert [f.box for f in focused.found] == [table.box]


def test_word_scores_join_pieces():
    tokens = [("fire", 0.1), ("##hy", 0.5), ("##drant", 0.3), ("red", 0.9)]
    assert word_score(tokens, "firehydrant") == 0.5
    assert word_score(tokens, "red") == 0.9
    assert word_score(tokens, "fire") == 0.1
    assert word_score(tokens, "blue") is None
