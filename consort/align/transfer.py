"""Next-token distributions from one tokenizer's rows to another's, where both have read the same bytes.

Row t is the distribution after t tokens, so a text of T tokens has T + 1 rows and the last one predicts its
end. Linear in rows x slots, arrays only. Runs no model and encodes no text (but a remainder that a VocabMap
sees for the first time).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from consort.align.vocab_map import TAIL, VocabMap

if TYPE_CHECKING:
    from consort.align.byte_spans import Spans
    from consort.types import BoolArray, FloatArray, IntArray


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
    found = _last_cuts(rows, wanted)
    shared = np.flatnonzero(wanted.cut & (rows.position[found] == wanted.position))
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
    # 1) every row as if the map held there, then the rows where it does not: fewer calls than in two parts
    steps = _Steps.of(rows, wanted, teacher, mapping, condition=condition)
    ids_UK = mapping.first_tokens(teacher.ids.take(steps.source, axis=0))
    probs_UK = teacher.probs.take(steps.source, axis=0).astype(np.float32, copy=False)
    _even_spaces(ids_UK, teacher, steps, mapping)
    _set_actual(ids_UK, teacher, steps, mapping)
    _condition(ids_UK, probs_UK, teacher, steps, mapping)
    ids_UK[~(steps.shared | steps.inside)] = _tails(ids_UK.shape[1])
    # 2) add what meets
    _merge(ids_UK, probs_UK)
    total_U = np.einsum("uk->u", probs_UK)
    return SparseRows(ids_UK, probs_UK, np.maximum(1.0 - total_U, 0.0), steps.shared | (total_U > 0))


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of some texts in one line of bytes: where each stands, and the token that comes next."""

    position: IntArray
    start: IntArray
    end: IntArray
    token: IntArray  # -1 at the end of a text
    added: IntArray
    cut: BoolArray


@dataclass(frozen=True, slots=True)
class _Steps:
    """For each of the student's rows, the teacher's last row that cuts by then, and what both read next."""

    source: IntArray
    shared: BoolArray  # the teacher cuts at the same byte
    inside: BoolArray  # the student cuts inside the teacher's next token
    actual: IntArray  # -1: unknown tokens stand for many texts, so their mass says nothing of this one
    gold: IntArray
    read: IntArray  # bytes of the actual token before this cut, a space that is not in the text among them
    added: IntArray  # 1 where the gold token has such a space

    @staticmethod
    def of(rows: _Rows, wanted: _Rows, teacher: SparseRows, mapping: VocabMap, *, condition: bool) -> _Steps:
        source = _last_cuts(rows, wanted)
        begun = wanted.position - rows.start[source]
        taught = wanted.cut & teacher.mask[source]
        shared = taught & (rows.position[source] == wanted.position)
        source_added = rows.added[source]
        inside = taught & (begun > 0) & (wanted.position < rows.end[source]) & (source_added >= 0) & condition
        token = rows.token[source]
        actual = np.where((mapping.lengths.take(token, mode="clip") > 0) & (wanted.token >= 0), token, -1)
        read = np.maximum(source_added, 0) + np.maximum(begun, 0)
        return _Steps(source, shared, inside, actual, wanted.token, read, np.maximum(wanted.added, 0))


def _lay_out(sources: Sequence[Spans], targets: Sequence[Spans]) -> tuple[_Rows, _Rows]:
    """Both sides in one line of bytes. The end of a text has a place of its own, behind the last byte."""
    ends = [
        1 + max(int(side.ends[-1]) if len(side.ends) else 0 for side in pair)
        for pair in zip(sources, targets, strict=True)
    ]
    bases = list(accumulate((end + 1 for end in ends), initial=0))
    num_source, num_target = (sum(len(text.ids) + 1 for text in side) for side in (sources, targets))
    position, start, end, token, added = np.empty((5, num_source + num_target), np.int32)
    row = 0
    for text, base, length in zip([*sources, *targets], bases[:-1] * 2, ends * 2, strict=True):
        last = row + len(text.ids)
        position[row] = base
        np.add(text.ends, base, out=position[row + 1 : last + 1])
        np.add(text.starts, base, out=start[row:last])
        end[row:last] = position[row + 1 : last + 1]
        position[last] = start[last] = end[last] = base + length
        token[row:last], added[row:last] = text.ids, text.added
        token[last], added[last] = -1, 0
        row = last + 1
    cut = position <= start  # nothing of the next token is read: false inside an indivisible piece
    cuts = np.flatnonzero(cut)
    stands = position[cuts]
    # a token that read no byte: the row before it stands there
    cut[cuts[1:][stands[1:] == stands[:-1]]] = False
    cut[num_source] = True  # but that is another side's
    sides = slice(num_source), slice(num_source, None)
    source, target = (
        _Rows(position[side], start[side], end[side], token[side], added[side], cut[side]) for side in sides
    )
    return source, target


def _last_cuts(rows: _Rows, wanted: _Rows) -> IntArray:
    """For each row of `wanted`, the last of `rows` that cuts by then: the first row of a text always does."""
    cuts = np.flatnonzero(rows.cut)
    return cuts[np.searchsorted(rows.position[cuts], wanted.position, side="right") - 1]


