"""Next-token distributions from one tokenizer's rows to another's, where both have read the same bytes.

Row t is the distribution after t tokens, so a text of T tokens has T + 1 rows and the last one predicts its
end. Linear in rows x slots, arrays only. Runs no model and encodes no text (but a remainder that a VocabMap
sees for the first time).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from consort.align.byte_spans import Spans
    from consort.align.vocab_map import VocabMap
    from consort.types import FloatArray, IntArray


_BLOCK_ROWS = 800  # bounds the memory for long texts; smaller ones pay more in calls than the cache gains


@dataclass(frozen=True, slots=True)
class SparseRows:
    """Distributions cut to K tokens: sum(probs) + rest is 1. A slot with probability 0 is unused.

    `mask` is False where nothing is known: then all slots are unused.
    """

    ids: IntArray  # [R, K]
    probs: FloatArray  # [R, K]
    rest: FloatArray  # [R]
    mask: np.ndarray[tuple[int], np.dtype[np.bool_]]  # [R]


@dataclass(frozen=True, slots=True)
class AlignedRows:
    """Pairs of rows after which both tokenizers have read the same bytes, in order."""

    source: IntArray
    target: IntArray


def align_rows(source: Spans, target: Spans) -> AlignedRows:
    """Every shared cut of two tokenizations of one text, the beginning and the end among them."""
    rows, wanted = _lay_out([source], [target])
    found = _rows_at(rows, wanted)[0][wanted.position]
    shared = np.flatnonzero(wanted.cut & (found >= 0))
    return AlignedRows(found[shared], shared)


def chunk_log_likelihoods(
    aligned: AlignedRows, source_logprobs: FloatArray, target_logprobs: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Log-likelihood of the text between neighbouring shared cuts, under both models, by the chain rule.

    `*_logprobs[t]` is the log-probability of token t given those before it; both results have one entry per
    chunk.
    """
    source, target = (
        np.append(0.0, np.cumsum(logprobs, dtype=np.float64))
        for logprobs in (source_logprobs, target_logprobs)
    )
    return np.diff(source[aligned.source]), np.diff(target[aligned.target])


def transfer(
    teacher: SparseRows, source: Spans, target: Spans, mapping: VocabMap, *, condition: bool = True
) -> SparseRows:
    """The teacher's rows over the student's tokens: `transfer_batch` of one text."""
    return transfer_batch(teacher, [source], [target], mapping, condition=condition)


