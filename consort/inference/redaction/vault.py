"""Placeholders for private spans, in all texts of one request: the same entity, the same placeholder.

A placeholder is never one that the texts already hold, so that giving back is exact. A vault lives as long as
one request: numbers begin anew, in order of appearance, and nothing is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cache, cached_property
from itertools import chain

from consort.inference.redaction.lexicon import is_ordinary
from consort.inference.redaction.spans import STRUCTURED, Detector, Span, disjoint, outside

PLACEHOLDER = re.compile(r"\[[A-Za-z]+_\d+[A-Za-z]?\]", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9_\w]+")  # `\w+`, the frequent first: `re` looks them up in a bitmap
_WITHIN_WORD = re.compile(r"\w\w")
_NOT_LETTERS = re.compile(r"[^A-Z]+")
_SPREADING = STRUCTURED | {"person", "organisation", "address"}  # private wherever else it stands
_SHORTEST_SPREADING = 3  # characters
_FEW_WORDS = 8  # that are searched for one by one sooner than all are counted
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Vault:
    """What was hidden, and behind what."""

    def __init__(self, texts: Iterable[str]) -> None:
        """`texts` are all that a placeholder must not be mistaken for."""
        self._taken = {found.upper() for text in texts if "[" in text for found in PLACEHOLDER.findall(text)}
        self._last: dict[str, int] = {}  # number of each label
        self._numbers: dict[tuple[str, str], int] = {}
        self._placeholders: dict[tuple[str, str], str] = {}
        self._spread: dict[str, dict[str, str]] = {}  # by first word: what is private, and its kind
        self.private: dict[str, str] = {}  # by placeholder
        self.counts: dict[str, int] = {}  # spans hidden, by kind

    def hide(self, text: str, spans: Sequence[Span]) -> str:
        """`text` with a placeholder for each of its disjoint spans, given from left to right."""
        parts, at = list[str](), 0
        for start, end, kind in spans:
            private = text[start:end]
            parts += text[at:start], self._placeholders.get((kind, private)) or self._named(kind, private)
            self.counts[kind] = self.counts.get(kind, 0) + 1
            at = end
        parts.append(text[at:])
        return "".join(parts)

    def give_back(self, text: str, written: Callable[[str], str] = str) -> str:
        """`text` with what was hidden, `written` as it must be; placeholders of no one here stay."""
        private = self.private

        def restored(found: re.Match[str]) -> str:
            name = found[0].upper()
            return written(private[name]) if name in private else found[0]

        return PLACEHOLDER.sub(restored, text)

    @cached_property
    def beginnings(self) -> AbstractSet[str]:
        """Every beginning of every placeholder, once all is hidden."""
        return {name[:length] for name in self.private for length in range(1, len(name))}

    def spread(self, found: Mapping[str, Sequence[Span]], beside: Sequence[str] = ()) -> None:
        """Remember that what these spans of their texts hold is private wherever else it stands."""
        # Most words stand once, in the span itself, and have nowhere to spread to. What goes beside is not
        # counted: it may be JSON, whose escapes hide where a word begins.
        candidates = [
            (each, word[0], text, span)
            for text, spans in found.items()
            for span in spans
            if span.kind in _SPREADING
            for each in _parts(text[span.start : span.end], span.kind)
            if len(each) >= _SHORTEST_SPREADING and (word := _WORD.search(each))
        ]
        words = {first for _, first, _, _ in candidates}
        few = len(words) <= _FEW_WORDS and not beside
        if few and sum([text.count(word) for text in found for word in words]) == len(words):
            return  # each is there once
        times = dict.fromkeys(words, 0)
        for word in filter(times.__contains__, chain.from_iterable(map(_WORD.findall, found))):
            times[word] += 1
        for each, first, text, span in candidates:
            elsewhere = times[first] != 1 or beside or not _is_whole(text, span)
            if elsewhere and not is_ordinary(each.lower()):
                self._spread.setdefault(first, {})[each] = span.kind

    def seen_before(self, text: str) -> list[Span]:
        """Where `text` holds what is private elsewhere."""
        seen: list[Span] = []
        for word in self._spread.keys() & _WORD.findall(text) if self._spread else ():
            for private, kind in self._spread[word].items():
                start = text.find(private)
                while start >= 0:
                    end = start + len(private)
                    if not (text[start - 1 : start].isalnum() or text[end : end + 1].isalnum()):
                        seen.append(Span(start, end, kind))
                    start = text.find(private, end)
        return seen

    def _named(self, kind: str, private: str) -> str:
        """A new placeholder: what differs from an entity in its spelling only shares that one's number."""
        entity = kind, "".join(filter(str.isalnum, private)).casefold()
        number, label = self._numbers.get(entity), _label(kind)
        name = self._another_spelling(label, number) if number else ""
        while not name:
            number = self._last[label] = self._last.get(label, 0) + 1
            if (candidate := f"[{label}_{number}]") not in self._taken:
                name, self._numbers[entity] = candidate, self._numbers.get(entity, number)
        self._taken.add(name)
        self._placeholders[kind, private], self.private[name] = name, private
        return name

    def _another_spelling(self, label: str, number: int) -> str:
        """A free name of an entity's number, if there is one."""
        names = (f"[{label}_{number}{letter}]" for letter in _LETTERS[1:])
        return next((name for name in names if name not in self._taken), "")


def hidden(
    texts: Iterable[str], detect: Detector, *, again: Detector, beside: Iterable[str] = ()
) -> tuple[Mapping[str, str], Vault]:
    """What each of `texts` becomes, and the vault that gives it back.

    What is private in one text is private in all. Then `again` searches until it finds nothing more: a
    placeholder may show what stood in its neighbour's shadow. `beside` are further texts that go along.
    """
    originals, further = dict.fromkeys(texts), [*beside]
    vault = Vault([*originals, *further])
    found = {text: detect(text) for text in originals}
    vault.spread(found, further)
    become = {}
    for text, spans in found.items():
        shown, spans = text, [*spans, *vault.seen_before(text)]
        while spans := _unhidden(shown, spans):
            shown = vault.hide(shown, spans)
            spans = again(shown)
        become[text] = shown
    return become, vault


def _unhidden(text: str, spans: Sequence[Span]) -> list[Span]:
    if not spans:
        return []
    taken = [Span(*place.span(), "") for place in PLACEHOLDER.finditer(text)] if "[" in text else []
    return outside(text, disjoint(text, spans), taken)


def _parts(private: str, kind: str) -> Collection[str]:
    """What of a private text is private by itself."""
    return {private, *private.split()} if kind == "person" else (private,)


def _is_whole(text: str, span: Span) -> bool:
    """Whether a span neither begins nor ends within a word."""
    within = _WITHIN_WORD.match
    return not (within(text, span.start - 1, span.start + 1) or within(text, span.end - 1, span.end + 1))


@cache
def _label(kind: str) -> str:
    return _NOT_LETTERS.sub("", kind.upper()) or "PRIVATE"
