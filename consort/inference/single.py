"""One model answers: the device's preferred one, or the cloud's. Does not decide, retry or fall back."""

from __future__ import annotations

from collections.abc import AsyncIterator

from consort.errors import ModelError, NoCloudError, RequestError, UpstreamError
from consort.types import LM, Capability, Chunk, Consort, Request, Strategy

# One model's failure that another may make good: it broke, or cannot answer this (too long for its context).
FAILURES = (UpstreamError, ModelError, RequestError)


def edge(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
    """The first device's model answers."""
    return answered_by(first_edge(consort), request)


def cloud(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
    """The cloud's model answers."""
    return answered_by(cloud_of(consort), request)


def named(name: str) -> Strategy:
    """The model of that name answers, wherever it stands: at no edge, so in the cloud."""

    def strategy(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        lm = next((lm for lm in consort.edges if lm.name == name), None) or cloud_of(consort)
        assert lm.name == name, "only models that are served are asked by name"
        return answered_by(lm, request)

    return strategy


def answered_by(lm: LM, request: Request) -> AsyncIterator[Chunk]:
    """The model's stream; RequestError where the request asks for what it cannot do."""
    refuse_lacking(lm, request)
    return lm.stream(request)


def refuse_lacking(lm: LM, request: Request) -> None:
    """RequestError where the request asks for what the model cannot do."""
    if missing := lacks(lm, request):
        words = {"logprobs": "log-probabilities", "tools": "tools", "text_completion": "text completions"}
        raise RequestError(
            f"this model has no {' and no '.join(words[each] for each in sorted(missing))}",
            where=lm.name,
            hint="ask another model, or leave them out",
        )


def lacks(lm: LM, request: Request) -> frozenset[Capability]:
    """What the request needs and the model does not have."""
    needed: set[Capability] = set()
    if request.top_logprobs is not None:
        needed.add("logprobs")
    if request.tools:
        needed.add("tools")
    if request.prompt is not None:
        needed.add("text_completion")
    return frozenset(needed - lm.capabilities)


def first_edge(consort: Consort) -> LM:
    """The device's preferred model."""
    if not consort.edges:
        raise ModelError("no edge model is served", hint="add one under [[serve.edges]]")
    return consort.edges[0]


def cloud_of(consort: Consort) -> LM:
    """The cloud's model. NoCloudError where none is served, or this request may not reach it."""
    if consort.cloud is None:
        raise NoCloudError("no cloud model is served", hint="add one under [serve.cloud]")
    return consort.cloud
