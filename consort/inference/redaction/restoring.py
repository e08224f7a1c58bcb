"""Giving back what was hidden, in a stream: placeholders may be split over chunks, tokens and authors.

Held back is only what may still become a placeholder of this vault, so that nothing waits that need not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from itertools import groupby

from consort.inference.redaction.vault import PLACEHOLDER, Vault
from consort.types import Chunk, TokenLogprob, ToolCall


class Restorer:
    """One text that arrives in pieces, each by an author; what comes back is each author's share."""

    def __init__(self, vault: Vault, *, written: Callable[[str], str] = str) -> None:
        """`written` is how a private text is put into this one (inside JSON: escaped)."""
        self._vault, self._written = vault, written
        self._earlier: list[tuple[str, str]] = []  # held back, by other authors than the last one
        self._author = self._held = ""

    def feed(self, author: str, text: str) -> list[tuple[str, str]]:
        """What may go on: (author, text), neighbours by others. A placeholder is by who began it."""
        if not self._held and "[" not in text:
            return [(author, text)] if text else []
        if self._held and author != self._author:
            self._earlier.append((self._author, self._held))
            self._held = ""
        self._author, text = author, self._held + text
        if self._earlier:
            return self._feed_shares([*self._earlier, (author, text)])
        end = opening(text, self._vault)
        self._held = text[end:]
        return [(author, self._vault.give_back(text[:end], self._written))] if end else []

    def rest(self) -> list[tuple[str, str]]:
        """What was held back and became nothing."""
        held = [*self._earlier, (self._author, self._held)] if self._held else []
        self._earlier, self._held = [], ""
        return held

    def _feed_shares(self, pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
        joined = "".join([text for _, text in pieces])
        end = opening(joined, self._vault)
        self._earlier, self._held = [*_shares(pieces, end, len(joined))], ""
        if self._earlier:
            self._author, self._held = self._earlier.pop()
        return _merged(self._given_back(pieces, joined, end))

    def _given_back(self, pieces: list[tuple[str, str]], joined: str, end: int) -> Iterator[tuple[str, str]]:
        at = 0
        for found in PLACEHOLDER.finditer(joined, 0, end):
            private = self._vault.private.get(found[0].upper())
            if private is not None:
                yield from _shares(pieces, at, found.start())
                author, _ = next(_shares(pieces, found.start(), found.end()))
                yield author, self._written(private)
                at = found.end()
        yield from _shares(pieces, at, end)


class TokenRestorer:
    """The log-probabilities of the same text: the tokens that spell a placeholder become one."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._held: list[TokenLogprob] = []

    def feed(self, tokens: tuple[TokenLogprob, ...]) -> tuple[TokenLogprob, ...]:
        """Tokens that may go on."""
        done: list[TokenLogprob] = []
        for token in tokens:
            if not self._held and "[" not in token.token:
                done.append(token)
                continue
            self._held.append(token)
            joined = "".join(each.token for each in self._held)
            if opening(joined, self._vault) == len(joined):
                done += self._whole(joined)
                self._held = []
        return tuple(done)

    def rest(self) -> tuple[TokenLogprob, ...]:
        """Tokens that were held back; before a placeholder that became nothing may stand a whole one."""
        done = self._whole("".join(each.token for each in self._held))
        self._held = []
        return tuple(done)

    def _whole(self, joined: str) -> list[TokenLogprob]:
        text = self._vault.give_back(joined)
        if text == joined:
            return self._held
        # the probability of all its tokens in a row; what else each might have been says nothing of the whole
        return [TokenLogprob(text, sum(token.logprob for token in self._held))]


class ChunkRestorer:
    """The chunks of one answer. `anew` forgets what was held back: it is withdrawn with the rest."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._begin()

    def feed(self, chunk: Chunk) -> Iterator[Chunk]:
        """What a chunk becomes: one chunk for each author, the last with all that is not text."""
        if chunk.anew:
            self._begin()
        self._author = chunk.model
        shares = self._text.feed(chunk.model, chunk.text)
        tokens = self._tokens.feed(chunk.logprobs)
        calls = tuple(call for piece in chunk.tool_calls if (call := self._call(piece)))
        if chunk.finish_reason is not None:
            shares, tokens = _merged(iter([*shares, *self._text.rest()])), tokens + self._tokens.rest()
            calls += self._rest_of_calls()
        if not shares or shares[-1][0] != chunk.model:
            shares.append((chunk.model, ""))
        *before, (_, text) = shares
        for place, (author, earlier) in enumerate(before):
            yield Chunk(text=earlier, model=author, anew=chunk.anew and place == 0)
        last = dataclasses.replace(
            chunk, text=text, logprobs=tokens, tool_calls=calls, anew=chunk.anew and not before
        )
        if last != Chunk(text="", model=chunk.model):
            yield last

    def rest(self) -> Iterator[Chunk]:
        """What was held back when the stream ended without saying so."""
        for author, text in self._text.rest():
            yield Chunk(text=text, model=author)
        tokens, calls = self._tokens.rest(), self._rest_of_calls()
        if tokens or calls:
            yield Chunk(text="", model=self._author, logprobs=tokens, tool_calls=calls)

    def _begin(self) -> None:
        self._author = ""
        self._text, self._tokens = Restorer(self._vault), TokenRestorer(self._vault)
        self._calls: dict[int, Restorer] = {}

    def _call(self, piece: ToolCall) -> ToolCall | None:
        arguments = self._calls.setdefault(piece.index, Restorer(self._vault, written=_in_json))
        text = "".join(text for _, text in arguments.feed("", piece.arguments))
        return dataclasses.replace(piece, arguments=text) if text or piece.id or piece.name else None

    def _rest_of_calls(self) -> tuple[ToolCall, ...]:
        rests = ((index, "".join(text for _, text in call.rest())) for index, call in self._calls.items())
        return tuple(ToolCall(index=index, id="", name="", arguments=rest) for index, rest in rests if rest)


def opening(text: str, vault: Vault) -> int:
    """Where a placeholder of the vault begins that `text` breaks off; the text's length where none does."""
    start = text.rfind("[")
    return start if start >= 0 and text[start:].upper() in vault.beginnings else len(text)


def _shares(pieces: list[tuple[str, str]], start: int, end: int) -> Iterator[tuple[str, str]]:
    """The characters [start, end) of the joined pieces, each with its author."""
    at = 0
    for author, text in pieces:
        share = text[max(0, start - at) : max(0, end - at)]
        if share:
            yield author, share
        at += len(text)


def _merged(shares: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    """Neighbours by one author joined."""
    return [
        (author, "".join(text for _, text in each))
        for author, each in groupby(shares, lambda share: share[0])
    ]


def _in_json(private: str) -> str:
    return json.dumps(private, ensure_ascii=False)[1:-1]
