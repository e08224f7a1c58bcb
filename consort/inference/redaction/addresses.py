"""Postal addresses: a number beside a name, and what follows it, over shapes (`shapes.Shapes`).

Reads the order of most countries (number first or last; flat, town, state and code after it; one line or
several) and the post boxes of armies. A street without any number is found only where a word announces it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from consort.inference.redaction.shapes import Shapes
from consort.inference.redaction.spans import Span

_LARGE = "NGCAPQRSTHVOFB"
# Words of a street, town or country: large ones, initials, particles between them, abbreviations with a stop.
_NAME = rf"(?:(?:e{{1,3}}|o|(?<=[NGCS])&)(?=[{_LARGE}])|c(?=[{_LARGE}])|[NGCAPQRV]|[STOI]\.?|'(?=[NG]))"
_NUMBER = r"[dyD](?:[-/][dI](?![wu]))?"
_FLAT = rf"(?:[Ff]\.?#?(?:{_NUMBER}|I)|B\.?(?:[FCNA]\.?)?)"
_PART = rf"(?:{_NAME}{{1,6}}|{_NUMBER}|{_FLAT}|\((?:{_NAME}){{1,3}}\)|(?<=[|,])[wu](?=\|d)|[wu]\.(?=d))"
_GAP = r"(?:\|?>|[,|]{0,3}|(?<=\|),\|?|\.(?=[Ff|,]))"
_REST = rf"(?:{_GAP}{_PART})*"
# A word nobody knows, or one made to name streets, beside a number; or an ordinary one between number and street.
_CORE = (
    rf"(?:{_NUMBER}(?:,?{_NUMBER})?,?(?:[CPAVQ]|e|I\.?){{0,4}}[NGRS]"
    rf"|(?:(?:[CPAVQSO]|e|I\.?){{0,4}}[NGR](?:[CPAVQSNGRI]|e|\.){{0,4}}|S\.?(?:[CPAVQ]|e){{1,4}}),?{_NUMBER}"
    rf"|B\.?(?:[FfCNA]\.?){{0,2}}{_NUMBER}|[Ff]{_NUMBER}[Ff]{_NUMBER}|B[NGC]{{1,2}}\|B)"
)
_ADDRESS = re.compile(rf"(?<![#/-])(?P<it>{_CORE}{_REST})")
_ANNOUNCED = re.compile(rf"(?P<it>{_PART}{_REST}(?:&{_PART}{_REST})?)")
_CORNER = re.compile(rf"{_PART}(?:\.?{_PART})*\.?&{_PART}(?:{_GAP}{_PART})*")
_CORNER_WORDS = re.compile(r"\b(?:the )?(?:corner|intersection|junction) of (?:the )?", re.IGNORECASE)
_ANNOUNCING = re.compile(
    r"\b(?:address(?: is| to| of mine is|:)|(?:located|lives?|living|lived|based|reside[sd]?|staying) (?:at|in|on)"
    r"|(?:deliver|send|ship|sent|shipped|delivered|return|taxi|ride|directions) (?:it |this |that |them )?to"
    r"|(?:meet|pick) (?:me|us|him|her|them)(?: up)? at|(?:stop|off|office is|offices are) at|station is on"
    r"|(?:mailing|billing|shipping|home|postal) address|address)\s*:?\s*",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"\b(?:zip|postal|post)[ -]?code(?: is|:| =)?\s*:?\s*"
    r"([A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}|(?:[A-Z]{1,2}-)?\d{3,6}(?:[- ]\d{2,4})?)\b",
    re.IGNORECASE,
)


def addresses(shapes: Shapes) -> Iterator[Span]:
    """Addresses, and post codes that are called so."""
    for start, end in shapes.matches(_ADDRESS):
        yield Span(start, end, "address")
    text = shapes.text
    for words in _CORNER_WORDS.finditer(text):
        corner = shapes.after(words.end(), _CORNER)
        if corner:
            yield Span(words.start(), corner[1], "address")
    for words in _ANNOUNCING.finditer(text):
        found = shapes.after(words.end(), _ANNOUNCED)
        if found and any(character.isdigit() for character in text[slice(*found)]):
            yield Span(*found, "address")
    for code in _CODE.finditer(text):
        yield Span(*code.span(1), "postcode")
