"""Continuous batching: answers join and leave between two steps, and every one is written as if it were
alone.

A step reads a bounded piece of the newcomers' prompts, then writes one token of every answer under way, and
with it as many more as the answer's draft foresaw: each token is chosen as without a draft, so the answer is
the same. Rows that write keep to the first slots of the cache, so that one pass reads them where they lie.
Does not know text, threads or clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, Protocol

import numpy as np

from consort.align import Vocabulary
from consort.models.decoding.sampling import (
    GREEDY,
    Logits,
    Sampling,
    choose,
    float64,
    likeliest,
    log_softmax,
    token_keys,
)
from consort.models.drafts import NOTHING, below, chain, child, cut, first_path, is_chain, joined
from consort.types import Draft, TopK

DRAFT_NODES = 64  # of one answer that a pass looks at; beyond them a pass takes longer than they save


class Network(Protocol):
    """A model with a cache of `slots` texts of up to `positions` tokens each."""

    slots: int
    positions: int
    branches: bool  # whether trees may be more than chains
    shows_states: bool  # whether passes leave `states`, where it can; set before the first one

    @property
    def states(self) -> Logits | None:
        """What the head made the last pass's logits from, [rows, D] or [tokens, D] as they are."""
        ...

    def read(
        self,
        rows: Sequence[Sequence[int]],
        *,
        slots: Sequence[int],
        starts: Sequence[int],
        every: bool,
        trees: Sequence[Sequence[int]] | None = None,
    ) -> Logits:
        """Append tokens to the texts in `slots` (ascending), which hold `starts` tokens: logits [rows, V]
        after the last token of each row, or after `every` token, [tokens, V], row by row. `trees` are the
        parents of all nodes after each text, of which the row's tokens are the last: see `layout`; with
        `every` only."""
        ...

    def keep(self, slot: int, start: int, nodes: Sequence[int]) -> None:
        """Let a path through the tree after `start` tokens be the text's next tokens."""
        ...

    def swap(self, slot: int, other: int, num_tokens: int) -> None:
        """Exchange two slots, which hold at most `num_tokens` tokens."""
        ...


@dataclass(slots=True, eq=False)
class Row:
    """One text in the batch. It writes `max_new_tokens`, or, if that is 0, holds its place to be extended."""

    unread: list[int]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    top_logprobs: int | None = None
    filled: int = 0  # tokens in the cache
    written: list[int] = field(default_factory=list)
    draft: Draft = NOTHING  # of what comes after `written`
    pause_at: int | None = None  # tokens of `written`, from which on it waits to be told further
    drafted: int = 0  # tokens of drafts that were looked at
    foreseen: int = 0  # of those, the answer's
    states: Logits | None = None  # hidden, before the head, where its latest logits come from, if shown

    @property
    def writes(self) -> bool:
        """Whether a pass would give it another token, once its prompt is read."""
        return self.max_new_tokens > 0 and (self.pause_at is None or len(self.written) < self.pause_at)


@dataclass(frozen=True, slots=True)
class Token:
    """A token that a row wrote; `top` are alternatives' ids and log-probabilities where the row asked for
    them."""

    row: Row
    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    finish: Literal["stop", "length"] | None


