"""What is private by the words around it, in English; and what is nobody's."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.inference.redaction import builtin
from tests.inference.redaction.private_texts import private_texts

FOUND = (
    ("person", "Dr. Zhivkov will see you", "Dr. Zhivkov"),
    ("person", "we met Will Smith there", "Will Smith"),
    ("person", "Her name is lena andersson", "lena andersson"),
    ("person", "I saw Ludwig van Beethoven's house", "Ludwig van Beethoven"),
    ("person", "ask Brad L. Key about it", "Brad L. Key"),
    ("organisation", "He bought it from Civic Impulse LLC.", "Civic Impulse LLC"),
    ("organisation", "She works at Peak Capital now", "Peak Capital"),
    ("place", "They come from New Zealand", "New Zealand"),
    ("place", "she grew up in Remniku.", "Remniku"),
    ("nationality", "a Swedish film", "Swedish"),
    ("nationality", "we are proud paraguayans", "paraguayans"),
    (
        "address",
        "I live at 12 Rue Gafsa Apt. 9, Toronto, ON 82269.",
        "12 Rue Gafsa Apt. 9, Toronto, ON 82269",
    ),
    ("address", "Send it to Hauptstraße 7\n10115 Berlin", "Hauptstraße 7\n10115 Berlin"),
    (
        "address",
        "Stop at the corner of Elm Street and Kuusiku 7, please",
        "the corner of Elm Street and Kuusiku 7",
    ),
    ("address", "Write to PSC 4095, Box 8316\nAPO AE 85103", "PSC 4095, Box 8316\nAPO AE 85103"),
    ("postcode", "My zip code is 90010-1701", "90010-1701"),
    ("date", "born on March 12th, 1980", "March 12th, 1980"),
    ("date", "since 4/5/1992", "4/5/1992"),
    ("date", "see you on Tuesday", "Tuesday"),
    ("age", "I just turned 64", "64"),
    ("age", "a 65-year-old man", "65"),
)
NOBODY = (
    "How do I check my balance on my credit card?", "CAN I SPEAK TO A REAL PERSON?!", "What are my options?",
    "Write a Python function that reads a CSV file.", "Will you go? May I? Mark it, and rose again.",
    "Please summarise the following text in three points.", "```python\nclass Karlsson(Zhivkov): ...\n```",
    "Add 3 apples, 4 bananas and 2 cups of milk.", "The HTTP API returns JSON.", "Chapter 3 and Table 4",
)  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "private"), FOUND)
def test_a_private_span_is_found_whole(kind: str, text: str, private: str) -> None:
    assert (kind, private) in [(span.kind, text[span.start : span.end]) for span in builtin(text)]


@pytest.mark.parametrize("text", NOBODY)
def test_what_is_nobodys_is_left_alone(text: str) -> None:
    assert builtin(text) == []


def test_a_capital_letter_proves_nothing_in_a_language_that_writes_nouns_so() -> None:
    german = (
        "Der Vertrag wird gekündigt, weil die Wohnung nicht geheizt werden kann und der Vermieter schweigt."
    )
    assert builtin(german) == []
    assert [span.kind for span in builtin(german + " Dr. Zhivkov klagt.")] == ["person"]


@settings(max_examples=50, deadline=None)
@given(private_texts | st.text())
def test_spans_are_disjoint_and_in_order_in_any_text(text: str) -> None:
    spans = builtin(text)
    ends = [0, *(span.end for span in spans)]
    assert all(end <= span.start < span.end <= len(text) for end, span in zip(ends, spans, strict=False))


@pytest.mark.parametrize(
    "text", [word * 2000 for word in ("Xyz ", "X. ", "Xyz & ", "7 Xyz ", "corner of Xyz ")]
)
def test_no_text_takes_more_than_linear_time(text: str) -> None:
    """Thousands of words that almost make an address or a company: a backtracking rule would hang."""
    builtin(text)
