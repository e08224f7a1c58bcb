"""What is private by its form is found whole; amounts, dates and other numbers are left alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.inference.redaction.spans import disjoint
from consort.inference.redaction.structured import structured

FOUND = (
    ("card", "Charge 4111 1111 1111 1111, please.", "4111 1111 1111 1111"),
    ("card", "amex 3782 822463 10005", "3782 822463 10005"),
    ("card", "my card 4111111111111112 has a wrong digit", "4111111111111112"),
    ("iban", "to GB82 WEST 1234 5698 7654 32 TODAY", "GB82 WEST 1234 5698 7654 32"),
    ("iban", "de89370400440532013000", "de89370400440532013000"),
    ("email", "Write to jörg.o'neil+x@mail.example.co.uk.", "jörg.o'neil+x@mail.example.co.uk"),
    ("phone", "Call +1 (212) 555-0123 ext. 45 now", "+1 (212) 555-0123 ext. 45"),
    ("phone", "0043/1/5134567 or so", "0043/1/5134567"),
    ("phone", "Ring 07700900123", "07700900123"),
    ("phone", "text me at 5550123", "5550123"),
    ("phone", "06 12 34 56 78 is mine", "06 12 34 56 78"),
    ("ip", "from 10.0.17.255 today", "10.0.17.255"),
    ("ip", "host 2001:db8::ff00:42:8329 is down", "2001:db8::ff00:42:8329"),
    ("mac", "device 00:1b:44:11:3a:b7", "00:1b:44:11:3a:b7"),
    ("url", "see https://a.example.org/x_(y)?id=7).", "https://a.example.org/x_(y)?id=7"),
    ("url", "posted on www.Example.be/, yes", "www.Example.be/"),
    ("url", "ask clinic-north.example.com about it", "clinic-north.example.com"),
    ("id", "SSN 123-45-6789", "123-45-6789"),
    ("id", "NHS number 943 476 5919", "943 476 5919"),
    ("id", "NINO QQ123456C is a specimen, AB 12 34 56 C is not", "AB 12 34 56 C"),
    ("id", "DNI 12345678Z", "12345678Z"),
    ("id", "RSSMRA85T10A562S", "RSSMRA85T10A562S"),
    ("id", "hetu 131052-308T", "131052-308T"),
    ("id", "PESEL 44051401359", "44051401359"),
    ("id", "Steuer-ID 86 095 742 719", "86 095 742 719"),
    ("id", "cpf 529.982.247-25", "529.982.247-25"),
    ("id", "AHV 756.9217.0769.85", "756.9217.0769.85"),
    ("id", "my driver's license number is F162823540116", "F162823540116"),
    ("id", "passport no. X1234567", "X1234567"),
    ("secret", "key sk-proj-abcdefghijklmnop1234567890", "sk-proj-abcdefghijklmnop1234567890"),
    ("secret", "the password is hunter22.", "hunter22"),
)
LEFT_ALONE = (
    "It costs 1,234,567.89 dollars, or 12 500 000 kr.", "Version 1.2.3 of 2026-11-21, 10:30.",
    "pages 1990-1995", "Order 20231105 of 3 items at 4.99 each", "pi is 3.14159265358979",
    "std::vector and a::b", "e.g. this, i.e. that",
    "Run main.py, read README.md and node.js.", "This is done.So we go on", "a 16:9 screen, 1920x1080",
    "password is required", "\u0130\u013012 3456 7890 1234 5678", "In 1984 there were 1000000",
)  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "private"), FOUND)
def test_a_private_span_is_found_whole(kind: str, text: str, private: str) -> None:
    found = [(span.kind, text[span.start : span.end]) for span in disjoint(text, structured(text))]
    assert (kind, private) in found


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_what_is_not_private_is_left_alone(text: str) -> None:
    assert structured(text) == []


@settings(max_examples=30, deadline=None)
@given(st.text())
def test_spans_lie_inside_any_text(text: str) -> None:
    spans = structured(text)
    assert all(0 <= span.start < span.end <= len(text) for span in spans)


@pytest.mark.parametrize(
    "text", ["1 " * 5000, "a." * 5000, "a@" * 5000, "x" * 10_000, "-1" * 5000, "(1)" * 3000, "a:" * 5000]
)
def test_no_text_takes_more_than_linear_time(text: str) -> None:
    """Ten thousand characters that almost match something: a backtracking expression would not come back."""
    structured(text)


@pytest.mark.parametrize("space", [chr(code) for code in range(0x3001) if chr(code).isspace()])
def test_a_number_is_named_across_every_kind_of_space(space):
    text = f"passport number:{space}X1234567"
    assert [text[span.start : span.end] for span in disjoint(text, structured(text))] == ["X1234567"]
