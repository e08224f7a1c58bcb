"""Shadow labels: never of private requests, never beyond the budget, never unredacted, and right."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from consort.config import RuntimeConfig
from consort.config_serve import ServeConfig, ServedModel
from consort.gateway.deferring import deferral_of
from consort.gateway.history import read_history
from consort.gateway.labels import ASKED, Label
from consort.gateway.ledger import Ledger, Row
from consort.gateway.loading import load_lm
from consort.gateway.shadow import Shadow, most_cost
from consort.models.simulated import Fault
from tests.gateway.live import LARGE, SMALL, Live, live
from tests.inference.consorts import says, user

ROW = Row(
    id="x",
    at=0.0,
    key="local",
    model="consort",
    strategy="edge",
    outcome="done",
    streamed=False,
    latency_s=0.1,
    first_s=None,
    prompt_tokens=1,
    completion_tokens=1,
    edge_tokens=1,
    cloud_tokens=0,
    cloud_bytes=0,
    cost=0.0,
    cost_all_cloud=0.0,
    spans=(),
    calls=(),
    notes=(),
)


def labelled(
    work: Callable[[Live], Awaitable[Any]],
    folder: Path,
    *,
    share: float = 1.0,
    budget: float = 1.0,
    **more: Any,
) -> list[Label]:
    """What a gateway that shadows has in its ledger after `work`."""

    async def go() -> None:
        async with live(folder, **more) as here:
            here.service.shadow = Shadow(share, budget, here.service.ledger, rng=Random(0))
            await work(here)
            await here.service.shadow.settled()

    asyncio.run(asyncio.wait_for(go(), 20))
    return list(read_history(folder).labels)


@pytest.mark.parametrize("stream", [False, True])
def test_after_an_edge_answer_the_cloud_is_asked_and_the_label_holds_no_text(
    tmp_path: Path, stream: bool
) -> None:
    large = says("large", LARGE)

    async def work(here: Live) -> None:
        await (here.stream if stream else here.ask)("when does it open?")

    (label,) = labelled(work, tmp_path, cloud=large)
    assert (label.outcome, label.asked, label.small, label.large) == ("done", "large", "small", "large")
    assert len(large.calls) == 1
    assert label.small_score == 0  # "9" is not "nine": no synonyms
    assert label.large_score == 1
    assert label.cost > 0
    calls = {"prompt_tokens", "completion_tokens", "answer_s", "cost"}
    assert label.small_call.keys() == label.large_call.keys() == calls
    assert set(label.features) == {"surface", "checks", "confidence"}
    assert None not in (label.before, label.after)
    assert label.question is label.small_answer is label.large_answer is None
    stored = b"".join(file.read_bytes() for file in tmp_path.glob("ledger.sqlite*"))
    assert b"when does it open" not in stored
    assert SMALL.encode() not in stored


def test_where_both_answered_anyway_a_label_is_free_and_where_the_cloud_did_the_edge_is_asked(
    tmp_path: Path,
) -> None:
    async def work(here: Live) -> None:
        await here.ask("one", consort={"threshold": 2})
        await here.ask("two", model="consort/cloud")

    deferred, cloud = labelled(work, tmp_path, log_text=True)
    assert (deferred.asked, deferred.cost, deferred.question) == ("", 0, "one")
    assert (cloud.asked, cloud.cost, cloud.small_answer) == ("small", 0, SMALL)
    assert "confidence" in cloud.features


def test_a_private_request_is_never_shadowed(tmp_path: Path) -> None:
    large = says("large", LARGE)

    async def work(here: Live) -> None:
        for model in ("consort", "consort/edge", "small"):
            await here.ask(model=model, consort={"private": True})
            await here.stream(model=model, consort={"private": True})

    assert labelled(work, tmp_path, cloud=large) == []
    assert large.calls == []


@pytest.mark.parametrize("model", ["consort/edge", "consort/cascade", "small"])
def test_where_redaction_is_on_nothing_private_leaves_for_a_label(tmp_path: Path, model: str) -> None:
    large = says("large", LARGE)

    async def work(here: Live) -> None:
        await here.ask("Mail anna.schmidt@example.org when it opens", model=model)

    (label,) = labelled(work, tmp_path, cloud=large, redact=True)
    assert label.outcome == "done"
    assert [call for call in large.calls if "anna" in call.messages[0].content] == []
    assert len(large.calls) == 1


def test_the_budget_is_never_exceeded_not_even_by_what_is_being_asked(tmp_path: Path) -> None:
    budget, seen = 30e-6 * 40, []

    async def work(here: Live) -> None:
        shadow = here.service.shadow
        assert shadow is not None
        for start in range(0, 60, 12):
            await asyncio.gather(*(here.ask(f"question {start + i}", max_tokens=9) for i in range(12)))
            seen.append(shadow.spent)
            await shadow.settled()
            seen.append(shadow.spent)

    labels = labelled(work, tmp_path, budget=budget)
    assert max(seen) <= budget
    assert 10 < len(labels) < 60
    assert sum(label.cost for label in labels) == pytest.approx(seen[-1])


def test_a_new_month_has_its_budget_and_still_counts_what_is_being_asked(tmp_path: Path) -> None:
    now = [0.0]

    async def work(here: Live) -> None:
        shadow = Shadow(1.0, 0.001, here.service.ledger, spent=0.001, rng=Random(0), clock=lambda: now[0])

        def draw() -> Any:
            return shadow.draw(here.service, id="x", request=user(max_tokens=9), redact=False)

        assert draw() is None
        now[0] = 32 * 86_400.0
        draft = draw()
        assert draft is not None
        assert shadow.spent == draft.set_aside
        now[0] = 64 * 86_400.0  # asked in one month, answered in the next
        assert draw() is not None
        assert shadow.spent == pytest.approx(2 * draft.set_aside)
        shadow.take(here.service, draft, replace(ROW, outcome="upstream_failed"))
        assert shadow.spent == pytest.approx(draft.set_aside)

    labelled(work, tmp_path)


def test_a_models_own_count_never_exceeds_what_was_set_aside(tmp_path: Path) -> None:
    async def work(here: Live) -> None:
        for text in ("?", "wörter " * 30, "a b c d"):
            await here.ask(text, max_tokens=4)
            request = user(text, max_tokens=4)
            assert most_cost(here.service, here.service.models[-1], request) > 0

    for label, text in zip(labelled(work, tmp_path), ("?", "wörter " * 30, "a b c d"), strict=True):
        assert label.cost <= (len(text.encode()) + 64) * 1e-6 + 4 * 10e-6


def test_a_killed_process_leaves_no_money_uncounted(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    asked = Label("r1", 5.0, ASKED, "large", 0.25, 1.0)
    done = Label("r2", 5.0, "done", "large", 0.125, 1.0)
    for label in (asked, done):
        ledger.record(label)
    for label in (
        Label("r2", 5.0, ASKED, "large", 9.0, 1.0),
    ):  # a spool read again never undoes what is known
        ledger.record(label)
    ledger.close()
    again = Ledger(tmp_path)
    assert again.shadowed_since(0.0) == 0.375
    assert again.shadowed_since(6.0) == 0.0
    again.close()


def test_an_unreachable_cloud_costs_no_label_and_no_answer(tmp_path: Path) -> None:
    async def work(here: Live) -> None:
        status, _ = await here.ask("when?")
        assert status == 200

    (label,) = labelled(work, tmp_path, cloud=says("large", LARGE, fault=Fault("break", 1)))
    assert label.outcome == "upstream_failed"


def test_the_share_is_of_requests_whoever_answers_them(tmp_path: Path) -> None:
    async def work(here: Live) -> None:
        for start in range(0, 200, 20):  # no more wait to be labelled than there is room for
            parts = [
                here.ask(f"q{i}", consort={"threshold": 2.0 * (i % 2)}) for i in range(start, start + 20)
            ]
            await asyncio.gather(*parts)

    labels = labelled(work, tmp_path, share=0.3)
    deferred = sum(label.asked == "" for label in labels)
    assert 40 <= len(labels) <= 80
    assert 0.3 * len(labels) <= deferred <= 0.7 * len(labels)
    assert {label.chance for label in labels} == {0.3}


def test_a_drafted_answer_is_labelled_and_one_whose_tokens_several_chose_is_not(tmp_path: Path) -> None:
    edge, cloud = (
        load_lm(
            ServedModel(name=name, model=f"zoo:{model}", answers=2, context_tokens=128),
            RuntimeConfig(device="cpu"),
            sessions=2,
        )
        for name, model in (("small", "edge-llama"), ("large", "cloud"))
    )
    said: list[str] = []

    async def work(here: Live) -> None:
        here.service.deferral = deferral_of(ServeConfig(), [edge, cloud], has_cloud=True, sessions=2)
        for name, stop in (("cloud", []), ("speculate", []), ("speculate", ["e"]), ("defer", [])):
            status, body = await here.ask(
                "When do you open?", model=f"consort/{name}", max_tokens=12, stop=stop
            )
            assert status == 200
            said.append(body["choices"][0]["message"]["content"])

    labels = labelled(work, tmp_path, edges=[edge], cloud=cloud, log_text=True)
    assert [(label.asked, label.large_answer) for label in labels] == [("small", text) for text in said[:3]]
    assert said[1] == said[0]
    assert all(label.large_call["completion_tokens"] > 0 for label in labels)


def test_labels_and_rows_that_a_killed_process_left_are_taken_in_together(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for index in range(40):
        ledger.record(replace(ROW, id=f"r{index}"))
        ledger.record(Label(f"r{index}", 5.0, "done", "large", 0.25, 1.0, features={"surface": [1.0]}))
    (spool,) = tmp_path.glob("ledger.*.spool")
    left = spool.read_bytes()
    ledger.close()
    stored = read_history(tmp_path)
    (tmp_path / "ledger.sqlite").unlink()
    (tmp_path / "ledger.1-1.spool").write_bytes(left)
    Ledger(tmp_path).close()
    assert read_history(tmp_path) == stored
    assert (len(stored.rows), len(stored.labels), stored.labels[0].features) == (40, 40, {"surface": [1.0]})
