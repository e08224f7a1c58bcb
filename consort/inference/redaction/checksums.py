"""Check digits by which a number is known for what it is: cards, IBANs and national identity numbers.

Each function takes the bare characters, no separators, and says whether the check holds. That a number was
ever issued nobody can tell from it.
"""

from __future__ import annotations

from collections.abc import Sequence

_VERHOEFF_TURN = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 5, 7, 6, 2, 8, 3, 0, 9, 4), (5, 8, 0, 3, 7, 9, 6, 1, 4, 2),
    (8, 9, 1, 6, 0, 4, 3, 5, 2, 7), (9, 4, 5, 3, 1, 2, 6, 8, 7, 0), (4, 2, 8, 6, 5, 7, 3, 9, 0, 1),
    (2, 7, 9, 3, 8, 0, 6, 4, 1, 5), (7, 0, 4, 6, 9, 1, 3, 2, 5, 8),
)  # fmt: skip
_CODICE_ODD = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", (
    1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14,
    16, 10, 22, 25, 24, 23), strict=True))  # fmt: skip


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1: cards, and the numbers of Sweden and Canada."""
    total = sum(map(int, digits[-1::-2]))
    return not (total + sum(int(digit) * 2 - 9 * (digit > "4") for digit in digits[-2::-2])) % 10


def iban(text: str) -> bool:
    """ISO 13616: the remainder by 97 is 1."""
    return int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1


def us_ssn(digits: str) -> bool:
    """No check digit: areas, groups and serials that the Social Security Administration never assigns."""
    return digits[:3] not in {"000", "666"} and digits[3:5] != "00" and digits[5:] != "0000"


def uk_nhs(digits: str) -> bool:
    """Modulus 11."""
    return 11 - _weighted(digits, range(10, 1, -1)) % 11 == (int(digits[9]) or 11)


def es_nif(text: str) -> bool:
    """DNI, and NIE, whose first letter stands for a digit."""
    number = text[:-1].translate(str.maketrans("XYZ", "012"))
    return text[-1] == "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23]


def it_codice(text: str) -> bool:
    """Codice fiscale."""
    total = sum(_CODICE_ODD[character] for character in text[:15:2])
    total += sum(int(each) if each.isdigit() else ord(each) - 65 for each in text[1:15:2])
    return text[15] == chr(65 + total % 26)


def fi_hetu(text: str) -> bool:
    """Henkilötunnus: ddmmyy, a sign for the century, three digits and a letter."""
    return text[-1] == "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(text[:6] + text[7:10]) % 31]


def de_tax(digits: str) -> bool:
    """Steuer-Identifikationsnummer: ISO 7064 mod 11, 10; one of ten digits stands there twice or thrice."""
    product = 10
    for digit in digits[:10]:
        product = 2 * ((int(digit) + product) % 10 or 10) % 11
    return (11 - product) % 10 == int(digits[10]) and len(set(digits[:10])) in {8, 9}


def pl_pesel(digits: str) -> bool:
    """Weights 1, 3, 7, 9."""
    return not _weighted(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 and "01" <= digits[4:6] <= "31"


def nl_bsn(digits: str) -> bool:
    """The test by eleven."""
    return not _weighted(digits, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 and int(digits) > 0


def be_national(digits: str) -> bool:
    """97 less the remainder; births from 2000 on count with a 2 before."""
    return int(digits[9:]) in {97 - int(century + digits[:9]) % 97 for century in ("", "2")}


def fr_nir(digits: str) -> bool:
    """97 less the remainder of the first thirteen."""
    return int(digits[13:]) == 97 - int(digits[:13]) % 97


def no_birth(digits: str) -> bool:
    """Fødselsnummer: two check digits."""
    first = _weighted(digits, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1))
    return not first % 11 and not _weighted(digits, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11


def pt_nif(digits: str) -> bool:
    """Modulus 11, 10 written 0."""
    return (11 - _weighted(digits, range(9, 1, -1)) % 11) % 11 % 10 == int(digits[8])


def br_cpf(digits: str) -> bool:
    """Two digits by modulus 11; eleven equal digits pass the sums and are nobody's."""
    ends = (_weighted(digits, range(length + 1, 1, -1)) * 10 % 11 % 10 for length in (9, 10))
    return digits[9:] == "".join(map(str, ends)) and len(set(digits)) > 1


def in_aadhaar(digits: str) -> bool:
    """Verhoeff's dihedral check."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        check = _dihedral(check, _VERHOEFF_TURN[place % 8][int(digit)])
    return check == 0


def ch_ahv(digits: str) -> bool:
    """An EAN-13 that begins with 756."""
    return not _weighted(digits, (1, 3) * 6 + (1,)) % 10


def cn_resident(text: str) -> bool:
    """ISO 7064 mod 11, 2."""
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(text[:17]))
    return text[17] == "10X98765432"[total % 11]


def _weighted(digits: str, weights: Sequence[int]) -> int:
    """The sum over as many digits as there are weights."""
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


def _dihedral(a: int, b: int) -> int:
    """Product in the group of the pentagon: 0 to 4 turn it, 5 to 9 turn it over."""
    if a < 5:
        return (a + b) % 5 if b < 5 else (a + b) % 5 + 5
    return (a - b) % 5 + 5 if b < 5 else (a - b) % 5
