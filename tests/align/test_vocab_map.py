"""The map is the target's own first token for the same bytes, never the longest token that fits."""

import os
from pathlib import Path

import numpy as np
import pytest

from consort.align import TAIL, Vocabulary, vocab_map
from consort.align.vocab_map import _cached_map, own_first_tokens
from consort.errors import ModelError


def _id(vocabulary: Vocabulary, piece: bytes) -> int:
    return vocabulary.token_bytes.index(piece)


def test_a_token_goes_to_the_first_token_of_the_targets_own_encoding(
    vocabularies: dict[str, Vocabulary],
) -> None:
    source, target = vocabularies["gpt-neox"], vocabularies["llama2"]
    mapping = vocab_map(source, target)
    for index in range(300, source.size, 997):
        piece = source.token_bytes[index]
        text = (piece or b"").decode(errors="replace")
        if piece is None or "\ufffd" in text:
            continue
        # llama2 puts a space before the first word: behind a line break the text stands in the middle
        anchor = target.encode("a\n")
        own = target.encode("a\n" + text)
        if own[: len(anchor)] == anchor:
            assert mapping.target_ids[index] == own[len(anchor)], text


def test_the_longest_prefix_is_not_taken(vocabularies: dict[str, Vocabulary]) -> None:
    differs = 0
    for source, target in (("gpt2", "llama2"), ("llama2", "gpt2"), ("gpt2", "starcoder")):
        to = vocabularies[target]
        pieces = {piece: index for index, piece in enumerate(to.token_bytes) if piece}
        mapping = vocab_map(vocabularies[source], to)
        for index, piece in enumerate(vocabularies[source].token_bytes[:20_000]):
            if piece and mapping.target_ids[index] != TAIL:
                longest = next(pieces[piece[:n]] for n in range(len(piece), 0, -1) if piece[:n] in pieces)
                differs += int(longest != mapping.target_ids[index])
    assert differs > 100


def test_what_is_no_text_goes_to_the_tail_and_the_end_to_the_end(vocabularies: dict[str, Vocabulary]) -> None:
    source, target = vocabularies["gpt2"], vocabularies["llama2"]
    mapping = vocab_map(source, target)
    assert mapping.target_ids[_id(source, b"\xe2\x80")] == TAIL
    assert mapping.target_ids[source.eos_id] == target.eos_id
    assert mapping.target_ids[source.size] == TAIL


def test_equal_vocabularies_map_to_themselves(vocabularies: dict[str, Vocabulary]) -> None:
    mapping = vocab_map(vocabularies["falcon"], vocabularies["falcon"])
    assert (mapping.target_ids[:-1] == np.arange(vocabularies["falcon"].size)).all()


@pytest.mark.parametrize(
    ("target", "text", "first"),
    [
        ("bert-wordpiece", b" Hello", b" hello"),  # its normaliser lower-cases
        ("bert-wordpiece", b"ing", b"ing"),  # inside a word
        ("bert-wordpiece", b",", b","),
        ("bert-wordpiece", b" (", b"("),  # white space before punctuation is not written
        ("bert-wordpiece", b"\n", None),  # nor is a line break
        ("t5-unigram", b" the", b" the"),
        ("t5-unigram", b"the", b"the"),  # no space where there is none
        ("llama2", b"the", b"the"),
        ("llama2", b" the", b" the"),
        ("llama2", b"\n", b"\n"),
        ("llama2", b"\xe2\x80", None),  # half a character
        ("gpt2", b"", None),
    ],
)
def test_own_first_tokens(
    vocabularies: dict[str, Vocabulary], target: str, text: bytes, first: bytes | None
) -> None:
    found = int(own_first_tokens([text], vocabularies[target])[0])
    assert (None if found == TAIL else vocabularies[target].token_bytes[found]) == first


def test_ids_beyond_the_source_go_nowhere_and_leave_the_others_alone(
    vocabularies: dict[str, Vocabulary],
) -> None:
    source, target = vocabularies["gpt2"], vocabularies["llama2"]
    mapping = vocab_map(source, target)
    ids = np.arange(source.size, dtype=np.int32).reshape(-1, 1)
    within = mapping.first_tokens(ids)
    assert (within[:, 0] == mapping.target_ids[:-1]).all()
    beyond = mapping.first_tokens(np.append(ids, [source.size, source.size + 40, 2 * source.size]))
    assert (beyond == [*within[:, 0].tolist(), TAIL, TAIL, TAIL]).all()


def test_remainders_are_the_own_encoding_of_what_is_left(vocabularies: dict[str, Vocabulary]) -> None:
    source, target = vocabularies["gpt-neox"], vocabularies["llama2"]
    mapping = vocab_map(source, target)
    index = _id(source, b" understanding")
    for read in range(len(b" understanding") + 1):
        expected = own_first_tokens([b" understanding"[read:]], target)[0]
        got = mapping.remainders(np.array([index]), np.array([read]), np.array([0]))
        assert got[0] == expected


def test_a_map_is_cached_on_disk_and_a_damaged_file_is_made_again(
    vocabularies: dict[str, Vocabulary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSORT_CACHE", str(tmp_path))
    source, target = vocabularies["llama2"], vocabularies["gpt2"]
    _cached_map.cache_clear()
    made = vocab_map(source, target).target_ids.copy()
    (file,) = (tmp_path / "vocab_maps").iterdir()
    for damage in (file.read_bytes()[:1000], b"", np.zeros(3).tobytes()):
        file.write_bytes(damage)
        _cached_map.cache_clear()
        assert (vocab_map(source, target).target_ids == made).all()
    assert len(os.listdir(tmp_path / "vocab_maps")) == 1
    _cached_map.cache_clear()


def test_a_tokenizer_without_bytes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(
        '{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, '
        '"post_processor": null, "decoder": null, '
        '"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'
    )
    with pytest.raises(ModelError, match="bytes"):
        Vocabulary.of(file)
    with pytest.raises(ModelError, match="read"):
        Vocabulary.of(tmp_path / "absent.json")
