"""Every strategy ends in a whole answer or one of our errors, and frees what it leaves."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Callable
from functools import partial

import pytest

from consort.errors import ContextFullError, ModelError, RequestError, UpstreamError
from consort.inference.auto import Conditions, auto, choose
from consort.inference.cascade import cascade
from consort.inference.metering import Call, Gauge, Metered
from consort.inference.route import route
from consort.inference.single import cloud, edge, named
from consort.inference.streams import Closing, answer_of
from consort.inference.takeover import takeover
from consort.inference.vote import vote
from consort.models.simulated import Fault, Simulated
from consort.types import Answer, Chunk, Consort, Request, Strategy, Tool
from tests.inference.consorts import always, outcome, says, user

SMALL, LARGE = "it opens at nine in the morning", "the clinic opens at 9, except on Sundays"
SURE = (SMALL, f"{SMALL}.")  # two that agree
TOOL = Tool("look", "", "{}")


def edge_lm(**more: object) -> Simulated:
    return says("small", SMALL, **more)  # type: ignore[arg-type]


def cloud_lm(**more: object) -> Simulated:
    return says("large", LARGE, **more)  # type: ignore[arg-type]


def mean_logprob(answer: Answer) -> float:
    return statistics.fmean(token.logprob for token in answer.logprobs)


def everyone() -> list[tuple[str, Strategy]]:
    return [
        ("edge", edge),
        ("cloud", cloud),
        ("named", named("small")),
        ("route", route(always(0.2), 0.5)),
        ("cascade", cascade(always(0.2), 0.5)),
        ("optimistic", cascade(always(0.2), 0.5, optimistic=True)),
        ("vote", vote()),
        ("takeover", takeover()),
        ("composed", takeover(cascade(always(0.2), 0.5))),
        ("auto", auto(lambda consort: Conditions(), {"edge": edge, "cloud": cloud, "cascade": cloud})),
    ]


@pytest.mark.parametrize(("name", "strategy"), everyone())
def test_an_answer_is_whole_and_says_once_why_it_ended(name: str, strategy: Strategy) -> None:
    found = outcome(strategy, edges=[edge_lm()], cloud=cloud_lm())
    assert found.text in (SMALL, LARGE)
    assert [chunk.finish_reason for chunk in found.chunks if chunk.finish_reason] == ["stop"]


@pytest.mark.parametrize(("name", "strategy"), everyone())
def test_whoever_leaves_early_frees_every_model(name: str, strategy: Strategy) -> None:
    models = [edge_lm(), says("other", SMALL), cloud_lm()]

    async def leave_after_one() -> None:
        stream = strategy(user(), Consort(tuple(models[:2]), models[2]))
        async with Closing(stream):
            await anext(stream)

    asyncio.run(leave_after_one())
    assert [lm.in_flight for lm in models] == [0, 0, 0]


@pytest.mark.parametrize(("name", "strategy"), everyone())
def test_what_no_model_can_do_is_refused(name: str, strategy: Strategy) -> None:
    unable = frozenset[str]()
    models = [edge_lm(capabilities=unable), cloud_lm(capabilities=unable)]
    with pytest.raises(RequestError, match="tools"):
        outcome(strategy, edges=models[:1], cloud=models[1], request=user(tools=(TOOL,)))


@pytest.mark.parametrize(("score", "text"), [(0.5, SMALL), (0.49, LARGE)])
@pytest.mark.parametrize("optimistic", [False, True])
def test_a_cascade_gives_the_accepted_answer(score: float, text: str, optimistic: bool) -> None:
    strategy = cascade(always(score), 0.5, optimistic=optimistic)
    small, large = edge_lm(), cloud_lm()
    found = outcome(strategy, edges=[small], cloud=large)
    assert found.text == text
    assert len(large.calls) == (text == LARGE)
    assert any(chunk.anew for chunk in found.chunks) == (optimistic and text == LARGE)


@pytest.mark.parametrize("strategy", [cascade(always(1.0), 0.5), route(always(1.0), 0.5)])
def test_without_a_cloud_an_edges_failure_is_told_as_it_is(strategy: Strategy) -> None:
    with pytest.raises(UpstreamError, match="small"):
        outcome(strategy, edges=[edge_lm(fault=Fault("break", 0))])


def test_a_cascade_shows_nothing_of_an_answer_it_refuses() -> None:
    found = outcome(cascade(always(0.0), 0.5), edges=[edge_lm()], cloud=cloud_lm())
    assert found.authors == {"large"}


def test_a_scorer_reads_logprobs_that_the_client_does_not_get() -> None:
    read: list[Answer] = []

    async def scorer(request: Request, answer: Answer | None) -> float:
        assert answer is not None
        read.append(answer)
        return 1.0

    found = outcome(cascade(scorer, 0.5), edges=[edge_lm()], cloud=cloud_lm())
    assert read[0].text == SMALL
    assert len(read[0].logprobs) == len(SMALL.split())
    assert not any(chunk.logprobs for chunk in found.chunks)


def test_a_cloud_that_is_down_leaves_the_small_answer_standing() -> None:
    down = cloud_lm(fault=Fault("break"))
    for optimistic in (False, True):
        strategy = cascade(always(0.0), 0.5, optimistic=optimistic)
        found = outcome(strategy, edges=[edge_lm()], cloud=down)
        assert found.text == SMALL
        assert found.events == ["deferred", "kept"]
    assert outcome(cascade(always(0.0), 0.5), edges=[edge_lm()], cloud=None).text == SMALL


@pytest.mark.parametrize("failure", [ContextFullError("full", where="proxy"), TimeoutError()])
@pytest.mark.parametrize("make", [cascade, route, partial(cascade, optimistic=True)])
def test_a_scorer_that_cannot_judge_decides_nothing(
    make: Callable[..., Strategy], failure: Exception
) -> None:
    """The cloud answers where it may be asked, else the edge; the receipt says that nobody judged."""

    async def scorer(request: Request, answer: Answer | None) -> float:
        raise failure

    found = outcome(make(scorer, 0.5), edges=[edge_lm()], cloud=cloud_lm())
    assert (found.text, found.events) == (LARGE, ["unscored"])
    for cloud_model in (None, cloud_lm(fault=Fault("break"))) if make is not route else (None,):
        found = outcome(make(scorer, 0.5), edges=[edge_lm()], cloud=cloud_model)
        assert found.text == SMALL
        assert found.events[0] == "unscored"
        assert not any("score" in note.values for note in found.notes)


def test_where_no_cloud_may_be_asked_route_stays_at_the_edge() -> None:
    found = outcome(route(always(0.0), 0.5), edges=[edge_lm()])
    assert (found.text, found.events) == (SMALL, ["kept"])


@pytest.mark.parametrize("kind", ["break", "stall"])
def test_a_cascade_whose_cloud_never_begins_asks_the_edge_once(kind: str) -> None:
    small, down = edge_lm(), cloud_lm(fault=Fault(kind))  # type: ignore[arg-type]
    large = takeover(silence_s=0.05, only_begun=True)
    found = outcome(cascade(always(0.0), 0.5, large=large), edges=[small], cloud=down)
    events = ["deferred", *(["stalled"] if kind == "stall" else []), "kept"]
    assert (found.text, found.events, len(small.calls)) == (SMALL, events, 1)
    broken = cloud_lm(fault=Fault(kind, 3))  # type: ignore[arg-type]
    assert outcome(cascade(always(0.0), 0.5, large=large), edges=[edge_lm()], cloud=broken).authors == {
        "small",
        "large",
    }


def test_a_failed_edge_is_the_clouds_turn_and_two_failures_are_one_error() -> None:
    broken = edge_lm(fault=Fault("break", 2))
    assert outcome(cascade(always(1.0), 0.5, optimistic=True), edges=[broken], cloud=cloud_lm()).text == LARGE
    with pytest.raises(UpstreamError):
        outcome(cascade(always(1.0), 0.5), edges=[broken], cloud=cloud_lm(fault=Fault("break")))


@pytest.mark.parametrize("after", range(9))
@pytest.mark.parametrize("kind", ["break", "stall"])
def test_takeover_continues_from_what_was_sent(kind: str, after: int) -> None:
    """An edge that continues well: the client reads one whole answer, whoever wrote which part."""

    def continuing(request: Request) -> str:
        last = request.messages[-1]
        return LARGE.removeprefix(last.content) if last.role == "assistant" else LARGE

    fault = Fault(kind, after)  # type: ignore[arg-type]
    found = outcome(
        takeover(silence_s=0.05),
        edges=[Simulated("small", answer=continuing)],
        cloud=cloud_lm(fault=fault),
    )
    assert found.text == LARGE
    assert found.events == (["broke" if kind == "break" else "stalled"])
    assert found.authors == ({"small"} if after == 0 else {"large"} if after == 8 else {"small", "large"})


@pytest.mark.parametrize("after", range(2, 8))
def test_takeover_cuts_a_repeated_beginning(after: int) -> None:
    found = outcome(takeover(), edges=[says("small", LARGE)], cloud=cloud_lm(fault=Fault("break", after)))
    assert found.text == LARGE


def test_a_vote_needs_a_majority_of_like_answers() -> None:
    alike = [says("a", SMALL), says("b", f"{SMALL}."), says("c", "no idea")]
    found = outcome(vote(), edges=alike, cloud=cloud_lm())
    assert found.text.startswith(SMALL)
    split = [says("a", SMALL), says("b", "it does not open"), says("c", "no idea")]
    assert outcome(vote(), edges=split, cloud=cloud_lm()).text == LARGE


def test_one_voter_alone_decides_nothing() -> None:
    assert outcome(vote(), edges=[edge_lm()], cloud=cloud_lm()).text == LARGE


def test_without_a_cloud_a_vote_is_the_largest_groups_else_the_surests() -> None:
    """And nobody sees the log-probabilities that it asked for."""
    words = [*SURE, "it does not open", "no idea", "ask Köln"]
    for split in itertools.permutations([says(f"of {text}", text) for text in words[2:]]):
        found = outcome(vote(), edges=split)
        answers = [outcome(edge, edges=[lm], request=user(top_logprobs=0)).chunks for lm in split]
        means = {answer_of(chunks).text: mean_logprob(answer_of(chunks)) for chunks in answers}
        assert found.text == max(means, key=lambda text: means[text])
        assert found.events == ["split", "surest"]
        assert not any(chunk.logprobs for chunk in found.chunks)
    two = [says(str(place), text) for place, text in enumerate(words)]
    found = outcome(vote(), edges=two)
    assert (found.text in SURE, found.events) == (True, ["split", "most"])
    assert outcome(vote(), edges=[edge_lm()]).text == SMALL


def test_a_vote_in_which_nobody_can_speak_fails_as_the_voters_do() -> None:
    broken = [says(name, SMALL, fault=Fault("break")) for name in "ab"]
    with pytest.raises(UpstreamError, match="broke off"):
        outcome(vote(), edges=broken)
    assert outcome(vote(), edges=[*broken, edge_lm()]).text == SMALL
    assert outcome(vote(), edges=broken, cloud=cloud_lm()).text == LARGE


def test_a_decided_vote_stops_who_still_writes() -> None:
    slow = says("c", SMALL, fault=Fault("stall"))
    found = outcome(vote(), edges=[says("a", SMALL), says("b", SMALL), slow], cloud=cloud_lm())
    assert found.text == SMALL
    assert slow.in_flight == 0


def test_without_a_cloud_its_strategies_say_so() -> None:
    with pytest.raises(ModelError, match="no cloud model"):
        outcome(cloud, edges=[edge_lm()])


@pytest.mark.parametrize(
    ("now", "wanted"),
    [
        (Conditions(private=True, goal="quality"), ("edge", "private")),
        (Conditions(has_cloud=False), ("edge", "no_cloud")),
        (Conditions(has_edge=False), ("cloud", "no_edge")),
        (Conditions(cloud_failures_in_row=3, since_cloud_failure_s=1), ("edge", "cloud_down")),
        (Conditions(cloud_failures_in_row=3, since_cloud_failure_s=31), ("cascade", "balance")),
        (Conditions(goal="quality"), ("cloud", "quality")),
        (Conditions(goal="latency", edge_s=2, cloud_s=1), ("cloud", "faster")),
        (Conditions(goal="latency", edge_s=1, cloud_s=2), ("edge", "faster")),
        (Conditions(edge_s=9, cloud_s=1), ("cloud", "edge_busy")),
        (Conditions(goal="cost", edge_s=9, cloud_s=1), ("cascade", "cost")),
        (Conditions(goal="quality", cloud_price=0.02, money_left=0.01), ("edge", "budget")),
    ],
)
def test_auto_chooses_by_what_is_measured(now: Conditions, wanted: tuple[str, str]) -> None:
    assert choose(now) == wanted


def test_private_text_never_reaches_the_cloud_even_where_the_edge_cannot() -> None:
    large = cloud_lm()
    strategy = auto(lambda c: Conditions(private=True), {"edge": edge, "cloud": cloud, "cascade": cloud})
    with pytest.raises(RequestError):
        outcome(
            strategy,
            edges=[edge_lm(capabilities=frozenset())],
            cloud=large,
            request=user(tools=(TOOL,)),
        )
    assert large.calls == []


def test_metering_counts_what_the_model_did_and_changes_nothing() -> None:
    gauge, calls = Gauge(), list[Call]()
    lm = edge_lm()

    async def read(model: Simulated | Metered) -> list[Chunk]:
        return [chunk async for chunk in model.stream(user("hé"))]

    assert asyncio.run(read(Metered(lm, "edge", gauge, calls))) == asyncio.run(read(lm))
    assert (calls[0].sent_bytes, calls[0].completion_tokens, calls[0].outcome) == (3, 7, "done")
    assert (gauge.in_flight, gauge.requests, gauge.failures) == (0, 1, 0)
    with pytest.raises(UpstreamError):
        asyncio.run(read(Metered(edge_lm(fault=Fault("break", 2)), "edge", gauge, calls)))
    assert (calls[1].outcome, calls[1].completion_tokens, calls[1].counted) == ("upstream_failed", 2, False)
    assert gauge.failures_in_row == 1
    with pytest.raises(UpstreamError):
        asyncio.run(read(Metered(edge_lm(fault=Fault("break")), "edge", gauge, calls)))
    assert (calls[2].prompt_tokens, calls[2].completion_tokens) == (0, 0)  # refused: that costs nothing
