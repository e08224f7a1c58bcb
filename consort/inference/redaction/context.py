"""People, organisations, places, nationalities, dates and ages, by the words around them, over shapes.

Made for English. In a text that is mostly not English a capital letter alone proves nothing, and only names
that a list or a title vouches for are taken. Knows no fame: a public person is a person.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from consort.inference.redaction.addresses import addresses
from consort.inference.redaction.shapes import Shapes, several_words, shapes
from consort.inference.redaction.spans import Span, disjoint

# A name: unknown words written large, with initials, particles, and ordinary large words that join them.
_WORD = r"(?:[NG]|(?<=[NGCPQA])[CAPQS]|[CPQAS](?=[CPQAS]{0,2}[NG]))"
_RUN = rf"{_WORD}(?:(?:I\.?|e{{1,3}}(?=[NGCAPIe])|'(?=[NG]))?{_WORD}|I\.(?=[NG]))*"
_TITLED = re.compile(r"(?P<it>(?:[Tt]\.?){1,3}(?:[NGCAPQSx]|I\.?|e){0,3}[NGCAPQSx]|t\.(?:[ug]{1,3}))")
_PERSON = re.compile(_RUN)
_VOUCHED = re.compile(rf"G(?:I\.?|e{{1,3}})?{_WORD}{{0,3}}|{_WORD}?{_WORD}(?<=[NG][NG])")
_SMALL_NAME = re.compile(r"g(?:w\.)?[ug]{0,2}")
_LARGE = "[NGCAPQRSVOIx]"
_COMPANY = re.compile(
    rf"(?P<it>{_LARGE}(?:[,.]?{_LARGE}|[&o](?={_LARGE}))*,?O\.?"
    rf"|(?<![,!])[NG],[NG]&[NG](?![,NG])"
    rf"|(?:[NGCAPQSx&](?:{_LARGE}|[&o](?={_LARGE}))+|[Nx])(?=V|v|w{{1,3}}[QCh]?w{{0,4}}v))"
)
_EMPLOYER = re.compile(rf"(?:{_LARGE}|[&o](?={_LARGE}))+")
_EMPLOYER_WORDS = re.compile(
    r"\b(?:work(?:s|ed|ing)? (?:at|for)|employed (?:at|by)|joined|(?:ceo|cto|cfo|founder|employee|director|manager|owner)"
    r" (?:of|at)|year at|hired by|acquired by|became|company called|invoice from|purchase from|interview at) ",
    re.IGNORECASE,
)
_SAYS_NAME = re.compile(
    r"\b(?:name(?:'s| is|:)|(?:is|was|am|are) (?:called|named)|named|called|call me|known as|signed|regards,|sincerely,"
    r"|named (?:him|her|them|it)|follow up with|meet with|talk to|speak (?:to|with)|contact)[ \t\n]+",
    re.IGNORECASE,
)
_SAID_NAME = re.compile(r"(?:[NGCHAPgu]|I\.?|e|(?<=[NGgu])w\.){0,4}[NGCAPgu]")
_IN_PLACE = re.compile(rf"(?<=[io])(?P<it>(?:[AP]|{_RUN})(?:,[APN](?![,&]))?)")
_PLACE = re.compile(r"P+|q")
_NATION = re.compile(r"[Qh]")
_SEVERAL = re.compile(r"[cCPNQ]{2,4}|(?<=i)[wuqh]{2,3}")
_DAY = re.compile(r"k")
_MONTH_DATE = re.compile(r"(?:x|d)?,?o?m\.?(?:[dx]\b)?,?y|(?:x|d)o?m|m\.?[dx](?:,?y)?")
_YEAR = re.compile(
    r"\b(?:in|since|during|of|by|from|until|till|before|after|an?|the|around|about|circa|to|year|early|late|mid|summer"
    r"|spring|autumn|fall|winter|founded|born|class of) ((?:19|20)\d\d)\b(?![-.,]?\d)",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"(?<![\w./-])(?:\d{1,2}([-/.])\d{1,2}\1(?:19|20)?\d\d|(?:19|20)\d\d([-/.])\d{1,2}\2\d{1,2})(?![\w/-]|\.\d)"
)
_AGE = re.compile(
    r"\b(\d{1,3})(?=[ -]?(?:y/?o\b|years?[ -]of[ -]age|years?[ -]old|yrs?[ -]old))"
    r"|(?:\b(?:turn(?:ed|s|ing)|aged|age[: ]|at the age of|age (?:of|is))[ :]?|\b(?:i'm|i am|he's|she's) (?=\d+(?:[.,!?;]| and |$)))"
    r"(\d{1,3})\b(?!\s?%|[.,]\d)",
    re.IGNORECASE,
)
_FOREIGN = 0.4  # share of unknown small words from which a text is not English
_ENOUGH_WORDS = 8  # to judge a text's language by


def context(text: str) -> list[Span]:
    """Spans of the kinds that no checksum knows, disjoint."""
    seen = shapes(text)
    found = [*addresses(seen), *_times(seen), *_companies(seen), *_places(seen)]
    found += [Span(*name, "person") for name in _people(seen)]
    return disjoint(text, found)


def _people(seen: Shapes) -> Iterator[tuple[int, int]]:
    yield from seen.matches(_TITLED)
    yield from seen.matches(_VOUCHED if _is_foreign(seen) else _PERSON)
    yield from seen.matches(_SMALL_NAME)
    for words in _SAYS_NAME.finditer(seen.text):
        name = seen.after(words.end(), _SAID_NAME)
        if name:
            yield name


def _is_foreign(seen: Shapes) -> bool:
    unknown, known = seen.shape.count("u"), seen.shape.count("w")
    return unknown + known >= _ENOUGH_WORDS and unknown > _FOREIGN * (unknown + known)


def _companies(seen: Shapes) -> Iterator[Span]:
    for place in seen.matches(_COMPANY):
        yield Span(*place, "organisation")
    for words in _EMPLOYER_WORDS.finditer(seen.text):
        employer = seen.after(words.end(), _EMPLOYER)
        if employer:
            yield Span(*employer, "organisation")


def _places(seen: Shapes) -> Iterator[Span]:
    if not _is_foreign(seen):
        for place in seen.matches(_IN_PLACE):
            yield Span(*place, "place")
    for rule, kind in ((_PLACE, "place"), (_NATION, "nationality")):
        for place in seen.matches(rule):
            yield Span(*place, kind)
    known = several_words()
    for start, end in seen.matches(_SEVERAL):
        words = seen.text[start:end].lower()
        for name in known:
            at = words.find(name)
            if at >= 0:
                yield Span(start + at, start + at + len(name), "place")


def _times(seen: Shapes) -> Iterator[Span]:
    for rule in (_DAY, _MONTH_DATE):
        for place in seen.matches(rule):
            yield Span(*place, "date")
    for match in _DATE.finditer(seen.text):
        yield Span(*match.span(), "date")
    for match in _YEAR.finditer(seen.text):
        yield Span(*match.span(1), "date")
    for match in _AGE.finditer(seen.text):
        yield Span(*match.span(match.lastindex or 0), "age")
