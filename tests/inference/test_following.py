"""A follower reads the writer's bytes in its own tokens, never a fragment out of context, and keeps its
masses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.errors import ModelError
from consort.inference.following import Written, follower
from consort.inference.white_box import vocabulary_of, white_box
from consort.models.decoding.lm import LocalLM
from consort.types import Message, Request, TopK
from tests.inference.consorts import says
from tests.tiny_models import byte_level, escaped_spaces, tiny

REQUEST = Request((Message("user", "the clinic opens"),))
TEXTS = st.text(st.sampled_from("the clinic opens at nine, error 17: grüße aus Köln\n€"), max_size=24)


@cache
def readers() -> tuple[LocalLM, LocalLM]:
    """Two models whose tokenizers cut, and put spaces, differently; every token's probability is shown."""
    kinds = (byte_level(), escaped_spaces("bpe", lines_apart=True))
    return tuple(  # type: ignore[return-value]
        LocalLM(tiny(tokenizer=kind), answers=0, sessions=3, context_tokens=128, alternatives=1000)
        for kind in kinds
    )


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    for lm in readers():
        lm.close()
    readers.cache_clear()


def writers(text: str) -> list[list[Written]]:
    """The text as each model's tokens would be written one by one, from the beginning."""
    found = []
    for lm in readers():
        vocabulary = vocabulary_of(lm)
        ids = vocabulary.spans(text).ids.tolist()
        steps = []
        for count in range(len(ids) + 1):
            raw = b"".join(vocabulary.token_bytes[index] or b"" for index in ids[:count])
            steps.append(Written(tuple(ids[:count]), raw.removeprefix(b" " * vocabulary.adds_space)))
        found.append(steps)
    return found


def dense(top: TopK) -> np.ndarray:
    found = np.zeros(1000)
    found[top.ids] = np.exp(top.logprobs)
    return found


@settings(max_examples=10, deadline=None, derandomize=True)
@given(TEXTS)
def test_both_tokenizations_hold_the_same_bytes_and_masses_are_kept(text: str) -> None:
    for number, steps in enumerate(writers(text)):
        writer_lm, reader_lm = readers()[number], readers()[1 - number]
        vocabulary, own = vocabulary_of(writer_lm), vocabulary_of(reader_lm)
        session, first = writer_lm.open(REQUEST)
        reader = follower(reader_lm, REQUEST, vocabulary)
        try:
            for written in steps:
                reader.follow(written)
                top = session.extend(written.ids[-1:])[-1] if written.ids else first
                heard = reader.heard(top)
                if heard is not None:
                    assert float(np.exp(heard.logprobs).sum()) + heard.rest == pytest.approx(1, abs=1e-9)
                    assert (heard.ids >= 0).all()
                    assert (heard.ids < vocabulary.size).all()
            whole = own.spans(text).ids.tolist()
            assert reader._ids == whole  # as if it had read the text at once
            again, last = reader_lm.open(REQUEST)
            expected = again.extend(whole)[-1] if whole else last
            again.close()
            assert dense(reader._rows[-1]) == pytest.approx(dense(expected), abs=1e-5)
        finally:
            session.close()
            reader.close()


def test_with_one_tokenizer_nothing_is_carried() -> None:
    lm = readers()[0]
    reader = follower(lm, REQUEST, vocabulary_of(lm))
    session, first = lm.open(REQUEST)
    assert (reader.heard(None).ids == first.ids).all()  # type: ignore[union-attr]
    ids = vocabulary_of(lm).encode("nine")
    reader.follow(Written(tuple(ids), b"nine"))
    expected = session.extend(ids)[-1]
    assert (reader.heard(None).logprobs == expected.logprobs).all()  # type: ignore[union-attr]
    session.close()
    reader.close()


def test_the_likeliest_word_is_the_writer_s_own_first_token_of_it() -> None:
    writer, reading = (vocabulary_of(lm) for lm in readers())
    reader = follower(readers()[1], REQUEST, writer)
    word = reading.encode("clinic")[0]
    reader._rows = [TopK(np.array([word]), np.array([-1e-9]), 0.0)]  # type: ignore[attr-defined]
    text = reading.token_bytes[word] or b""
    expected = writer.encode(text.decode())[0]
    only = TopK(np.array([expected]), np.array([0.0]), 0.0)
    assert reader.heard(only).ids[0] == expected  # type: ignore[union-attr]
    reader.close()


def test_an_endpoint_cannot_be_read_along() -> None:
    with pytest.raises(ModelError, match="distributions can be read"):
        white_box(says("far", "words"), where="mix")
