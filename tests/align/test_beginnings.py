"""Beginnings agree with `bytes.startswith`, for tokens of any bytes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from consort.align import Vocabulary
from consort.align.beginnings import Beginnings
from tests.align.texts_and_teachers import NAMES

few_bytes = st.lists(st.sampled_from(b"\x00 a\xff"), max_size=12).map(bytes)


@given(token_bytes=st.lists(st.none() | few_bytes, min_size=1, max_size=20))
def test_tokens_that_begin_alike_are_found_whatever_their_bytes(token_bytes: list[bytes | None]) -> None:
    beginnings, size = Beginnings.of(token_bytes), len(token_bytes)
    ids = np.arange(size + 2, dtype=np.int32)  # a head may be padded beyond the vocabulary
    for token, piece in enumerate(token_bytes):
        for length in range(1, len(piece or b"") + 1):
            found = beginnings.alike(ids[None], np.array([token]), np.array([length]))[0]
            expected = [(other or b"").startswith((piece or b"")[:length]) for other in token_bytes]
            assert found.tolist() == [*expected, False, False]


def test_the_real_tokenizers_have_the_beginnings_that_their_bytes_have(
    vocabularies: dict[str, Vocabulary],
) -> None:
    rng = np.random.default_rng(0)
    for name in NAMES:
        vocabulary = vocabularies[name]
        pieces = [piece or b"" for piece in vocabulary.token_bytes]
        tokens = rng.choice(np.flatnonzero(vocabulary.lengths), 40)
        lengths = rng.integers(1, vocabulary.lengths[tokens] + 1)
        ids = rng.integers(0, vocabulary.size, (40, 500)).astype(np.int32)
        ids[:, 0] = tokens
        found = vocabulary.beginnings.alike(ids, tokens, lengths)
        for row, (token, length) in enumerate(zip(tokens.tolist(), lengths.tolist(), strict=True)):
            begin = pieces[token][:length]
            assert found[row].tolist() == [pieces[index].startswith(begin) for index in ids[row].tolist()]
