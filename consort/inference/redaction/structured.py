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
from consort.inference.redaction.cues import holds_any, words_before
from consort.inference.redaction.lexicon import words
from consort.inference.redaction.national_ids import called_ids, national_ids
from consort.inference.redaction.spans import Span

_SECRET_LINE = re.compile(r"_(?<=[a-z]_)")  # as secrets have it and placeholders have not
_LONG = re.compile(r"(?<!\S)\S{16,}")
_SECRET = re.compile(
    r"\b(?:sk|pk|rk)[-_](?:[A-Za-z\d]+[-_])*[A-Za-z\d]{16,}"
    r"|\bA(?:KI|SI)A[A-Z\d]{16}\b|\bgh[opsu]_[A-Za-z\d]{30,}|\bgithub_pat_\w{30,}|\bxox[abprs]-[\w-]{10,}"
    r"|\bAIza[\w-]{35}|\bhf_[A-Za-z\d]{30,}|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+"
)
_NAMED_SECRET_SIGNS = ("passw", "passcode", "passphrase", "pwd", "api", "access", "auth", "bearer", "secret")
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
_TWO_COLONS = re.compile(r":[\da-f.]*:")
_IPV6 = re.compile(
    r"(?<![\w:.])(?=[\da-f:.]*\d)(?=[\da-f]*:[\da-f.]*:)[\da-f:.]{3,45}(?<![:.])(?:/\d{1,3})?(?![\w:])",
    re.IGNORECASE,
)
_MAC = re.compile(r"(?<![\w:-])[\da-f]{2}([:-])(?:[\da-f]{2}\1){4}[\da-f]{2}(?![\w:-])", re.IGNORECASE)
_IBAN = re.compile(r"(?<!\w)[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z\d]){11,30}")
_CARD = re.compile(
    r"(?<![\w-])(?<!\d[.,])"
    r"(?:\d{12,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?|\d{4}([ -])\d{6}\2\d{4,5})(?![\w-]|[.,]\d)"
)
_CARD_PREFIX = re.compile(r"[2-6]|1800")
_CARD_CUE = re.compile(r"\b(?:cards?|credit|debit|visa|mastercard|amex|maestro)\b")
_IBAN_CUE = re.compile(r"\biban\b")
_PHONE = re.compile(
    r"(?<![\w/=#$€£-])(?<!\d[.,:])(?:\+ ?)?(?:\(\+?\d{1,5}\)|\d{1,15})"
    r"(?:(?: ?\(\d{1,5}\) ?|[ .\-/–\u00a0]{1,3}|(?<=\)))\d{1,11})*"
    r"(?: ?(?:x|ext\.?|extension|#) ?\d{1,6}\b)?(?![\w%€$£]|[.,:]\d)"
)
_EXTENSION = re.compile(r" ?[xXeE#]")
_PHONE_CUE_BEFORE = re.compile(
    r"\b(?:call(?:ing|ed)?|phone|tele(?:phone|fon)|tel|mobile|cell|cellphone|fax|text(?:ing)?|sms|whatsapp|reach"
    r"|contact|dial|ring|messages?|answering|registered|landline|hotline|handy|numbers?)\b[^\d\n]*$"
)
_PHONE_CUE_AFTER = re.compile(
    r"\s{0,2}[-(:]?\s?(?:office|fax|home|mobile|cell|work|phone|tel)\b", re.IGNORECASE
)
_NOT_A_PHONE_CUE = re.compile(r"\b(?:order|invoice|ticket|case|reference|serial|model|part|lot|item)\b")
_DATE_LIKE = re.compile(
    r"(?:\d{1,2}[-/. ]){2}(?:19|20)?\d\d$|(?:19|20)\d\d[-/. ]\d{1,2}[-/. ]\d{1,2}(?: \d{1,2})?$"
)
_THOUSANDS = re.compile(r"\d{1,3}(?:[ .\u00a0]\d{3})+$")
_DIGIT, _NOT_DIGITS = re.compile(r"\d"), re.compile(r"\D+")
_DIGITS = re.compile(r"\d(?:\D{0,3}+\d){3,}+")  # where a number worth a look may be
_FEWEST_DIGITS = 6  # of a number that nothing announces
_FEWEST_DIGITS_OF_A_CARD = 12
_MARGIN = 24  # characters around the digits that may belong to the number
_NEAR = 8  # the same where the digits stand together but for single separators


