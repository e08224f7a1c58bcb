"""A follower reads the writer's bytes in its own tokens, never a fragment out of context, and keeps its
masses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.align import vocab_map
from consort.errors import ModelError
from consort.inference.across import Across
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
                heard = reader.heard((top,))
                if heard is not None:
                    assert float(np.exp(heard.logprobs).sum()) + heard.rest == pytest.approx(1, abs=1e-9)
                    assert (heard.ids >= 0).all()
                    assert (heard.ids < vocabulary.size).all()
            whole = own.spans(text).ids.tolist()
            reader.follow(steps[-1])  # what was read ahead is taken back
            assert reader._held[: len(whole)] == whole  # as if it had read the text at once
            again, last = reader_lm.open(REQUEST)
            expected = again.extend(whole)[-1] if whole else last
            again.close()
            assert dense(reader._rows[len(whole)]) == pytest.approx(dense(expected), abs=1e-5)
        finally:
            session.close()
            reader.close()


def test_with_one_tokenizer_nothing_is_carried() -> None:
    lm = readers()[0]
    reader = follower(lm, REQUEST, vocabulary_of(lm))
    session, first = lm.open(REQUEST)
    reader.follow(Written((), b""))
    assert (reader.heard(()).ids == first.ids).all()  # type: ignore[union-attr]
    ids = vocabulary_of(lm).encode("nine")
    reader.follow(Written(tuple(ids), b"nine"))
    expected = session.extend(ids)[-1]
    assert (reader.heard(()).logprobs == expected.logprobs).all()  # type: ignore[union-attr]
    session.close()
    reader.close()


class Sure:
    """A session that wants one answer, whatever it has read."""

    def __init__(self, wanted: Sequence[int], size: int) -> None:
        self.wanted, self.size, self.read = list(wanted), size, list[int]()

    def next(self) -> TopK:
        place = len(self.read)
        right = self.read == self.wanted[:place] and place < len(self.wanted)
        token = self.wanted[place] if right else self.size - 1
        return TopK(np.array([token]), np.log([0.99]), 0.01)

    def extend(self, ids: Sequence[int]) -> list[TopK]:
        found = []
        for index in ids:
            self.read.append(index)
            found.append(self.next())
        return found

    def rewind(self, num_tokens: int) -> None:
        assert 0 < num_tokens <= len(self.read)
        del self.read[len(self.read) - num_tokens :]

    def close(self) -> None:
        self.read = []


@pytest.mark.parametrize(
    "text", ["the clinic opens at nine", "grüße aus Köln", "400 euro, error 17", "€ nein"]
)
@pytest.mark.parametrize("number", [0, 1])
def test_what_a_sure_model_wants_to_write_is_what_is_written_token_by_token(text: str, number: int) -> None:
    writer, own = (vocabulary_of(lm) for lm in (readers()[number], readers()[1 - number]))
    assert writer.eos_id is not None
    assert own.eos_id is not None
    session = Sure([*own.spans(text).ids.tolist(), own.eos_id], own.size)
    reader = Across(session, session.next(), mapping=vocab_map(own, writer))
    others = TopK(np.arange(writer.size), np.full(writer.size, -np.log(writer.size)), 0.0)  # want anything
    ids: list[int] = []
    raw = b""
    while len(ids) < 40:
        reader.follow(Written(tuple(ids), raw.removeprefix(b" " * writer.adds_space)))
        heard = reader.heard((others,))
        assert heard is not None
        ids.append(int(heard.ids[0]))
        assert np.exp(heard.logprobs[0]) > 0.8
        if ids[-1] == writer.eos_id:
            break
        raw += writer.token_bytes[ids[-1]] or b""
    assert writer.decode(ids) == text


def test_a_word_of_the_writer_s_has_the_mass_of_all_ways_to_begin_so() -> None:
    """Two words of the reader's begin with one of the writer's, which has the mass of both, but for that of a
    longer token of the writer's."""
    writer, own = (vocabulary_of(lm) for lm in readers())
    session = Sure([], own.size)
    short, long_ = (own.token_bytes.index(piece) for piece in (b"a", b"at"))
    first = TopK(np.array([short, long_]), np.log([0.3, 0.6]), 0.1)
    reader = Across(session, first, mapping=vocab_map(own, writer))
    pieces = [writer.token_bytes.index(piece) for piece in (b"a", b"at")]
    heard = reader.heard((TopK(np.array(pieces), np.log([0.5, 0.4]), 0.1),))
    assert heard is not None
    masses = dict(zip(heard.ids.tolist(), np.exp(heard.logprobs).tolist(), strict=True))
    assert [masses[piece] for piece in pieces] == pytest.approx([0.3, 0.6], abs=1e-3)


def test_a_long_answer_that_it_finds_unlikely_is_followed_to_the_end() -> None:
    writer, own = (vocabulary_of(lm) for lm in readers())
    session = Sure([], own.size)
    reader = Across(session, session.next(), mapping=vocab_map(own, writer))
    text = "the clinic opens at nine " * 20  # whose probability is below the least float
    reader.follow(Written(tuple(writer.encode(text)), text.encode()))
    word = writer.encode("the")[0]
    heard = reader.heard((TopK(np.array([word]), np.array([0.0]), 0.0),))
    assert heard is not None
    assert np.isfinite(heard.logprobs).all()
    assert reader._last_word() > 50  # what stands before is not encoded again for every token that is weighed


def test_an_endpoint_cannot_be_read_along() -> None:
    with pytest.raises(ModelError, match="distributions can be read"):
        white_box(says("far", "words"), where="mix")
