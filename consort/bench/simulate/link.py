"""A network link between a device and the cloud, as one TCP connection meets it: when the bytes come out.

One model for both ways of measuring: `wire` obeys it on a virtual clock, `proxy` on real connections. A write
is cut into segments; each waits for the window and its turn at the link's rate, travels half a round trip,
comes late by jitter, or again if it was lost, and is delivered in order. docs/network.md says where the
figures come from, and what is left out.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import NamedTuple

from consort.bench.simulate.trace import BYTES_PER_MBIT, Trace, read_trace
from consort.bench.simulate.window import Window
from consort.errors import ConfigError

SEGMENT_BYTES = 1448  # of payload: 1,500 less the headers of IPv4 and of TCP with time stamps
LEAST_RTO_S = 0.2  # Linux; RFC 6298 says one second and that less is common
DUPLICATES = 3  # later segments that must arrive before a lost one is sent again at once (RFC 5681, 3.2)


@dataclass(frozen=True, slots=True)
class Link:
    """What lies between a device and the cloud. `up` is from the device to the cloud."""

    rtt_s: float = 0.0  # seconds there and back, without any queue
    jitter_s: float = 0.0  # each segment's way takes up to so much less or more, evenly; at most rtt_s / 2
    up_mbit_s: float | Trace = math.inf  # 1 Mbit/s is 125,000 bytes a second, headers included
    down_mbit_s: float | Trace = math.inf
    loss: float = 0.0  # share of segments, each way, each for itself; below 1
    header_bytes: int = 52  # a segment, beside its payload: IPv4 20, TCP 20, time stamps 12
    breaks_s: tuple[float, ...] = ()  # moments, from the link's beginning, when every connection breaks
    mean_up_s: float = math.inf  # between further breaks at random moments (exponential)
    outage_s: float = 0.0  # after a break no connection can be made for so long

    def __post_init__(self) -> None:
        if problem := _problem(self):
            raise ConfigError(problem, where="a link")

    @property
    def rto_s(self) -> float:
        """Seconds until a segment that nothing follows is sent again: RFC 6298 with Linux's least, the round
        trip's deviation taken as the jitter."""
        return self.rtt_s + max(LEAST_RTO_S, 4 * self.jitter_s)


def trace_link(
    path: Path, *, rtt_s: float, start_s: float = 0.0, up_share: float = 1.0, jitter_s: float = 0.0
) -> Link:
    """A link whose rate follows a file of bandwidth, from its second `start_s`: as it is for answers, times
    `up_share` for what the device sends."""
    down = read_trace(path).since(start_s)
    up = replace(down, mbit_s=tuple(rate * up_share for rate in down.mbit_s))
    return Link(rtt_s, jitter_s, up, down)


class Arrival(NamedTuple):
    """So many of the oldest bytes that are still on their way come out at this second."""

    at_s: float
    num_bytes: int


class Lane:
    """One direction of a link: when bytes that go in come out, in order. Keeps no bytes itself."""

    def __init__(self, link: Link, mbit_s: float | Trace, rng: Random) -> None:
        self._link, self._rng = link, rng
        self._finish_s = finishing(mbit_s)
        self.drop()

    def drop(self) -> None:
        """Forget what is on its way, and begin as a new connection does."""
        self._free_s = -math.inf  # the last segment has left
        self._last_s = -math.inf  # the last segment has come out
        self._window = Window(self._link.rto_s)

    def send(self, now_s: float, num_bytes: int) -> list[Arrival]:
        """What a write of `num_bytes` at `now_s` becomes; `now_s` never falls from call to call. A write of
        nothing is one empty segment."""
        link, sizes = self._link, segments(num_bytes)
        from_s, passed = max(now_s, self._free_s), 0
        self._window.rest(now_s - self._free_s)
        arrivals = []
        for index, size in enumerate(sizes):
            free_s = max(now_s, self._free_s)
            opens_s = self._window.opens_s(free_s)
            if opens_s > free_s:
                from_s, passed = opens_s, 0
            passed += size + link.header_bytes
            # reckoned from where the segments follow one another, so that rounding does not add up
            self._free_s = self._finish_s(from_s, passed)
            sent_s = self._sent_s(self._free_s, told=index + DUPLICATES < len(sizes))
            if sent_s > self._free_s:
                self._window.lost(self._free_s, sent_s + link.rtt_s)
            late_s = self._rng.uniform(-link.jitter_s, link.jitter_s) if link.jitter_s else 0.0
            self._window.sent(sent_s + link.rtt_s + late_s)
            self._last_s = max(self._last_s, sent_s + (link.rtt_s / 2 + late_s))
            arrivals.append(Arrival(self._last_s, size))
        return arrivals

    def _sent_s(self, left_s: float, *, told: bool) -> float:
        """When the copy that is not lost leaves: the first; a second as soon as later segments have told of
        the loss; else one after a time-out, which doubles (RFC 6298, 5.5)."""
        link = self._link
        if not self._is_lost():
            return left_s
        sent_s = left_s + (link.rtt_s if told else link.rto_s)
        wait_s = link.rto_s if told else 2 * link.rto_s
        while self._is_lost():
            sent_s += wait_s
            wait_s *= 2
        return sent_s

    def _is_lost(self) -> bool:
        return self._link.loss > 0 and self._rng.random() < self._link.loss


