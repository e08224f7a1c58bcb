"""The tokenizer in a GGUF file as tokenizers JSON, from which `align` reads what bytes its tokens stand for.

A file may hold that JSON whole (`tokenizer.huggingface.json`, as our exports do), or it lies beside it; else
it is built from llama.cpp's lists of tokens, scores and merges: byte-level BPE, SentencePiece's BPE and
Unigram. llama.cpp knows more ways to cut words than are named here; `gguf.model` compares both on a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consort.errors import ModelError
from consort.models.gguf.file import Metadata

# llama.cpp's token types
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

SPACE = "▁"
WHOLE_JSON = "tokenizer.huggingface.json"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# llama.cpp's names for the ways to cut words that are one regular expression
REGEX_NAMES = {
    _CONTRACTIONS + r"\p{N}{1,3}" + _TAIL: "llama-bpe",
    _CONTRACTIONS + r"\p{N}" + _TAIL: "qwen2",
}
MERGES_OVER_TEXT = "sarvam-moe"  # BPE by merges whose tokens are text with ▁, not GPT-2's alphabet of bytes
_SINGLE_DIGITS = ("starcoder", "smollm", "command-r", "refact", "exaone")  # one word each, else as GPT-2


@dataclass(frozen=True, slots=True)
class StoredTokenizer:
    """A tokenizers JSON and the ends of a text, in the shape that `Vocabulary.of` reads."""

    json: str
    bos_token: str
    eos_token: str
    whole: bool  # the tokenizer's own file, not built from lists

    def to_str(self) -> str:
        """The JSON."""
        return self.json


def read_tokenizer(metadata: Metadata, file: Path) -> StoredTokenizer:
    """Of a GGUF file, by its header; ModelError where it holds none that can be built."""
    tokens: list[str] = metadata.get("tokenizer.ggml.tokens", [])
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")]
    bos, eos = ("" if end is None or end >= len(tokens) else tokens[end] for end in ends)
    if not eos:
        raise ModelError(
            "the file names no end-of-sequence token",
            where=str(file),
            hint="set tokenizer.ggml.eos_token_id (gguf_set_metadata), or convert the model anew",
        )
    beside = file.with_name("tokenizer.json")
    if WHOLE_JSON in metadata:
        return StoredTokenizer(metadata[WHOLE_JSON], bos, eos, whole=True)
    if beside.is_file():
        return StoredTokenizer(beside.read_text(encoding="utf-8"), bos, eos, whole=True)
    try:
        return StoredTokenizer(json.dumps(_built(metadata, str(file))), bos, eos, whole=False)
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(f"its tokenizer's lists are broken: {error!r}", where=str(file)) from error


def _built(metadata: Metadata, where: str) -> dict[str, Any]:
    kind, types = metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.token_type"]
    count = len(types)
    while count and types[count - 1] == UNUSED:  # rows of the embedding beyond the vocabulary
        count -= 1
    tokens = metadata["tokenizer.ggml.tokens"][:count]
    builders = {"gpt2": _byte_level, "llama": _sentencepiece, "t5": _unigram}
    if kind not in builders:
        raise ModelError(
            f"tokenizers of llama.cpp's kind {kind!r} cannot be read from lists",
            where=where,
            hint="put the model's tokenizer.json beside the file",
        )
    special = (CONTROL, UNKNOWN, UNUSED)
    added = [
        {"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": kind_of in special}
        for index, (token, kind_of) in enumerate(zip(tokens, types, strict=False))
        if kind_of in (*special, USER_DEFINED)
    ]  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": None,
        **builders[kind](metadata, tokens),
    }


def _byte_level(metadata: Metadata, tokens: Sequence[str]) -> dict[str, Any]:
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    merges = [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]]
    if pre == MERGES_OVER_TEXT:
        lines = {
            "type": "Split",
            "pattern": {"Regex": r"[^\n]+|\n+"},
            "behavior": "Isolated",
            "invert": False,
        }
        steps = _escaped_spaces(metadata, byte_fallback=True)
        return {**steps, "pre_tokenizer": lines, "model": _bpe(tokens, merges, byte_fallback=True)}
    regex = next((regex for regex, name in REGEX_NAMES.items() if name == pre), None)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex is None}
    cuts: list[dict[str, Any]] = [level]
    if regex is not None:
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        cuts = [split, level]
    elif pre in _SINGLE_DIGITS:
        cuts = [{"type": "Digits", "individual_digits": True}, level]
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts},
        "decoder": {**level, "use_regex": True},
        "model": {**_bpe(tokens, merges), "ignore_merges": pre == "llama-bpe"},
    }


def _sentencepiece(metadata: Metadata, tokens: Sequence[str]) -> dict[str, Any]:
    scores = metadata["tokenizer.ggml.scores"]
    return {
        **_escaped_spaces(metadata, byte_fallback=True),
        "model": _bpe(tokens, list(_merges(tokens, scores)), byte_fallback=True),
    }


def _unigram(metadata: Metadata, tokens: Sequence[str]) -> dict[str, Any]:
    pairs = [list(pair) for pair in zip(tokens, metadata["tokenizer.ggml.scores"], strict=False)]
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    fallback = BYTE in metadata["tokenizer.ggml.token_type"]
    return {
        **_escaped_spaces(metadata, byte_fallback=fallback),
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": pairs, "byte_fallback": fallback},
    }


def _escaped_spaces(metadata: Metadata, *, byte_fallback: bool) -> dict[str, Any]:
    """Spaces are ▁, and llama.cpp puts one before a text unless the file says otherwise."""
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, {"type": "Prepend", "prepend": SPACE})
    back: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    back += [{"type": "ByteFallback"}] if byte_fallback else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [*back, {"type": "Fuse"}]},
    }


def _bpe(tokens: Sequence[str], merges: list[list[str]], *, byte_fallback: bool = False) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": merges,
    }


def _merges(tokens: Sequence[str], scores: Sequence[float]) -> Iterator[list[str]]:
    """Every way to join two tokens to a third, the best third first: what SentencePiece's BPE does."""
    ids = {token: index for index, token in enumerate(tokens)}
    ways: list[tuple[float, int, int, str, str]] = []
    for token, index in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ways.append((-scores[index], ids[left], ids[right], left, right))
    for *_, left, right in sorted(ways):
        yield [left, right]
