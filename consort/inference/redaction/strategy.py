"""`redact`: private spans out of a request before any model sees it, and back into the answer as it streams.

Read are the messages (also what a tool's call was given), the prompt and the stop sequences. Tools' names and
schemas are the application's own and stay; only what the messages showed to be private is hidden there too.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import AsyncIterator, Callable

from consort.inference.redaction.detectors import builtin
from consort.inference.redaction.restoring import ChunkRestorer
from consort.inference.redaction.spans import Detector, disjoint
from consort.inference.redaction.structured import structured
from consort.inference.redaction.vault import Vault, hidden
from consort.inference.streams import Closing
from consort.types import Chunk, Consort, Note, Request, Strategy

_JSON_LEAF = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?')


def redact(strategy: Strategy, detect: Detector = builtin) -> Strategy:
    """`strategy` over requests without what `detect` finds private.

    An entity has one placeholder in the whole conversation, as [PERSON_1]. Notes how many spans were hidden,
    by kind, and never what they said.
    """

    async def answer(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        # a long conversation takes milliseconds, a foreign detector more: other answers stream on meanwhile
        asked, vault = await asyncio.to_thread(without_private_spans, request, detect)
        if vault.counts:
            consort.note(Note("redact", "hidden", dict(vault.counts)))
        restorer = ChunkRestorer(vault)
        async with Closing(strategy(asked, consort)) as stream:
            async for chunk in stream:
                for restored in restorer.feed(chunk):
                    yield restored
        for restored in restorer.rest():
            yield restored

    return answer


def without_private_spans(request: Request, detect: Detector) -> tuple[Request, Vault]:
    """The request as it may leave, and the vault that gives back what it lacks."""
    texts: list[str] = []

    def collect(text: str) -> str:
        texts.append(text)
        return text

    _rewritten(request, collect)
    tools = [text for tool in request.tools for text in (tool.description, tool.parameters)]
    again = structured if detect is builtin else detect  # at a third of the price
    become, vault = hidden(texts, detect, again=again, beside=[*request.stop, *tools])

    def known(text: str) -> str:
        return vault.hide(text, disjoint(text, vault.seen_before(text)))

    asked = _rewritten(request, become.__getitem__)
    return dataclasses.replace(
        asked,
        stop=tuple(map(known, request.stop)),
        tools=tuple(
            dataclasses.replace(
                tool, description=known(tool.description), parameters=_json_rewritten(tool.parameters, known)
            )
            for tool in request.tools
        ),
    ), vault


def _rewritten(request: Request, change: Callable[[str], str]) -> Request:
    """The request with every text of its conversation changed."""
    messages = tuple(
        dataclasses.replace(
            message,
            content=change(message.content),
            tool_calls=tuple(
                dataclasses.replace(call, arguments=_json_rewritten(call.arguments, change))
                for call in message.tool_calls
            ),
        )
        for message in request.messages
    )
    return dataclasses.replace(
        request, messages=messages, prompt=None if request.prompt is None else change(request.prompt)
    )


def _json_rewritten(text: str, change: Callable[[str], str]) -> str:
    """JSON with its strings and numbers changed, nothing else; a number that changes becomes text."""
    try:
        json.loads(text)
    except ValueError:
        return change(text)

    def leaf(match: re.Match[str]) -> str:
        value = json.loads(match[0]) if match[0][0] == '"' else match[0]
        changed = change(value)
        return match[0] if changed == value else json.dumps(changed, ensure_ascii=False)

    return _JSON_LEAF.sub(leaf, text)
