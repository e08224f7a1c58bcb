"""What bytes each token of a tokenizer stands for, read off its JSON (decoder, pre-tokenizer, normaliser).

A tokenizer is known by what its file says, never by the name of a class. Does not encode or place tokens in
a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from consort.errors import ModelError

Json: TypeAlias = dict[str, Any]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(spec: Json, vocab: Mapping[str, int], special_ids: frozenset[int]) -> list[bytes | None]:
    """Bytes by id; None for special tokens, the unknown token and ids that nobody has.

    Where a token stands for a word and the space before it (SentencePiece's ▁, WordPiece without ##), the
    space is part of its bytes.
    """
    added = {entry["id"]: str(entry["content"]).encode() for entry in spec.get("added_tokens") or []}
    read = _reader(spec)
    table: list[bytes | None] = [None] * (max(vocab.values(), default=-1) + 1)
    for token, index in vocab.items():
        if index not in special_ids:
            # an added token is found in the raw text, so its content is not in the alphabet of the model
            table[index] = added[index] if index in added else read(token)
    return table


def steps(part: Json | None) -> list[Json]:
    """A normaliser, pre-tokenizer or decoder as the flat list of its steps."""
    if part is None:
        return []
    nested = next((part[key] for key in ("normalizers", "pretokenizers", "decoders") if key in part), None)
    return [part] if nested is None else [step for child in nested for step in steps(child)]


def without_added_space(spec: Json) -> Json:
    """The same tokenizer in the middle of a text: no space put before it, WordPiece inside a word."""
    inner = {**spec, "normalizer": _rebuilt(spec.get("normalizer"), "normalizers"),
             "pre_tokenizer": _rebuilt(spec.get("pre_tokenizer"), "pretokenizers")}  # fmt: skip
    prefix = spec["model"].get("continuing_subword_prefix")
    if _is_wordpiece(spec):
        vocab = spec["model"]["vocab"]
        # punctuation and ideographs stand alone in any context; other tokens without ## only begin a word
        apart = {token: index for token, index in vocab.items() if stands_apart(token)}
        inside = {token: index for token, index in vocab.items() if token.startswith(prefix)}
        first = {token[len(prefix):]: index for token, index in inside.items()}  # fmt: skip
        unknown = {spec["model"]["unk_token"]: vocab[spec["model"]["unk_token"]]}
        inner["model"] = {**spec["model"], "vocab": {**inside, **first, **apart, **unknown}}
    return inner


def stands_apart(token: str) -> bool:
    """Whether BERT's pre-tokenizer makes the character a token of its own, space or no space around it."""
    if len(token) != 1:
        return False
    code = ord(token)
    ideograph = 0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0x20000 <= code <= 0x2FA1F
    return ideograph or 0xF900 <= code <= 0xFAFF or not (token.isalnum() or token.isspace())


def _is_wordpiece(spec: Json) -> bool:
    decoders = [step["type"] for step in steps(spec.get("decoder"))]
    return "WordPiece" in decoders or (not decoders and spec["model"].get("type") == "WordPiece")


def _rebuilt(part: Json | None, key: str) -> Json | None:
    kept = []
    for step in steps(part):
        if step["type"] == "Metaspace":
            kept.append({"type": "Metaspace", "replacement": step["replacement"], "prepend_scheme": "never",
                         "split": step.get("split", True)})  # fmt: skip
        elif step["type"] == "ByteLevel":
            kept.append({**step, "add_prefix_space": False})
        elif step["type"] != "Prepend":
            kept.append(step)
    if kept == steps(part):
        return part
    return {"type": "Sequence", key: kept} if kept else None


def _reader(spec: Json) -> Any:
    """The function from a token's string to its bytes, or a ModelError that says what stands in the way."""
    model = spec["model"]
    if model.get("end_of_word_suffix") or (
        model.get("continuing_subword_prefix") and not _is_wordpiece(spec)
    ):
        raise _unmappable("its tokens carry marks of word ends")
    if _is_wordpiece(spec):
        return _wordpiece(model.get("continuing_subword_prefix") or "##")
    decoders = steps(spec.get("decoder")) or [
        step for step in steps(spec.get("pre_tokenizer")) if step["type"] in ("ByteLevel", "Metaspace")
    ]
    kinds = {step["type"] for step in decoders}
    if unknown := kinds - {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}:
        raise _unmappable(f"decoder step {sorted(unknown)[0]} is not known here")
    if "ByteLevel" in kinds:
        return _byte_level()
    replaced = {step["replacement"]: " " for step in decoders if step["type"] == "Metaspace"}
    for step in decoders:
        if step["type"] == "Replace":
            if "String" not in step["pattern"]:
                raise _unmappable("its decoder replaces by a regular expression")
            replaced[step["pattern"]["String"]] = step["content"]
    if not replaced:
        raise _unmappable("neither its decoder nor its pre-tokenizer says how tokens become text")
    return _sentencepiece(replaced, byte_fallback="ByteFallback" in kinds)


def _byte_level() -> Any:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    byte_of = {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }

    def read(token: str) -> bytes:
        try:
            return bytes([byte_of[char] for char in token])
        except KeyError:  # as the library's own decoder does with a token outside its alphabet
            return token.encode()

    return read


def _sentencepiece(replaced: Mapping[str, str], *, byte_fallback: bool) -> Any:
    def read(token: str) -> bytes:
        if byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        for mark, text in replaced.items():
            token = token.replace(mark, text)
        return token.encode()

    return read


def _wordpiece(prefix: str) -> Any:
    def read(token: str) -> bytes:
        if token.startswith(prefix) and len(token) > len(prefix):
            return token[len(prefix):].encode()  # fmt: skip
        return token.encode() if stands_apart(token) else b" " + token.encode()

    return read


def _unmappable(why: str) -> ModelError:
    return ModelError(
        f"this tokenizer cannot be mapped to bytes: {why}",
        hint="consort reads the tokenizer.json of byte-level BPE, SentencePiece (BPE, Unigram) and WordPiece",
    )
