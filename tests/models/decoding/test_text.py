"""Pieces of text are whole characters, joined they are the answer, and a stop sequence never shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consort.align import Vocabulary
from consort.models.decoding.text import TextWriter
from consort.types import TokenLogprob
from tests.tiny_models import byte_level, escaped_spaces

VOCABULARIES = {
    "byte_level": Vocabulary.of(byte_level()),
    "escaped": Vocabulary.of(escaped_spaces("bpe", lines_apart=True)),
}
TEXTS = st.text(alphabet="abcé日\U0001f469 \n", max_size=30)
STOPS = st.lists(st.text(alphabet="abcé日\U0001f469 ", min_size=1, max_size=4), max_size=3)


def pieces(vocabulary: Vocabulary, ids: list[int], stop: list[str], *, beginning: bool = True) -> list[str]:
    writer, found = TextWriter(vocabulary, stop=stop, beginning=beginning), []
    for token in ids:
        found.append(writer.write(token)[0])
        if writer.stopped:
            return found
    return [*found, writer.end()[0]]


def before_stop(text: str, stop: list[str]) -> str:
    """Character by character: cut when the first stop sequence is complete."""
    for end in range(len(text) + 1):
        complete = [one for one in stop if text[:end].endswith(one)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=list(VOCABULARIES))
@given(text=TEXTS, stop=STOPS)
def test_joined_pieces_are_the_text_up_to_the_first_stop_sequence(vocabulary, text, stop):
    assert "".join(pieces(vocabulary, vocabulary.encode(text), stop)) == before_stop(text, stop)


@given(text=TEXTS, stop=STOPS, data=st.data())
def test_the_cut_into_tokens_does_not_show(text, stop, data):
    """Bytes one by one, or as the tokenizer joins them: pieces differ, the answer does not."""
    vocabulary = VOCABULARIES["byte_level"]
    single = [vocabulary.token_bytes.index(bytes([byte])) for byte in text.encode()]
    assert "".join(pieces(vocabulary, single, stop)) == before_stop(text, stop)


@given(ids=st.lists(st.integers(0, 300), max_size=30))
def test_whatever_is_written_is_the_decoded_answer_in_whole_characters(ids):
    vocabulary = VOCABULARIES["byte_level"]
    found = pieces(vocabulary, ids, [])
    assert "".join(found) == vocabulary.decode(ids)


def test_a_character_is_given_out_when_its_last_byte_is_there():
    vocabulary = VOCABULARIES["byte_level"]
    single = [vocabulary.token_bytes.index(bytes([byte])) for byte in "é日".encode()]
    assert pieces(vocabulary, single, []) == ["", "é", "", "", "日", ""]
    assert pieces(vocabulary, single[:-1], []) == ["", "é", "", "", "�"]


def test_the_space_before_a_first_word_stays_where_a_text_is_continued():
    vocabulary = Vocabulary.of(escaped_spaces("bpe", lines_apart=True))
    ids = vocabulary.encode(" the")
    assert "".join(pieces(vocabulary, ids, [], beginning=False)) == " the"


@given(text=TEXTS, stop=STOPS)
def test_log_probabilities_come_with_their_text_each_once(text, stop):
    vocabulary = VOCABULARIES["byte_level"]
    writer = TextWriter(vocabulary, stop=stop, beginning=True)
    shown, heard, ids = "", [], vocabulary.encode(text)
    for place, token in enumerate(ids):
        piece, logprobs = writer.write(token, TokenLogprob(str(place), 0.0))
        shown += piece
        heard += [int(one.token) for one in logprobs]
        if writer.stopped:
            break
    else:
        piece, logprobs = writer.end()
        shown += piece
        heard += [int(one.token) for one in logprobs]
    assert heard == list(range(len(heard)))
    covered = b"".join(vocabulary.token_bytes[ids[place]] for place in heard)
    assert covered.startswith(shown.encode())
    assert writer.stopped or len(heard) == len(ids)