def _even_spaces(ids_UK: IntArray, teacher: SparseRows, steps: _Steps, mapping: VocabMap) -> None:
    """At shared cuts where only one side puts a space that is not in the text, the other's tokens lose it or
    gain it.
    """
    rows = np.flatnonzero(steps.shared & (steps.read != steps.added))
    if len(rows):
        from_DK = teacher.ids[steps.source[rows]]
        read_DK = mapping.opening_spaces.take(from_DK, mode="clip") * steps.read[rows, None]
        ids_UK[rows] = mapping.remainders(from_DK, read_DK, steps.added[rows, None])


def _condition(
    ids_UK: IntArray, probs_UK: FloatArray, teacher: SparseRows, steps: _Steps, mapping: VocabMap
) -> None:
    """Inside the actual token: those that begin with the bytes read of it share what the K tokens had."""
    rows = np.flatnonzero(steps.inside)
    if not len(rows):
        return
    # 1) keep the tokens that begin like the actual one, and what they had
    source_Q, read_Q, actual_Q = steps.source[rows], steps.read[rows], steps.actual[rows]
    from_QK, probs_QK = teacher.ids.take(source_Q, axis=0), teacher.probs.take(source_Q, axis=0)
    begins_QK = mapping.source.beginnings.alike(from_QK, actual_Q, read_Q)
    total_Q = np.einsum("qk,qk->q", probs_QK, begins_QK)
    probs_QK *= ((1.0 - teacher.rest[source_Q]) / np.where(total_Q > 0, total_Q, np.float32(1)))[:, None]
    # 2) what follows in the target's own tokens, and the actual one after the actual one
    ids_QK = np.empty_like(from_QK)
    ids_QK[:] = _tails(from_QK.shape[1])
    ids = ids_QK.reshape(-1)
    places = begins_QK.reshape(-1).nonzero()[0]
    place_rows = places // from_QK.shape[1]
    ids[places] = mapping.remainders(
        from_QK.reshape(-1).take(places), read_Q.take(place_rows), steps.added[rows].take(place_rows)
    )
    actual = (from_QK == actual_Q[:, None]).reshape(-1).nonzero()[0]
    ids[actual] = steps.gold[rows].take(actual // from_QK.shape[1])
    ids_UK[rows], probs_UK[rows] = ids_QK, probs_QK


def _set_actual(ids_UK: IntArray, teacher: SparseRows, steps: _Steps, mapping: VocabMap) -> None:
    """The actual token goes on with the actual one; at most shared cuts the map has sent it there."""
    mapped_U = mapping.target_ids.take(steps.actual, mode="clip")
    rows = np.flatnonzero(steps.shared & ((steps.read != steps.added) | (mapped_U != steps.gold)))
    hits = np.flatnonzero(teacher.ids.take(steps.source[rows], axis=0) == steps.actual[rows, None])
    found, slots = np.divmod(hits, ids_UK.shape[1])
    ids_UK[rows[found], slots] = steps.gold[rows[found]]


def _tails(num_slots: int) -> IntArray:
    """A row of slots in the tail, whose ids do not meet: below 0, and each another."""
    return np.arange(TAIL, TAIL - num_slots, -1, dtype=np.int32)


def _merge(ids_UK: IntArray, probs_UK: FloatArray) -> None:
    """In place: equal ids of a row become one slot with their sum; slots in the tail become unused."""
    # 1) sorting numbers made of id and slot brings equal ids together, and says where they were
    num_slots = ids_UK.shape[1]
    slot_bits = num_slots.bit_length()
    keys_UK = ids_UK.view(np.uint32) << np.uint32(slot_bits)
    keys_UK |= np.arange(num_slots, dtype=np.uint32)
    keys_UK.sort(axis=1)
    keys, ids, probs = keys_UK.reshape(-1), ids_UK.reshape(-1), probs_UK.reshape(-1)
    alike_UK = np.empty(ids_UK.shape, bool)
    alike = alike_UK.reshape(-1)
    np.less(keys[1:] ^ keys[:-1], np.uint32(1 << slot_bits), out=alike[1:])
    alike_UK[:, 0] = False
    # 2) runs of equal ids: the later ones join the first
    again = alike.nonzero()[0]
    if len(again):
        slot_mask = np.uint32((1 << slot_bits) - 1)
        row_start = again.astype(np.uint32) // np.uint32(num_slots) * np.uint32(num_slots)
        later = ((keys.take(again) & slot_mask) + row_start).astype(np.intp)
        runs = (~alike.take(again - 1)).nonzero()[0]
        first = (keys.take(again.take(runs) - 1) & slot_mask) + row_start.take(runs)
        probs[first] += np.add.reduceat(probs.take(later), runs)
        ids[later] = TAIL
    # 3) all bits of what is in the tail become 0
    used_UK = ids_UK >> 31
    np.invert(used_UK, out=used_UK)
    ids_UK &= used_UK
    probs_UK.view(np.int32)[...] &= used_UK
