"""Laws of the scores: Rouge-L equals Google's package, errors are those of repeated draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from consort.bench.metrics import (
    Score,
    exact_match,
    likelihood,
    majority_baseline,
    paired_difference,
    rouge_l,
    score_answers,
)

GOOGLE = RougeScorer(["rougeL"], use_stemmer=False)
WORDS = ("the", "a", "dog", "Dog", "cat", "sat", "42", "on-mat", "ünder", "İ", "-", ".")
words = st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)
rows = st.lists(st.floats(0, 1), min_size=2, max_size=50)


@given(st.one_of(words, st.text()), st.one_of(words, st.text()))
def test_rouge_l_equals_the_reference_package(answer: str, reference: str) -> None:
    expected = GOOGLE.score(reference, answer)["rougeL"].fmeasure
    assert rouge_l(answer, reference) == pytest.approx(expected, abs=1e-12)


@given(words, words)
def test_rouge_l_is_symmetric_and_one_only_for_equal_words(one: str, other: str) -> None:
    assert rouge_l(one, other) == rouge_l(other, one)
    assert 0 <= rouge_l(one, other) <= 1
    assert rouge_l(f"x {one}", f"x {one}") == 1


@given(st.text())
def test_exact_match_ignores_case_and_white_space_only(text: str) -> None:
    assert exact_match(f"  {text}\n", text) == 1
    assert exact_match("Two  words", "two words") == 1
    assert exact_match(f"{text}x", text) == 0


def test_scores_of_answers_are_means_over_rows() -> None:
    scores = score_answers(["yes", "no way", "blue"], ["yes", "no", "red"])
    assert scores.em.mean == pytest.approx(1 / 3)
    assert scores.rouge_l.mean == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert scores.to_json()["rows"] == 3


def test_answers_and_references_must_pair_up() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        score_answers(["a"], ["a", "b"])


@given(rows)
def test_standard_error_is_that_of_the_mean(values: list[float]) -> None:
    score = Score.of(values)
    assert score.stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)))
    low, high = score.interval
    assert low <= score.mean <= high


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for num_rows in (3, 10, 100):
        hits = 0
        for _ in range(2000):
            low, high = Score.of(rng.normal(0.5, 0.1, num_rows).tolist()).interval
            hits += low <= 0.5 <= high
        assert 0.93 < hits / 2000 < 0.97


@given(rows)
def test_a_constant_gain_has_no_error_in_the_paired_difference(values: list[float]) -> None:
    difference = paired_difference([value + 0.25 for value in values], values)
    assert difference.mean == pytest.approx(0.25)
    assert difference.stderr == pytest.approx(0, abs=1e-9)


@given(st.lists(st.sampled_from("abc"), min_size=1), st.lists(st.sampled_from("abcd"), min_size=1))
def test_majority_is_the_exact_match_of_one_constant_answer(train: list[str], test: list[str]) -> None:
    baseline = majority_baseline(train, test)
    most = max(dict.fromkeys(train), key=train.count)
    assert baseline == pytest.approx(score_answers([most] * len(test), test).em.mean)


def test_majority_counts_answers_as_exact_match_does() -> None:
    assert majority_baseline(["Yes", "yes ", "no", "no", "YES"], ["yes", "no"]) == 0.5
    assert majority_baseline([], ["yes"]) == 0


@given(st.integers(1, 40), st.integers(2, 1000))
def test_a_uniform_model_has_its_vocabulary_size_as_perplexity(num_rows: int, vocabulary: int) -> None:
    tokens = list(range(1, num_rows + 1))
    fit = likelihood(
        [-count * math.log(vocabulary) for count in tokens], tokens, num_bytes=[2 * t for t in tokens]
    )
    assert fit.perplexity.mean == pytest.approx(vocabulary)
    assert fit.bits_per_byte.mean == pytest.approx(math.log2(vocabulary) / 2)
    assert fit.perplexity.stderr == pytest.approx(0, abs=1e-6 * vocabulary)


def test_the_error_of_bits_per_byte_is_that_of_repeated_draws() -> None:
    rng = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(400):
        sizes = rng.integers(5, 50, 80)
        nats = sizes * rng.normal(1.5, 0.3, 80)
        fit = likelihood((-nats).tolist(), sizes.tolist(), num_bytes=sizes.tolist()).bits_per_byte
        means.append(fit.mean)
        errors.append(fit.stderr)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)
