"""Laws of token deferral: nobody's token asked is the other alone, what is read is what was written, and no
failure or hang-up of anybody keeps an answer or a session."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consort.errors import ModelError, RequestError
from consort.inference.deferral import defer
from consort.inference.duet import Duet
from consort.inference.reading import Reader
from consort.inference.redaction import redact
from consort.inference.share import Share
from consort.inference.streams import Closing
from consort.inference.token_need import Look, doubt
from consort.models.decoding.lm import LocalLM
from consort.types import Chunk, Consort, Message, Note, Request, Strategy, Tool
from tests.inference.consorts import says
from tests.inference.white_boxes import Watched, models

ASKED = Request((Message("user", "the clinic opens"),), max_tokens=24)
EVEN = [index / 100 for index in range(101)]
PAIRS = [("bytes", "pieces"), ("pieces", "other bytes"), ("unigram", "bytes"), ("bytes", "bytes")]


@pytest.fixture(scope="module")
def lms() -> Iterator[dict[str, LocalLM]]:
    opened = models()
    yield opened
    for lm in opened.values():
        lm.close()


def ran(
    strategy: Strategy, small: object, large: object, request: Request = ASKED
) -> tuple[list[Chunk], Note]:
    notes: list[Note] = []

    async def run() -> list[Chunk]:
        consort = Consort((small,), large, notes.append)  # type: ignore[arg-type]
        return [chunk async for chunk in strategy(request, consort)]

    return asyncio.run(run()), notes[-1] if notes else Note("", "")


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def every(number: int) -> object:
    """A scorer that needs the large model at every so many tokens."""

    def scorer(look: Look) -> float:
        return float(look.position % number == number - 1)

    return scorer


@pytest.mark.parametrize(("small", "large"), PAIRS)
@pytest.mark.parametrize("goal", [0.0, 1.0])
def test_a_share_of_nothing_or_all_is_one_model_alone(lms, small, large, goal):
    for prompt in ("error 17", "grüße aus Köln, "):
        request = replace(ASKED, messages=(), prompt=prompt)
        alone = ran(
            lambda r, c: (c.cloud if goal else c.edges[0]).stream(r), lms[small], lms[large], request
        )[0]
        found, note = ran(defer(doubt, Share(goal, EVEN)), lms[small], lms[large], request)
        assert text(found) == text(alone)
        assert found[-1].finish_reason == alone[-1].finish_reason
        assert note.values["share"] == goal
        assert {chunk.model for chunk in found} == {(large if goal else small)}


@pytest.mark.parametrize(("small", "large"), PAIRS)
def test_both_sessions_hold_the_answer_at_every_common_place(lms, small, large):
    """At each look of the large model, and at each of the small one: the same bytes, whoever wrote them."""
    edge, cloud = Watched(lms[small]), Watched(lms[large])
    reader, other = Reader(edge, ASKED), Reader(cloud, ASKED)
    duet = Duet(ASKED, native=small == large)
    compared, by_large = 0, False
    while duet.tokens < 40:
        _, choice = duet.look(reader)
        written = duet.answer.decode(errors="replace")
        if duet.whole:
            assert edge.tokenizer.decode(edge.held) == written
        if duet.whole:  # who wrote half a character writes the other half
            by_large = duet.tokens % 3 == 2
        if by_large:
            choice = duet.asked(other)
            if duet.whole:
                assert cloud.tokenizer.decode(cloud.held) == written
                assert tuple(cloud.held) == other.ids
                compared += 1
        if duet.write(other if by_large else reader, choice, large=by_large) is None:
            break
    reader.close()
    other.close()
    assert compared or duet.tokens < 3


@given(st.lists(st.text(alphabet="the clinic opens at nine, ü你!\n", min_size=1, max_size=9), max_size=6))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["bytes", "pieces", "unigram"])
def test_what_is_read_in_pieces_is_held_in_whole_words(lms, name, pieces):
    """However the others' text arrives, the session holds it, and only its last word may be cut anew."""
    watched = Watched(lms[name])
    reader, answer = Reader(watched, ASKED), b""
    for piece in pieces:
        answer += piece.encode()
        reader.read(answer)
        reader.look()
        assert tuple(watched.held) == reader.ids
        assert watched.tokenizer.decode(watched.held) == answer.decode()
    assert watched.extends <= len(pieces)
    reader.close()


