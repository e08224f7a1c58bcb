"""People, organisations, places, nationalities, dates and ages, by the words around them, over shapes.

Made for English. In a text that is mostly not English a capital letter alone proves nothing, and only names
that a list or a title vouches for are taken. Knows no fame: a public person is a person.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from consort.inference.redaction.addresses import addresses, announced_addresses
from consort.inference.redaction.lexicon import may_begin_several, several_words, words
from consort.inference.redaction.shapes import Shapes, shapes
from consort.inference.redaction.spans import Span

# A name: unknown words written large, with initials, particles, and ordinary large words that join them.
_NEXT = "[NGCAPQS]"
_MORE = rf"(?:(?:I\.?|e{{1,3}}|I?'(?=[NG]))?{_NEXT}|I\.c|I\.?(?![w'i&z]))*"
_FIRST = r"(?:(?<=[NG])|(?=[CPQAS]{0,2}(?:I')?[NG]))"  # the large word just read may begin a name
# A rule that begins with a set of shapes is looked for several times faster than one that does not.
_RUN = rf"{_NEXT}{_FIRST}{_MORE}"
_TITLED = re.compile(r"(?:(?:[Tt]\.?){1,3}(?:[NGCAPQSx]|I\.?|e){0,3}[NGCAPQSx]|t\.(?:[ug]{1,3}))")
_PERSON = re.compile(rf"{_NEXT}(?:{_FIRST}{_MORE}|(?<=[NG],[NG]&[CPQ]))")
_VOUCHED = re.compile(rf"G(?:I\.?|e{{1,3}})?{_NEXT}{{0,3}}|[NG]N")
_SMALL_NAME = re.compile(r"g(?:w\.)?[ug]{0,2}")
_LARGE = "[NGCAPQRSVOIx]"
_COMPANY = re.compile(
    rf"{_LARGE}(?:[,.]?{_LARGE}|[&o](?={_LARGE})){{0,8}},?O"
    rf"|(?<![,!])[NG],[NG]&[NG](?![,NG])"
    rf"|(?:[NGCAPQSx&](?:{_LARGE}|[&o](?={_LARGE})){{1,8}}|[Nx])(?=V|v|w{{1,3}}[QCh]?w{{0,4}}v)"
)
_EMPLOYER = re.compile(rf"(?:{_LARGE}|[&o](?={_LARGE}))+")
_EMPLOYER_WORDS = re.compile(
    r"(?:work(?:s|ed|ing)? (?:at|for)|employed (?:at|by)|joined"
    r"|(?:ceo|cto|cfo|founder|employee|director|manager|owner) (?:of|at)|year at|(?:hired|acquired) by|became"
    r"|company called|(?:invoice|purchase) from|interview at) ",
    re.IGNORECASE,
)
_SAYS_NAME = re.compile(
    r"(?:name(?:'s| is|:)|called|named(?: him| her| them| it)?|call me|known as|signed|regards,|sincerely,"
    r"|follow up with|meet with|talk to|speak (?:to|with)|contact)\s+",
    re.IGNORECASE,
)
_SAID_NAME = re.compile(r"(?=[CAPIe.]{0,3}[NGgu])(?:[NGCHAPgu]|I\.?|e|(?<=[NGgu])w\.){0,4}[NGCAPgu]")
_IN_PLACE = re.compile(rf"(?<=[io])(?:(?:[AP]|{_RUN})(?:,[APN](?![,&]))?)")
_PLACE = re.compile(r"P+|q")
_NATION = re.compile(r"[Qh]")
_SEVERAL = re.compile(r"[cCPNQ]{2,4}|(?<=i)[wuqh]{2,3}")
_DAY = re.compile(r"k")
_MONTH_DATE = re.compile(r"[xd]?[-,]?o?m[-.]?(?:[dx],?)?-?[yd]?(?<=[^m.,-])|(?<=[wi])m(?![NGCw])")
_DATE = re.compile(
    r"(?<![\w./-])(?:\d{1,2}([-/.])\d{1,2}\1(?:19|20)?\d\d|(?:19|20)\d\d([-/.])\d{1,2}\2\d{1,2})(?![\w/-]|\.\d)"
)
# Of ages: in small letters, as `cues` has it.
_AGE_AFTER = re.compile(
    r"[ -]?(?:y/?o\b|y\.o\.|(?:years?|yrs?|months?|weeks?)[ -](?:of[ -]age|olds?\b|young\b)"
    r"|(?:th|st|nd|rd) birthday)"
)
_AGE_BEFORE = re.compile(r"\b(?:turn(?:ed|s|ing)|age[ds]?|age (?:of|is|was)|aged between)\W{1,2}$")
_AGE_SAID = re.compile(r"\b(?:i'm|i am|he's|she's|he is|she is|i was) $")
_AGE_SAID_ENDS = ("m ", "s ", "m \n", "s \n")  # `$` may stand before a last new line
_AGE_ENDS = re.compile(r"[.!?]?(?:$|\s|,)(?![a-z]{2,}s\b|%)")
_OLDEST = 125  # years
# A rule, what it finds, and shapes of which one must be there for it to find anything.
_RULES = (
    (_DAY, "date", "k"), (_MONTH_DATE, "date", "m"), (_COMPANY, "organisation", "OVv&"),
    (_TITLED, "person", "Tt"), (_PERSON, "person", "NG"), (_SMALL_NAME, "person", "g"),
    (_IN_PLACE, "place", "io"),
    (_PLACE, "place", "Pq"), (_NATION, "nationality", "Qh"),
)  # fmt: skip
_FOREIGN_RULES = (
    *(rule for rule in _RULES if rule[0] not in (_PERSON, _IN_PLACE)), (_VOUCHED, "person", "NG"),
)  # fmt: skip
_NUMBER = re.compile(r"[dy]")
_CUE = re.compile(r"[zv]")
_FOREIGN = 0.4  # share of unknown small words from which a text is not English
_ENOUGH_WORDS = 8  # to judge a text's language by


def context(text: str) -> list[Span]:
    """Spans of the kinds that no checksum knows; they may overlap."""
    seen = shapes(text)
    present = frozenset(seen.shape)
    found = [] if may_begin_several().isdisjoint(seen.tokens) else [*_places_of_several_words(seen)]
    if not present.isdisjoint("dyD"):
        found += [*addresses(seen), *_times(seen)]
    if not present.isdisjoint("zv"):
        found += _announced(seen)
    for rule, kind, needed in _FOREIGN_RULES if _is_foreign(seen) else _RULES:
        if not present.isdisjoint(needed):
            found += seen.matches(rule, kind)
    return found


def _is_foreign(seen: Shapes) -> bool:
    unknown, known = seen.shape.count("u"), seen.shape.count("w")
    return unknown + known >= _ENOUGH_WORDS and unknown > _FOREIGN * (unknown + known)


def _announced(seen: Shapes) -> Iterator[Span]:
    for cue in _CUE.finditer(seen.shape):
        at = seen.start(cue.start())
        yield from announced_addresses(seen, at)
        for says, said, kind in (
            (_SAYS_NAME, _SAID_NAME, "person"),
            (_EMPLOYER_WORDS, _EMPLOYER, "organisation"),
        ):
            cued = says.match(seen.text, at)
            found = cued and seen.after(cued.end(), said)
            if found:
                yield Span(*found, kind)


def _places_of_several_words(seen: Shapes) -> Iterator[Span]:
    for match in _SEVERAL.finditer(seen.shape):
        for token in range(*match.span()):
            for name in several_words().get(seen.tokens[token].lower(), ()):
                start = seen.start(token)
                end = start + len(name)
                if seen.text[start:end].lower() == name:
                    yield Span(start, end, "place")


def _times(seen: Shapes) -> Iterator[Span]:
    for number in _NUMBER.finditer(seen.shape):
        token = number.start()
        start, end = seen.start(token), seen.end(token)
        if number[0] == "d" and _is_age(seen.text, start, end):
            yield Span(start, end, "age")
        elif number[0] == "y" and token and seen.tokens[token - 1].lower() in words("before_years"):
            yield Span(start, end, "date")
        date = _DATE.match(seen.text, start)
        if date:
            yield Span(*date.span(), "date")


def _is_age(text: str, start: int, end: int) -> bool:
    if end - start > 3 or not text[start:end].isdecimal() or int(text[start:end]) > _OLDEST:
        return False
    before, after = text[max(0, start - 20) : start].lower(), text[end : end + 20].lower()
    if before.endswith(_AGE_SAID_ENDS) and _AGE_SAID.search(before) and _AGE_ENDS.match(text, end):
        return True
    told = ("age" in before or "turn" in before) and _AGE_BEFORE.search(before)
    return bool(told or _AGE_AFTER.match(after))
