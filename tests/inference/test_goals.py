"""Goals are read as meant or refused with a reason; what is promised about them is kept."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consort.errors import ConfigError
from consort.inference.calibration import (
    ALWAYS,
    NEVER,
    Trial,
    calibrate,
    exceedance_p_value,
    mean_p_value,
    threshold_grid,
)
from consort.inference.drift import DriftAlarm
from consort.inference.goals import Goal, parse_goal


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("quality >= 0.98 of cloud", Goal("quality", 0.98, of_cloud=True)),
        ("quality ≥ 98 % of the cloud", Goal("quality", 0.98, of_cloud=True)),
        ("quality>=0.75", Goal("quality", 0.75)),
        ("cost <= 10 EUR/month", Goal("cost", 10, per="month")),
        ("COST <= 0,002 € per request", Goal("cost", 0.002, per="request")),
        ("cost <= 30 % of cloud", Goal("cost", 0.3, of_cloud=True)),
        ("p95 <= 1.5 s", Goal("latency", 1.5, quantile=0.95)),
        ("p50 <= 800ms", Goal("latency", 0.8, quantile=0.5)),
    ],
)
def test_goals_are_read_as_people_write_them(text: str, goal: Goal) -> None:
    assert parse_goal(text) == goal
    assert parse_goal(str(goal)) == goal


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("good answers", "not a goal"),
        ("qualty >= 0.9", 'did you mean "quality"'),
        ("quality <= 0.9 of cloud", "bounded from below"),
        ("quality >= 98 of cloud", "at most 1"),
        ("quality >= 0.9 of edge", "of edge"),
        ("cost >= 10 EUR/month", "bounded from above"),
        ("cost <= 10 USD/month", "in euros"),
        ("cost <= 10 EUR", "period"),
        ("cost <= 10 EUR/week", "period"),
        ("p95 <= 1.5", "unit"),
        ("p0 <= 1 s", "no percentile"),
        ("p95 <= 1.5 % s", "unit"),
        ("p95 <= 1..5 s", "not a number"),
        ("cost <= 0 EUR/month", "above 0"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_reason(text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        parse_goal(text)


@given(st.text(max_size=40))
def test_no_text_breaks_the_reading(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_goal(text).limit > 0


def test_a_true_hypothesis_is_rejected_no_more_often_than_promised() -> None:
    """Means of exactly 0, skewed either way, few and many: p <= 0.1 in at most a tenth (+ chance)."""
    rng = np.random.default_rng(0)
    for values, chances in (
        ((-1, 1), (0.5, 0.5)),
        ((-1, 0.02), (0.02 / 1.02, 1 / 1.02)),
        ((-0.1, 1), (1 / 1.1, 0.1 / 1.1)),
    ):
        for number in (20, 300):
            drawn = rng.choice(values, p=chances, size=(400, number))
            rejected = np.mean([mean_p_value(row, min(values)) <= 0.1 for row in drawn])
            assert rejected <= 0.1 + 3 * np.sqrt(0.09 / 400)


def test_more_rows_make_surer_and_no_rows_say_nothing() -> None:
    margins = np.tile([0.5, -0.4], 50)
    assert mean_p_value(margins, -0.5) > mean_p_value(np.tile(margins, 20), -0.5)
    assert mean_p_value(np.array([]), -1.0) == 1
    assert mean_p_value(np.zeros(100), -1.0) == 1
    assert mean_p_value(np.full(1000, -0.1), -1.0) == 1
    assert mean_p_value(np.full(1000, 0.5), -1.0) < 1e-6


def test_the_binomial_tail_is_exact() -> None:
    assert exceedance_p_value(0, 10, 0.05) == pytest.approx(0.95**10)
    assert exceedance_p_value(1, 2, 0.5) == pytest.approx(0.75)
    assert exceedance_p_value(10, 10, 0.3) == pytest.approx(1)


def population(number: int, seed: int) -> dict[str, np.ndarray]:
    """An edge that is as good as its scorer says, and a cloud that is right at 0.85."""
    rng = np.random.default_rng(seed)
    suffices = rng.random(number)
    return {
        "suffices": suffices,
        "small_scores": (rng.random(number) < 0.4 + 0.5 * suffices).astype(float),
        "large_scores": (rng.random(number) < 0.85).astype(float),
        "small_eur": np.full(number, 0.001),
        "large_eur": np.full(number, 0.01),
        "small_s": np.full(number, 0.2),
        "large_s": rng.exponential(1.0, number),
    }


GOALS = {
    "quality >= 0.95 of cloud": lambda small, asked, rows: small.mean() >= 0.95 * rows["large_scores"].mean(),
    "quality >= 0.78": lambda small, asked, rows: small.mean() >= 0.78,
    "cost <= 0.006 EUR/request": lambda small, asked, rows: np.where(asked, 0.01, 0.001).mean() <= 0.006,
    "p95 <= 2 s": lambda small, asked, rows: (np.where(asked, rows["large_s"], 0.2) > 2).mean() <= 0.05,
}


@pytest.mark.parametrize("text", GOALS)
def test_the_promised_bound_is_kept_at_the_promised_rate(text: str) -> None:
    rows = population(20_000, seed=0)
    grid = threshold_grid(np.random.default_rng(1).random(500))
    kept, certified, draws = 0, 0, 40
    for seed in range(draws):
        drawn = np.random.default_rng(seed).integers(20_000, size=800)
        trial = Trial(**{name: column[drawn] for name, column in rows.items()})
        found = calibrate(trial, [parse_goal(text)], grid, confidence=0.8)
        asked = rows["suffices"] < found.threshold
        quality = np.where(asked, rows["large_scores"], rows["small_scores"])
        kept += not found.kept or bool(GOALS[text](quality, asked, rows))
        certified += found.kept
    assert kept >= draws * 0.8 - 3 * np.sqrt(draws * 0.16)
    assert certified > draws / 2, "a bound that certifies nothing is kept trivially"


def test_goals_that_pull_apart_are_kept_together_or_not_at_all() -> None:
    rows = population(4000, seed=2)
    grid = threshold_grid(np.random.default_rng(3).random(500))
    goals = [parse_goal("quality >= 0.9 of cloud"), parse_goal("cost <= 0.009 EUR/request")]
    both = calibrate(Trial(**rows), goals, grid)
    assert both.kept
    assert 0 < both.cloud_share < 0.9
    impossible = [parse_goal("quality >= 0.99 of cloud"), parse_goal("cost <= 0.0015 EUR/request")]
    neither = calibrate(Trial(**rows), impossible, grid)
    assert not neither.kept
    assert neither.threshold == ALWAYS


def test_without_certainty_a_quality_goal_asks_the_cloud_and_a_cost_goal_does_not() -> None:
    rows = {name: column[:5] for name, column in population(100, seed=4).items()}
    grid = threshold_grid(np.linspace(0, 1, 50))
    assert calibrate(Trial(**rows), [parse_goal("quality >= 0.9")], grid).threshold == ALWAYS
    dear = calibrate(Trial(**rows), [parse_goal("cost <= 0.0001 EUR/request")], grid)
    assert (dear.threshold, dear.kept) == (NEVER, False)


def test_what_a_goal_needs_must_be_known() -> None:
    trial = Trial(*(population(100, seed=5)[name] for name in ("suffices", "small_scores", "large_scores")))
    grid = threshold_grid(np.linspace(0, 1, 50))
    for text, missing in (("cost <= 1 EUR/month", "cost"), ("p95 <= 1 s", "how long")):
        with pytest.raises(ConfigError, match=missing):
            calibrate(trial, [parse_goal(text)], grid)
    with pytest.raises(ConfigError, match="requests a month"):
        calibrate(Trial(**population(100, seed=5)), [parse_goal("cost <= 1 EUR/month")], grid)


def test_a_cascade_pays_for_both() -> None:
    rows = population(1000, seed=6)
    grid = threshold_grid(np.linspace(0, 1, 50))
    goal = [parse_goal("quality >= 0.95 of cloud")]
    before, after = (calibrate(Trial(**rows, edge_first=first), goal, grid) for first in (False, True))
    assert before.threshold == after.threshold
    assert after.eur_per_request == pytest.approx(0.001 + 0.01 * after.cloud_share)
    assert before.eur_per_request == pytest.approx(0.001 + 0.009 * before.cloud_share)


def rings(alarm: DriftAlarm, scores: np.ndarray) -> bool:
    return any(alarm.observe(float(score)) for score in scores)


def test_the_drift_alarm_rings_falsely_no_more_often_than_promised_and_sees_drift() -> None:
    false, seen, runs = 0, 0, 60
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        alarm = DriftAlarm(rng.beta(2, 5, 200), alarm_rate=0.1, seed=1000 + seed)
        false += rings(alarm, rng.beta(2, 5, 300))
        alarm = DriftAlarm(rng.beta(2, 5, 200), alarm_rate=0.1, seed=1000 + seed)
        seen += rings(alarm, rng.beta(4, 3, 300))
    assert false <= 0.1 * runs + 3 * np.sqrt(0.09 * runs)
    assert seen >= 0.95 * runs


def test_the_drift_alarm_sees_a_late_change_and_keeps_ringing_and_bears_ties() -> None:
    rng = np.random.default_rng(0)
    alarm = DriftAlarm([], alarm_rate=0.01, seed=1)
    assert not rings(alarm, rng.random(2000).round(1))
    assert rings(alarm, (rng.random(600) ** 3).round(1))
    assert alarm.observe(0.5)
    assert alarm.evidence > 1