def segments(num_bytes: int) -> list[int]:
    """Payloads that a write is cut into."""
    whole, rest = divmod(num_bytes, SEGMENT_BYTES)
    return [SEGMENT_BYTES] * whole + [rest] * (rest > 0 or not whole)


def finishing(mbit_s: float | Trace) -> Callable[[float, float], float]:
    """(second it begins, bytes) -> second it is through."""
    if isinstance(mbit_s, Trace):
        return mbit_s.finish_s
    bytes_s = mbit_s * BYTES_PER_MBIT
    return lambda start_s, num_bytes: start_s + num_bytes / bytes_s


def lanes(link: Link, seed: int) -> tuple[Lane, Lane]:
    """Up and down, each with randomness of its own."""
    return (
        Lane(link, link.up_mbit_s, Random(f"{seed} up")),
        Lane(link, link.down_mbit_s, Random(f"{seed} down")),
    )


class Outages:
    """When a link's connections break, at given and at random moments, and until when none can be made.
    Seconds count from the link's beginning."""

    def __init__(self, link: Link, seed: int) -> None:
        given = iter(sorted(link.breaks_s))
        at_random = _random_breaks(link.mean_up_s, Random(f"{seed} breaks"))
        self._to_come = heapq.merge(given, at_random)
        self._outage_s, self._refuses_until_s = link.outage_s, -math.inf
        self.next_s = next(self._to_come, math.inf)

    def begin(self, now_s: float) -> None:
        """The connections broke at this moment, planned or not."""
        self._refuses_until_s = max(self._refuses_until_s, now_s + self._outage_s)
        while self.next_s <= now_s:
            self.next_s = next(self._to_come, math.inf)

    def refuses(self, now_s: float) -> bool:
        """Whether no connection can be made at this moment."""
        while self.next_s <= now_s:  # nothing was connected then
            self.begin(self.next_s)
        return now_s < self._refuses_until_s


def _random_breaks(mean_up_s: float, rng: Random) -> Iterator[float]:
    at_s = 0.0
    while math.isfinite(mean_up_s):
        at_s += rng.expovariate(1 / mean_up_s)
        yield at_s


def _problem(link: Link) -> str:
    rates = [rate for rate in (link.up_mbit_s, link.down_mbit_s) if not isinstance(rate, Trace)]
    if not all(rate > 0 for rate in rates):
        return "a rate must be above 0 Mbit/s; a Trace may rest for a while"
    if not 0 <= link.rtt_s < math.inf:
        return f"rtt_s is {link.rtt_s}; give seconds, 0 or more"
    if not 0 <= link.jitter_s <= link.rtt_s / 2:
        return f"jitter_s is {link.jitter_s}: nothing arrives before it is sent; give at most half of rtt_s"
    if not 0 <= link.loss < 1:
        return f"loss is {link.loss}; give a share from 0 up to, not including, 1"
    if link.header_bytes < 0 or link.outage_s < 0 or not link.mean_up_s > 0:
        return "header_bytes and outage_s are 0 or more, mean_up_s is above 0"
    return ""
