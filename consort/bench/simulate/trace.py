"""Bandwidth over time: steps of Mbit/s, from a file or made up; when so many bytes are through, and back.

A row of a trace is the rate since the row before it, and a trace begins anew where it ends, as in Pensieve's
simulator (Mao et al., SIGCOMM 2017), whose format the files have. Does not know of delay or loss.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path

from consort.errors import DataError

BYTES_PER_MBIT = 125_000


@dataclass(frozen=True, slots=True)
class Trace:
    """Rates that hold one after the other, and again from the first: `mbit_s[i]` until `ends_s[i]`.

    Seconds count from the trace's beginning and rise; rates may be 0 but not all of them.
    """

    ends_s: tuple[float, ...]
    mbit_s: tuple[float, ...]
    name: str = ""
    _starts_s: tuple[float, ...] = field(init=False, repr=False, compare=False)
    _passed: tuple[float, ...] = field(init=False, repr=False, compare=False)  # bytes, at each end

    def __post_init__(self) -> None:
        starts_s = (0.0, *self.ends_s[:-1])
        problem = _problem(self.ends_s, self.mbit_s)
        if problem:
            raise DataError(problem, where=self.name or "a trace of bandwidth")
        steps = (
            (end - start) * rate * BYTES_PER_MBIT
            for start, end, rate in zip(starts_s, self.ends_s, self.mbit_s, strict=True)
        )
        object.__setattr__(self, "_starts_s", starts_s)
        object.__setattr__(self, "_passed", tuple(accumulate(steps)))

    @property
    def length_s(self) -> float:
        """Seconds until it begins anew."""
        return self.ends_s[-1]

    @property
    def mean_mbit_s(self) -> float:
        """Over its whole length."""
        return self._passed[-1] / BYTES_PER_MBIT / self.length_s

    def num_bytes(self, until_s: float) -> float:
        """Bytes that can pass from the trace's beginning until `until_s`, however often it begins anew."""
        rounds, rest_s = divmod(until_s, self.length_s)
        step = min(bisect_right(self.ends_s, rest_s), len(self.ends_s) - 1)
        before = self._passed[step - 1] if step else 0.0
        within = (rest_s - self._starts_s[step]) * self.mbit_s[step] * BYTES_PER_MBIT
        return rounds * self._passed[-1] + before + within

    def finish_s(self, start_s: float, num_bytes: float) -> float:
        """The second at which the last of `num_bytes` is through, the first having begun at `start_s`."""
        if num_bytes <= 0:
            return start_s
        rounds, rest = divmod(self.num_bytes(start_s) + num_bytes, self._passed[-1])
        if not rest:  # the round's last byte, not the first of the next one
            rounds, rest = rounds - 1, self._passed[-1]
        step = bisect_left(self._passed, rest)
        before = self._passed[step - 1] if step else 0.0
        within_s = (rest - before) / (self.mbit_s[step] * BYTES_PER_MBIT)
        return max(start_s, rounds * self.length_s + self._starts_s[step] + within_s)

    def since(self, start_s: float) -> Trace:
        """The same trace, begun at another of its moments: nothing of it is lost, only turned."""
        start_s %= self.length_s
        first = bisect_right(self.ends_s, start_s)
        if not start_s or first == len(self.ends_s):
            return self
        order = [*range(first, len(self.ends_s)), *range(first + 1)]
        ends = [self.ends_s[i] - start_s for i in range(first, len(self.ends_s))]
        ends += [self.length_s - start_s + end for end in (*self.ends_s[:first], start_s)]
        kept = [i for i, (start, end) in enumerate(pairwise((0.0, *ends))) if end > start]
        return Trace(tuple(ends[i] for i in kept), tuple(self.mbit_s[order[i]] for i in kept), self.name)


def read_trace(path: Path) -> Trace:
    """A file of two columns, seconds and Mbit/s. A first row at second 0 lasts no time and is left out."""
    rows: list[tuple[float, float]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            second, rate = map(float, line.split())
        except ValueError:
            raise DataError(
                f'not "seconds Mbit/s": {line[:40]!r}', where=f"{path}:{number}", hint="two numbers a line"
            ) from None
        if second or rows:
            rows.append((second, rate))
    return Trace(tuple(second for second, _ in rows), tuple(rate for _, rate in rows), path.name)


def _problem(ends_s: tuple[float, ...], mbit_s: tuple[float, ...]) -> str:
    if not ends_s or len(ends_s) != len(mbit_s):
        return f"{len(ends_s)} times and {len(mbit_s)} rates: it needs as many, and at least one"
    if not all(map(math.isfinite, (*ends_s, *mbit_s))):
        return "times and rates must be finite numbers"
    if ends_s[0] <= 0 or any(later <= earlier for earlier, later in pairwise(ends_s)):
        return "times must rise, from above 0"
    if min(mbit_s) < 0 or not any(mbit_s):
        return "rates must be 0 or more, and one of them more"
    return ""
