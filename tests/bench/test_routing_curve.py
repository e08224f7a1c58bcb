"""Laws of APGR and CPT: chance is a half, order is all that counts, ties are chance, intervals cover."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.bench.compare import standings, strategies
from consort.bench.outcomes import Outcome, pair
from consort.bench.pareto import draw_pareto
from consort.bench.routing_curve import judge, routing_curve
from consort.errors import ConfigError, DataError

gains = st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=40).filter(lambda g: sum(g) > 0)


@given(gains)
def test_chance_recovers_a_half(values: list[float]) -> None:
    curve = routing_curve(np.zeros(len(values)), np.array(values))
    assert curve.apgr == pytest.approx(0.5)
    assert curve.cpt(0.8) == pytest.approx(0.8)


@given(gains, st.randoms(use_true_random=False))
def test_a_ranking_and_its_reverse_make_one(values: list[float], random: object) -> None:
    need = np.random.default_rng(random.randint(0, 999)).random(len(values))  # type: ignore[attr-defined]
    there, back = (routing_curve(sign * need, np.array(values)).apgr for sign in (1, -1))
    assert there + back == pytest.approx(1)
    assert routing_curve(np.exp(3 * need), np.array(values)).apgr == pytest.approx(there)


@settings(max_examples=10, deadline=None)
@given(gains, st.lists(st.integers(0, 3), min_size=40, max_size=40))
def test_ties_count_as_the_mean_over_random_orders(values: list[float], need: list[int]) -> None:
    wanted = np.array(need[: len(values)], dtype=float)
    rng = np.random.default_rng(0)
    drawn = [routing_curve(wanted + 0.5 * rng.random(len(values)), np.array(values)).apgr for _ in range(200)]
    error = np.std(drawn) / np.sqrt(200)
    assert routing_curve(wanted, np.array(values)).apgr == pytest.approx(np.mean(drawn), abs=5 * error + 1e-9)


def test_figures_by_hand() -> None:
    """Four prompts, the two that gain ranked first and third: recovered 0, .5, .5, 1, 1."""
    curve = routing_curve(np.array([4.0, 3, 2, 1]), np.array([1.0, 0, 1, 0]))
    assert curve.apgr == pytest.approx((0.25 + 0.5 + 0.75 + 1) / 4)
    assert (curve.cpt(0.5), curve.cpt(0.8)) == (pytest.approx(0.25), pytest.approx(0.5 + 0.25 * 0.6))
    assert curve.cpt(0) == 0


def test_a_perfect_ranking_saves_where_the_cloud_is_worse() -> None:
    values = np.array([1.0, 1, 0, -1])
    assert routing_curve(values, values).apgr > 1


def test_without_a_gap_there_is_nothing_to_recover() -> None:
    with pytest.raises(DataError, match="no better"):
        routing_curve(np.arange(2.0), np.array([1.0, -1.0]))


def test_intervals_cover_the_population() -> None:
    rng = np.random.default_rng(0)
    need = rng.random(20_000)
    values = (rng.random(20_000) < 0.1 + 0.4 * need).astype(float)
    true = routing_curve(need, values).apgr
    covered = 0
    for _ in range(40):
        drawn = rng.integers(20_000, size=300)
        judged = judge(need[drawn], values[drawn], resamples=120)
        covered += judged.apgr.low <= true <= judged.apgr.high
    assert covered >= 40 * 0.95 - 3 * np.sqrt(40 * 0.95 * 0.05)


def outcomes(number: int) -> list[Outcome]:
    rng = np.random.default_rng(0)
    rows = []
    for index in range(number):
        hard = index % 3 == 0
        one, two = rng.integers(2, 90, size=2)
        wrong = int(hard and rng.random() < 0.8)
        question = f"{'Prove or compute carefully' if hard else 'Add'}: {one} + {two}"
        answer = f"{one} + {two} = {one + two + wrong}\n#### {one + two + wrong}"
        rows.append(Outcome(question, {"edge": 1.0 - wrong, "cloud": 1.0}, {"edge": answer, "cloud": "?"}))
    return rows


def test_strategies_stand_in_the_order_of_what_they_know(tmp_path: Path) -> None:
    data = pair(outcomes(90), small="edge", large="cloud")
    ways = strategies(data, folds=3)
    found = {
        one.name: one
        for one in standings(data, ways, cloud_share=0.3, prices_eur={"edge": 0.001, "cloud": 0.01})
    }
    assert found["edge"].quality.mean < found["route"].quality.mean < found["cascade"].quality.mean
    assert found["cascade"].quality.mean == pytest.approx(found["cloud"].quality.mean, abs=0.04)
    assert found["random"].judged is not None
    assert found["random"].judged.apgr.value == pytest.approx(0.5)
    assert found["cloud"].eur == pytest.approx(0.01)
    # the route pays for one model, the cascade for the edge always
    assert found["route"].eur == pytest.approx(0.7 * 0.001 + 0.3 * 0.01)
    assert found["cascade"].eur == pytest.approx(0.001 + 0.3 * 0.01)
    assert found["cascade"].edge_share == pytest.approx(0.7)
    draw_pareto(tmp_path / "pareto.svg", data, ways, small_eur=0.001, large_eur=0.01)
    assert (tmp_path / "pareto.svg").read_text().count("<path") > 20
    with pytest.raises(ConfigError, match="no picture"):
        draw_pareto(tmp_path / "pareto.doc", data, ways, small_eur=None, large_eur=None)


def test_the_cloud_answer_changes_no_decision() -> None:
    """Nothing of it may leak: without its answers every prompt is judged as with them."""
    rows = outcomes(60)
    with_cloud = pair(rows, small="edge", large="cloud")
    hidden = [Outcome(row.prompt, row.scores, {"edge": row.answers["edge"]}) for row in rows]
    for ours, theirs in zip(
        strategies(with_cloud, folds=3),
        strategies(pair(hidden, small="edge", large="cloud"), folds=3),
        strict=True,
    ):
        np.testing.assert_array_equal(ours.need, theirs.need)
