"""Every check holds for a published specimen, and for no copy of it with one digit changed."""

from collections.abc import Callable

import pytest

from consort.inference.redaction import checksums

# Published examples and test numbers, none of them anybody's.
SPECIMENS = (
    (checksums.luhn, "4111111111111111"), (checksums.luhn, "046454286"), (checksums.luhn, "8112189876"),
    (checksums.iban, "GB82WEST12345698765432"), (checksums.iban, "DE89370400440532013000"),
    (checksums.uk_nhs, "9434765919"), (checksums.es_nif, "12345678Z"), (checksums.es_nif, "X1234567L"),
    (checksums.it_codice, "RSSMRA85T10A562S"), (checksums.fi_hetu, "131052-308T"),
    (checksums.de_tax, "86095742719"), (checksums.de_tax, "65929970489"), (checksums.pl_pesel, "44051401359"),
    (checksums.nl_bsn, "111222333"), (checksums.be_national, "85073003328"),
    (checksums.fr_nir, "255081416802538"), (checksums.no_birth, "29029600013"),
    (checksums.pt_nif, "123456789"),
    (checksums.br_cpf, "52998224725"), (checksums.in_aadhaar, "234123412346"),
    (checksums.ch_ahv, "7569217076985"), (checksums.cn_resident, "11010519491231002X"),
)  # fmt: skip
TEN_FOR_ZERO = {checksums.pt_nif, checksums.br_cpf}  # two remainders share the digit 0: some changes pass


@pytest.mark.parametrize(("check", "specimen"), SPECIMENS)
def test_a_specimen_passes(check: Callable[[str], bool], specimen: str) -> None:
    assert check(specimen)


@pytest.mark.parametrize(("check", "specimen"), [each for each in SPECIMENS if each[0] not in TEN_FOR_ZERO])
def test_one_digit_changed_does_not_pass(check: Callable[[str], bool], specimen: str) -> None:
    for place, character in enumerate(specimen):
        if character.isdigit():
            for other in set("0123456789") - {character}:
                assert not check(specimen[:place] + other + specimen[place + 1 :]), (place, other)


def test_numbers_that_are_never_issued() -> None:
    assert checksums.us_ssn("123456789")
    for never in ("000456789", "666456789", "123006789", "123450000"):
        assert not checksums.us_ssn(never)
    assert not checksums.br_cpf("11111111111")
