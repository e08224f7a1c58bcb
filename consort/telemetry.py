"""One meter: counters, gauges and histograms as Prometheus text. Label values are words of ours, never a
client's.

Not a client of any collector: whoever wants the numbers reads `/metrics`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKENS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0)


@dataclass(slots=True)
class Counter:
    """A number for each set of labels; a gauge is one that is set."""

    name: str
    about: str
    labels: tuple[str, ...] = ()
    kind: str = "counter"
    values: dict[tuple[str, ...], float] = field(default_factory=dict)

    def add(self, amount: float, *labels: str) -> None:
        """Count."""
        self.values[labels] = self.values.get(labels, 0.0) + amount

    def set(self, value: float, *labels: str) -> None:
        """The present value."""
        self.values[labels] = value

    def lines(self) -> Iterator[str]:
        """The series in Prometheus' text format."""
        yield from _head(self.name, self.about, self.kind)
        for labels, value in self.values.items():
            yield f"{self.name}{_labelled(self.labels, labels)} {value:g}"


@dataclass(slots=True)
class Histogram:
    """How often a value fell at or under each bound, for each set of labels."""

    name: str
    about: str
    labels: tuple[str, ...]
    bounds: Sequence[float] = SECONDS
    counts: dict[tuple[str, ...], list[int]] = field(default_factory=dict)
    sums: dict[tuple[str, ...], float] = field(default_factory=dict)

    def observe(self, value: float, *labels: str) -> None:
        """One value more."""
        counts = self.counts.get(labels)
        if counts is None:
            counts = self.counts[labels] = [0] * (len(self.bounds) + 1)
            self.sums[labels] = 0.0
        counts[bisect_left(self.bounds, value)] += 1
        self.sums[labels] += value

    def lines(self) -> Iterator[str]:
        """The series in Prometheus' text format."""
        yield from _head(self.name, self.about, "histogram")
        for labels, counts in self.counts.items():
            total = 0
            for bound, count in zip((*self.bounds, None), counts, strict=True):
                total += count
                limit = "+Inf" if bound is None else f"{bound:g}"
                yield f"{self.name}_bucket{_labelled((*self.labels, 'le'), (*labels, limit))} {total}"
            yield f"{self.name}_sum{_labelled(self.labels, labels)} {self.sums[labels]:.9g}"
            yield f"{self.name}_count{_labelled(self.labels, labels)} {total}"


def prometheus_text(series: Sequence[Counter | Histogram]) -> str:
    """All of them, as a scraper reads them."""
    return "\n".join(line for each in series for line in each.lines()) + "\n"


def _head(name: str, about: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"


def _labelled(names: Sequence[str], values: Sequence[str]) -> str:
    pairs: Mapping[str, str] = dict(zip(names, values, strict=True))
    inner = ",".join(
        '{}="{}"'.format(name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n"))
        for name, value in pairs.items()
    )
    return f"{{{inner}}}" if inner else ""
