"""A cache gives the same answer to the same question, and to an alike one only inside a measured bound."""

from __future__ import annotations

import random

import pytest

from consort.inference.cache import OFF, Shelf, cache, measured_threshold
from consort.inference.single import cloud
from consort.models.simulated import Fault
from tests.inference.consorts import outcome, says, user


def test_the_same_question_is_answered_once_in_the_same_chunks() -> None:
    lm, strategy = says("large", "at nine"), cache(cloud, Shelf())
    first, again = (outcome(strategy, cloud=lm) for _ in range(2))
    assert first.chunks == again.chunks
    assert len(lm.calls) == 1
    assert [*first.events, *again.events] == ["missed", "hit"]


@pytest.mark.parametrize(
    "other", [user("when?"), user(seed=3), user(max_tokens=3), user(stop=("x",)), user(top_logprobs=1)]
)
def test_another_question_is_another_answer(other) -> None:
    lm, strategy = says("large", "at nine"), cache(cloud, Shelf())
    outcome(strategy, cloud=lm)
    outcome(strategy, cloud=lm, request=other)
    assert len(lm.calls) == 2


def test_a_sampled_answer_is_kept_only_with_its_seed() -> None:
    for seed, calls in ((None, 2), (1, 1)):
        lm, strategy = says("large", "at nine"), cache(cloud, Shelf())
        for _ in range(2):
            outcome(strategy, cloud=lm, request=user(temperature=1.0, seed=seed))
        assert len(lm.calls) == calls


def test_a_broken_answer_is_not_kept() -> None:
    shelf = Shelf()
    with pytest.raises(Exception, match="broke"):
        outcome(cache(cloud, shelf), cloud=says("large", "at nine", fault=Fault("break", 1)))
    assert shelf.find(user()) is None


def test_the_least_recently_used_answer_leaves_first() -> None:
    shelf = Shelf(max_answers=2)
    for text in ("a", "b", "a", "c"):
        outcome(cache(cloud, shelf), cloud=says("large", text), request=user(text))
    assert [shelf.find(user(text)) is not None for text in "abc"] == [True, False, True]


def test_an_alike_question_is_answered_but_never_another_number_or_a_negation() -> None:
    shelf = Shelf()
    outcome(cache(cloud, shelf), cloud=says("large", "yes"), request=user("can I pay 20 euro by card?"))
    assert shelf.find(user("Can I pay  20 euro by card"), alike=0.9) is not None
    for other in (
        "can I pay 30 euro by card?",
        "can I not pay 20 euro by card?",
        "can't I pay 20 euro by card?",
    ):
        assert shelf.find(user(other), alike=0.1) is None
    assert shelf.find(user("can I pay 20 euro by card?", max_tokens=9), alike=0.1) is None


def test_a_measured_threshold_keeps_its_promise() -> None:
    """Over 300 samples of pairs whose error at each likeness is known, at most 5 % (and noise) break it."""
    rng, broken = random.Random(0), 0
    for _ in range(300):
        likenesses = [rng.random() for _ in range(400)]
        pairs = [(each, rng.random() < each**0.25) for each in likenesses]
        threshold = measured_threshold(pairs, max_error=0.05)
        # the mean of 1 - x**0.25 over x >= threshold
        if threshold < 1:
            error = 1 - 0.8 * (1 - threshold**1.25) / (1 - threshold)
            broken += error > 0.05
    assert broken <= 300 * 0.05 + 2 * (300 * 0.05 * 0.95) ** 0.5


def test_too_few_pairs_prove_nothing() -> None:
    assert measured_threshold([(0.99, True)] * 20, max_error=0.05) == OFF
    assert measured_threshold([(0.99, True)] * 100, max_error=0.05) == 0.99
