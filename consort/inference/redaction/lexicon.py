"""What words are known for: ordinary English (words.txt), and the short lists of lists.toml, read once.

Shapes are single characters; `shapes` says what each stands for.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

# A list, and the shapes of its words written large and small; a later list has the last word.
_LISTS = (
    ("public", "C", "w"), ("cues", "z", "z"), ("given", "G", "g"), ("places", "P", "q"),
    ("nationalities", "Q", "h"), ("company_words", "V", "v"), ("company_ends", "O", "w"),
    ("streets", "S", "S"), ("units", "F", "f"), ("postal", "B", "B"), ("particles", "N", "e"),
    ("titles", "T", "t"),
    ("months", "m", "m"), ("weekdays", "k", "k"), ("function_words", "w", "w"),
)  # fmt: skip
_ALSO_ORDINARY = {"G": "H", "N": "C"}  # large, and ordinary too: the capital may just begin a sentence
_ORDINARY_IF_SMALL = "ghqtmkSB"
_ENGLISH = "wCvVtzfFioc&"
_JOINTS = {
    "in": "i", "at": "i", "from": "i", "to": "i", "near": "i", "of": "o", "and": "&", "Do": "w", "Ten": "C",
    "I": "I", "A": "I",
}  # fmt: skip
_MARKS = dict(zip(".,-/#&>()", ".,-/#&>()", strict=True)) | {
    "\n": "|", "!": "!", "?": "!", ":": "!", ";": "!", "…": "!", '"': '"', "“": '"', "”": '"', "'": "'",
    "’": "'", "'s": ";", "’s": ";",
}  # fmt: skip
_ENDINGS = ("s", "es", "ed", "d", "ing", "ly", "er", "n't")


def is_ordinary(small: str) -> bool:
    """Whether a small word is English: listed, an inflection of what is, or joined of such."""
    known = lexicon()
    if known.get(small, "u") in _ENGLISH:
        return True
    if "-" in small:
        return all(len(part) < 3 or is_ordinary(part) for part in small.split("-"))
    if not small.endswith(_ENDINGS):
        return False
    for ending in _ENDINGS:
        if small.endswith(ending) and known.get(small[: -len(ending)]) in ("w", "z"):
            return True
    return False


def is_nation(small: str) -> bool:
    """Whether a small word is the plural of a nationality or faith."""
    known = lexicon()
    return small.endswith("s") and "h" in (known.get(small[:-1]), known.get(small.removesuffix("es")))


@cache
def lexicon() -> Mapping[str, str]:
    """Shapes of marks, and of words written small or with a capital letter."""
    ordinary = (files(__package__) / "words.txt").read_text(encoding="utf-8").split()
    ordinary += words("also_ordinary")
    shape_of = dict.fromkeys(ordinary, "w") | dict.fromkeys(map(str.capitalize, ordinary), "C")
    for name, large, small in _LISTS:
        for word in words(name):
            ordinary_too = shape_of.get(word) == "w"
            shape_of[word.capitalize()] = _ALSO_ORDINARY.get(large, large) if ordinary_too else large
            shape_of[word] = "w" if ordinary_too and small in _ORDINARY_IF_SMALL else small
    return shape_of | _JOINTS | _MARKS


@cache
def words(name: str) -> tuple[str, ...]:
    """One list of lists.toml."""
    return tuple(_lists()[name].split())


@cache
def _lists() -> Mapping[str, str]:
    return tomllib.loads((files(__package__) / "lists.toml").read_text(encoding="utf-8"))


@cache
def several_words() -> Mapping[str, tuple[str, ...]]:
    """Places of two or three words, by the first."""
    names = [name.replace("_", " ") for name in words("places") if "_" in name]
    firsts = {name.split()[0] for name in names}
    return {first: tuple(name for name in names if name.split()[0] == first) for first in firsts}


@cache
def may_begin_several() -> frozenset[str]:
    """First words of `several_words`, however they are written."""
    return frozenset(
        change(first) for first in several_words() for change in (str, str.capitalize, str.upper)
    )


@cache
def ends_of_streets() -> frozenset[str]:
    """The last two letters of street names in one word: most names are known by them to be none."""
    return frozenset(ending[-2:] for ending in words("street_endings"))
