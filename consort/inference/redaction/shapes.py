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
from operator import itemgetter

# Shape characters, the word written large and small. Punctuation is itself; a new line is "|", the end of a
# sentence "!", what no rule reads ";".
#   N u  unknown         C w  ordinary         A    unknown, all of at most five letters large
#   G g  given name      H    given name and ordinary word: G in the end, or c     x    opaque: code, digits and letters
#   P q  place           Q h  nationality      T t  title       e    particle
#   S    street          R    street in one word    F f  flat, box     B  postal
#   O    company's end   V v  company's word   m k  month, weekday
#   z    a word that announces something (lists.toml, cues)
#   I    one letter      d y D  number: short, year, long      i o &  in, of, and      c  C that begins a sentence
_LISTS = (
    ("public", "C", "w"), ("cues", "z", "z"), ("given", "G", "g"), ("places", "P", "q"), ("nationalities", "Q", "h"),
    ("company_words", "V", "v"), ("company_ends", "O", "w"), ("streets", "S", "S"), ("units", "F", "f"),
    ("postal", "B", "B"), ("particles", "N", "e"), ("titles", "T", "t"), ("months", "m", "m"), ("weekdays", "k", "k"),
    ("function_words", "w", "w"),
)  # fmt: skip
_ENGLISH = "wCvVtzfFioc&"
_NOT_IF_ORDINARY = "ghqtmkSB"
_JOINTS = {"in": "i", "at": "i", "from": "i", "to": "i", "near": "i", "of": "o", "and": "&"}
_TOKEN = re.compile(
    r"\[[A-Z]+_\d+[A-Z]?\]|P\. ?O\.(?=\s)|```[\s\S]*?(?:```|\Z)|[^\W\d_](?:[^\W\d_]|['’](?!s\b)(?=[^\W\d_])|-(?=[^\W\d_]))*(?![\d_])"
    r"|['’]s\b|\d+(?![\w])|\w+|\n|[^\w\s]"
)
_MARKS = {"\n": "|", "!": "!", "?": "!", ":": "!", ";": "!", "…": "!", ".": ".", ",": ",", "-": "-", "/": "/", ">": ">",
          "&": "&", "P.O.": "B", "P. O.": "B", '"': '"', "“": '"', "”": '"', "(": "(", ")": ")", "'": "'", "’": "'", "'s": ";", "’s": ";", "#": "#"}  # fmt: skip
_BEGINS_SENTENCE = re.compile(r"""(?:^|(?<=[.!|>"(]))[>"'(-]{0,2}[CH]""")
_ROMAN = re.compile(r"[IVX]{2,6}")
_ENDINGS = ("s", "es", "ed", "d", "ing", "ly", "er", "n't")
_CAMEL = re.compile(r"[^\W\d_A-Z][A-Z]")
_NAME_CAMEL = re.compile(r"(?:Mc|Mac|Le|La|De|Di|Du|Van|Von|Fitz|O['’])[A-Z][^\WA-Z]+$")
_FEW_CAPITALS = 5  # letters of an abbreviation at most
_LONGEST_SHORT = 6  # digits of a house number or post code at most


@dataclass(frozen=True, slots=True)
class Shapes:
    """A text, its tokens, and their shapes: one character a token."""

    text: str
    shape: str
    tokens: list[re.Match[str]]

    def matches(self, rule: re.Pattern[str]) -> Iterator[tuple[int, int]]:
        """Characters [start, end) of what a rule over shapes matches."""
        for match in rule.finditer(self.shape):
            yield self.tokens[match.start()].start(), self.tokens[match.end() - 1].end()

    def after(self, end: int, rule: re.Pattern[str]) -> tuple[int, int] | None:
        """Characters of what a rule matches in the tokens that begin at or after `end`."""
        match = rule.match(self.shape, bisect_left(self.tokens, end, key=re.Match.start))
        return (self.tokens[match.start()].start(), self.tokens[match.end() - 1].end()) if match else None


