"""Likeness is symmetric, whole for equal texts, and nothing where numbers or negations differ."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.inference.likeness import cosines, grams, likeness


@settings(deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_likeness_is_symmetric_and_whole_for_a_text_with_itself(first: str, second: str) -> None:
    assert likeness(first, first) == 1.0
    assert 0.0 <= likeness(first, second) <= 1.0
    assert likeness(first, second) == pytest.approx(likeness(second, first))


@settings(deadline=None)
@given(st.text(min_size=1, max_size=30), st.lists(st.text(max_size=30), max_size=3))
def test_each_cosine_is_that_of_its_pair(one: str, others: list[str]) -> None:
    together = cosines(grams(one), [grams(other) for other in others])
    alone = [float(cosines(grams(other), [grams(one)])[0]) for other in others]
    assert list(together) == pytest.approx(alone)
    if one.strip():
        assert cosines(grams(one), [grams(one)])[0] == pytest.approx(1)


def test_a_number_or_a_negation_makes_texts_unlike() -> None:
    assert likeness("you can pay 20 euro by card", "by card you can pay 20 euro") > 0.9
    assert likeness("you can pay 20 euro by card", "you can pay 30 euro by card") == 0.0
    assert likeness("you can pay 20 euro by card", "you can't pay 20 euro by card") == 0.0