def structured(text: str) -> list[Span]:
    """Spans of every kind in `spans.STRUCTURED`; they may overlap."""
    small, found = text.lower(), list[Span]()
    # signs are looked for here, in line: most texts hold none, and a call for each would cost more
    signed = "k-" in text or "IA" in text or "xox" in text or "AIza" in text or "eyJ" in text
    if signed or _SECRET_LINE.search(text):
        found += _secrets(text)
    if "pass" in small or "pwd" in small or "key" in small or "token" in small:
        found += _named_secrets(text, small)
    if "@" in text:
        found += [Span(*match.span(), "email") for match in _EMAIL.finditer(text)]
    if "." in text:
        found += _bare_domains(text)
    if "://" in text or "www." in small:
        found += _urls(text)
    if text.count(":") >= 2 or text.count("-") >= 5:
        found += _machines(text, small)
    for digits in _DIGITS.finditer(text):
        first, last = digits.span()
        start, end = max(0, first - _MARGIN), last + _MARGIN
        num_digits = sum(map(str.isdecimal, digits[0]))
        found += called_ids(text, start, end)
        if digits[0].count(".") >= 3:
            found += [Span(*match.span(), "ip") for match in _IPV4.finditer(text, start, end)]
        if num_digits >= _FEWEST_DIGITS:
            found += [*_ibans(text, start, end), *_phones(text, start, end)]
            found += national_ids(text, max(0, first - _NEAR), last + _NEAR, num_digits)
        if num_digits >= _FEWEST_DIGITS_OF_A_CARD:
            found += _cards(text, first, last + _NEAR)
    return found


def _secrets(text: str) -> Iterator[Span]:
    for long in _LONG.finditer(text):
        for match in _SECRET.finditer(text, *long.span()):
            yield Span(*match.span(), "secret")


def _named_secrets(text: str, small: str) -> Iterator[Span]:
    if "private key" in small:
        for match in _KEY_BLOCK.finditer(text):
            yield Span(*match.span(), "secret")
    if holds_any(small, _NAMED_SECRET_SIGNS) and _DIGIT.search(text):
        for match in _NAMED_SECRET.finditer(text):
            yield Span(*match.span(1), "secret")


def _bare_domains(text: str) -> Iterator[Span]:
    for match in _DOMAIN.finditer(text):
        if match[1] in _domains() or match[2]:
            labels = _LABELS.search(text, max(0, match.start() - _LONGEST_DOMAIN), match.start())
            # a word's end and the next one's beginning look the same where a space is missing: "done.So"
            if labels and (match[1] in _domains() or "." in labels[0]):
                yield Span(labels.start(), _without_trailing(text, *match.span()), "url")


def _urls(text: str) -> Iterator[Span]:
    for match in _URL.finditer(text):
        yield Span(match.start(), _without_trailing(text, *match.span()), "url")


def _machines(text: str, small: str) -> Iterator[Span]:
    """MAC and IPv6 addresses."""
    for match in _MAC.finditer(text) if max(text.count(":"), text.count("-")) >= 5 else ():
        yield Span(*match.span(), "mac")
    for match in _IPV6.finditer(text) if _TWO_COLONS.search(small) else ():
        if _is_ipv6(match[0]):
            yield Span(*match.span(), "ip")


def _without_trailing(text: str, start: int, end: int) -> int:
    """Punctuation at an address's end is the sentence's, unless a bracket of its own closes there."""
    while text[end - 1] in _TRAILING:
        if text[end - 1] == ")" and text.count("(", start, end) >= text.count(")", start, end):
            break
        end -= 1
    return end


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
        if checksums.iban(bare) or _IBAN_CUE.search(words_before(text, match.start())):
            yield Span(match.start(), places[length - 1] + 1, "iban")


def _cards(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _CARD.finditer(text, start, end):
        digits = match[0].replace(" ", "").replace("-", "")
        checked = _CARD_PREFIX.match(digits) and checksums.luhn(digits)
        if checked or _CARD_CUE.search(words_before(text, match.start())):
            yield Span(*match.span(), "card")


def _phones(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _PHONE.finditer(text, start, end):
        number = match[0]
        extension = _EXTENSION.search(number)
        main = number[: extension.start()] if extension else number
        digits = sum(map(str.isdecimal, main))
        if not 6 <= digits <= 15 or _DATE_LIKE.match(main):
            continue
        if (digits >= 7 and _phone_form(main, digits)) or _phone_cue(text, match):
            yield Span(*match.span(), "phone")


def _phone_form(number: str, digits: int) -> bool:
    """Whether so written it is a telephone's number whatever stands beside it."""
    if number.startswith(("+", "(")) or (number.startswith("00") and digits >= 10):
        return True
    groups = _NOT_DIGITS.split(number.strip("() "))
    if len(groups) == 1 or (_THOUSANDS.match(number) and digits < 9):
        return digits in (10, 11) and number.startswith("0")
    if number.startswith("0"):
        return digits >= 9 or len(groups) >= 3
    return len(groups) >= 3 and digits >= 8


def _phone_cue(text: str, match: re.Match[str]) -> bool:
    before = words_before(text, match.start())
    cued = _PHONE_CUE_BEFORE.search(before) and not _NOT_A_PHONE_CUE.search(before)
    return bool(cued or _PHONE_CUE_AFTER.match(text, match.end()))


@cache
def _domains() -> frozenset[str]:
    return frozenset(words("domains"))


@cache
def _iban_lengths() -> Mapping[str, int]:
    return {each[:2]: int(each[2:]) for each in words("iban_lengths")}
