"""What others do in place of `consort.align`, for the ablation only:

edit-distance alignment, longest-prefix maps.

Tokens are matched by dynamic time warping over the edit distance of their bytes (FuseLLM, arXiv 2401.10491;
FedMKT, arXiv 2406.02224, in FATE-LLM), and a teacher's token goes to the longest student token that begins
it. Both are wrong in known ways (docs/paper_index.md); do not use them.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from consort.align import TAIL, Spans, SparseRows, Vocabulary, align_rows, vocab_map


def transfer(
    teacher: SparseRows, source: Spans, target: Spans, source_vocab: Vocabulary, target_vocab: Vocabulary
) -> SparseRows:
    """Both rivals at once, as published."""
    pairs = edit_distance_pairs(source, target, source_vocab, target_vocab)
    return _mapped(teacher, pairs, len(target.ids) + 1, longest_prefix_map(source_vocab, target_vocab))


def edit_distance_transfer(
    teacher: SparseRows, source: Spans, target: Spans, source_vocab: Vocabulary, target_vocab: Vocabulary
) -> SparseRows:
    """Edit-distance alignment, with our vocabulary map."""
    pairs = edit_distance_pairs(source, target, source_vocab, target_vocab)
    return _mapped(teacher, pairs, len(target.ids) + 1, vocab_map(source_vocab, target_vocab).target_ids)


def longest_prefix_transfer(
    teacher: SparseRows, source: Spans, target: Spans, source_vocab: Vocabulary, target_vocab: Vocabulary
) -> SparseRows:
    """The longest-prefix map, at our shared cuts."""
    aligned = align_rows(source, target)
    pairs = list(zip(aligned.source.tolist(), aligned.target.tolist(), strict=True))
    return _mapped(teacher, pairs, len(target.ids) + 1, longest_prefix_map(source_vocab, target_vocab))


@lru_cache(maxsize=64)
def longest_prefix_map(source: Vocabulary, target: Vocabulary) -> np.ndarray:
    """Each token of `source` to the longest token of `target` that begins it."""
    pieces = {piece: index for index, piece in enumerate(target.token_bytes) if piece}
    longest = max(map(len, pieces))
    found = np.full(source.size + 1, TAIL, np.int32)
    for index, piece in enumerate(source.token_bytes):
        prefixes = (pieces.get((piece or b"")[:n]) for n in range(min(len(piece or b""), longest), 0, -1))
        found[index] = next((prefix for prefix in prefixes if prefix is not None), TAIL)
    if source.eos_id is not None and target.eos_id is not None:
        found[source.eos_id] = target.eos_id
    return found


def edit_distance_pairs(
    source: Spans, target: Spans, source_vocab: Vocabulary, target_vocab: Vocabulary
) -> list[tuple[int, int]]:
    """Rows (teacher's, student's) side by side on the cheapest monotone path through all pairs of tokens.

    Of several partners on the path, a student's token keeps the nearest.
    """
    theirs = [source_vocab.token_bytes[index] or b"" for index in source.ids.tolist()]
    ours = [target_vocab.token_bytes[index] or b"" for index in target.ids.tolist()]
    ends = (len(theirs), len(ours))
    if not theirs or not ours:
        return [ends]
    price = np.array([[_edits(a, b) for b in ours] for a in theirs])
    total = np.full((len(theirs) + 1, len(ours) + 1), np.inf)
    total[0, 0] = 0
    for i in range(1, len(theirs) + 1):
        for j in range(1, len(ours) + 1):
            total[i, j] = price[i - 1, j - 1] + min(total[i - 1, j - 1], total[i - 1, j], total[i, j - 1])
    nearest: dict[int, int] = {}
    i, j = ends
    while i and j:
        if j - 1 not in nearest or price[i - 1, j - 1] < price[nearest[j - 1], j - 1]:
            nearest[j - 1] = i - 1
        steps = (
            (total[i - 1, j - 1], i - 1, j - 1),
            (total[i - 1, j], i - 1, j),
            (total[i, j - 1], i, j - 1),
        )
        _, i, j = min(steps, key=lambda step: step[0])
    return [*((t, u) for u, t in sorted(nearest.items())), ends]


@lru_cache(maxsize=1_000_000)
def _edits(a: bytes, b: bytes) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def _mapped(
    teacher: SparseRows, pairs: list[tuple[int, int]], num_rows: int, target_ids: np.ndarray
) -> SparseRows:
    slots = teacher.ids.shape[1]
    ids, probs = np.zeros((num_rows, slots), np.int32), np.zeros((num_rows, slots), np.float32)
    mask = np.zeros(num_rows, bool)
    for source_row, target_row in pairs:
        mapped = target_ids.take(teacher.ids[source_row], mode="clip")
        unique, place = np.unique(mapped, return_inverse=True)
        mass = np.bincount(place, teacher.probs[source_row], len(unique))
        real = unique != TAIL
        ids[target_row, : real.sum()], probs[target_row, : real.sum()] = unique[real], mass[real]
        mask[target_row] = teacher.mask[source_row]
        probs[target_row] *= mask[target_row]
    return SparseRows(ids, probs, np.maximum(1 - probs.sum(axis=1), 0).astype(np.float32), mask)