def shapes(text: str) -> Shapes:
    """Cut a text into tokens, and give each its shape."""
    tokens = [*_TOKEN.finditer(text)]
    words = [*map(itemgetter(0), tokens)]
    known = _lexicon()
    letters = [*map(known.get, words)]
    new: dict[str, str] = {}
    for place, letter in enumerate(letters):
        if letter is None:
            word = words[place]
            letters[place] = new.get(word) or new.setdefault(word, _shape(word))
    shape = "".join(map(str, letters))
    shape = _BEGINS_SENTENCE.sub(lambda begun: begun[0].replace("C", "c").replace("H", "c"), shape)
    return Shapes(text, shape.replace("H", "G"), tokens)


def _shape(token: str) -> str:
    """Of a token that is not in the lexicon as it stands."""
    if not token[0].isalpha():
        return _number_shape(token)
    small = token.lower()
    if token == small:
        return "w" if len(token) == 1 or _ordinary(small) else "h" if _nation(small) else "u"
    if len(token) == 1:
        return "I"
    if token.isupper():
        return _lexicon().get(token.capitalize()) or _capitals_shape(token)
    if _CAMEL.search(token) and not _NAME_CAMEL.match(token) and "-" not in token:
        return "x"
    if small.endswith(_street_endings()):
        return "R"
    return "C" if _ordinary(small) else "Q" if _nation(small) else "N"


def _capitals_shape(token: str) -> str:
    if _ROMAN.fullmatch(token):
        return "w"
    return "C" if _ordinary(token.lower()) else "A" if len(token) <= _FEW_CAPITALS else "N"


def _number_shape(token: str) -> str:
    if not token[0].isdigit():
        return "x" if len(token) > 1 else ";"
    if token.isdigit():
        year = len(token) == 4 and token[:2] in ("19", "20")
        return "y" if year else "d" if len(token) <= _LONGEST_SHORT else "D"
    return "d" if token[:-1].isdigit() and len(token) <= _LONGEST_SHORT else "x"


def _ordinary(small: str) -> bool:
    """Whether a small word is an inflection of an English word, or joined of such."""
    known = _lexicon()
    if known.get(small, "u") in _ENGLISH:
        return True
    if "-" in small:
        return all(len(part) < 3 or _ordinary(part) for part in small.split("-"))
    return any(small.endswith(ending) and known.get(small.removesuffix(ending)) in ("w", "z") for ending in _ENDINGS)


def _nation(small: str) -> bool:
    """Whether a small word is the plural of a nationality or faith."""
    return any(_lexicon().get(small.removesuffix(plural)) == "h" for plural in ("s", "es"))


@cache
def _lexicon() -> Mapping[str, str]:
    """Shapes of marks, and of words written small or with a capital letter."""
    ordinary = (files(__package__) / "words.txt").read_text(encoding="utf-8").split()
    lexicon = dict.fromkeys(ordinary, "w") | dict.fromkeys(map(str.capitalize, ordinary), "C")
    doubtful = {"G": "H", "N": "C"}  # an ordinary word too: its capital may just begin a sentence
    for name, large, small in _LISTS:
        for word in _lists()[name]:
            is_ordinary = lexicon.get(word) == "w"
            lexicon[word.capitalize()] = doubtful.get(large, large) if is_ordinary else large
            lexicon[word] = "w" if is_ordinary and small in _NOT_IF_ORDINARY else small
    return lexicon | _JOINTS | _MARKS | {"Do": "w", "Ten": "C", "I": "I", "A": "I"}


@cache
def _street_endings() -> tuple[str, ...]:
    return tuple(_lists()["street_endings"])


@cache
def several_words() -> tuple[str, ...]:
    """Places of two or three words."""
    return tuple(name.replace("_", " ") for name in _lists()["places"] if "_" in name)


@cache
def _lists() -> Mapping[str, tuple[str, ...]]:
    text = (files(__package__) / "lists.toml").read_text(encoding="utf-8")
    return {name: tuple(words.split()) for name, words in tomllib.loads(text).items()}
