"""A text as a string of shapes, one character a word: rules about context are then regular expressions.

Words are told apart by ordinary English (words.txt) and short lists (lists.toml); what neither knows and is
written large is taken for a name. Scripts without capital letters are not read.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

# Shape characters, the word written large and small. Punctuation is itself; a new line is "|", the end of a
# sentence "!", what no rule reads ";".
#   N u  unknown         C w  ordinary         A    unknown, all of at most five letters large
#   G g  given name      H    given name and ordinary word: G in the end, or c     x    opaque: code, digits and letters
#   P q  place           Q h  nationality      T t  title       e    particle
#   S    street          R    street in one word    F f  flat, box     B  postal
#   O    company's end   V v  company's word   m k  month, weekday
#   I    one letter      d y D  number: short, year, long      i o &  in, of, and      c  C that begins a sentence
_LISTS = (
    ("public", "w", "w"), ("given", "G", "g"), ("places", "P", "q"), ("nationalities", "Q", "h"), ("company_words", "V", "v"),
    ("company_ends", "O", "w"), ("streets", "S", "S"), ("units", "F", "f"), ("postal", "B", "B"), ("particles", "N", "e"),
    ("titles", "T", "t"), ("months", "m", "m"), ("weekdays", "k", "k"),
)  # fmt: skip
_JOINTS = {"in": "i", "at": "i", "from": "i", "to": "i", "near": "i", "of": "o", "and": "&"}
_TOKEN = re.compile(
    r"\[[A-Z]+_\d+[A-Z]?\]|```[\s\S]*?(?:```|\Z)|[^\W\d_](?:[^\W\d_]|['’](?!s\b)(?=[^\W\d_])|-(?=[^\W\d_]))*(?![\d_])"
    r"|['’]s\b|\d+(?![\w])|\w+|\n|[^\w\s]"
)
_MARKS = {"\n": "|", "!": "!", "?": "!", ":": "!", ";": "!", "…": "!", ".": ".", ",": ",", "-": "-", "/": "/", ">": ">",
          "&": "&", '"': '"', "“": '"', "”": '"', "(": "(", ")": ")", "'": "'", "’": "'", "'s": "'", "’s": "'", "#": "#"}  # fmt: skip
_BEGINS_SENTENCE = re.compile(r"""(?:^|(?<=[.!|>"(]))[>"'(-]{0,2}[CH]""")
_ROMAN = re.compile(r"[IVXLC]{2,6}")
_ENDINGS = ("s", "es", "ed", "d", "ing", "ly", "er", "n't")
_CAMEL = re.compile(r"[^\W\d_A-Z][A-Z]")
_NAME_CAMEL = re.compile(r"(?:Mc|Mac|Le|La|De|Di|Du|Van|Von|Fitz|O['’])[A-Z][^\WA-Z]+$")
_FEW_CAPITALS = 5  # letters of an abbreviation at most
_LONGEST_SHORT = 6  # digits of a house number or post code at most


@dataclass(frozen=True, slots=True)
class Shapes:
    """The tokens of a text: their shapes, and where each begins and ends."""

    text: str
    shape: str
    starts: list[int]
    ends: list[int]

    def matches(self, rule: re.Pattern[str]) -> Iterator[tuple[int, int]]:
        """Characters [start, end) of what a rule over shapes matches; its group "it" where it has one."""
        group = "it" if "it" in rule.groupindex else 0
        for match in rule.finditer(self.shape):
            first, last = match.span(group)
            if last > first:
                yield self.starts[first], self.ends[last - 1]

    def after(self, end: int, rule: re.Pattern[str]) -> tuple[int, int] | None:
        """Characters of what a rule matches in the tokens that begin at or after `end`."""
        match = rule.match(self.shape, bisect_left(self.starts, end))
        return (self.starts[match.start()], self.ends[match.end() - 1]) if match and match[0] else None


def shapes(text: str) -> Shapes:
    """Cut a text into tokens, and give each its shape."""
    known = _lexicon()
    tokens = list(_TOKEN.finditer(text))
    new: dict[str, str] = {}
    letters = []
    for match in tokens:
        token = match[0]
        letter = known.get(token) or new.get(token)
        if letter is None:
            letter = new[token] = _shape(token)
        letters.append(letter)
    shape = _BEGINS_SENTENCE.sub(lambda begun: begun[0].replace("C", "c").replace("H", "c"), "".join(letters))
    return Shapes(text, shape.replace("H", "G"), [*map(re.Match.start, tokens)], [*map(re.Match.end, tokens)])


def _shape(token: str) -> str:
    """Of a token that no list holds as it stands."""
    if token in _MARKS:
        return _MARKS[token]
    if not token[0].isalpha():
        return _number_shape(token)
    known, small = _lexicon(), token.lower()
    if token == small and len(token) == 1:
        return "w"
    if token == small:
        return known.get(small) or ("w" if _ordinary(small) else "u")
    if len(token) == 1:
        return "I"
    large = _large_shapes().get(small)
    if large:
        return large
    if token.isupper():
        return "w" if _ROMAN.fullmatch(token) else _upper_shape(small)
    if _CAMEL.search(token) and not _NAME_CAMEL.match(token) and "-" not in token:
        return "x"
    if small.endswith(_street_endings()):
        return "R"
    return "C" if _ordinary(small) else "N"


def _upper_shape(small: str) -> str:
    if _ordinary(small):
        return "C"
    return "A" if len(small) <= _FEW_CAPITALS else "N"


def _number_shape(token: str) -> str:
    if not token[0].isdigit():
        return "x" if len(token) > 1 else ";"
    if token.isdigit():
        year = len(token) == 4 and token[:2] in ("19", "20")
        return "y" if year else "d" if len(token) <= _LONGEST_SHORT else "D"
    return "d" if token[:-1].isdigit() and len(token) <= _LONGEST_SHORT else "x"


def _ordinary(small: str) -> bool:
    """Whether a small word is English: listed, an inflection of what is, or joined of such."""
    known = _lexicon()
    if small in known:
        return known[small] in "wvtiof&"
    if "-" in small:
        return all(len(part) < 3 or _ordinary(part) for part in small.split("-"))
    return any(small.endswith(ending) and known.get(small.removesuffix(ending)) == "w" for ending in _ENDINGS)


@cache
def _lexicon() -> Mapping[str, str]:
    """Shapes of small words."""
    shapes_of = dict.fromkeys(_words(), "w")
    for name, _, small_shape in _LISTS:
        for word in _lists()[name]:
            if small_shape in "xemwutS" or word not in shapes_of:
                shapes_of.setdefault(word, small_shape)
    return shapes_of | _JOINTS


@cache
def _large_shapes() -> Mapping[str, str]:
    """Shapes of listed words that begin with a capital letter; what is also an ordinary word is doubtful."""
    ordinary = set(_words())
    doubtful = {"G": "H", "N": "C"}
    return {
        word: doubtful.get(large, large) if word in ordinary else large
        for name, large, _ in _LISTS
        for word in _lists()[name]
    }


@cache
def _street_endings() -> tuple[str, ...]:
    return tuple(_lists()["street_endings"])


@cache
def several_words() -> Mapping[str, str]:
    """Places of two or three words: the shape of their first word's beginning is not enough."""
    return {name.replace("_", " "): "place" for name in _lists()["places"] if "_" in name}


@cache
def _words() -> tuple[str, ...]:
    return tuple((files(__package__) / "words.txt").read_text(encoding="utf-8").split())


@cache
def _lists() -> Mapping[str, tuple[str, ...]]:
    text = (files(__package__) / "lists.toml").read_text(encoding="utf-8")
    return {name: tuple(words.split()) for name, words in tomllib.loads(text).items()}
