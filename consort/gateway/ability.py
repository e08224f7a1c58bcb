"""Which strategies can answer with the models that are served: one rule for what is listed, what is refused,
what `consort` means where nothing is named, and what `consort check` finds.

Known from the configuration alone, before a model is loaded. Does not judge what a single request asks for: a
private one stays at the edge, whatever is served.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from consort.config_serve import ServeConfig, ServedModel
from consort.errors import ParameterError
from consort.gateway.judging import needs_logprobs
from consort.types import LM, Chunk, Consort, Request

AT_EDGE = frozenset({"edge", "route", "cascade", "cache", "vote", "defer"})
IN_CLOUD = frozenset({"cloud", "takeover", "speculate", "mix", "defer"})
JUDGE = frozenset({"cascade", "cache", "auto"})  # what the edge has written
READ = frozenset({"mix", "defer"})  # models token by token
USUAL = ("cascade", "route", "cloud")  # where no strategy is named: the first that can answer


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a strategy cannot answer here. In a strategy's place, tells it to who asks."""

    what: str
    hint: str = "ask for another strategy"

    def error(self) -> ParameterError:
        """For one client, who names the strategy as its model."""
        return ParameterError(self.what, where="model", hint=self.hint)

    def __call__(self, request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        """No answer: ParameterError."""
        raise self.error()


@dataclass(frozen=True, slots=True)
class Served:
    """A model as far as strategies differ by it: gives log-probabilities, takes drafts, can be read."""

    name: str
    logprobs: bool
    drafts: bool
    read: bool


@dataclass(frozen=True, slots=True)
class Parties:
    """Who is served: the first edge, the cloud, perhaps a proxy by which a mixture steers; whether what
    judges the edge's answers reads their log-probabilities."""

    edge: Served | None
    cloud: Served | None
    tuned_proxy: bool
    needs_logprobs: bool


def parties_of(config: ServeConfig, edges: Sequence[ServedModel], cloud: ServedModel) -> Parties:
    """Of what will be loaded. ConfigError where `serve.scorer` cannot be read."""
    return Parties(
        _to_load(edges[0]) if edges else None,
        _to_load(cloud) if cloud.is_given else None,
        tuned_proxy=bool(config.proxy.adapter) and config.role == "gateway",
        needs_logprobs=needs_logprobs(config),
    )


def loaded(lm: LM) -> Served:
    """A model that is here."""
    return Served(lm.name, "logprobs" in lm.capabilities, "drafts" in lm.capabilities, hasattr(lm, "open"))


def refusal(strategy: str, who: Parties) -> Refusal | None:
    """Why a strategy cannot answer with these; None where it can."""
    if strategy in AT_EDGE and who.edge is None:
        return Refusal("no edge model is served", "add one under [[serve.edges]]")
    if strategy in IN_CLOUD and who.cloud is None:
        return Refusal("no cloud model is served", "add one under [serve.cloud]")
    if strategy in JUDGE and who.needs_logprobs and who.edge is not None and not who.edge.logprobs:
        return Refusal(
            f"{strategy} judges answers by their log-probabilities, which {who.edge.name} does not give",
            "serve an edge model that gives them; or set serve.scorer to one that does without, learned by "
            "`consort calibrate`; or choose route, vote, edge or cloud",
        )
    if strategy == "speculate" and who.cloud is not None and not who.cloud.drafts:
        return Refusal(
            f"speculate drafts for a cloud model that takes drafts, and {who.cloud.name} takes none",
            "set drafted = true under [serve.cloud], before a `consort serve --role cloud`",
        )
    if strategy == "mix" and not who.tuned_proxy:
        hint = "name the proxy and its adapter under [serve.proxy]"
        return Refusal("no tuned proxy is served, by which mix steers", hint)
    readers = (who.cloud, who.edge if strategy == "defer" else None)
    for model in readers if strategy in READ else ():
        if model is not None and not model.read:
            return Refusal(
                f"{strategy} needs models whose next-token distributions can be read, unlike {model.name}",
                "serve the model itself (model = ...), or ask `consort serve --role cloud` (drafted = true)",
            )
    return None


def usual(config: ServeConfig, who: Parties) -> str:
    """What `consort` means: the strategy that is named, else one that can answer."""
    if config.role == "cloud":
        return "cloud"
    return config.strategy or next(name for name in USUAL if refusal(name, who) is None)


def _to_load(model: ServedModel) -> Served:
    is_open = model.drafted or not model.base_url
    return Served(model.name, model.logprobs or not model.base_url, drafts=is_open, read=is_open)
