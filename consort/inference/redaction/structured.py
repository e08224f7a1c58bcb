"""Private spans known by their form: secrets, URLs, e-mail, IBANs, cards, IP and MAC addresses, telephones.

Checksums decide where there are any; otherwise a form, or a looser form beside a word that says what it is.
Amounts, dates and versions are left alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from functools import cache

from consort.inference.redaction import checksums
from consort.inference.redaction.lexicon import words
from consort.inference.redaction.national_ids import called_ids, may_call_ids, national_ids
from consort.inference.redaction.spans import Span

_LONG = re.compile(r"(?<!\S)\S{16,}")
_SECRET = re.compile(
    r"\b(?:sk|pk|rk)[-_](?:[A-Za-z\d]+[-_])*[A-Za-z\d]{16,}"
    r"|\bA(?:KI|SI)A[A-Z\d]{16}\b|\bgh[opsu]_[A-Za-z\d]{30,}|\bgithub_pat_\w{30,}|\bxox[abprs]-[\w-]{10,}"
    r"|\bAIza[\w-]{35}|\bhf_[A-Za-z\d]{30,}|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+"
)
_KEY_BLOCK = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----")
_NAMED_SECRET = re.compile(
    r"\b(?:pass(?:word|wd|code|phrase)|pwd|api[ _-]?key|(?:access|auth|bearer|secret)[ _-]?(?:key|token))"
    r"\s*(?:[:=]|\bis\b:?)\s*[\"']?(?=[^\s\"']*\d)([^\s\"'\[\]]{4,200}?)(?=[\"',;.!?]*(?:\s|$|\[))",
    re.IGNORECASE,
)
_EMAIL = re.compile(
    r"(?<![\w.+%'-])[^\W_](?:[\w.+%'-]*\w)?@[^\W_](?:[\w-]*[^\W_])?(?:\.[^\W_](?:[\w-]*[^\W_])?)+"
)
_URL = re.compile(r"\b(?:[a-z][a-z\d+.-]*://|www\.)[^\s<>\"'`\[\]{}|\\^]+", re.IGNORECASE)
_DOMAIN = re.compile(r"\.([a-z]{2,24})(?![\w-]|\.\w|\()(?::\d+)?(/[^\s<>\"'`\[\]{}|\\^]*)?")
_LABELS = re.compile(r"(?<![\w@./-])(?:[^\W_](?:[\w-]*[^\W_])?\.)*[^\W_](?:[\w-]*[^\W_])?\Z")
_LONGEST_DOMAIN = 128  # characters
_TRAILING = ".,;:!?)'*_"
_IPV4 = re.compile(
    r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:/\d\d?)?(?![\w]|\.\d)"
)
_IPV6 = re.compile(
    r"(?<![\w:.])(?=[\da-f:.]*\d)(?=[\da-f]*:[\da-f.]*:)[\da-f:.]{3,45}(?<![:.])(?:/\d{1,3})?(?![\w:])",
    re.IGNORECASE,
)
_MAC = re.compile(r"(?<![\w:-])[\da-f]{2}([:-])(?:[\da-f]{2}\1){4}[\da-f]{2}(?![\w:-])", re.IGNORECASE)
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?:[ -]?[A-Z\d]){11,30}", re.IGNORECASE)
_CARD = re.compile(
    r"(?<![\w-])(?<!\d[.,])"
    r"(?:\d{12,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?|\d{4}([ -])\d{6}\2\d{4,5})(?![\w-]|[.,]\d)"
)
_CARD_PREFIX = re.compile(r"[2-6]|1800")
_CARD_CUE = re.compile(r"\b(?:cards?|credit|debit|visa|mastercard|amex|maestro)\b", re.IGNORECASE)
_IBAN_CUE = re.compile(r"\biban\b", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![\w/=#$€£-])(?<!\d[.,:])(?:\+ ?)?(?:\(\+?\d{1,5}\)|\d{1,15})"
    r"(?:(?: ?\(\d{1,5}\) ?|[ .\-/–\u00a0]{1,3}|(?<=\)))\d{1,11})*"
    r"(?: ?(?:x|ext\.?|extension|#) ?\d{1,6}\b)?(?![\w%€$£]|[.,:]\d)"
)
_EXTENSION = re.compile(r" ?(?:x|e|#)", re.IGNORECASE)
_PHONE_CUE_BEFORE = re.compile(
    r"\b(?:call(?:ing|ed)?|phone|tele(?:phone|fon)|tel|mobile|cell|cellphone|fax|text(?:ing)?|sms|whatsapp|reach"
    r"|contact|dial|ring|messages?|answering|registered|landline|hotline|handy|numbers?)\b[^\d\n]*$",
    re.IGNORECASE,
)
_PHONE_CUE_AFTER = re.compile(
    r"\s{0,2}[-(:]?\s?(?:office|fax|home|mobile|cell|work|phone|tel)\b", re.IGNORECASE
)
_NOT_A_PHONE_CUE = re.compile(
    r"\b(?:order|invoice|ticket|case|reference|serial|model|part|lot|item)\b", re.IGNORECASE
)
_DATE_LIKE = re.compile(
    r"(?:\d{1,2}[-/. ]){2}(?:19|20)?\d\d$|(?:19|20)\d\d[-/. ]\d{1,2}[-/. ]\d{1,2}(?: \d{1,2})?$"
)
_THOUSANDS = re.compile(r"\d{1,3}(?:[ .\u00a0]\d{3})+$")
_DIGITS = re.compile(r"\d(?:\D{0,3}\d){3,}")  # where a number worth a look may be
_FEWEST_DIGITS = 6  # of a number that nothing announces
_MARGIN = 24  # characters around the digits that may belong to the number
_CUE_REACH = 40  # characters beside a number in which a word may say what it is


def structured(text: str) -> list[Span]:
    """Spans of every kind in `spans.STRUCTURED`; they may overlap."""
    found = [*_secrets(text), *_addresses(text)]
    called = None
    for digits in _DIGITS.finditer(text):
        called = may_call_ids(text) if called is None else called
        start, end = max(0, digits.start() - _MARGIN), digits.end() + _MARGIN
        if called:
            found += called_ids(text, start, end)
        found += _ipv4(text, start, end)
        if sum(map(str.isdecimal, digits[0])) < _FEWEST_DIGITS:
            continue
        for numbers in (_ibans, _cards, _phones, national_ids):
            found += numbers(text, start, end)
    return found


def _secrets(text: str) -> Iterator[Span]:
    if any(_SECRET.search(long[0]) for long in _LONG.finditer(text)):
        for match in _SECRET.finditer(text):
            yield Span(*match.span(), "secret")
    if "PRIVATE KEY" in text:
        for match in _KEY_BLOCK.finditer(text):
            yield Span(*match.span(), "secret")
    small = text.lower()
    if "pass" in small or "pwd" in small or "key" in small or "token" in small:
        for match in _NAMED_SECRET.finditer(text):
            yield Span(*match.span(1), "secret")


def _addresses(text: str) -> Iterator[Span]:
    """Of the network: URLs and bare domains, e-mail, IP, MAC."""
    if "@" in text:
        for match in _EMAIL.finditer(text):
            yield Span(*match.span(), "email")
    for match in _DOMAIN.finditer(text):
        if match[1] in _domains() or match[2]:
            labels = _LABELS.search(text, max(0, match.start() - _LONGEST_DOMAIN), match.start())
            # a word's end and the next one's beginning look the same where a space is missing: "done.So"
            if labels and (match[1] in _domains() or "." in labels[0]):
                yield Span(labels.start(), _without_trailing(text, *match.span()), "url")
    if "://" in text or "www." in text.lower():
        for match in _URL.finditer(text):
            yield Span(match.start(), _without_trailing(text, *match.span()), "url")
    if max(text.count(":"), text.count("-")) >= 5:
        for match in _MAC.finditer(text):
            yield Span(*match.span(), "mac")
    if text.count(":") >= 2:
        for match in _IPV6.finditer(text):
            if _is_ipv6(match[0]):
                yield Span(*match.span(), "ip")


def _without_trailing(text: str, start: int, end: int) -> int:
    """Punctuation at an address's end is the sentence's, unless a bracket of its own closes there."""
    while text[end - 1] in _TRAILING:
        if text[end - 1] == ")" and text.count("(", start, end) >= text.count(")", start, end):
            break
        end -= 1
    return end


def _ipv4(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _IPV4.finditer(text, start, end):
        yield Span(*match.span(), "ip")


def _is_ipv6(text: str) -> bool:
    try:
        return not ipaddress.IPv6Interface(text).is_loopback
    except ValueError:
        return False


def _ibans(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _IBAN.finditer(text, start, end):
        length = _iban_lengths().get(match[0][:2].upper(), 0)
        places = [place for place in range(*match.span()) if text[place].isalnum()]
        bare = "".join(text[place] for place in places[:length])
        if len(bare) < length or not length:
            continue
        near = _IBAN_CUE.search(text, max(0, match.start() - _CUE_REACH), match.start())
        if checksums.iban(bare) or near:
            yield Span(match.start(), places[length - 1] + 1, "iban")


def _cards(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _CARD.finditer(text, start, end):
        digits = match[0].replace(" ", "").replace("-", "")
        near = _CARD_CUE.search(text, max(0, match.start() - _CUE_REACH), match.start())
        if near or (_CARD_PREFIX.match(digits) and checksums.luhn(digits)):
            yield Span(*match.span(), "card")


def _phones(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _PHONE.finditer(text, start, end):
        number = match[0]
        extension = _EXTENSION.search(number)
        main = number[: extension.start()] if extension else number
        digits = sum(character.isdecimal() for character in main)
        if not 6 <= digits <= 15 or _DATE_LIKE.match(main):
            continue
        if (digits >= 7 and _phone_form(main, digits)) or _phone_cue(text, match):
            yield Span(*match.span(), "phone")


def _phone_form(number: str, digits: int) -> bool:
    """Whether so written it is a telephone's number whatever stands beside it."""
    if number.startswith(("+", "(")) or (number.startswith("00") and digits >= 10):
        return True
    groups = re.split(r"\D+", number.strip("() "))
    if len(groups) == 1 or (_THOUSANDS.match(number) and digits < 9):
        return digits in (10, 11) and number.startswith("0")
    if number.startswith("0"):
        return digits >= 9 or len(groups) >= 3
    return len(groups) >= 3 and digits >= 8


def _phone_cue(text: str, match: re.Match[str]) -> bool:
    before = text[max(0, match.start() - _CUE_REACH) : match.start()]
    cued = _PHONE_CUE_BEFORE.search(before) and not _NOT_A_PHONE_CUE.search(before)
    return bool(cued or _PHONE_CUE_AFTER.match(text, match.end()))


@cache
def _domains() -> frozenset[str]:
    return frozenset(words("domains"))


@cache
def _iban_lengths() -> Mapping[str, int]:
    return {each[:2]: int(each[2:]) for each in words("iban_lengths")}
