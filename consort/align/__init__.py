"""Exact alignment over bytes: one tokenizer's tokens, rows and distributions as another's."""

from consort.align.byte_spans import Spans
from consort.align.transfer import (
    AlignedRows,
    SparseRows,
    align_rows,
    chunk_log_likelihoods,
    transfer,
    transfer_batch,
)
from consort.align.vocab_map import TAIL, VocabMap, vocab_map
from consort.align.vocabulary import Vocabulary

__all__ = [
    "TAIL",
    "AlignedRows",
    "Spans",
    "SparseRows",
    "VocabMap",
    "Vocabulary",
    "align_rows",
    "chunk_log_likelihoods",
    "transfer",
    "transfer_batch",
    "vocab_map",
]
