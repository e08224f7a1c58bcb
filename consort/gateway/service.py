"""What serves: the models with their gauges, the strategies, the door, the ledger and the meter.

A request's own life is an `Exchange`. Knows nothing of HTTP.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from consort.config_serve import ServeConfig, ServedModel
from consort.errors import LimitError, UnknownModelError
from consort.gateway.ability import Parties, Refusal, loaded, refusal
from consort.gateway.deferring import UNABLE
from consort.gateway.exchange import Exchange
from consort.gateway.keys import Door, Key
from consort.gateway.ledger import Ledger, Row
from consort.gateway.loading import drafter_of
from consort.gateway.meters import Meters
from consort.gateway.openai_request import Asked
from consort.gateway.rates import Rates
from consort.gateway.shadow import Shadow
from consort.gateway.strategies import STRATEGIES, Means, made, permitted
from consort.gateway.watch import Watch
from consort.inference.auto import Conditions
from consort.inference.baselines import brevity, confidence
from consort.inference.cache import OFF, Shelf
from consort.inference.evidence import Hear
from consort.inference.metering import Call, Gauge, metered
from consort.inference.mixing_weights import Learned
from consort.inference.mixture import Guide
from consort.inference.pace import Pace
from consort.inference.single import named
from consort.problems import nearest
from consort.types import LM, Consort, DraftedLM, Drafter, Scorer, Strategy

if TYPE_CHECKING:
    from consort.gateway.pool import Pool
    from consort.inference.redaction import Detector

OWN = "consort"  # the model name that means the configured strategy
RECENT = 50  # finished requests the dashboard shows
MILLION = 1e6


@dataclass(slots=True)
class Service:
    """Everything that lives as long as the endpoint."""

    config: ServeConfig
    edges: tuple[LM, ...]
    cloud: LM | None
    door: Door
    ledger: Ledger
    prices: Mapping[str, ServedModel] = field(default_factory=dict)
    before: Scorer = brevity
    after: Scorer = confidence
    needs_logprobs: bool = True  # of the edge: the scorer of answers reads them
    alike: float = OFF  # the measured likeness of serve.alike
    shadow: Shadow | None = None
    watch: Watch | None = None
    deferral: Strategy = UNABLE
    proxy: LM | None = None  # which drafts, and which the scorers hear
    hear: Hear | None = None  # what it thinks of an answer, for scorers and labels
    guides: tuple[Guide, ...] = ()
    mixing: Learned | None = None
    rates: Rates = field(default_factory=Rates)
    meters: Meters = field(default_factory=Meters)
    gauges: dict[str, Gauge] = field(default_factory=dict)
    shelves: dict[str, Shelf] = field(default_factory=dict)
    recent: deque[Row] = field(default_factory=lambda: deque(maxlen=RECENT))
    drafters: dict[str, tuple[Drafter, Pace]] = field(default_factory=dict)  # by the cloud they draft for
    pool: Pool | None = None  # of drafters' sessions, for the cloud's role
    in_flight: int = 0
    started_s: float = field(default_factory=time.time)
    detect: Detector | None = field(init=False, default=None)  # what finds private spans; None: the built-in

    def __post_init__(self) -> None:
        """MissingExtraError where a detector that is asked for is not installed."""
        if self.config.detectors != ServeConfig().detectors:
            from consort.inference.redaction import detector

            self.detect = detector(self.config.detectors, model=self.config.gliner_model)

    @property
    def models(self) -> tuple[LM, ...]:
        """Every model, the devices' first."""
        return (*self.edges, *((self.cloud,) if self.cloud else ()))

    def names(self) -> list[str]:
        """What `model` may say: the models, the configured strategy, each strategy that can answer."""
        able = [f"{OWN}/{name}" for name in STRATEGIES if self.refusal(name) is None]
        return [*(lm.name for lm in self.models), OWN, *able]

    def refusal(self, strategy: str) -> Refusal | None:
        """Why a strategy cannot answer here; None where it can."""
        if strategy == "defer" and isinstance(self.deferral, Refusal):
            return self.deferral
        edge = loaded(self.edges[0]) if self.edges else None
        cloud = loaded(self.cloud) if self.cloud else None
        who = Parties(edge, cloud, tuned_proxy=bool(self.guides), needs_logprobs=self.needs_logprobs)
        return refusal(strategy, who)

    def begin(self, asked: Asked, key: Key) -> Exchange:
        """Admit a request. UnknownModelError for a name not served, LimitError when there is no room."""
        if self.in_flight >= self.config.max_in_flight:
            error = LimitError("too many requests at once", hint="try again in a moment")
            error.http_status = 503
            raise error
        calls: list[Call] = []
        name, strategy = self._strategy(asked, key, calls)
        return Exchange(self, asked, key, name, strategy, calls=calls)

    def gauge(self, lm: LM) -> Gauge:
        """A model's gauge."""
        return self.gauges.setdefault(lm.name, Gauge())

    def price(self, model: str, prompt_tokens: int, completion_tokens: int) -> float:
        """Money for so many tokens of a model."""
        price = self.prices.get(model)
        if price is None:
            return 0.0
        return (prompt_tokens * price.price_in + completion_tokens * price.price_out) / MILLION

    def record(self, row: Row) -> None:
        """A finished request: to the ledger, the meters, the dashboard, the alarm and its key's budget."""
        self.door.spent[row.key] = self.door.spent.get(row.key, 0.0) + row.cost
        self.ledger.record(row)
        self.recent.append(row)
        self.meters.observe(row)
        if self.watch is not None:
            self.watch.observe(row, self.meters)

    def _strategy(self, asked: Asked, key: Key, calls: list[Call]) -> tuple[str, Strategy]:
        model = asked.model
        name = self.config.strategy if model == OWN else model.removeprefix(f"{OWN}/")
        if (model == OWN or model.startswith(f"{OWN}/")) and name in STRATEGIES:
            if refused := self.refusal(name):
                raise refused.error()
            return name, made(name, asked.parameters, self._means(asked, key, calls))
        if self.cloud is not None and self.cloud.name == model:
            return "model", permitted(named(model), asked.parameters, hides=True, detect=self.detect)
        if any(lm.name == model for lm in self.edges):
            return "model", named(model)
        raise UnknownModelError(f"no model is called {model!r}", hint=nearest(model, self.names()))

    def _means(self, asked: Asked, key: Key, calls: list[Call]) -> Means:
        def measure(consort: Consort) -> Conditions:
            edge = self.gauge(self.edges[0]) if self.edges else Gauge()
            cloud = self.gauge(consort.cloud) if consort.cloud else Gauge()
            mean = cloud.tokens / cloud.answers if cloud.answers else 0.0
            return Conditions(
                private=asked.parameters.private,
                goal=asked.parameters.goal,  # type: ignore[arg-type]
                has_edge=bool(self.edges),
                has_cloud=consort.cloud is not None,
                edge_s=_loaded(edge),
                cloud_s=_loaded(cloud),
                cloud_price=self.price(consort.cloud.name, 0, int(mean)) if consort.cloud else 0.0,
                money_left=self.door.money_left(key),
                cloud_failures_in_row=cloud.failures_in_row,
                since_cloud_failure_s=time.monotonic() - cloud.last_failure_s,
            )

        shelf = self.shelves.get(key.name)
        if shelf is None:
            shelf = self.shelves[key.name] = Shelf()
        return Means(
            self.before,
            self.after,
            shelf,
            measure,
            self._drafter,
            self.deferral,
            tuple(_counted(guide, calls) for guide in self.guides),
            self.mixing,
            self.detect,
        )

    def _drafter(self, cloud: DraftedLM) -> tuple[Drafter, Pace]:
        """The proxy, or what stood in the request before; measured with each cloud apart."""
        if cloud.name not in self.drafters:
            self.drafters[cloud.name] = drafter_of(self.proxy, cloud), Pace()
        return self.drafters[cloud.name]


def strategy_names() -> list[str]:
    """What `model` may say wherever consort serves: the configured strategy, each strategy."""
    return [OWN, *(f"{OWN}/{name}" for name in STRATEGIES)]


def _counted(guide: Guide, calls: list[Call]) -> Guide:
    """The guide, what it reads and is asked for being written down."""

    def counted(lm: LM) -> LM:
        return metered(lm, "edge", Gauge(), calls)

    base = None if guide.base is None else counted(guide.base)
    return replace(guide, tuned=counted(guide.tuned), base=base)


def _loaded(gauge: Gauge) -> float | None:
    """How long an answer takes now: the last ones' time, once for each request already waiting."""
    return None if gauge.answer_s is None else gauge.answer_s * (1 + gauge.in_flight)
