"""A ledger replayed under its own policy is itself; under another, what a gateway of that policy does."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from consort.bench.intervals import Figure
from consort.bench.replay import Replayed, answered_a_month, replay
from consort.bench.replay_cases import Policy
from consort.cli import main
from consort.errors import DataError
from consort.gateway.history import History, read_history
from consort.gateway.shadow import Shadow
from consort.models.simulated import Simulated
from consort.types import Answer, Request
from tests.gateway.live import Live, live

QUESTIONS = 60


def number(request: Request) -> int:
    return int(request.messages[-1].content.split()[-1])


async def scorer(request: Request, answer: Answer | None) -> float:
    """Between 0 and 1, and another value after the answer than before."""
    return (number(request) * (37 if answer is None else 23) % 100) / 100


def models() -> dict[str, Any]:
    """An edge that says what the cloud says to two questions of three."""

    def edge(request: Request) -> str:
        return "I do not know" if number(request) % 3 == 0 else cloud(request)

    def cloud(request: Request) -> str:
        return f"the answer is {number(request)} " + "because " * (1 + number(request) % 5)

    return {"edges": [Simulated("small", answer=edge)], "cloud": Simulated("large", answer=cloud)}


def served(folder: Path, *, share: float = 0.0, model: str = "consort", **config: Any) -> History:
    async def work(here: Live) -> None:
        here.service.before = here.service.after = scorer
        here.service.shadow = Shadow(share, 1.0, here.service.ledger, rng=Random(1)) if share else None
        asked = (here.ask(f"question {index}", model=model) for index in range(QUESTIONS))
        assert {status for status, _ in await asyncio.gather(*asked)} == {200}
        if here.service.shadow:
            await here.service.shadow.settled()

    async def go() -> None:
        async with live(folder, **models(), **config) as here:
            await work(here)

    asyncio.run(asyncio.wait_for(go(), 30))
    return read_history(folder)


def totals(history: History) -> tuple[float, float]:
    """Share at the edge and money, by the rows alone."""
    at_edge = [all(call["side"] == "edge" for call in row.calls) for row in history.rows]
    return sum(at_edge) / len(at_edge), math.fsum(row.cost for row in history.rows)


def test_a_ledger_under_its_own_policy_is_itself_to_the_last_bit(tmp_path: Path) -> None:
    async def work() -> None:
        async with live(tmp_path, **models(), threshold=0.5) as here:
            here.service.before = here.service.after = scorer
            for index, name in enumerate(
                ("", "/route", "/vote", "/cache", "/takeover", "/auto", "/cloud") * 3
            ):
                private = {"private": True} if index == 0 else {}
                await here.ask(f"question {index % 7}", model=f"consort{name}", consort=private)
            await here.ask("question 1", model="large")
            await here.ask("question 1", model="nobody")

    asyncio.run(work())
    history = read_history(tmp_path)
    found = replay(history, Policy())
    edge_share, money = totals(history)
    latencies = sorted(row.latency_s for row in history.rows)
    assert (found.edge_share.value, found.money.value) == (edge_share, money)
    assert found.p50_s.value == latencies[len(latencies) // 2]
    assert all(each.is_exact for each in (found.edge_share, found.money, found.p50_s, found.p95_s))
    assert found.guessed == {}
    own_prices = {"small": (0.0, 0.0), "large": (1.0, 10.0)}
    assert replay(history, Policy(prices=own_prices)).money.value == pytest.approx(money, rel=1e-12)


@pytest.mark.parametrize(
    ("was", "strategy"),
    [
        ("cascade", "cascade"),
        ("cascade", "edge"),
        ("cascade", "cloud"),
        ("cascade", "route"),
        ("route", "cascade"),
    ],
)
def test_where_everything_is_labelled_a_replay_is_what_a_gateway_of_that_policy_does(
    tmp_path: Path, was: str, strategy: Any
) -> None:
    before = served(tmp_path / "was", share=1.0, strategy=was, threshold=0.4)
    really = served(tmp_path / "is", share=1.0, strategy=strategy, threshold=0.7)
    found = replay(before, Policy(strategy, 0.7))
    assert found.decided == QUESTIONS
    assert (found.edge_share.value, found.money.value) == pytest.approx(totals(really))
    assert found.edge_share.is_exact
    assert found.money.is_exact
    itself = replay(really, Policy())
    assert found.quality is not None
    assert itself.quality is not None
    assert found.quality.value == pytest.approx(itself.quality.value)


def test_what_edge_and_cloud_wrote_together_is_no_answer_of_either(tmp_path: Path) -> None:
    before = served(tmp_path, share=1.0, strategy="cascade", threshold=0.4)
    parts = tuple(
        {**call, "side": side, "cost": 99.0}
        for call, side in zip(2 * before.rows[0].calls[:1], ("edge", "cloud"), strict=True)
    )
    shared = replace(before.rows[0], id="shared", strategy="defer", notes=(), calls=parts, cloud_tokens=1)
    history = replace(before, rows=(*before.rows, shared))
    was, would = replay(history, Policy()), replay(history, Policy("cloud"))
    assert was.edge_share.value == pytest.approx(totals(before)[0] * QUESTIONS / (QUESTIONS + 1))
    assert was.quality == replay(before, Policy()).quality is not None  # of the others
    assert (was.shared, would.shared, was.labels) == (1, 0, QUESTIONS)
    assert replay(replace(before, rows=(shared,)), Policy()).quality is None
    assert would.decided == QUESTIONS + 1
    assert would.guessed == {"an answer of the cloud": 1}
    assert would.money.high < 1
    assert would.quality == Figure(1.0, 1.0, 1.0)


def test_a_threshold_alone_needs_no_label_and_no_text(tmp_path: Path) -> None:
    before = served(tmp_path / "was", strategy="cascade", threshold=0.4)
    really = served(tmp_path / "is", strategy="cascade", threshold=0.2)
    lower = replay(before, Policy(threshold=0.2))
    assert (lower.edge_share.value, lower.money.value) == pytest.approx(totals(really))
    assert lower.money.is_exact
    assert lower.quality is None
    higher = replay(before, Policy(threshold=0.9))
    share, money = totals(served(tmp_path / "higher", strategy="cascade", threshold=0.9))
    assert higher.edge_share.value == pytest.approx(share)
    assert higher.edge_share.is_exact
    assert not higher.money.is_exact
    assert higher.money.low <= money <= higher.money.high
    assert set(higher.guessed) == {"an answer of the cloud"}


def test_a_share_of_labels_estimates_what_the_ledger_does_not_know(tmp_path: Path) -> None:
    before = served(tmp_path / "was", share=0.5, strategy="route", threshold=0.4)
    found = replay(before, Policy("cascade", 0.7))
    share, money = totals(served(tmp_path / "is", share=1.0, strategy="cascade", threshold=0.7))
    assert found.edge_share.low <= share <= found.edge_share.high
    assert found.money.low <= money <= found.money.high
    assert set(found.guessed) == {"a score"}
    assert found.quality is not None
    assert found.quality.low < found.quality.value < found.quality.high


def test_what_a_ledger_lacks_is_one_clear_error(tmp_path: Path) -> None:
    history = served(tmp_path, strategy="route", threshold=0.0)
    with pytest.raises(DataError, match="no label tells how cascade"):
        replay(history, Policy("cascade", 0.5))
    with pytest.raises(DataError, match="is not known"):
        replay(history, Policy("cascade"))
    with pytest.raises(DataError, match="0 answers of the cloud"):
        replay(history, Policy("cloud"))
    with pytest.raises(DataError, match="no request"):
        replay(History((), ()), Policy())
    older = replace(history, rows=tuple(replace(row, calls=_unpriced(row.calls)) for row in history.rows))
    assert replay(older, Policy()).money.value == totals(history)[1]
    with pytest.raises(DataError, match="what a call of small cost"):
        replay(older, Policy(prices={"large": (1.0, 10.0)}))


def _unpriced(calls: Any) -> Any:
    return tuple({name: value for name, value in call.items() if name != "cost"} for call in calls)


def test_private_requests_and_models_asked_by_name_stay_as_they_were(tmp_path: Path) -> None:
    async def work() -> None:
        async with live(tmp_path, **models(), threshold=0.0) as here:
            await here.ask("question 1", consort={"private": True})
            await here.ask("question 2", model="small")
            await here.ask("question 3", model="consort/edge")
            await here.ask("question 4", model="large")

    asyncio.run(work())
    found = replay(read_history(tmp_path), Policy("cloud"))
    assert found.decided == 0
    assert found.edge_share.value == 0.75


def test_the_verb_prints_both_and_finds_a_threshold_for_a_goal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served(tmp_path, share=1.0, strategy="cascade", threshold=0.4)
    words = ["replay", str(tmp_path), "--strategy", "cascade"]
    history = read_history(tmp_path)
    assert main(["replay", str(tmp_path)]) == 0
    assert f"from {QUESTIONS} labels" in capsys.readouterr().out
    assert main([*words, "--threshold", "0.7", "--price", "large=2,20", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["was"]["edge_share"]["value"] > told["would_be"]["edge_share"]["value"]
    assert main([*words, "--goal", "quality >= 0.5 of cloud", "--confidence", "0.8"]) == 0
    shown = capsys.readouterr().out
    month = answered_a_month(history)
    assert month is not None
    assert f"goals kept with 80% confidence, at {month:,.0f} answered requests a month: " in shown
    assert "exact" in shown
    for wrong, what in (
        (["--price", "large=2"], "not a price"),
        (["--goal", "quality >= 0.5", "--threshold", "0.1"], "finds the threshold"),
        (["--scorer", str(tmp_path / "none")], "no such scorer"),
        (["--days", "0"], "holds nothing"),
    ):
        assert main([*words, *wrong]) == 1
        assert what in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "nowhere")]) == 1
    assert "no ledger here" in capsys.readouterr().err


def test_a_replay_repeats_with_its_seed(tmp_path: Path) -> None:
    history = served(tmp_path, share=0.3, strategy="route", threshold=0.4)
    first, again, other = (replay(history, Policy("cascade", 0.7), seed=seed) for seed in (3, 3, 4))
    assert isinstance(first, Replayed)
    assert first == again
    assert first.money != other.money


def test_requests_that_failed_are_on_neither_side_and_do_not_hide_what_labels_tell(tmp_path: Path) -> None:
    history = served(tmp_path, share=1.0, threshold=0.5)
    failed = replace(history.rows[-1], id="failed", strategy="defer", outcome="unusable_model", calls=())
    with_failure = replace(history, rows=(*history.rows, failed))
    found, before = replay(with_failure, Policy()), replay(history, Policy())
    assert before.quality is not None
    assert found == replace(before, failed=1)
    later = replace(failed, at=history.rows[0].at + 100.0)
    paced = replace(history, rows=(*history.rows, later))
    seconds_a_month = 30.44 * 86_400
    assert answered_a_month(paced) == pytest.approx(len(history.rows) / 100.0 * seconds_a_month)
    with pytest.raises(DataError, match="was answered"):
        replay(replace(history, rows=(failed,)), Policy())
