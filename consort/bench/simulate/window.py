"""How many segments a TCP sender may have on their way: slow start, and what a loss does to it.

A fluid sketch of RFC 5681, 6928 and 9438 as Linux runs them, enough for how long a first prompt or a long
answer takes; `experiments/network_kernel.py` holds it against the kernel. Does not pace, and does not probe.
"""

from __future__ import annotations

import heapq
import math

INITIAL_SEGMENTS = 10.0  # RFC 6928
BACK_OFF = 0.7  # of the window, after a loss: CUBIC, RFC 9438, 4.6
GAIN = 3 * (1 - BACK_OFF) / (1 + BACK_OFF)  # segments a round trip after a first loss: RFC 9438, 4.3


class Window:
    """The congestion window of one direction of a connection. Seconds are its lane's."""

    def __init__(self, rto_s: float) -> None:
        self._rto_s = rto_s
        self._segments, self._threshold = INITIAL_SEGMENTS, math.inf
        self._acknowledged_s: list[float] = []  # a heap; each segment is told by itself (SACK)
        self._most = 0  # segments on their way at once, since a rest
        self._recovered_s = -math.inf  # further losses before this are the same one

    def opens_s(self, free_s: float) -> float:
        """From `free_s` on, the first moment at which one more segment may leave."""
        while self._acknowledged_s and (
            self._acknowledged_s[0] <= free_s or len(self._acknowledged_s) >= self._segments
        ):
            # a window that was not used does not grow: RFC 7661; Linux's tcp_is_cwnd_limited
            if self._segments < 2 * self._most:
                slow_start = self._segments < self._threshold
                self._segments += 1 if slow_start else GAIN / self._segments
            free_s = max(free_s, heapq.heappop(self._acknowledged_s))
        return free_s

    def sent(self, acknowledged_s: float) -> None:
        """A segment left, and will be acknowledged then."""
        heapq.heappush(self._acknowledged_s, acknowledged_s)
        self._most = max(self._most, len(self._acknowledged_s))

    def lost(self, left_s: float, acknowledged_s: float) -> None:
        """A segment that left at `left_s` was lost; the copy that was not is acknowledged later."""
        if left_s < self._recovered_s:
            return
        self._recovered_s = acknowledged_s
        self._segments = self._threshold = max(2.0, BACK_OFF * self._segments)

    def rest(self, idle_s: float) -> None:
        """Nothing was sent for so long: beyond a time-out, slow start begins anew (RFC 5681, 4.1)."""
        if idle_s > self._rto_s:
            self._segments, self._most = min(self._segments, INITIAL_SEGMENTS), 0
