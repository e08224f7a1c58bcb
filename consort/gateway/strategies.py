"""The table of strategies: what `consort/<name>` means, made for one request from its parameters.

A new way of answering is one line here. Everything composes: `cached`, for one, wraps the cascade, which may
defer to a cloud that `takeover` backs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from consort.errors import NoCloudError, ParameterError, RequestError
from consort.gateway.parameters import Parameters
from consort.inference.auto import Conditions, auto
from consort.inference.cache import Shelf, cache
from consort.inference.cascade import cascade
from consort.inference.mixing_weights import Learned, fading, fixed
from consort.inference.mixture import Guide, mix
from consort.inference.route import route
from consort.inference.single import cloud, edge
from consort.inference.speculative import Chooser, speculate
from consort.inference.streams import Closing
from consort.inference.takeover import takeover
from consort.inference.vote import vote
from consort.types import Chunk, Consort, Request, Scorer, Strategy

if TYPE_CHECKING:
    from consort.inference.redaction import Detector


@dataclass(frozen=True, slots=True)
class Means:
    """What strategies are made of beside their parameters: scorers, the client's shelf, what is measured, who
    drafts, how single tokens are deferred, who steers a mixture (the proxy, and the first edge where it can
    be read), the weight learned for it, what finds private spans."""

    before: Scorer
    after: Scorer
    shelf: Shelf
    measure: Callable[[Consort], Conditions]
    choose_drafter: Chooser
    deferral: Strategy
    guides: tuple[Guide, ...] = ()
    mixing: Learned | None = None
    detect: Detector | None = None  # what finds private spans; None: the built-in one


def made(name: str, p: Parameters, means: Means) -> Strategy:
    """The strategy of that name for one request."""
    return permitted(STRATEGIES[name](p, means), p, hides=name != "edge", detect=means.detect)


def permitted(strategy: Strategy, p: Parameters, *, hides: bool, detect: Detector | None = None) -> Strategy:
    """`strategy` within what the client allows to leave the edge; `hides`: it may ask the cloud."""
    if p.private:
        return kept(strategy)
    return guarded(strategy, detect) if p.redact and hides else strategy


def kept(strategy: Strategy) -> Strategy:
    """`strategy` for a private request: where only the cloud could answer, the client is told why not."""

    async def answer(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        try:
            async with Closing(strategy(request, consort)) as stream:
                async for chunk in stream:
                    yield chunk
        except NoCloudError:
            hint = "ask consort/edge, or drop `private`"
            raise ParameterError(
                "a private request stays at the edge", where="consort.private", hint=hint
            ) from None

    return answer


def guarded(strategy: Strategy, detect: Detector | None = None) -> Strategy:
    """`strategy` without private spans, wherever there is a cloud that it may ask."""

    def answer(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        if consort.cloud is None:
            return strategy(request, consort)
        # its word lists take a sixth of a second to read: only who redacts waits for them
        from consort.inference.redaction import builtin, redact

        return redact(strategy, detect or builtin)(request, consort)

    return answer


def _backed(p: Parameters) -> Strategy:
    return takeover(cloud, silence_s=p.stall_s)


def _cascade(p: Parameters, means: Means) -> Strategy:
    # a cloud that never begins is not taken over by the edge, whose answer is at hand
    large = takeover(cloud, silence_s=p.stall_s, only_begun=True)
    return cascade(means.after, p.threshold, large=large, optimistic=p.optimistic)


def _auto(p: Parameters, means: Means) -> Strategy:
    options: dict[str, Strategy] = {"edge": edge, "cloud": _backed(p), "cascade": _cascade(p, means)}
    return auto(means.measure, options)  # type: ignore[arg-type]


def _mix(p: Parameters, means: Means) -> Strategy:
    if not means.guides:
        hint = "name the proxy and its adapter under [serve.proxy]"
        raise RequestError("no tuned proxy is served, by which mix steers", where="consort/mix", hint=hint)
    proxy, *edges = means.guides
    guides = [replace(proxy, share=1 - p.mix_edge_share if edges else 1.0)]
    guides += [replace(edge, share=p.mix_edge_share) for edge in edges]
    if p.mix_schedule == "learned":
        if means.mixing is None:
            what, hint = "no learned weights are served", "name their file: serve.mix_weights"
            raise ParameterError(what, where="consort.mix_schedule", hint=hint)
        return takeover(mix(guides, kind=means.mixing.kind, weight=means.mixing), silence_s=p.stall_s)
    fades = p.mix_schedule == "fading"
    weight = fading(p.mix_weight, p.mix_half_life) if fades else fixed(p.mix_weight)
    return takeover(mix(guides, kind=p.mix_kind, weight=weight), silence_s=p.stall_s)  # type: ignore[arg-type]


STRATEGIES: Mapping[str, Callable[[Parameters, Means], Strategy]] = {
    "edge": lambda p, means: edge,
    "cloud": lambda p, means: cloud,
    "route": lambda p, means: route(means.before, p.threshold, large=_backed(p)),
    "cascade": _cascade,
    "vote": lambda p, means: vote(share=p.share, large=_backed(p)),
    "cache": lambda p, means: cache(_cascade(p, means), means.shelf, alike=p.alike),
    "mix": _mix,
    "takeover": lambda p, means: _backed(p),
    "speculate": lambda p, means: takeover(speculate(means.choose_drafter), silence_s=p.stall_s),
    "auto": _auto,
    "defer": lambda p, means: means.deferral,
}
