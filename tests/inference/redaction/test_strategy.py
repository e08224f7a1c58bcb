"""`redact` around a strategy: what leaves, what comes back, and what is noted."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from consort.errors import ConfigError, MissingExtraError
from consort.inference.redaction import KINDS, detector, redact
from consort.types import Chunk, Consort, Message, Note, Request, Strategy, Tool, ToolCall

NOBODY = Consort(edges=(), cloud=None)
PRIVATE = "My name is Anna Karlsson, card 4111 1111 1111 1111, mail anna@example.org."


def asking(text: str, **more: object) -> Request:
    return Request(messages=(Message("user", text),), **more)  # type: ignore[arg-type]


def echo_into(seen: list[Request]) -> Strategy:
    """Answers letter by letter with the last turn it was sent, which it records."""

    async def echo(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        seen.append(request)
        for letter in request.messages[-1].content if request.prompt is None else request.prompt:
            await asyncio.sleep(0)
            yield Chunk(letter, "cloud")
        yield Chunk("", "cloud", "stop")

    return echo


def answer(strategy: Strategy, request: Request, consort: Consort = NOBODY) -> str:
    async def joined() -> str:
        return "".join([chunk.text async for chunk in strategy(request, consort)])

    return asyncio.run(joined())


def test_nothing_private_leaves_and_all_of_it_comes_back() -> None:
    seen: list[Request] = []
    assert answer(redact(echo_into(seen)), asking(PRIVATE)) == PRIVATE
    assert seen[0].messages[0].content == "My name is [PERSON_1], card [CARD_1], mail [EMAIL_1]."


def test_a_prompt_to_continue_is_read_as_messages_are() -> None:
    seen: list[Request] = []
    assert answer(redact(echo_into(seen)), Request(messages=(), prompt=PRIVATE)) == PRIVATE
    assert "Karlsson" not in str(seen)


def test_calls_tools_and_stop_sequences_hide_what_the_messages_showed() -> None:
    seen: list[Request] = []
    call = ToolCall(0, "c", "find", '{"name": "Anna Karlsson", "card": 4111111111111111, "n": [1, 2.50]}')
    tool = Tool("find", "Finds anna@example.org", '{"enum": ["Anna Karlsson", "other"]}')
    messages = (
        Message("user", PRIVATE),
        Message("assistant", "", tool_calls=(call,)),
        Message("user", "go on"),
    )
    request = Request(messages=messages, stop=("Anna Karlsson", "END"), tools=(tool,))
    answer(redact(echo_into(seen)), request)
    (left,) = seen
    assert (
        left.messages[1].tool_calls[0].arguments
        == '{"name": "[PERSON_1]", "card": "[CARD_1B]", "n": [1, 2.50]}'
    )
    assert left.stop == ("[PERSON_1]", "END")
    assert left.tools == (Tool("find", "Finds [EMAIL_1]", '{"enum": ["[PERSON_1]", "other"]}'),)


def test_what_is_hidden_is_noted_by_kind_and_never_by_text() -> None:
    notes: list[Note] = []
    answer(redact(echo_into([])), asking(PRIVATE), Consort((), None, notes.append))
    answer(redact(echo_into([])), asking("What are my options?"), Consort((), None, notes.append))
    assert notes == [Note("redact", "hidden", {"person": 1, "card": 1, "email": 1})]


def test_requests_at_the_same_time_share_nothing() -> None:
    """Both have an [EMAIL_1], each its own."""
    strategy = redact(echo_into([]))

    async def both() -> list[str]:
        async def one(text: str) -> str:
            return "".join([chunk.text async for chunk in strategy(asking(text), NOBODY)])

        return await asyncio.gather(one("bo@example.org"), one("carla@example.org"))

    assert asyncio.run(both()) == ["bo@example.org", "carla@example.org"]


def test_a_placeholder_of_another_request_stays_what_it_is() -> None:
    async def leaking(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        yield Chunk("[EMAIL_1] [EMAIL_2]", "cloud", "stop")

    assert answer(redact(leaking), asking("bo@example.org")) == "bo@example.org [EMAIL_2]"


def test_leaving_early_closes_the_stream_behind() -> None:
    closed = []

    async def endless(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        try:
            while True:
                yield Chunk("on ", "cloud")
        finally:
            closed.append(True)

    async def leave() -> None:
        stream = redact(endless)(asking(PRIVATE), NOBODY)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    assert closed == [True]


def test_redacting_twice_gives_back_twice() -> None:
    seen: list[Request] = []
    assert answer(redact(redact(echo_into(seen))), asking(PRIVATE)) == PRIVATE


def test_only_the_kinds_asked_for_are_hidden() -> None:
    seen: list[Request] = []
    answer(redact(echo_into(seen), detector(kinds={"card"})), asking(PRIVATE))
    assert seen[0].messages[0].content == PRIVATE.replace("4111 1111 1111 1111", "[CARD_1]")


def test_a_detector_that_is_not_there_says_what_to_do() -> None:
    for name, model in (("presidio", ""), ("gliner", "somewhere")):
        module = {"presidio": "presidio_analyzer", "gliner": "gliner"}[name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(__import__("sys").modules, module, None)
            with pytest.raises(MissingExtraError, match="not installed") as missing:
                detector([name], model=model)
        assert "pip install" in missing.value.hint


@pytest.mark.parametrize(("names", "kinds"), [(["presido"], ()), (["gliner"], ()), (["builtin"], ["cards"])])
def test_a_detector_or_kind_that_cannot_be_meant_is_refused(names: list[str], kinds: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        detector(names, kinds=kinds)
    assert refused.value.hint


def test_arguments_that_are_no_json_are_read_as_text() -> None:
    seen: list[Request] = []
    call = ToolCall(0, "c", "f", '{"to": "anna@example.org')
    request = Request(messages=(Message("assistant", "", tool_calls=(call,)), Message("user", "x")))
    answer(redact(echo_into(seen)), request)
    assert seen[0].messages[0].tool_calls[0].arguments == '{"to": "[EMAIL_1]'


def test_every_kind_makes_a_placeholder_of_its_own() -> None:
    assert json.dumps([kind.upper() for kind in KINDS]).isascii()
    assert all(kind.isalpha() and kind.islower() for kind in KINDS)
