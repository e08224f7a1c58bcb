"""Laws of transfer:

mass is conserved, certainty stays certain, equal tokenizers change nothing, ids never repeat.
"""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings

from consort.align import (
    TAIL,
    Spans,
    SparseRows,
    VocabMap,
    Vocabulary,
    align_rows,
    chunk_log_likelihoods,
    transfer,
    transfer_batch,
    vocab_map,
)
from consort.align.vocab_map import own_first_tokens
from tests.align.texts_and_teachers import PAIRS, PROSE, any_text, certain_teacher, random_teacher


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_certain_teacher_makes_the_student_certain_of_its_own_next_token(
    vocabularies: dict[str, Vocabulary], source: str, target: str
) -> None:
    _check_certainty(vocabularies[source], vocabularies[target], PROSE)


@settings(max_examples=12, deadline=None)
@given(text=any_text)
@pytest.mark.parametrize(("source", "target"), [PAIRS[i] for i in (0, 11, 18, 25, 33, 39, 46, 51)])
def test_certainty_over_any_text(
    vocabularies: dict[str, Vocabulary], source: str, target: str, text: str
) -> None:
    _check_certainty(vocabularies[source], vocabularies[target], text)


def _check_certainty(source: Vocabulary, target: Vocabulary, text: str) -> None:
    spans, wanted = source.spans(text), target.spans(text)
    rows = transfer(certain_teacher(spans, source), spans, wanted, vocab_map(source, target))
    assert rows.mask[0] or len(wanted.ids) == 0 or len(spans.ids) == 0
    assert rows.mask[-1]
    golds = [*wanted.ids.tolist(), target.eos_id]
    unknown = {
        int(u)
        for u, t in _pairs(spans, wanted)
        if t < len(spans.ids) and source.token_bytes[spans.ids[t]] is None
    }
    for row in np.flatnonzero(rows.mask).tolist():
        if row in unknown:
            assert rows.rest[row] == 1  # an unknown token says nothing of this text
        else:
            assert rows.ids[row][rows.probs[row].argmax()] == golds[row]
            assert rows.probs[row].max() == pytest.approx(1)


def _pairs(source: Spans, target: Spans) -> list[tuple[int, int]]:
    aligned = align_rows(source, target)
    return list(zip(aligned.target.tolist(), aligned.source.tolist(), strict=True))


@settings(max_examples=12, deadline=None)
@given(text=any_text)
@pytest.mark.parametrize(("source", "target"), [PAIRS[i] for i in (3, 9, 14, 22, 28, 37, 45, 54)])
def test_mass_is_conserved_and_ids_never_repeat(
    vocabularies: dict[str, Vocabulary], source: str, target: str, text: str
) -> None:
    spans, wanted = vocabularies[source].spans(text), vocabularies[target].spans(text)
    teacher = random_teacher(spans, vocabularies[source], slots=24, seed=len(text))
    mapping = vocab_map(vocabularies[source], vocabularies[target])
    for condition in (True, False):
        rows = transfer(teacher, spans, wanted, mapping, condition=condition)
        np.testing.assert_allclose(rows.probs.sum(axis=1) + rows.rest, 1, atol=1e-5)
        assert (rows.probs >= 0).all()
        assert (rows.rest >= 0).all()
        assert not rows.probs[~rows.mask].any()
        for ids, probs in zip(rows.ids, rows.probs, strict=True):
            assert len(np.unique(ids[probs > 0])) == np.count_nonzero(probs)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("gpt-neox", "llama2"),
        ("llama2", "gpt2"),
        ("gpt2", "deepseek-llm"),
        ("t5-unigram", "falcon"),
        ("bert-wordpiece", "deepseek-llm"),
        ("starcoder", "t5-unigram"),
    ],
)
def test_transfer_equals_its_definition_written_out(
    vocabularies: dict[str, Vocabulary], source: str, target: str
) -> None:
    a, b = vocabularies[source], vocabularies[target]
    spans, wanted = a.spans(PROSE), b.spans(PROSE)
    teacher, mapping = random_teacher(spans, a, slots=96, seed=7), vocab_map(a, b)
    rows = transfer(teacher, spans, wanted, mapping)
    for row, expected in enumerate(_by_definition(teacher, spans, wanted, mapping)):
        assert _mass(rows, row) == pytest.approx({i: p for i, p in expected.items() if p > 0}, abs=1e-5), row


def _by_definition(
    teacher: SparseRows, source: Spans, target: Spans, mapping: VocabMap
) -> list[dict[int, float]]:
    """One row and one token at a time."""
    rows: list[dict[int, float]] = [defaultdict(float) for _ in range(len(target.ids) + 1)]
    cuts = dict(_pairs(source, target))
    pieces, size = mapping.source.token_bytes, len(source.ids)
    for u in range(len(rows)):
        position = int(target.ends[u - 1]) if u else 0
        gold = int(target.ids[u]) if u < len(target.ids) else mapping.target.eos_id
        t, read = cuts.get(u), b""
        space = b""
        if t is None:
            t = next(
                (
                    i
                    for i in range(size)
                    if source.starts[i] < position < source.ends[i] and source.added[i] >= 0
                ),
                None,
            )
            if (
                t is None
                or t not in set(align_rows(source, source).source.tolist())
                or u not in set(align_rows(target, target).target.tolist())
            ):
                continue
            actual = pieces[source.ids[t]] or b""
            read = actual[: int(source.added[t]) + position - int(source.starts[t])]
        elif t < size and source.added[t] != target.added[min(u, len(target.ids) - 1)]:
            read = b" " if source.added[t] > 0 else b""
            space = b" " if u < len(target.ids) and target.added[u] > 0 else b""
        shared = u in cuts
        slots = [(int(i), float(p)) for i, p in zip(teacher.ids[t], teacher.probs[t], strict=True)]
        if not shared:
            slots = [(i, p) for i, p in slots if (pieces[i] or b"").startswith(read)]
            total = sum(p for _, p in slots)
            slots = [(i, p * (1 - float(teacher.rest[t])) / total) for i, p in slots] if total else []
        for i, p in slots:
            piece = pieces[i]
            if t < size and i == source.ids[t] and piece is not None:
                rows[u][gold] += p
            elif piece is None:
                to = int(mapping.target_ids[i])
                if to != TAIL:
                    rows[u][to] += p
            else:
                rest = piece[len(read) :] if piece.startswith(read) else piece
                found = int(own_first_tokens([space + rest], mapping.target)[0])
                found = int(own_first_tokens([rest], mapping.target)[0]) if found == TAIL and space else found
                if found != TAIL:
                    rows[u][found] += p
    return rows


