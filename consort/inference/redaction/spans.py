"""What a detector finds: spans of characters of one kind. Which of two that overlap stands is said here.

Finds nothing itself.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

# Kinds of the built-in detectors, the surest first.
KINDS = (
    "secret", "url", "email", "iban", "card", "ip", "mac", "id", "phone",
    "date", "age", "postcode", "address", "organisation", "place", "person", "nationality",
)  # fmt: skip
STRUCTURED = frozenset(KINDS[: KINDS.index("date")])  # known by form and checksum, not by context
_RANK = {kind: (min(rank, len(STRUCTURED)), rank) for rank, kind in enumerate(KINDS)}
_LAST_RANK = len(STRUCTURED), len(KINDS)
_CONTENT = re.compile(r"[^\W_](?:.*[^\W_])?", re.DOTALL)


class Span(NamedTuple):
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

    Of two at one place that of a structured kind has it, or else the longer, or else that of the surer kind.
    What is left of the other keeps its own kind, less spaces and punctuation at its ends.
    """
    done: list[Span] = []
    cluster: list[Span] = []  # spans that overlap one another, one by way of the next
    reach = 0
    for span in sorted(spans):
        start, end, _ = span
        if start >= end or (cluster and span == cluster[-1]):
            continue
        if start >= reach:
            done += _settled(text, cluster) if len(cluster) > 1 else cluster
            cluster = []
        cluster.append(span)
        reach = max(reach, end)
    return done + (_settled(text, cluster) if len(cluster) > 1 else cluster)


def outside(text: str, spans: Iterable[Span], taken: Sequence[Span]) -> list[Span]:
    """What of disjoint `spans` none of the disjoint `taken` covers, less spaces and punctuation at a cut."""
    if not taken:
        return list(spans)
    starts = [each.start for each in taken]
    free: list[Span] = []
    for span in spans:
        near = taken[max(0, bisect_right(starts, span.start) - 1) : bisect_left(starts, span.end)]
        free += _rest(text, span, near)
    return free


def _settled(text: str, cluster: list[Span]) -> list[Span]:
    kept: list[Span] = []
    for span in sorted(cluster, key=_surest_first):
        if not any(each.start <= span.start and span.end <= each.end for each in kept):
            kept += _rest(text, span, kept)
    return sorted(kept)


def _surest_first(span: Span) -> tuple[int, int, int]:
    first, rank = _RANK.get(span.kind, _LAST_RANK)
    return first, span.start - span.end, rank


def _rest(text: str, span: Span, taken: Sequence[Span]) -> list[Span]:
    """The parts of `span` that none of the disjoint `taken` covers."""
    parts, at = [], span.start
    for other in sorted(taken):
        if other.start < span.end and other.end > span.start:
            parts.append((at, other.start))
            at = other.end
    if at == span.start and not parts:
        return [span]
    contents = [_CONTENT.search(text, start, end) for start, end in [*parts, (at, span.end)] if start < end]
    return [Span(*content.span(), span.kind) for content in contents if content]
