"""Agreement is whole for the same answer in other dress, nothing for another number, letter or negation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.inference.agreement import SAME, agreement


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("It opens at nine.", "it opens at  nine"),
        ("3 + 4 = 7\n#### 7", "Seven apples, since 4 and 3 are 7. The answer is 7."),
        ("42", "The answer is 42."),
        ("3 + 4 = 7\n#### 7", "Three and four apples: so there are 7 apples in the basket."),
        ("B", "(B) at nine"),
        ("The answer is B.", "B"),
        ("you can pay by card at the desk", "at the desk you can pay by card"),
    ],
)
def test_the_same_answer_in_other_dress_agrees(answer: str, reference: str) -> None:
    assert agreement(answer, reference) == agreement(reference, answer) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("#### 7", "#### 8"),
        ("3 + 4 = 7\n#### 7", "Three and four apples: so there are 8 apples in the basket."),
        ("B", "C"),
        ("you can pay by card", "you cannot pay by card"),
        ("it takes 3 days to arrive", "it takes 5 days to arrive"),
        ("", "nine"),
        (" \n", ""),
    ],
)
def test_another_end_agrees_in_nothing(answer: str, reference: str) -> None:
    assert agreement(answer, reference) == 0.0


def test_an_article_is_no_choice_and_part_of_the_words_is_part_of_the_score() -> None:
    assert agreement("A clinic opens late", "A shop closes early") < SAME
    assert agreement("I am not sure", "I think the branch is in Lyon") < SAME
    assert 0 < agreement("the branch is in Lyon", "you find our branch near the station in Lyon") < 1


@settings(deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_agreement_is_a_share_and_whole_for_a_text_with_itself(first: str, second: str) -> None:
    assert 0.0 <= agreement(first, second) <= 1.0
    if first.strip():
        assert agreement(first, first) == 1.0