def test_equal_tokenizers_change_nothing(vocabularies: dict[str, Vocabulary]) -> None:
    vocabulary = vocabularies["falcon"]
    spans = vocabulary.spans(PROSE)
    teacher = random_teacher(spans, vocabulary, slots=32, seed=1)
    rows = transfer(teacher, spans, spans, vocab_map(vocabulary, vocabulary))
    assert rows.mask.all()
    for row in range(len(rows.mask)):
        assert _mass(rows, row) == pytest.approx(_mass(teacher, row), abs=1e-6)


def _mass(rows: SparseRows, row: int) -> dict[int, float]:
    return {int(i): float(p) for i, p in zip(rows.ids[row], rows.probs[row], strict=True) if p > 0}


def test_a_batch_equals_its_texts_one_by_one(vocabularies: dict[str, Vocabulary]) -> None:
    a, b = vocabularies["llama2"], vocabularies["gpt2"]
    texts = ["Yes.", "", "refund_not_showing_up", "日本 😀", PROSE, " "]
    pairs = [(a.spans(text), b.spans(text)) for text in texts]
    teachers = [random_teacher(spans, a, slots=128, seed=i) for i, (spans, _) in enumerate(pairs)]
    mapping = vocab_map(a, b)
    alone = [transfer(t, s, w, mapping) for t, (s, w) in zip(teachers, pairs, strict=True)]
    together = transfer_batch(
        SparseRows(
            *(
                np.concatenate([getattr(t, name) for t in teachers])
                for name in ("ids", "probs", "rest", "mask")
            )
        ),
        [s for s, _ in pairs],
        [w for _, w in pairs],
        mapping,
    )
    for name in ("ids", "probs", "rest", "mask"):
        np.testing.assert_array_equal(
            getattr(together, name), np.concatenate([getattr(t, name) for t in alone])
        )


def test_masked_teacher_rows_teach_nothing_and_foreign_ids_go_to_the_rest(
    vocabularies: dict[str, Vocabulary],
) -> None:
    a, b = vocabularies["gpt2"], vocabularies["llama2"]
    spans, wanted = a.spans("one two"), b.spans("one two")
    ids = np.full((3, 2), a.size + 40, np.int32)  # a head padded beyond the vocabulary
    teacher = SparseRows(
        ids, np.full((3, 2), 0.5, np.float32), np.zeros(3, np.float32), np.array([True, False, True])
    )
    rows = transfer(teacher, spans, wanted, vocab_map(a, b))
    assert rows.mask.tolist() == [True, False, True]
    assert rows.rest.tolist() == [1, 1, 1]


def test_conditioning_keeps_only_what_agrees_with_the_bytes_read(vocabularies: dict[str, Vocabulary]) -> None:
    a, b = vocabularies["gpt2"], vocabularies["llama2"]
    text = "cost 48"
    spans, wanted = a.spans(text), b.spans(text)  # "cost", " 48" against "▁cost", "▁", "4", "8"
    names = [b" 48", b" 4", b" 5", b" dollars", b"ly"]
    ids = np.tile(np.array([a.token_bytes.index(name) for name in names], np.int32), (3, 1))
    probs = np.tile(np.array([0.2, 0.1, 0.1, 0.3, 0.2], np.float32), (3, 1))
    rows = transfer(
        SparseRows(ids, probs, np.full(3, 0.1, np.float32), np.ones(3, bool)), spans, wanted, vocab_map(a, b)
    )
    got = [{b.token_bytes[i]: p for i, p in _mass(rows, row).items()} for row in (2, 3)]
    # after the space, .9 is shared in proportion by " 48" and " 4" (both "4"), " 5" and " dollars"
    assert got[0][b"4"] == pytest.approx(0.9 * 0.3 / 0.7)
    assert got[0][b"5"] == pytest.approx(0.9 * 0.1 / 0.7)
    assert sum(got[0].values()) == pytest.approx(0.9)
    # after "4", .9 is shared by " 48" and " 4"; of the latter nothing is left, so its part joins the rest
    assert got[1] == {b"8": pytest.approx(0.6)}
    assert rows.rest[3] == pytest.approx(0.4)


@settings(max_examples=40, deadline=None)
@given(text=any_text)
def test_chunks_add_up_to_the_text(vocabularies: dict[str, Vocabulary], text: str) -> None:
    source, target = vocabularies["gpt2"].spans(text), vocabularies["llama2"].spans(text)
    rng = np.random.default_rng(len(text))
    source_logprobs, target_logprobs = -rng.random(len(source.ids)), -rng.random(len(target.ids))
    chunks = chunk_log_likelihoods(align_rows(source, target), source_logprobs, target_logprobs)
    assert chunks[0].sum() == pytest.approx(source_logprobs.sum())
    assert chunks[1].sum() == pytest.approx(target_logprobs.sum())
    assert len(chunks[0]) == len(chunks[1])
