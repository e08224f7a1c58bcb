"""Align two tokenizers and carry a teacher's next-token distributions across, printing what goes where.

Where both tokenizers cut (`=`), both have read the same bytes, and the teacher's distribution is handed over
token by token. At the student's cuts inside one of the teacher's tokens (`in`) it is first conditioned on the
bytes read since. Any text will do: `python examples/align_tokenizers.py "Grüße aus Köln."`
"""

from __future__ import annotations

import sys

import numpy as np

from consort.align import Spans, SparseRows, Vocabulary, align_rows, transfer, vocab_map
from consort.config import RuntimeConfig, TuneConfig
from consort.models.local import load_model
from consort.models.zoo import zoo_dir
from consort.training.data import Sample
from consort.training.lessons import Learner
from consort.training.mutual import knowledge_of
from consort.types import Message

QUESTION = Message("user", "Report this message to the bank in one sentence.\nHello, my card is gone.")
ANSWER = "A customer reports that a card is gone."


def main(text: str) -> None:
    """Print both tokenizations, then what teacher and student hold at each cut of the student."""
    teacher = load_model(zoo_dir("cloud"), runtime=RuntimeConfig(device="cpu"))
    student = Vocabulary.of(zoo_dir("edge-qwen2"))  # its tokenizer is enough: no weights are read

    # 1) what the teacher says after each of its own tokens: 24 tokens, and the rest as one number
    [taught] = knowledge_of(Learner(teacher), [Sample((QUESTION,), text)], TuneConfig(top_k=24))
    assert taught.knowledge is not None
    rows, source = taught.knowledge.rows, taught.knowledge.spans

    # 2) the same text in the student's tokens, and the teacher's rows in the student's vocabulary
    target = student.spans(text)
    carried = transfer(rows, source, target, vocab_map(teacher.vocabulary, student))

    print(f"teacher  {'|'.join(written(source.ids, teacher.vocabulary))}")
    print(f"student  {'|'.join(written(target.ids, student))}\n")
    # 3) what goes where; row t of either side is its distribution after t tokens
    shared = set(align_rows(source, target).target.tolist())
    print("     text so far   the teacher's likeliest   the student's likeliest   actual next token")
    for position in np.flatnonzero(carried.mask).tolist():
        num_bytes = int(target.ends[position - 1]) if position else 0
        row = int(np.searchsorted(source.ends, num_bytes, side="right"))  # the teacher's last cut by then
        print(
            f"{'=' if position in shared else 'in':2}",
            f"{text.encode()[:num_bytes].decode(errors='backslashreplace')[-12:]!r:>14}",
            f"{likeliest(rows, row, teacher.vocabulary):24}",
            f"{likeliest(carried, position, student):24}",
            f"{actual(rows, row, source, teacher.vocabulary):.3f}",
            f"-> {actual(carried, position, target, student):.3f}",
        )
    inside = int(carried.mask.sum()) - len(shared)
    print(f"\n{len(target.ids) + 1} positions: {len(shared)} shared cuts, {inside} taught inside a token")


def written(ids: np.ndarray, vocabulary: Vocabulary) -> list[str]:
    """Tokens as text; bytes that are no whole character as \\x.."""
    return [(vocabulary.token_bytes[index] or b"<end>").decode(errors="backslashreplace") for index in ids]


def likeliest(rows: SparseRows, row: int, vocabulary: Vocabulary) -> str:
    """The two likeliest tokens of a row, without those of no weight."""
    slots = [slot for slot in np.argsort(-rows.probs[row])[:2] if rows.probs[row, slot] >= 0.005]
    tokens = written(rows.ids[row, slots], vocabulary)
    return "  ".join(f"{token!r} {p:.2f}" for token, p in zip(tokens, rows.probs[row, slots], strict=True))


def actual(rows: SparseRows, row: int, spans: Spans, vocabulary: Vocabulary) -> float:
    """What a row gives to the token that comes next; after the last one, the end of text."""
    gold = spans.ids[row] if row < len(spans.ids) else vocabulary.eos_id
    return float(rows.probs[row, rows.ids[row] == gold].sum())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ANSWER)