@pytest.mark.parametrize(("small", "large"), PAIRS)
def test_an_answer_by_two_says_who_wrote_and_repeats_with_its_seed(lms, small, large):
    request = replace(ASKED, temperature=1.0, seed=3, top_logprobs=1, top_p=0.95)
    strategy = lambda: defer(every(3), Share(0.4, [0.0, 1.0], step=0))  # type: ignore[arg-type] # noqa: E731
    found, note = ran(strategy(), lms[small], lms[large], request)
    assert [text(found), note] == [text(ran(strategy(), lms[small], lms[large], request)[0]), note]
    assert note.values["tokens"] >= note.values["cloud_tokens"] > 0
    assert note.values["round_trips"] <= note.values["cloud_tokens"] + 1
    logprobs = [one for chunk in found for one in chunk.logprobs]
    assert all(one.logprob <= 0 and one.top for one in logprobs)
    assert [chunk.finish_reason for chunk in found if chunk.finish_reason] == [found[-1].finish_reason]


def test_a_stop_sequence_ends_what_two_write(lms):
    strategy = lambda: defer(every(2), Share(0.5, [0.0, 1.0], step=0))  # type: ignore[arg-type] # noqa: E731
    whole = text(ran(strategy(), lms["bytes"], lms["pieces"])[0])
    stop = whole[len(whole) // 2 :][:3]
    found, _ = ran(strategy(), lms["bytes"], lms["pieces"], replace(ASKED, stop=(stop,)))
    assert text(found) == whole[: whole.index(stop)]
    assert found[-1].finish_reason == "stop"


@pytest.mark.parametrize("silent_s", [0.0, 0.3])
@pytest.mark.parametrize("after", [0, 2])
def test_the_edge_goes_on_alone_when_the_cloud_fails_or_falls_silent(lms, silent_s, after):
    cloud = Watched(lms["pieces"], fails_after=after, silent_s=silent_s)
    strategy = defer(every(2), Share(0.5, [0.0, 1.0], step=0), silence_s=0.1)  # type: ignore[arg-type]
    found, note = ran(strategy, lms["bytes"], cloud)
    assert note.event == "cloud_failed"
    assert note.values["code"] == ("silent" if silent_s else "upstream_failed")
    assert note.values["cloud_tokens"] <= after + 1
    assert found[-1].finish_reason
    assert cloud.open_sessions == 0


def test_who_hangs_up_frees_both_sessions(lms):
    edge, cloud = Watched(lms["bytes"]), Watched(lms["pieces"])

    async def leave_after(count: int) -> None:
        stream = defer(doubt, Share(0.5, EVEN))(ASKED, Consort((edge,), cloud))  # type: ignore[arg-type]
        async with Closing(stream):
            for _ in range(count):
                await anext(stream)

    for count in (1, 2, 5):
        asyncio.run(leave_after(count))
        assert (edge.open_sessions, cloud.open_sessions) == (0, 0)


def test_redaction_wraps_deferral(lms):
    request = replace(ASKED, messages=(Message("user", "mail anna@example.org at once"),))
    found, note = ran(redact(defer(doubt, Share(0.5, EVEN))), lms["bytes"], lms["pieces"], request)
    assert note.strategy == "defer"
    assert found[-1].finish_reason


def test_black_boxes_and_tools_are_refused_and_no_cloud_is_the_edge_alone(lms):
    strategy = defer(doubt, Share(0.5, EVEN))
    with pytest.raises(ModelError, match="distributions can be read"):
        ran(strategy, lms["bytes"], says("far", "hello"))
    with pytest.raises(RequestError, match="no tools"):
        ran(strategy, lms["bytes"], lms["pieces"], replace(ASKED, tools=(Tool("f", "", "{}"),)))
    assert text(ran(strategy, lms["bytes"], None)[0]) == text(
        ran(lambda r, c: c.edges[0].stream(r), lms["bytes"], None)[0]
    )


@given(
    st.lists(st.floats(0, 1), min_size=50, max_size=400),
    st.floats(0, 1),
    st.lists(st.floats(-9, 9), min_size=1, max_size=20),
)
@settings(max_examples=50, deadline=None)
def test_the_share_is_kept_whatever_the_needs_and_however_wrong_the_calibration(needs, goal, held_out):
    share = Share(goal, held_out, step=0.05)
    for need in needs:
        share.count(large=share.asks(need))
    error = abs(share.large_tokens / share.tokens - goal)
    assert error <= (1 + 2 * share.step) / (share.step * share.tokens)
