"""Who asks when: arrivals of real services or made up, played without waiting for answers (open loop).

Azure's files (Patel et al., "Splitwise", ISCA 2024) give a time and two lengths a call, no text. Runs on any
loop: on `simulate.VirtualLoop` an hour of traffic passes in a moment. Does not know what answers the calls.
"""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from random import Random

from consort.bench.simulate.clock import sleep_until
from consort.errors import DataError

_COLUMNS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]


@dataclass(frozen=True, slots=True)
class Call:
    """One request: seconds after the first one, tokens of the prompt and of the answer."""

    at_s: float
    context_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Served:
    """A call that was answered, by the running loop's clock, counted from the workload's beginning."""

    call: Call
    finished_s: float

    @property
    def latency_s(self) -> float:
        """From its arrival, whether or not anyone had time for it then."""
        return self.finished_s - self.call.at_s


def read_arrivals(path: Path) -> tuple[Call, ...]:
    """A file of Azure's: TIMESTAMP, ContextTokens, GeneratedTokens, in the order of time."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        if next(rows, None) != _COLUMNS:
            raise DataError("not a file of arrivals", where=f"{path}:1", hint=",".join(_COLUMNS))
        calls: list[Call] = []
        first: datetime | None = None
        for number, row in enumerate(rows, 2):
            try:
                moment, context, generated = row
                at = datetime.fromisoformat(moment)
                first = first or at
                calls.append(Call((at - first).total_seconds(), int(context), int(generated)))
            except ValueError as error:
                raise DataError(f"not an arrival: {error}", where=f"{path}:{number}") from None
    if any(later.at_s < earlier.at_s for earlier, later in pairwise(calls)):
        raise DataError("arrivals are not in the order of time", where=str(path), hint="sort the file")
    return tuple(calls)


def at_rate(calls: Sequence[Call], per_s: float) -> tuple[Call, ...]:
    """The same calls in the same bursts, at another mean rate: all distances stretched alike."""
    if len(calls) < 2 or calls[-1].at_s == calls[0].at_s:
        return tuple(calls)
    first_s = calls[0].at_s
    factor = (len(calls) - 1) / (per_s * (calls[-1].at_s - first_s))
    return tuple(replace(call, at_s=(call.at_s - first_s) * factor) for call in calls)


def poisson(lengths: Sequence[Call], per_s: float, num_calls: int, *, seed: int) -> tuple[Call, ...]:
    """Calls without bursts: independent arrivals, lengths drawn in pairs from `lengths`."""
    rng, at_s, calls = Random(seed), 0.0, []
    for _ in range(num_calls):
        calls.append(replace(rng.choice(lengths), at_s=at_s))
        at_s += rng.expovariate(per_s)
    return tuple(calls)


async def open_loop(calls: Sequence[Call], serve: Callable[[Call], Awaitable[object]]) -> tuple[Served, ...]:
    """Begin to serve each call when it arrives, answered or not what came before; returns them in that order.

    The clock starts now, whatever the first call's second. What `serve` raises ends the workload.
    """
    loop = asyncio.get_running_loop()
    begun_s = loop.time()

    async def one(call: Call) -> Served:
        await serve(call)
        return Served(call, loop.time() - begun_s)

    async with asyncio.TaskGroup() as group:
        serving = []
        for call in calls:
            await sleep_until(begun_s + call.at_s)
            serving.append(group.create_task(one(call)))
    return tuple(task.result() for task in serving)