class Batch:
    """Rows that share a network's slots."""

    def __init__(self, network: Network, vocabulary: Vocabulary) -> None:
        self.network, self.vocabulary = network, vocabulary
        self.rows: list[Row] = []  # a row's place here is its slot; those that write come first
        self.writing = 0

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return self.network.slots - len(self.rows)

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing: every row waits or holds its place."""
        return not any(row.unread or row.writes for row in self.rows)

    def add(self, row: Row) -> None:
        """Take a slot; the prompt is read in the next steps."""
        assert self.free
        assert row.unread
        assert len(row.unread) + row.max_new_tokens <= self.network.positions
        self.rows.append(row)

    def remove(self, row: Row) -> None:
        """Free the row's slot at once."""
        slot = self.rows.index(row)
        if slot < self.writing:
            self.writing -= 1
            slot = self._swap(slot, self.writing)
        self._swap(slot, len(self.rows) - 1)
        self.rows.pop()

    def step(self, prompt_tokens: int) -> tuple[list[Token], list[tuple[Row, Logits]]]:
        """Write one token of every answer, and read about `prompt_tokens` of the prompts that wait; with the
        logits [V] of rows that now hold their place."""
        written, holding = self._write(), []
        for row, logits_V in self._read_prompts(prompt_tokens):
            if row.max_new_tokens:
                self._swap(self.rows.index(row), self.writing)
                self.writing += 1
                written += self._leave(self._chosen([row], logits_V[None]))
            else:
                holding.append((row, logits_V))
        return written, holding

    def _read_prompts(self, prompt_tokens: int) -> list[tuple[Row, Logits]]:
        """Read on in prompts, in the order of their slots; logits [V] of those that ended."""
        chosen: dict[int, int] = {}  # slot to tokens
        for slot in range(self.writing, len(self.rows)):
            unread = len(self.rows[slot].unread)
            width = max([*chosen.values(), min(unread, prompt_tokens)])
            if unread and (not chosen or width * (len(chosen) + 1) <= prompt_tokens):
                chosen[slot] = min(unread, prompt_tokens)
        if not chosen:
            return []
        rows = [self.rows[slot] for slot in chosen]
        pieces = [row.unread[:count] for row, count in zip(rows, chosen.values(), strict=True)]
        logits_RV = self._read(rows, pieces, list(chosen), every=False)
        for row, piece in zip(rows, pieces, strict=True):
            del row.unread[: len(piece)]
        return [(row, logits_V) for row, logits_V in zip(rows, logits_RV, strict=True) if not row.unread]

    def extend(self, rows: Sequence[Row], pieces: Sequence[Sequence[int]]) -> list[Logits]:
        """Append ids to rows that hold their place: logits [ids, V] after each id, row by row."""
        order = sorted(range(len(rows)), key=lambda index: self.rows.index(rows[index]))
        slots = [self.rows.index(rows[index]) for index in order]
        logits_NV = self._read([rows[i] for i in order], [pieces[i] for i in order], slots, every=True)
        return self._apart(logits_NV, order, pieces)

    def read_levels(
        self, rows: Sequence[Row], levels: Sequence[Sequence[int]], trees: Sequence[Sequence[int]]
    ) -> list[Logits]:
        """Read the last nodes of trees after rows that hold their place, which stay as they are: logits
        [nodes, V]."""
        order = sorted(range(len(rows)), key=lambda index: self.rows.index(rows[index]))
        starts = [rows[index].filled for index in order]
        is_tree = not all(map(is_chain, trees))
        if not is_tree:  # a level of a chain is read as a text is, without a mask of its own
            starts = [
                start + len(trees[index]) - len(levels[index])
                for start, index in zip(starts, order, strict=True)
            ]
        logits_NV = self.network.read(
            [levels[index] for index in order],
            slots=[self.rows.index(rows[index]) for index in order],
            starts=starts,
            every=True,
            trees=[trees[index] for index in order] if is_tree else None,
        )
        return self._apart(logits_NV[:, : self.vocabulary.size], order, levels)

    def draft(self, row: Row, begins: int, more: Draft) -> None:
        """Take a draft of what comes after `begins` tokens of the row's answer."""
        row.draft = joined(row.draft, row.written, begins, more)

    def _write(self) -> list[Token]:
        slots = [slot for slot, row in enumerate(self.rows[: self.writing]) if row.writes]
        rows = [self.rows[slot] for slot in slots]
        if not rows:
            return []
        if any(row.draft.ids for row in rows):
            return self._write_drafted(rows, slots)
        pieces = [[row.written[-1]] for row in rows]
        return self._leave(self._chosen(rows, self._read(rows, pieces, slots, every=False)))

    def _write_drafted(self, rows: list[Row], slots: Sequence[int]) -> list[Token]:
        """One pass over each row's last token and the draft after it; then down the tree, token by token, as
        long as what is chosen was drafted."""
        drafts = [self._verifiable(row) for row in rows]
        pieces = [[row.written[-1], *draft.ids] for row, draft in zip(rows, drafts, strict=True)]
        trees = [(-1, *(parent + 1 for parent in draft.parents)) for draft in drafts]
        starts = [row.filled for row in rows]
        is_tree = not all(map(is_chain, trees))
        logits_NV = self.network.read(
            pieces, slots=slots, starts=starts, every=True, trees=trees if is_tree else None
        )[:, : self.vocabulary.size]
        firsts = [0, *accumulate(map(len, pieces))]
        paths = [[0] for _ in rows]  # nodes of `pieces` that the answer took
        written, walking = [], list(range(len(rows)))
        while walking:
            places = [firsts[index] + paths[index][-1] for index in walking]
            chosen = self._chosen([rows[index] for index in walking], logits_NV[places])
            written += chosen
            following = []
            for index, one in zip(walking, chosen, strict=True):
                node = None if one.finish else child(drafts[index], paths[index][-1] - 1, one.token)
                if node is not None:
                    paths[index].append(node + 1)
                    following.append(index)
            walking = following
        for slot, row, draft, path in zip(slots, rows, drafts, paths, strict=True):
            if path != list(range(len(path))):
                self.network.keep(slot, row.filled, path)
            row.filled += len(path)
            row.drafted += len(draft.ids)
            row.foreseen += len(path) - 1
            row.draft = below(row.draft, row.written[-len(path) :])
        return self._leave(written)

    @staticmethod
    def _apart(logits_NV: Logits, order: Sequence[int], pieces: Sequence[Sequence[int]]) -> list[Logits]:
        """The logits of pieces that were read in another order, each for itself."""
        ends = accumulate(len(pieces[index]) for index in order)
        parts = {
            index: logits_NV[end - len(pieces[index]) : end] for index, end in zip(order, ends, strict=True)
        }
        return [parts[index] for index in range(len(order))]

    def _verifiable(self, row: Row) -> Draft:
        """The part of a row's draft that fits into its answer and its slot."""
        room = self.network.positions - row.filled - 1
        draft = cut(row.draft, nodes=min(room, DRAFT_NODES), depth=row.max_new_tokens - len(row.written) - 1)
        if not self.network.branches:
            path = first_path(draft)
            draft = chain([draft.ids[node] for node in path])
        return draft

    def _read(
        self, rows: Sequence[Row], pieces: Sequence[Sequence[int]], slots: Sequence[int], *, every: bool
    ) -> Logits:
        logits_NV = self.network.read(pieces, slots=slots, starts=[row.filled for row in rows], every=every)
        for row, piece in zip(rows, pieces, strict=True):
            row.filled += len(piece)
        if self.network.states is not None:
            counts = [len(piece) if every else 1 for piece in pieces]
            for row, count, end in zip(rows, counts, accumulate(counts), strict=True):
                row.states = self.network.states[end - count : end]
        return logits_NV[:, : self.vocabulary.size]  # a head may have more rows than there are tokens

    def _chosen(self, rows: Sequence[Row], logits_RV: Logits) -> list[Token]:
        """Each row's next token."""
        tokens = choose(
            logits_RV,
            [row.sampling for row in rows],
            [len(row.written) for row in rows],
            token_keys(self.vocabulary),
        )
        written = []
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            row.written.append(token)
            finish: Literal["stop", "length"] | None = None
            if token == self.vocabulary.eos_id:
                finish = "stop"
            elif len(row.written) == row.max_new_tokens:
                finish = "length"
            if row.top_logprobs is None:
                written.append(Token(row, token, None, (), finish))
            else:
                logprob, top = _logprobs(logits_RV[place], token, row.top_logprobs)
                written.append(Token(row, token, logprob, top, finish))
        return written

    def _leave(self, written: list[Token]) -> list[Token]:
        """Rows that ended free their slots."""
        for one in written:
            if one.finish:
                self.remove(one.row)
        return written

    def _swap(self, slot: int, other: int) -> int:
        """Exchange two rows; returns `other`, where the first then is."""
        if slot != other:
            rows = self.rows
            self.network.swap(slot, other, max(rows[slot].filled, rows[other].filled))
            rows[slot], rows[other] = rows[other], rows[slot]
        return other


def top_k(logits_V: Logits, count: int) -> TopK:
    """The `count` likeliest tokens and the mass of the others."""
    logp_V = log_softmax(float64(logits_V))
    ids_K = likeliest(logp_V, count)
    logp_K = logp_V[ids_K]
    return TopK(ids_K, logp_K, max(0.0, 1.0 - float(np.exp(logp_K).sum())))


def _logprobs(logits_V: Logits, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    logp_V = log_softmax(float64(logits_V))
    ids = likeliest(logp_V, count)
    return float(logp_V[token]), tuple(zip(ids.tolist(), logp_V[ids].tolist(), strict=True))