def transfer_batch(
    teacher: SparseRows,
    sources: Sequence[Spans],
    targets: Sequence[Spans],
    mapping: VocabMap,
    *,
    condition: bool = True,
) -> SparseRows:
    """Rows of several texts one after the other, T + 1 for each, carried from the teacher's tokens to the
    student's.

    At a shared cut the teacher's actual token becomes the student's actual token and the others follow the
    map; masses that meet are added. `condition` also fills the student's cuts inside a teacher's token: of
    the teacher's last row, the tokens that begin with the bytes read since, renormalised. The mass beyond
    the K tokens keeps its share there.
    """
    rows, wanted = _lay_out(sources, targets)
    assert len(teacher.ids) == len(rows.position), "one teacher row more than it has tokens, for each text"
    assert mapping.target.size.bit_length() + teacher.ids.shape[1].bit_length() < 32, (
        "id and slot fit into 32 bits"
    )
    first_at, last_at = _rows_at(rows, wanted)
    row_U, before_U = first_at[wanted.position], last_at[wanted.position]
    shared_U = wanted.cut & (row_U >= 0)
    inside_U = wanted.cut & (row_U < 0) & (rows.added[before_U] >= 0) & condition
    inside_U &= (rows.start[before_U] < wanted.position) & (wanted.position < rows.end[before_U])
    shared, inside = (np.flatnonzero(used_U & teacher.mask[before_U]) for used_U in (shared_U, inside_U))
    target_P = np.concatenate((shared, inside))
    steps = _Steps.of(rows, before_U[target_P], wanted, target_P, mapping)
    result = _nothing(len(wanted.position), teacher.ids.shape[1])
    for first in range(0, len(target_P), _BLOCK_ROWS):
        _carry(
            teacher,
            steps.part(slice(first, first + _BLOCK_ROWS)),
            max(0, len(shared) - first),
            mapping,
            result,
        )
    return result


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of some texts in one line of bytes: where each stands, and the token that comes next."""

    position: IntArray
    token: IntArray  # -1 at the end of a text
    start: IntArray
    end: IntArray
    added: IntArray
    cut: np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class _Steps:
    """Pairs of rows to carry, with the actual next token of both and where it stands."""

    source: IntArray
    target: IntArray
    actual: IntArray  # -1: unknown tokens stand for many texts, so their mass says nothing of this one
    gold: IntArray
    read: IntArray  # bytes of the actual token before this cut, a space that is not in the text among them
    added: IntArray  # 1 where the gold token has such a space

    @staticmethod
    def of(rows: _Rows, source: IntArray, wanted: _Rows, target: IntArray, mapping: VocabMap) -> _Steps:
        token, gold = rows.token[source], wanted.token[target]
        actual = np.where((mapping.lengths.take(token, mode="clip") > 0) & (gold >= 0), token, -1)
        inside = np.maximum(wanted.position[target] - rows.start[source], 0).astype(np.int32)
        read, added = np.maximum(rows.added[source], 0) + inside, np.maximum(wanted.added[target], 0)
        return _Steps(source, target, actual, gold, read, added)

    def part(self, rows: slice) -> _Steps:
        return _Steps(
            self.source[rows],
            self.target[rows],
            self.actual[rows],
            self.gold[rows],
            self.read[rows],
            self.added[rows],
        )


def _lay_out(sources: Sequence[Spans], targets: Sequence[Spans]) -> tuple[_Rows, _Rows]:
    """Both sides in one line of bytes. The end of a text has a place of its own, behind the last byte."""
    ends = [
        1 + max(int(side.ends[-1]) if len(side.ends) else 0 for side in pair)
        for pair in zip(sources, targets, strict=True)
    ]
    bases = np.cumsum([0, *(end + 1 for end in ends)]).tolist()
    return _line(sources, bases, ends), _line(targets, bases, ends)


def _line(texts: Sequence[Spans], bases: Sequence[int], ends: Sequence[int]) -> _Rows:
    count = sum(len(text.ids) + 1 for text in texts)
    position, start, end = (np.empty(count, np.int64) for _ in range(3))
    token, added = np.full(count, -1, np.int32), np.zeros(count, np.int32)
    row = 0
    for text, base, length in zip(texts, bases, ends, strict=False):
        last = row + len(text.ids)
        position[row] = base
        np.add(text.ends, base, out=position[row + 1 : last + 1])
        np.add(text.starts, base, out=start[row:last])
        end[row:last] = position[row + 1 : last + 1]
        position[last] = start[last] = end[last] = base + length
        token[row:last], added[row:last] = text.ids, text.added
        row = last + 1
    cut = position <= start  # nothing of the next token is read: false inside an indivisible piece
    cuts = np.flatnonzero(cut)
    cut[cuts[1:][np.diff(position[cuts]) == 0]] = (
        False  # a token that read no byte: the row before it stands there
    )
    return _Rows(position, token, start, end, added, cut)


def _rows_at(rows: _Rows, wanted: _Rows) -> tuple[IntArray, IntArray]:
    """For each byte of the line: the row that cuts there (-1: none), and the last row that cuts by then."""
    at = np.full(int(wanted.position[-1]) + 1, -1, np.int64)
    cuts = np.flatnonzero(rows.cut)
    at[rows.position[cuts]] = cuts
    return at, np.maximum.accumulate(at)


def _nothing(num_rows: int, num_slots: int) -> SparseRows:
    """Rows without a teacher: masked, with all their mass in the rest."""
    ids, probs = np.zeros((num_rows, num_slots), np.int32), np.zeros((num_rows, num_slots), np.float32)
    return SparseRows(ids, probs, np.ones(num_rows, np.float32), np.zeros(num_rows, bool))


def _carry(
    teacher: SparseRows, steps: _Steps, num_shared: int, mapping: VocabMap, result: SparseRows
) -> None:
    """Maps the rows at shared cuts, which come first, and those inside a token, then adds what meets."""
    ids_PK, probs_PK = teacher.ids.take(steps.source, axis=0), teacher.probs.take(steps.source, axis=0)
    shared, inside, mapped_PK = slice(0, num_shared), slice(num_shared, None), np.empty_like(ids_PK)
    mapping.target_ids.take(ids_PK[shared], mode="clip", out=mapped_PK[shared])
    _correct_shared(mapped_PK[shared], ids_PK[shared], steps.part(shared), mapping)
    if len(ids_PK) > num_shared:
        share_Q = 1.0 - teacher.rest[steps.source[inside]]
        mapped_PK[inside] = _map_inside(
            ids_PK[inside], probs_PK[inside], steps.part(inside), mapping, share_Q
        )
    _merge(mapped_PK, probs_PK)
    total_P = np.einsum("pk->p", probs_PK)
    result.ids[steps.target], result.probs[steps.target] = mapped_PK, probs_PK
    result.rest[steps.target] = np.maximum(1.0 - total_P, 0.0)
    result.mask[steps.target] = (total_P > 0) | (np.arange(len(total_P)) < num_shared)


def _correct_shared(mapped_PK: IntArray, ids_PK: IntArray, steps: _Steps, mapping: VocabMap) -> None:
    """At shared cuts the map holds, but for the actual token and for a space that is not in the text."""
    uneven_P = steps.read != steps.added
    # where only one side puts a space that is not in the text, the other's tokens lose it or gain it
    if len(uneven := np.flatnonzero(uneven_P)):
        ids_DK = ids_PK[uneven]
        read_DK = np.where(mapping.opens_word.take(ids_DK, mode="clip"), steps.read[uneven, None], 0)
        mapped_PK[uneven] = mapping.remainders(ids_DK, read_DK, steps.added[uneven, None])
    # elsewhere the map has sent most actual tokens to the actual token already
    other = np.flatnonzero(uneven_P | (mapping.target_ids.take(steps.actual, mode="clip") != steps.gold))
    if len(other):
        actual_DK = ids_PK[other] == steps.actual[other, None]
        mapped_PK[other] = np.where(actual_DK, steps.gold[other, None], mapped_PK[other])


def _map_inside(
    ids_QK: IntArray, probs_QK: FloatArray, steps: _Steps, mapping: VocabMap, share_Q: FloatArray
) -> IntArray:
    """Inside the actual token: those that begin with the bytes read of it share what the K tokens had."""
    # 1) keep the tokens that begin like the actual one, and what they had
    begins_QK = mapping.begin_alike(ids_QK, steps.actual, steps.read)
    probs_QK *= begins_QK.astype(np.float32)
    total_Q = np.einsum("qk->q", probs_QK)
    probs_QK *= (share_Q / np.where(total_Q > 0, total_Q, 1.0))[:, None]
    # 2) what follows in the target's own tokens; the actual token continues with the actual one
    mapped_QK = mapping.remainders(ids_QK, steps.read[:, None], steps.added[:, None], where=begins_QK)
    actual = np.flatnonzero(ids_QK == steps.actual[:, None])
    mapped_QK.reshape(-1)[actual] = steps.gold[actual // ids_QK.shape[1]]
    return mapped_QK


def _merge(ids_PK: IntArray, probs_PK: FloatArray) -> None:
    """In place: equal ids of a row become one slot with their sum; the tail's slots become unused."""
    slots = ids_PK.shape[1]
    bits = (slots - 1).bit_length()
    # Sorting numbers made of id and slot brings equal ids together, and nothing has to be carried along.
    keys_PK = ids_PK.view(np.uint32) << np.uint32(bits)
    keys_PK |= np.arange(slots, dtype=np.uint32)
    keys_PK.sort(axis=1)
    keys, ids, probs = keys_PK.reshape(-1), ids_PK.reshape(-1), probs_PK.reshape(-1)
    alike_PK = np.zeros(ids_PK.shape, bool)  # each key with the next one
    np.less(keys[1:] ^ keys[:-1], np.uint32(1 << bits), out=alike_PK.reshape(-1)[:-1])
    alike_PK[:, -1] = False
    # the tail sorts last, and need not meet
    tail_rows = np.flatnonzero(keys_PK[:, -1] >> np.uint32(31))
    alike_PK[tail_rows] &= keys_PK[tail_rows] >> np.uint32(31) == 0
    again = np.flatnonzero(alike_PK)
    if len(again):
        row_begins, slot_mask = again // slots * slots, np.uint32((1 << bits) - 1)
        later = row_begins + (keys.take(again + 1) & slot_mask)
        runs = np.flatnonzero(np.concatenate(([True], again[1:] - again[:-1] != 1)))
        first = row_begins.take(runs) + (keys.take(again.take(runs)) & slot_mask)
        probs[first] += np.add.reduceat(probs.take(later), runs)
        probs[later], ids[later] = 0.0, 0
    used = ids_PK[tail_rows] >= 0
    probs_PK[tail_rows] *= used.astype(np.float32)
    ids_PK[tail_rows] *= used.astype(np.int32)
