"""Intervals hold at their rate, also of few values and skewed ones; what is certain is its own interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consort.bench.intervals import Figure, mean_by_betting, sum_with_missing


def test_draws_count_the_truth_as_one_of_them() -> None:
    """Of 39 draws and the truth, one in forty is the least: the interval of 95 % holds them all."""
    assert Figure.over(range(39)) == Figure(19.0, 0.0, 38.0)
    assert Figure.over([2.0, 2.0]).is_exact


def test_a_sum_of_skewed_values_holds_at_its_rate_where_few_are_known() -> None:
    """Ten values to judge three hundred by; percentiles of plain draws hold in 86 % of such sums."""
    held, sums = 0, 150
    for seed in range(sums):
        rng = np.random.default_rng(seed)
        pool, missing = rng.lognormal(0, 0.5, 10), rng.lognormal(0, 0.5, 300)
        found = sum_with_missing(7.0, [(pool, 300)], draws=100, seed=sums + seed)
        held += found.low <= 7 + missing.sum() <= found.high
        assert 7 <= found.low < found.value < found.high
        assert found.value == pytest.approx(7 + 300 * pool.mean())
    assert held >= 0.9 * sums


@given(st.floats(0, 9), st.lists(st.integers(0, 50), min_size=2, max_size=9), st.integers(1, 40))
def test_a_sum_scales_and_what_never_varies_is_exact(known: float, pool: list[int], count: int) -> None:
    values = np.array(pool, float)
    found = sum_with_missing(known, [(values, count)], draws=40, seed=0)
    twice = sum_with_missing(2 * known, [(2 * values, count)], draws=40, seed=0)
    ends = (found.value, found.low, found.high)
    assert (twice.value, twice.low, twice.high) == pytest.approx([2 * end for end in ends])
    assert found.is_exact == (values.min() == values.max())
    assert sum_with_missing(known, [], draws=40, seed=0) == Figure(known, known, known)
    assert sum_with_missing(known, [(np.full(7, 0.1), count)], draws=40, seed=0).is_exact


def test_the_betting_interval_holds_the_mean_at_its_rate_also_for_few_values() -> None:
    rng, missed, draws = np.random.default_rng(0), 0, 60
    for seed in range(draws):
        values = (rng.random(15) < 0.9).astype(float)
        found = mean_by_betting(values, np.ones(15), confidence=0.9, seed=seed)
        missed += not found.low <= 0.9 <= found.high
        assert 0 <= found.low <= found.value <= found.high <= 1
    assert missed <= 0.1 * draws + 3
    certain = mean_by_betting(np.ones(40), np.ones(40))
    assert certain.low < 0.95
    assert certain.high == 1


def test_values_drawn_less_often_count_more() -> None:
    figure = mean_by_betting(np.array([1.0, 0.0]), np.array([1.0, 3.0]))
    assert figure.value == 0.25
    assert isinstance(figure, Figure)
