"""Laws of features: one value a name for any text, checks fail where an answer is bad, nothing is shown that
is not there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consort.inference.answer_checks import CHECKS, check_answer, failed_checks, final_number
from consort.inference.evidence import FEATURES, Evidence, ProxyView, evidence_of, features
from consort.inference.ngrams import NUM_BUCKETS, byte_buckets, word_buckets
from consort.inference.surface import SURFACE, surface_features
from consort.types import Answer, Message, Request, TokenLogprob

QUESTION = "Anna has 3 bags with 4 apples each and eats 2. How many apples are left?"
GOOD = "She has 3 * 4 = 12 apples.\nThen 12 - 2 = 10 are left.\n#### 10"
BAD = {
    "a wrong equation": "She has 3 * 4 = 13 apples.\nThen 13 - 2 = 11 are left.\n#### 11",
    "a fraction of an apple": "She has 3 * 4 = 12.\nThen 12 / 2.5 = 4.8 are left.\n#### 4.8",
    "another final answer": "She has 3 * 4 = 12 apples.\nThen 12 - 2 = 10 are left.\n#### 12",
    "no final answer": "She has 3 * 4 = 12 apples.\nThen 12 - 2",
    "a hedge": "She has perhaps 3 * 4 = 12 apples.\nThen 12 - 2 = 10 might be left.\n#### 10",
}


@given(st.text(), st.text())
def test_every_text_has_one_finite_value_a_feature(question: str, answer: str) -> None:
    for values, names in ((surface_features(question), SURFACE), (check_answer(question, answer), CHECKS)):
        assert len(values) == len(names)
        assert all(map(math.isfinite, values))
    assert failed_checks(question, answer) >= 0


@pytest.mark.parametrize("fault", BAD)
def test_a_faulty_answer_fails_more_checks(fault: str) -> None:
    assert failed_checks(QUESTION, BAD[fault]) > failed_checks(QUESTION, GOOD)


@pytest.mark.parametrize(
    ("answer", "final"),
    [("#### 1,200", 1200), ("it is 3, so \\boxed{7}", 7), ("The answer is $4.50.", 4.5), ("5 or 6", 6),
     ("no", None)],
)  # fmt: skip
def test_the_final_number(answer: str, final: float | None) -> None:
    assert final_number(answer) == final


@given(st.text())
def test_buckets_are_distinct_ascending_and_counted(text: str) -> None:
    for buckets, counts in (byte_buckets(text), word_buckets(text)):
        assert np.all(np.diff(buckets) > 0)
        assert buckets.size == counts.size
        assert not buckets.size or (buckets[0] >= 0 and buckets[-1] < NUM_BUCKETS and counts.min() >= 1)


def test_byte_ngrams_stay_inside_words() -> None:
    """So word order does not change them, while it changes the pairs of words."""
    np.testing.assert_array_equal(byte_buckets("red wine")[0], byte_buckets("wine  Red")[0])
    assert word_buckets("red wine")[0].tolist() != word_buckets("wine red")[0].tolist()
    # 9 n-grams of " red " and " wine ", whose lengths are 5 and 6: 4+3+2+1 and 5+4+3+2
    assert byte_buckets("red wine")[1].sum() == 10 + 14


def test_evidence_has_only_what_was_given() -> None:
    request = Request((Message("system", "Be brief."), Message("user", QUESTION)))
    before = evidence_of(request, None)
    assert before.groups == ("surface",)
    assert QUESTION in before.question
    token = TokenLogprob("10", -0.1, (("10", -0.1), ("12", -2.5)))
    view = ProxyView(share=0.5, nats_per_byte=0.2, least=-3.0, likeness=0.9)
    after = evidence_of(request, Answer(GOOD, "edge", (token,)), others=("#### 10", "#### 12"), proxy=view)
    assert after.groups == ("surface", "checks", "confidence", "agreement", "proxy")
    for group in after.groups:
        assert len(features(after, group)) == len(FEATURES[group])
    assert features(after, "agreement")[0] == 0.5
    assert dict(zip(FEATURES["confidence"], features(after, "confidence"), strict=True))[
        "mean margin"
    ] == pytest.approx(2.4)


def test_agreement_compares_choices_numbers_and_words() -> None:
    for one, same, other in (
        ("B. Because", "The answer is B", "C"),
        ("It is 12", "#### 12", "13"),
        ("blue sky", "Blue  sky", "red"),
    ):
        evidence = Evidence("?", one, others=(same, other))
        assert features(evidence, "agreement")[0] == 0.5
