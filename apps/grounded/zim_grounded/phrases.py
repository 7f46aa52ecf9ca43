"""Phrases: from what is typed to what a text encoder may see, and back to who said it.

GroundingDINO reads one string in which every phrase ends with a dot; the dots are not decoration,
they decide which words attend to each other. The labels its own post-processing decodes may merge
two phrases or cut words, so ours are never decoded: tokens between two dots are one phrase, and
the label is the phrase as it was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from zim.errors import PromptError


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text))


#: words that put what follows them behind what they say about: "handle OF the mug"
_RELATIONS = _words(
    "of with without on in at from by for to near behind under beneath beside above below between "
    "next among against around across along through onto into atop "
    "who that which whose is are was were"
)
#: these do so only before an article, a pronoun or another such word: "dog RUNNING in a field", but
#: "white running dog", "big inside pocket"
_PARTICIPLES = _words(
    "wearing holding standing sitting lying looking walking running riding carrying inside over"
)
#: what follows "of" is no owner after these, but what is meant: "pair of shoes", "one of the dogs"
_AMOUNTS = _words(
    "pair couple dozen handful group set row pile stack heap bunch bundle cluster crowd herd flock "
    "swarm lot kind sort type one two three four five six some any all none both each most many few"
)
#: nor after these: "left of the dog"
_VIEWS = _words("left right picture photo photograph image drawing painting portrait statue map")
#: nor after these where nothing says which one is meant: "glass of water", not "glass of the lamp"
_CONTAINERS = _words(
    "glass cup mug bottle bowl plate dish jar can box bag basket bucket bouquet vase piece slice "
    "loaf loaves sheet pot tin pack tower house field chest bar ball roll barrel carton jug tube "
    "spool coil block stick scoop crate sack tray packet tub pint strip cube wedge bale stalk deck "
    "bit chunk lump bed string cloud pool drop line school team"
)
#: who owns nothing that can be seen: "it's a dog", "the man who's wearing a hat"
_PRONOUNS = _words("it that this there here he she what who which let")
#: what follows "'s" is no part after it: "the girl's is red"
_VERBS = _words("is are was were on in at not")
#: "a black and white dog" is one thing
_COLOURS = _words("red orange yellow green blue purple pink brown black white grey gray")
_ARTICLES = ("the", "a", "an", "my", "his", "her", "its", "their", "your", "our")
_POINTING = (*_ARTICLES, "this", "that", "these", "those")


def split_phrases(texts: Sequence[str]) -> list[str]:
    """Split typed texts into phrases: "dog . red ball" and "dog. red ball." are two.

    A dot inside a word ("st.bernard") does not split. Order is kept, repetitions (whatever their
    case) are dropped.

    Raises:
        PromptError: nothing is left.
    """
    phrases: dict[str, str] = {}
    for text in texts:
        for part in re.split(r"\.(?=\s|$)", text):
            phrase = " ".join(part.split())
            if phrase:
                phrases.setdefault(plain(phrase), phrase)
    phrases.pop("", None)
    if not phrases:
        raise PromptError(
            f'no phrase in {" ".join(texts)!r}; expected words such as "the dog\'s fur", '
            "several divided by dots: 'dog . red ball'"
        )
    return list(phrases.values())


def plain(phrase: str) -> str:
    """Return a phrase as a text encoder gets it: lower case, no dots or question marks.

    These two divide phrases, so inside one they become spaces.
    """
    return " ".join(re.sub(r"[.?]", " ", phrase.replace("\u2019", "'").lower()).split())


def listed(phrase: str) -> list[str]:
    """Return the things that a phrase seems to list: "dog, cat and bird" are three."""
    things = [t for t in re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", phrase.strip()) if t]
    coloured = any(t.lower().split()[-1] in _COLOURS for t in things[:-1])
    return [phrase] if coloured else things


@dataclass(frozen=True)
class Part:
    """A phrase about a part: "the dog's fur" is ``Part("the dog", "fur")``."""

    owner: str
    part: str


def part_of(phrase: str) -> Part | None:
    """Read "X's Y", "Xs' Y", "Y of X" and "X > Y" as a part Y of an owner X; None otherwise."""
    text = " ".join(phrase.replace("\u2019", "'").split())
    if match := re.fullmatch(r"(.+?)\s*>\s*(.+)", text):
        return Part(match[1], match[2])
    if match := re.fullmatch(r"(.+?)(?:'s|(?<=s)')\s+(.+)", text, re.IGNORECASE):
        said = match[1].lower().split()[-1], match[2].lower().split()[0]
        verb = said[0] in _PRONOUNS or said[1] in _VERBS
        return None if verb else Part(match[1], match[2])
    if match := re.fullmatch(r"(.+?)\s+of\s+(.+)", text, re.IGNORECASE):
        return None if _holds(match[1], match[2]) else Part(match[2], match[1])
    return None


def _holds(one: str, other: str) -> bool:
    """Tell whether "one of other" is no part of the other: a glass of water, a pair of shoes.

    Nor is it one where the first says where something is: "man in front of the car".
    """
    words = without_articles(one).split()
    forms = _forms(words[-1]) if words else set[str]()
    first = other.split()[0]
    loose = first.lower() not in _POINTING and not first[0].isupper() and "'s" not in other
    if len(words) > 1 and any(w in _RELATIONS for w in words[1:-1]):
        return True
    return bool(forms & (_AMOUNTS | _VIEWS)) or (loose and bool(forms & _CONTAINERS))


def _forms(word: str) -> set[str]:
    return {word, word.removesuffix("s"), word.removesuffix("es")}


def head_word(phrase: str) -> str:
    """Return the word a phrase is about: "fur" in "the dog's fur", "cat" in "cat on the table"."""
    part = part_of(phrase)
    words = subject(part.part if part else phrase)
    return words[-1] if words else ""


def subject(phrase: str) -> list[str]:
    """Return the plain words of a phrase up to the first relation: "red cat on a table", 2.

    Of an amount of something it is the something: "dogs" in "one of the dogs".
    """
    words = re.findall(r"[\w'-]+", without_articles(phrase))
    for i, word in enumerate(words[:-1]):
        follows = words[i + 1] in _RELATIONS or words[i + 1] in _POINTING
        if i and (word.removesuffix("'s") in _RELATIONS or (word in _PARTICIPLES and follows)):
            # nothing before it: a "parking lot of the mall" is a lot
            amount = i == 1 and word == "of" and _forms(words[0]) & _AMOUNTS
            return subject(" ".join(words[2:])) if amount else words[:i]
    return words


def has_relation(phrase: str) -> bool:
    """Tell whether a phrase names two things, of which only the head is meant."""
    words = re.findall(r"[\w'-]+", without_articles(phrase))
    return part_of(phrase) is not None or len(subject(phrase)) < len(words)


def without_articles(phrase: str) -> str:
    """Return the plain phrase without leading articles and possessive pronouns."""
    words = plain(phrase).split()
    while len(words) > 1 and words[0] in _ARTICLES:
        words = words[1:]
    return " ".join(words)


def token_spans(ids: Sequence[int], delimiters: Sequence[int]) -> list[tuple[int, int]]:
    """Find the runs of tokens between delimiters.

    Args:
        ids: token ids of the whole text, special tokens included.
        delimiters: ids of start, end, padding, "." and "?".

    Returns:
        Half-open ranges in reading order, one for every run that is not empty.
    """
    spans, start, stops = [], None, set(delimiters)
    for i, token in enumerate([*ids, next(iter(delimiters))]):
        if token in stops:
            if start is not None:
                spans.append((start, i))
            start = None
        elif start is None:
            start = i
    return spans


def batches(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Deal phrases out to passes of at most ``limit`` tokens, in order.

    Args:
        lengths: tokens of each phrase, its dot included.
        limit: tokens of one pass, start and end not counted.

    Returns:
        Indices of the phrases of each pass.
    """
    passes: list[list[int]] = []
    room = 0
    for i, length in enumerate(lengths):
        if not passes or length > room:
            passes.append([])
            room = limit
        passes[-1].append(i)
        room -= length
    return passes
