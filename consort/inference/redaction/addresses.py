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
_NAME = (
    rf"(?:(?:[eu]{{1,3}}|o|(?<=[NGCS])&)(?=[{_LARGE}])|c(?=[{_LARGE}])|[NGCAPQRV]|F(?!\.?#?[dyDI])"
    r"|[STOI]\.?|'(?=[NG]))"
)
_NUMBER = r"[dyD](?:[-/][dI](?![wu]))?"
_FLAT = rf"(?:(?:I\.I\.)?[Ff]\.?#?(?:{_NUMBER}|I)|B\.?(?:[FCNA]\.?)?)"
_PART = rf"(?:{_FLAT}|{_NAME}{{1,6}}|{_NUMBER}|\((?:{_NAME}){{1,3}}\)|(?<=[|,])[wu](?=\|?d)|[wu]\.(?=d))"
_GAP = r"(?:\|?>|[,|]{0,3}|(?<=\|),\|?|\.(?=[Ff|,]))"
_REST = rf"(?:{_GAP}{_PART})*"
# A word nobody knows or made to name streets, beside a number; an ordinary one between number and street.
_CORE = (
    rf"(?:{_NUMBER}[NR]w{_NUMBER}|{_NUMBER}(?:,?{_NUMBER})?,?(?:[CPAVQ]|e|I\.?){{0,4}}[NGRS]"
    rf"|(?:(?:[CPAVQSO]|e|I\.?){{0,4}}[NGR](?:[CPAVQSNGRI]|e|\.){{0,4}}|S\.?(?:[CPAVQ]|e){{1,4}}),?{_NUMBER}"
    rf"|(?:{_NUMBER},?)?(?:I\.I\.[Ff]|B)\.?(?:[FfCNA]\.?){{0,2}}{_NUMBER}|[Ff]{_NUMBER}[Ff]{_NUMBER}|B[NGC]{{1,2}}\|B)"
)
# What cannot begin one is told first: most words are such, and each of the above would be tried on them.
_ADDRESS = re.compile(rf"(?=[FfBIdyDCPAVQeNGRSO])(?<![#/-])(?:{_FLAT},?){{0,3}}{_CORE}{_REST}")
_ANNOUNCED = re.compile(
    rf"{_PART}{_REST}(?:&{_PART}{_REST})?|(?=[^!.&]{{0,9}}[|,])[dy](?:[,|]{{0,3}}[wugqd]){{2,9}}[,|]{{0,3}}[dD]"
)
_CORNER = re.compile(rf"[NGCAPQRSTVOFBeoI'dyD.,]{{1,12}}?&{_PART}{_REST}")
_CORNER_WORDS = re.compile(r"(?:corner|intersection|junction) of (?:the )?", re.IGNORECASE)
_ANNOUNCING = re.compile(
    r"(?:address(?:es)?(?: of [^.\n]{1,60})?(?: is| to| was)?"
    r"|(?:located|lives?|living|lived|based|resid(?:e[sd]?|ing)|staying) (?:at|in|on)"
    r"|(?:deliver|send|ship|sent|shipped|delivered|return|taxi|ride|directions) (?:it |this |that |them )?to"
    r"|(?:meet|pick) (?:me|us|him|her|them)(?: up)? at|(?:stop|off|offices? (?:is|are)) at|station is on)"
    r"\s*:?\s*",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"(?:zip|postal|post)[ -]?code(?: is|:| =)?\s*:?\s*"
    r"([A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}|(?:[A-Z]{1,2}-)?\d{3,6}(?:[- ]\d{2,4})?)\b",
    re.IGNORECASE,
)


def addresses(seen: Shapes) -> list[Span]:
    """Addresses that show themselves."""
    return seen.matches(_ADDRESS, "address")


def announced_addresses(seen: Shapes, at: int) -> Iterator[Span]:
    """What the word at a place of the text announces: an address, a street corner, a post code."""
    code = _CODE.match(seen.text, at)
    if code:
        yield Span(*code.span(1), "postcode")
    words = _CORNER_WORDS.match(seen.text, at)
    corner = words and seen.after(words.end(), _CORNER)
    if corner:
        the = 4 * (seen.text[max(0, at - 4) : at].lower() == "the ")
        yield Span(at - the, corner[1], "address")
    words = _ANNOUNCING.match(seen.text, at)
    found = words and seen.after(words.end(), _ANNOUNCED)
    if found and any(character.isdigit() for character in seen.text[slice(*found)]):
        yield Span(*found, "address")
