"""Strategies compared live: every question asked by each strategy, through the gateway's own service.

In process and without HTTP, with the strategies, the metering and the receipts of `consort serve`. The
strategies take turns at each question, so that a slow minute of the machine is shared by all. Does not score
(`live_standings`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

from consort.config import Config
from consort.errors import ConfigError, ConsortError, DeadlineError
from consort.gateway.app import close
from consort.gateway.exchange import outcome_of
from consort.gateway.keys import LOCAL
from consort.gateway.ledger import Row
from consort.gateway.meters import Meters
from consort.gateway.openai_request import Asked
from consort.gateway.opening import open_service
from consort.gateway.parameters import configured
from consort.gateway.service import OWN, Service
from consort.inference.streams import answer_of, collected
from consort.problems import nearest
from consort.training.data import Sample
from consort.types import Chunk, Request

LIVE = ("edge", "cloud", "route", "cascade", "vote", "auto")  # compared where none is named


@dataclass(frozen=True, slots=True)
class Question:
    """A request and its right answer; the device whose question it is, if any, asks its own model first."""

    request: Request
    reference: str
    device: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a strategy made of a question: the answer, empty where it failed, and the receipt."""

    text: str
    receipt: Row

    @property
    def failed(self) -> bool:
        """Whether there is no whole answer."""
        return self.receipt.outcome != "done"


Replies = Mapping[str, Sequence[Reply]]  # by strategy, in the order of the questions


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Service]:
    """What `consort serve` would serve, with a ledger that is gone afterwards: nothing to learn from, nothing
    to watch. ConfigError where there are not two sides to compare."""
    with TemporaryDirectory(prefix="consort-bench-") as folder:
        serving = replace(config.serve, state=folder, shadow_share=0.0, drift_alarm_rate=0.0)
        service = open_service(replace(config, serve=serving))
        try:
            if not service.edges or service.cloud is None:
                missing = "cloud" if service.edges else "edge"
                hint = "name one under [serve.cloud] or [[serve.edges]]"
                raise ConfigError(f"there is no {missing} model to compare with", where="serve", hint=hint)
            yield service
        finally:
            await close(service)


def questions(samples: Iterable[Sample], *, max_tokens: int, device: str = "") -> list[Question]:
    """Rows with answers as questions, greedy."""
    asked = []
    for sample in samples:
        is_text = isinstance(sample.prompt, str)
        request = Request(
            () if is_text else sample.prompt,  # type: ignore[arg-type]
            max_tokens=max_tokens,
            prompt=sample.prompt if is_text else None,  # type: ignore[arg-type]
        )
        asked.append(Question(request, sample.answer or "", device))
    return asked


async def replies(
    service: Service,
    asked: Sequence[Question],
    strategies: Sequence[str],
    *,
    told: Callable[[int], None] = lambda count: None,
) -> Replies:
    """Every strategy's reply to every question, one at a time, so that latency is that of an idle system.
    Pace, cache and load are each strategy's own."""
    found: dict[str, list[Reply]] = {name: [] for name in strategies}
    own = {name: _apart(service) for name in strategies}
    for lm in service.models:  # the first answer of a model pays for what it loads late
        await _reply(_apart(service), asked[0], lm.name)
    for count, question in enumerate(asked, start=1):
        for name in strategies:
            found[name].append(
                await _reply(_at_device(own[name], question.device), question, f"{OWN}/{name}")
            )
        told(count)
    return found


async def _reply(service: Service, question: Question, model: str) -> Reply:
    parameters = configured(service.config, alike=service.alike)
    asked = Asked(model, question.request, parameters, chat=question.request.prompt is None)
    exchange = service.begin(asked, LOCAL)
    chunks: tuple[Chunk, ...] = ()
    outcome = "done"
    try:
        async with asyncio.timeout(exchange.deadline_s):
            chunks = await collected(exchange.chunks())
    except TimeoutError:
        outcome = DeadlineError.code
    except ConsortError as error:
        outcome = outcome_of(error)
    return Reply(answer_of(chunks).text, exchange.finish(outcome))


def _apart(service: Service) -> Service:
    """The same models and ledger, with nothing measured or kept yet."""
    return replace(
        service,
        meters=Meters(),
        gauges={},
        shelves={},
        recent=deque(maxlen=1),
        shadow=None,
        watch=None,
        in_flight=0,
    )


def _at_device(service: Service, device: str) -> Service:
    """The service as it runs at that device: its own model is the first of the edges."""
    if not device or service.edges[0].name == device:
        return service
    names = [lm.name for lm in service.edges]
    if device not in names:
        raise ConfigError(
            f'no served edge is called "{device}", whose questions are asked',
            where="serve.edges",
            hint=f"name it after its device, or ask rows of a file; {nearest(device, names)}",
        )
    first = names.index(device)
    others = (*service.edges[:first], *service.edges[first + 1 :])
    return replace(service, edges=(service.edges[first], *others))
