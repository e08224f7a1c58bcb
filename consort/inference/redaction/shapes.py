"""A text as a string of shapes, one character a word: rules about context are then regular expressions.

Words are told apart by ordinary English (words.txt) and short lists (lists.toml); what neither knows and is
written large is taken for a name. Scripts without capital letters are not read.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from itertools import accumulate
from typing import NamedTuple

from consort.inference.redaction.lexicon import ends_of_streets, is_nation, is_ordinary, lexicon, words
from consort.inference.redaction.spans import Span

# Shape characters, the word written large and small. Punctuation is itself; a new line is "|", the end of a
# sentence "!", what no rule reads ";".
#   N u  unknown           C w  ordinary         c    ordinary, large because a sentence begins
#   G g  given name        P q  place            Q h  nationality      T t  title       e  particle
#   A    unknown, all of at most five letters large   I  one letter    z  announces something (lists.toml)
#   S    street            R    street in one word    F f  flat, box   B  postal
#   O    company's end     V v  company's word   m k  month, weekday   i o &  in, of, and
#   d y D  number: short, year, long             x    opaque: code, digits and letters
_IN_WORD = r"[A-Za-z0-9_\w]*+"  # what `\w` takes, the frequent ones first: `re` looks them up in a bitmap
_JOINED = rf"(?:['’-](?!s\b)[^\W\d_]{_IN_WORD})*+"
_TOKEN = re.compile(
    rf"(?! )([A-Za-z]{_IN_WORD}{_JOINED}|[.,]|[^\W\d_]{_IN_WORD}{_JOINED}|\d{_IN_WORD}|\n|['’]s\b"
    rf"|\[[A-Z]+_\d+[A-Z]?\]|```[\s\S]*?(?:```|\Z)|_{_IN_WORD}|[^\w\s])"
)
_BEGINS_SENTENCE = re.compile(r"""[.!|>"(][>"'(-]{0,2}[CH]""")
_ROMAN = re.compile(r"[IVX]{2,6}")
_LETTERS = re.compile(r"[^\d_]+")
_CAMEL = re.compile(r"[^\W\d_A-Z][A-Z]")
_NAME_CAMEL = re.compile(r"(?:Mc|Mac|Le|La|De|Di|Du|Van|Von|Fitz|O['’])[A-Z][^\WA-Z]+$")
_FEW_CAPITALS = 5  # letters of an abbreviation at most
_LONGEST_SHORT = 6  # digits of a house number or post code at most


class Shapes(NamedTuple):
    """A text, its tokens, and their shapes: one character a token."""

    text: str
    shape: str
    tokens: list[str]
    bounds: list[int]  # where the first token begins and ends, then the second, and so on; the text's length

    def start(self, token: int) -> int:
        """Where a token begins."""
        return self.bounds[2 * token]

    def end(self, token: int) -> int:
        """Where a token ends."""
        return self.bounds[2 * token + 1]

    def matches(self, rule: re.Pattern[str], kind: str) -> list[Span]:
        """What a rule over shapes matches."""
        bounds = self.bounds
        return [
            Span(bounds[2 * match.start()], bounds[2 * match.end() - 1], kind)
            for match in rule.finditer(self.shape)
        ]

    def after(self, end: int, rule: re.Pattern[str]) -> tuple[int, int] | None:
        """Characters of what a rule matches in the tokens that begin at or after `end`."""
        match = rule.match(self.shape, (bisect_left(self.bounds, end) + 1) // 2)
        return (self.start(match.start()), self.end(match.end() - 1)) if match else None


def shapes(text: str) -> Shapes:
    """Cut a text into tokens, and give each its shape."""
    pieces = _TOKEN.split(text)  # by turns what no token holds, and a token
    tokens = pieces[1::2]
    known, new = lexicon().get, dict[str, str]()
    shape = "".join(
        [known(token) or new.get(token) or new.setdefault(token, _shape(token)) for token in tokens]
    )
    shape = _BEGINS_SENTENCE.sub(lambda begun: begun[0][:-1] + "c", "|" + shape)[1:]  # a text as a line
    return Shapes(text, shape.replace("H", "G"), tokens, [*accumulate(map(len, pieces))])


def _shape(token: str) -> str:
    """Of a token that is not in the lexicon as it stands."""
    first = token[0]
    if not first.isalpha():
        return _number_shape(token) if first.isdecimal() else "x" if len(token) > 1 else ";"
    small = token.lower()
    if len(token) == 1:
        return "I" if token != small else "w"
    if not token.isalpha() and not _LETTERS.fullmatch(token):
        return "x"
    if token == small:
        return "w" if is_ordinary(small) else "h" if is_nation(small) else "u"
    if token.isupper():
        return lexicon().get(token.capitalize()) or _capitals_shape(token)
    if not token[1:].islower() and _CAMEL.search(token) and not _NAME_CAMEL.match(token) and "-" not in token:
        return "x"
    if small[-2:] in ends_of_streets() and small.endswith(words("street_endings")):
        return "R"
    return "C" if is_ordinary(small) else "Q" if is_nation(small) else "N"


def _capitals_shape(token: str) -> str:
    if _ROMAN.fullmatch(token):
        return "w"
    return "C" if is_ordinary(token.lower()) else "A" if len(token) <= _FEW_CAPITALS else "N"


def _number_shape(token: str) -> str:
    if token.isdecimal():
        year = len(token) == 4 and token[:2] in ("19", "20")
        return "y" if year else "d" if len(token) <= _LONGEST_SHORT else "D"
    return "d" if token[:-1].isdecimal() and len(token) <= _LONGEST_SHORT else "x"
