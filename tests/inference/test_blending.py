"""Mixtures of cut distributions keep their sums, and are the dense formulas where nothing is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consort.inference.blending import (
    aligned,
    averaged,
    entropy,
    listed,
    log_probability,
    multiplied,
    plausible,
    steered,
)
from consort.types import TopK

SIZE = 40


def dense(seed: int) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(size=SIZE) * 3
    return scores - np.logaddexp.reduce(scores)


def cut(logprobs: np.ndarray, count: int) -> TopK:
    ids = np.argsort(-logprobs, kind="stable")[:count]
    return TopK(ids, logprobs[ids], max(0.0, 1 - float(np.exp(logprobs[ids]).sum())))


def spread(top: TopK) -> np.ndarray:
    found = np.zeros(SIZE)
    found[top.ids] = np.exp(top.logprobs)
    return found


@given(st.integers(0, 10**6), st.floats(0, 4), st.floats(0, 1))
def test_with_every_token_listed_a_mixture_is_the_dense_formula(seed, weight, share):
    model, plus, minus = (dense(seed + number) for number in range(3))
    tops = [cut(each, SIZE) for each in (model, plus, minus)]
    expected = model + weight * (plus - minus)
    expected = np.exp(expected - np.logaddexp.reduce(expected))
    found = steered(*tops, weight=weight, size=SIZE)
    assert spread(found) == pytest.approx(expected, abs=1e-12)
    assert found.rest == pytest.approx(0.0, abs=1e-12)
    product = share * model + (1 - share) * plus
    product = np.exp(product - np.logaddexp.reduce(product))
    assert spread(multiplied(tops[:2], (share, 1 - share), size=SIZE)) == pytest.approx(product, abs=1e-12)
    mean = averaged(tops[:2], (1 - share, share), size=SIZE)
    assert spread(mean) == pytest.approx((1 - share) * np.exp(model) + share * np.exp(plus), abs=1e-12)


@given(st.integers(0, 10**6), st.integers(1, SIZE), st.integers(1, SIZE), st.floats(0.01, 4))
def test_probability_is_kept_whatever_is_cut(seed, first, second, weight):
    model, plus, minus = cut(dense(seed), first), cut(dense(seed + 1), second), cut(dense(seed + 2), first)
    for found in (
        steered(model, plus, minus, weight=weight, size=SIZE),
        averaged((model, plus, minus), (0.2, weight, 1.0), size=SIZE),
        multiplied((model, plus, minus), (0.2, weight, 1.0), size=SIZE),
    ):
        assert spread(found).sum() + found.rest == pytest.approx(1, abs=1e-9)
        assert len(set(found.ids.tolist())) == len(found.ids)
        assert (np.diff(found.logprobs) <= 0).all()


@given(st.integers(0, 10**6), st.integers(1, SIZE), st.floats(0.1, 3), st.floats(0.1, 3))
def test_only_the_proportion_of_shares_counts_and_two_who_agree_are_one(seed, count, first, second):
    model, other = cut(dense(seed), count), cut(dense(seed + 1), count)
    for pool in (averaged, multiplied):
        same = pool((model, model), (first, second), size=SIZE)
        assert spread(same) == pytest.approx(spread(model), abs=1e-9)
        assert same.rest == pytest.approx(model.rest, abs=1e-9)
        once, twice = (pool((model, other), (k * first, k * second), size=SIZE) for k in (1, 2))
        assert spread(once) == pytest.approx(spread(twice), abs=1e-9)


@given(st.integers(0, 10**6), st.integers(1, SIZE), st.integers(1, SIZE))
def test_what_is_not_there_to_steer_changes_nothing(seed, first, second):
    model, other = cut(dense(seed), first), cut(dense(seed + 1), second)
    assert steered(model, other, cut(dense(seed + 2), second), weight=0.0, size=SIZE) is model
    assert averaged((model, other), (1.0, 0.0), size=SIZE) is model
    assert multiplied((other, model), (0.0, 2.0), size=SIZE) is model
    same = steered(model, other, other, weight=2.5, size=SIZE)
    assert same.ids[0] == model.ids[0]
    assert same.logprobs[0] == pytest.approx(model.logprobs[0], abs=1e-9)


def test_what_was_not_listed_has_an_equal_part_of_the_rest_and_never_more_than_the_last_listed():
    top = TopK(np.array([3, 1]), np.log([0.6, 0.3]), 0.1)
    assert log_probability(top, 1, SIZE) == pytest.approx(np.log(0.3))
    assert log_probability(top, 7, SIZE) == pytest.approx(np.log(0.1 / (SIZE - 2)))
    sure = TopK(np.array([3]), np.array([0.0]), 0.0)  # forbids nothing to others
    assert np.isfinite(log_probability(sure, 7, SIZE))
    every = aligned((top, sure), SIZE)
    assert every.ids.tolist() == [1, 3]
    assert every.num_unlisted == SIZE - 2
    assert np.isfinite(every.logprobs).all()


def test_contrast_keeps_to_what_the_model_finds_plausible():
    model, amateur = dense(1), dense(2)
    contrast = steered(cut(model, SIZE), cut(model, SIZE), cut(amateur, SIZE), weight=3.0, size=SIZE)
    kept = plausible(contrast, cut(model, SIZE), share=0.1)
    allowed = set(np.flatnonzero(np.exp(model) >= 0.1 * np.exp(model.max())).tolist())
    assert set(kept.ids.tolist()) == allowed
    assert spread(kept).sum() == pytest.approx(1)


def test_masses_that_meet_are_added_and_what_is_missing_is_the_rest():
    top = listed(np.array([5, 2, 5, 9]), np.array([0.2, 0.4, 0.3, 0.0]))
    assert top.ids.tolist() == [5, 2]
    assert np.exp(top.logprobs) == pytest.approx([0.5, 0.4])
    assert top.rest == pytest.approx(0.1)


def test_entropy_of_an_even_choice_is_the_logarithm_of_the_choices():
    even = TopK(np.arange(8), np.full(8, -np.log(8)), 0.0)
    assert entropy(even) == pytest.approx(np.log(8))
