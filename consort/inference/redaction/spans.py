"""What a detector finds: spans of characters of one kind. Which of two that overlap stands is said here.

Finds nothing itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

# Kinds of the built-in detectors, the surest first: where two spans overlap, the surer one stands whole.
KINDS = (
    "secret", "url", "email", "iban", "card", "ip", "mac", "id", "phone",
    "date", "age", "postcode", "address", "organisation", "person", "place", "nationality",
)  # fmt: skip
STRUCTURED = frozenset(KINDS[: KINDS.index("date")])  # known by form and checksum, not by context
_RANK = {kind: rank for rank, kind in enumerate(KINDS)}
_CONTENT = re.compile(r"[^\W_](?:.*[^\W_])?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of a text; `kind` is a word of small letters, as "person"."""

    start: int
    end: int
    kind: str


Detector: TypeAlias = Callable[[str], list[Span]]


def together(*detectors: Detector) -> Detector:
    """What any of them finds."""

    def detect(text: str) -> list[Span]:
        return disjoint(text, [span for detector in detectors for span in detector(text)])

    return detect


def disjoint(text: str, spans: Iterable[Span]) -> list[Span]:
    """The same characters by spans that do not overlap, from left to right.

    Of two kinds at one place the surer has it; what is left of the other keeps its own kind, less spaces and
    punctuation at its ends.
    """
    done: list[Span] = []
    cluster: list[Span] = []  # spans that overlap one another, one by way of the next
    end = 0
    for span in sorted(spans, key=lambda span: span.start):
        if span.start >= end:
            done += _settled(text, cluster)
            cluster = []
        cluster.append(span)
        end = max(end, span.end)
    return done + _settled(text, cluster)


def _settled(text: str, cluster: list[Span]) -> list[Span]:
    if len(cluster) < 2:
        return cluster
    kept: list[Span] = []
    for span in sorted(cluster, key=lambda span: (_RANK.get(span.kind, len(KINDS)), span.start - span.end)):
        free = _free(span, kept)
        if free == [(span.start, span.end)]:
            kept.append(span)
            continue
        contents = [_CONTENT.search(text, *part) for part in free]
        kept += [Span(*content.span(), span.kind) for content in contents if content]
    return sorted(kept, key=lambda span: span.start)


def _free(span: Span, taken: list[Span]) -> list[tuple[int, int]]:
    """The parts of `span` that none of the disjoint `taken` covers."""
    parts, at = [], span.start
    for other in sorted(taken, key=lambda other: other.start):
        if other.start < span.end and other.end > span.start:
            if other.start > at:
                parts.append((at, other.start))
            at = max(at, other.end)
    return [*parts, (at, span.end)] if at < span.end else parts
