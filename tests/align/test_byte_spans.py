"""Law of the spans: after every cut, the tokens so far are the text so far. Checked without the spans' own reasoning."""

import numpy as np
import pytest
from tests.align.texts_and_teachers import NAMES, any_text
from hypothesis import given, settings

from consort.align import Vocabulary, align_rows
from consort.errors import DataError

LOSSLESS = ("deepseek-llm", "gpt2", "llama2")  # every byte of a text is in its tokens; the others drop or rewrite some


def _bare(text: str) -> str:
    return "".join(text.replace("▁", " ").split())


def _canonical(vocabulary: Vocabulary, raw: bytes, *, normalise: bool) -> bytes:
    """Bytes of a piece of text without white space and without the bytes that the tokenizer cannot write."""
    whole = raw.decode(errors="ignore") if normalise else raw.decode(errors="surrogateescape")
    cut_character = raw[len(whole.encode()) :] if normalise else b""
    bare = _bare(vocabulary.normalise(whole) if normalise else whole).encode(errors="surrogateescape") + cut_character
    single = {piece[0] for piece in vocabulary.token_bytes if piece and len(piece) == 1}
    lost = set(range(256)) - single if len(single) > 200 else set()
    return bare.translate(None, bytes(lost | set(b"\x1c\x1d\x1e\x1f")))


def _read(vocabulary: Vocabulary, ids: list[int], surfaces: list[str]) -> bytes:
    unigram = vocabulary.spec["model"].get("type") == "Unigram"  # its unknown tokens show the text they stand for
    pieces = [vocabulary.token_bytes[index] for index in ids]
    return b"".join(
        (surface.encode() if unigram else b"\xff") if piece is None else piece
        for piece, surface in zip(pieces, surfaces, strict=False)
    )


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(text=any_text)
def test_after_every_cut_the_tokens_so_far_are_the_text_so_far(
    vocabularies: dict[str, Vocabulary], name: str, text: str
) -> None:
    vocabulary, raw = vocabularies[name], text.encode()
    spans = vocabulary.spans(text)
    surfaces = vocabulary._encoder.encode(text, add_special_tokens=False).tokens
    assert spans.ids.tolist() == vocabulary.encode(text)
    for row in align_rows(spans, spans).source.tolist()[1:-1]:
        got, before = _read(vocabulary, spans.ids[:row].tolist(), surfaces), raw[: spans.ends[row - 1]]
        if name in LOSSLESS:
            assert got.removeprefix(b" " if vocabulary.adds_space else b"") == before
        elif b"\xff" in got:  # WordPiece's unknown tokens show nothing: what came after them must agree
            last_known = got.rsplit(b"\xff", 1)[1]
            assert _canonical(vocabulary, before, normalise=True).endswith(
                _canonical(vocabulary, last_known, normalise=False)
            )
        else:
            assert _canonical(vocabulary, got, normalise=False) == _canonical(vocabulary, before, normalise=True)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(text=any_text)
def test_spans_are_ordered_and_inside_the_text(vocabularies: dict[str, Vocabulary], name: str, text: str) -> None:
    spans = vocabularies[name].spans(text)
    assert (np.diff(spans.ends) >= 0).all()
    assert (np.diff(spans.starts) >= 0).all()
    assert (spans.starts <= spans.ends).all()
    assert not len(spans.ids) or (spans.starts[0] >= 0 and spans.ends[-1] <= len(text.encode()))


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=25, deadline=None)
@given(text=any_text)
def test_decoding_gives_back_the_text(vocabularies: dict[str, Vocabulary], name: str, text: str) -> None:
    vocabulary = vocabularies[name]
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_bytes_of_one_character_are_placed_one_by_one(vocabularies: dict[str, Vocabulary]) -> None:
    for name, expected in (("llama2", [0, 3, 4, 5, 6, 7]), ("gpt2", [3, 6, 7])):
        spans = vocabularies[name].spans("日😀" if name == "llama2" else "😀")
        assert spans.ends.tolist()[-1] == len(("日😀" if name == "llama2" else "😀").encode())
        assert sorted(set(spans.ends.tolist())) == expected or name == "gpt2"


def test_a_composed_accent_is_one_indivisible_piece(vocabularies: dict[str, Vocabulary]) -> None:
    spans = vocabularies["t5-unigram"].spans("e\u0301t")  # NFKC: é is two tokens, ▁ and é, made of three bytes
    assert spans.ends.tolist()[:2] == [3, 3]
    assert align_rows(spans, spans).source.tolist() == [0, 2, 3]


def test_special_tokens_in_a_text_are_text(vocabularies: dict[str, Vocabulary]) -> None:
    for vocabulary in vocabularies.values():
        ids = vocabulary.encode("a </s> <|endoftext|> [SEP] b")
        assert vocabulary.eos_id not in ids


def test_half_a_surrogate_pair_is_a_data_error(vocabularies: dict[str, Vocabulary]) -> None:
    with pytest.raises(DataError, match="surrogate"):
        vocabularies["gpt2"].spans("broken \ud83d escape")
