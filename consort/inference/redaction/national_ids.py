"""National identity numbers of nineteen countries: how each is written, and the check that proves it.

A form that ordinary numbers also have needs a word beside it that says what it is. Other countries' numbers
are found by such a word alone, as are passports and driving licences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from consort.inference.redaction import checksums
from consort.inference.redaction.cues import words_before
from consort.inference.redaction.spans import Span

_NO_WORD, _END = r"(?<![\w.-])", r"(?![\w-]|\.\d)"
_SEPARATORS = re.compile(r"[\s./-]")


@dataclass(frozen=True, slots=True)
class NationalId:
    """One country's number. `bare` drops separators before the check; `cue` is a word that must be near."""

    fewest_digits: int
    form: str
    whole: re.Pattern[str]
    check: Callable[[str], bool]
    bare: bool = True
    cue: re.Pattern[str] | None = None


def _id(
    fewest_digits: int, form: str, check: Callable[[str], bool], *, bare: bool = True, cue: str = ""
) -> NationalId:
    near = re.compile(rf"\b(?:{cue})\b") if cue else None
    return NationalId(
        fewest_digits, form, re.compile(rf"{_NO_WORD}(?:{form}){_END}", re.ASCII), check, bare, near
    )


_SSN_CUE = "ssn|social security|itin|taxpayer"
_DAY = r"(?:0[1-9]|[12]\d|3[01])"
_MONTH = r"(?:0[1-9]|1[0-2])"
NATIONAL_IDS = (
    _id(9, r"\d{3}(?:-\d{2}-| \d{2} )\d{4}", checksums.us_ssn),  # US
    _id(9, r"\d{9}", checksums.us_ssn, cue=_SSN_CUE),
    _id(10, r"\d{3}[ -]\d{3}[ -]\d{4}", checksums.uk_nhs, cue="nhs"),  # UK, health
    _id(10, r"\d{10}", checksums.uk_nhs),
    # UK, insurance: no check digit, but few first letters
    _id(6, r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]", lambda text: True),
    _id(7, r"(?:\d{8}|[XYZ]-?\d{7})-?[A-Z]", checksums.es_nif),  # ES
    _id(7, r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]", checksums.it_codice),  # IT
    _id(9, rf"{_DAY}{_MONTH}\d{{2}}[-+A-FU-Y]\d{{3}}[0-9A-Y]", checksums.fi_hetu, bare=False),  # FI
    _id(11, r"\d{2} ?\d{3} ?\d{3} ?\d{3}", checksums.de_tax),  # DE
    _id(11, r"\d{11}", checksums.pl_pesel),  # PL
    _id(9, r"\d{9}", checksums.nl_bsn, cue="bsn|burgerservicenummer|sofi"),  # NL
    _id(11, r"\d{2}\.?\d{2}\.?\d{2}-?\d{3}[. ]?\d{2}", checksums.be_national),  # BE
    _id(15, r"[12] ?\d{2} ?(?:0\d|1[0-2]|[2-9]\d) ?\d{2} ?\d{3} ?\d{3} ?\d{2}", checksums.fr_nir),  # FR
    _id(11, rf"{_DAY}{_MONTH}\d{{2}} ?\d{{5}}", checksums.no_birth),  # NO
    _id(
        10, rf"(?:19|20)?\d{{2}}{_MONTH}{_DAY}[-+]\d{{4}}", lambda digits: checksums.luhn(digits[-10:])
    ),  # SE
    _id(10, rf"{_DAY}{_MONTH}\d{{2}}-\d{{4}}", lambda digits: True),  # DK: numbers since 2007 have no check
    _id(9, r"\d{9}", checksums.pt_nif, cue="nif|contribuinte"),  # PT
    _id(11, r"\d{3}\.\d{3}\.\d{3}-\d{2}|\d{11}", checksums.br_cpf),  # BR
    _id(12, r"[2-9]\d{3} ?\d{4} ?\d{4}", checksums.in_aadhaar),  # IN
    _id(9, r"\d{3}[ -]\d{3}[ -]\d{3}|\d{9}", checksums.luhn, cue="sin|social insurance"),  # CA
    _id(13, r"756\.?\d{4}\.?\d{4}\.?\d{2}", checksums.ch_ahv),  # CH
    _id(17, rf"[1-9]\d{{5}}(?:19|20)\d{{2}}{_MONTH}{_DAY}\d{{3}}[\dX]", checksums.cn_resident),  # CN
)
_ANY = re.compile(rf"{_NO_WORD}(?:{'|'.join(number.form for number in NATIONAL_IDS)}){_END}", re.ASCII)
_CALLED = re.compile(
    r"\b(?:passport|driv(?:er'?s?|er’s|ing)['’]? licen[cs]e|identity card|id card|national id|personal id"
    r"|social security|ssn|sin|nhs|bsn|nif|dni|nie|pesel|cpf|aadhaar|pan card|tax(?:payer)? id"
    r"|(?:national )?insurance|medical record|mrn|patient id|licen[cs]e plate|number plate"
    r"|account|policy|member|membership|customer|routing|employee|student)"
    r"(?:[ -]?(?:number|num|no|nr|id|code))?\.?\s*(?:[:=#]+|\bis\b:?|\bwas\b)?\s*#?$"
)
_CALLED_ENDS = (  # how what `_CALLED` matches ends, less spaces and marks
    "passport", "license", "licence", "card", "id", "security", "ssn", "sin", "nhs", "bsn", "nif", "dni",
    "nie", "pesel", "cpf", "aadhaar", "insurance", "record", "mrn", "plate", "account", "policy", "member",
    "membership", "customer", "routing", "employee", "student",
    "number", "num", "no", "nr", "code", "is", "was",
)  # fmt: skip
_SPACES_AND_MARKS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + ".:=#"  # all that `\s` takes
_CALLED_SOMETHING = re.compile(
    r"(?<![\w.-])[A-Z]{0,5}+-?+\d[A-Z\d-]{2,18}[A-Z\d](?![\w-]|[.,]\d)", re.IGNORECASE
)
_ENOUGH_DIGITS = re.compile(r"(?:\D*\d){4}")


def national_ids(text: str, start: int, end: int, num_digits: int) -> Iterator[Span]:
    """Identity numbers between two places of a text, with so many digits, by form and check."""
    if not _ANY.search(text, start, end):
        return
    for number in NATIONAL_IDS:
        if num_digits < number.fewest_digits:
            continue
        for match in number.whole.finditer(text, start, end):
            bare = _SEPARATORS.sub("", match[0]) if number.bare else match[0]
            near = number.cue and number.cue.search(words_before(text, match.start()))
            if (near or not number.cue) and number.check(bare):
                yield Span(*match.span(), "id")


def called_ids(text: str, start: int, end: int) -> list[Span]:
    """Whatever is called an identity number in words: "passport no. X1234567"."""
    return [
        Span(*match.span(), "id")
        for match in _CALLED_SOMETHING.finditer(text, start, end)
        if _ENOUGH_DIGITS.match(match[0]) and _is_called(words_before(text, match.start()))
    ]


def _is_called(before: str) -> bool:
    ends_so = before.rstrip(_SPACES_AND_MARKS).endswith(_CALLED_ENDS)
    return ends_so and bool(_CALLED.search(before))
