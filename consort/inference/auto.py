"""Auto: chooses a strategy for each request from what is measured now: pace, load, failures; and from
price, privacy and goal.

The choice is a pure function of `Conditions`, and its reason is noted. Does not learn; thresholds come from
calibration.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from consort.inference.single import lacks
from consort.inference.streams import Closing
from consort.types import Chunk, Consort, Note, Request, Strategy

Goal = Literal["balance", "quality", "latency", "cost"]
Choice = Literal["edge", "cloud", "cascade"]
DOWN_AFTER = 3  # failures in a row
DOWN_S = 30.0  # seconds; then one request may try the cloud again
BUSY = 4.0  # times slower than the cloud: waiting for the edge first is no longer worth its price


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the choice depends on; seconds are for a whole answer at the present load, None before any."""

    private: bool = False  # the text must not leave the edge
    goal: Goal = "balance"
    has_edge: bool = True
    has_cloud: bool = True
    edge_s: float | None = None
    cloud_s: float | None = None
    cloud_price: float = 0.0  # of an answer like the last ones
    money_left: float = math.inf  # of the key's budget
    cloud_failures_in_row: int = 0
    since_cloud_failure_s: float = 0.0


def choose(now: Conditions) -> tuple[Choice, str]:
    """The strategy and the reason, in a word."""
    if now.private:
        return "edge", "private"
    if not now.has_cloud:
        return "edge", "no_cloud"
    if not now.has_edge:
        return "cloud", "no_edge"
    if now.cloud_failures_in_row >= DOWN_AFTER and now.since_cloud_failure_s < DOWN_S:
        return "edge", "cloud_down"
    if now.cloud_price > now.money_left:
        return "edge", "budget"
    if now.goal == "quality":
        return "cloud", "quality"
    if now.edge_s is not None and now.cloud_s is not None:
        if now.goal == "latency":
            return ("edge" if now.edge_s <= now.cloud_s else "cloud"), "faster"
        if now.goal == "balance" and now.edge_s > BUSY * now.cloud_s:
            return "cloud", "edge_busy"
    return "cascade", now.goal


def auto(measure: Callable[[Consort], Conditions], options: Mapping[Choice, Strategy]) -> Strategy:
    """One of `options`, chosen by what `measure` finds."""

    async def strategy(request: Request, consort: Consort) -> AsyncIterator[Chunk]:
        now = measure(consort)
        choice, reason = choose(now)
        if choice != "cloud" and not now.private and now.has_cloud and lacks(consort.edges[0], request):
            choice, reason = "cloud", "unable"
        consort.note(Note("auto", choice, {"reason": reason}))
        async with Closing(options[choice](request, consort)) as stream:
            async for chunk in stream:
                yield chunk

    return strategy
