"""Law of the spans:

after every cut, the tokens so far are the text so far. Checked without the spans' own reasoning.
"""

import numpy as np
import pytest
from hypothesis import given, settings

from consort.align import Vocabulary, align_rows
from consort.errors import DataError
from tests.align.oracle import wrong_cuts
from tests.align.texts_and_teachers import NAMES, any_text

LOSSLESS = ("deepseek-llm", "gpt2", "llama2")  # every byte of a text is in their tokens


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(text=any_text)
def test_after_every_cut_the_tokens_so_far_are_the_text_so_far(
    vocabularies: dict[str, Vocabulary], name: str, text: str
) -> None:
    spans = vocabularies[name].spans(text)
    assert spans.ids.tolist() == vocabularies[name].encode(text)
    assert wrong_cuts(vocabularies[name], text, spans) == []


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(text=any_text)
def test_spans_are_ordered_and_inside_the_text(
    vocabularies: dict[str, Vocabulary], name: str, text: str
) -> None:
    spans = vocabularies[name].spans(text)
    assert (np.diff(spans.ends) >= 0).all()
    assert (np.diff(spans.starts) >= 0).all()
    assert (spans.starts <= spans.ends).all()
    assert not len(spans.ids) or (spans.starts[0] >= 0 and spans.ends[-1] <= len(text.encode()))


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=15, deadline=None)
@given(text=any_text)
def test_decoding_gives_back_the_text(vocabularies: dict[str, Vocabulary], name: str, text: str) -> None:
    vocabulary = vocabularies[name]
    written = (
        text.replace("▁", " ") if vocabulary.adds_space else text
    )  # SentencePiece's sign for a space is one
    assert vocabulary.decode(vocabulary.encode(text)) == written


def test_bytes_of_one_character_are_placed_one_by_one(vocabularies: dict[str, Vocabulary]) -> None:
    llama, gpt2 = vocabularies["llama2"].spans("日😀"), vocabularies["gpt2"].spans("日😀")
    assert llama.ends.tolist() == [0, 3, 4, 5, 6, 7]  # ▁, 日, and a token for each byte of the emoji
    assert gpt2.ends.tolist() == [2, 3, 6, 7]
    assert align_rows(llama, gpt2).target.tolist() == [0, 2, 3, 4]


def test_a_composed_accent_is_one_indivisible_piece(vocabularies: dict[str, Vocabulary]) -> None:
    spans = vocabularies["t5-unigram"].spans(
        "e\u0301t"
    )  # NFKC: é is two tokens, ▁ and é, made of three bytes
    assert spans.ends.tolist()[:2] == [3, 3]
    assert align_rows(spans, spans).source.tolist() == [0, 2, 3]


def test_special_tokens_in_a_text_are_text(vocabularies: dict[str, Vocabulary]) -> None:
    for vocabulary in vocabularies.values():
        ids = vocabulary.encode("a </s> <|endoftext|> [SEP] b")
        assert vocabulary.eos_id not in ids


def test_half_a_surrogate_pair_is_a_data_error(vocabularies: dict[str, Vocabulary]) -> None:
    with pytest.raises(DataError, match="surrogate"):
        vocabularies["gpt2"].spans("broken \ud83d escape")
