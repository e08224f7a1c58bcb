"""A tokenizer as consort sees it: text to ids, ids to bytes, and the bytes that each token has read.

Made from a tokenizers JSON by what the file says, so any family works that can be mapped to bytes. Chat
templates and special tokens around a text are the model's affair, not this module's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from consort.align.beginnings import Beginnings
from consort.align.byte_spans import Spans, locate
from consort.align.token_bytes import Json, token_bytes, without_added_space
from consort.errors import DataError, ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from consort.types import IntArray

# ends of text by convention, for a tokenizer.json that names none
_ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<eos>", "<｜end▁of▁sentence｜>", "[SEP]")
_CONTROLS = {*_ENDS, "<s>", "<bos>", "<pad>", "<unk>", "[PAD]", "[UNK]", "[CLS]", "[MASK]"}


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tokens of one tokenizer.

    `token_bytes[id]` is None for what stands for no text: special and unknown tokens.
    """

    token_bytes: list[bytes | None] = field(repr=False)
    eos_id: int | None
    special_ids: frozenset[int] = field(repr=False)
    sha256: str
    spec: Json = field(repr=False)

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """Read a fast transformers tokenizer, a tokenizers.Tokenizer, or the path of a tokenizer.json.

        Raises ModelError for one that cannot be mapped to bytes.
        """
        spec, eos = _read(tokenizer)
        # the post-processor adds tokens and trims offsets; truncation and padding would hide text
        spec |= {"post_processor": None, "truncation": None, "padding": None}
        model, added = spec["model"], spec.get("added_tokens") or []
        vocab = _tokens(spec)
        special = {entry["id"] for entry in added if entry.get("special")}
        if not special:  # a file that names none: by convention
            special = {vocab[token] for token in _CONTROLS & vocab.keys()}
        special |= {
            index for index in (model.get("unk_id"), vocab.get(model.get("unk_token"))) if index is not None
        }
        eos_id = vocab.get(eos) if eos else next((vocab[token] for token in _ENDS if token in vocab), None)
        if isinstance(model["vocab"], list):
            _make_unreachable(model["vocab"])
        return cls._made(spec, eos_id, frozenset(special), vocab)

    @classmethod
    def from_json(cls, text: str | bytes) -> Vocabulary:
        """What `to_json` wrote: the same tokenizer, as its `sha256` says. ModelError if it is none."""
        try:
            said = json.loads(text)
            spec, special = said["spec"], frozenset(said["special_ids"])
            return cls._made(spec, said["eos_id"], special, _tokens(spec))
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"this is no tokenizer ({type(error).__name__})") from error

    @classmethod
    def _made(
        cls, spec: Json, eos_id: int | None, special: frozenset[int], vocab: dict[str, int]
    ) -> Vocabulary:
        digest = hashlib.sha256(json.dumps([spec, eos_id], sort_keys=True).encode()).hexdigest()
        return cls(token_bytes(spec, vocab, special), eos_id, special, digest, spec)

    def to_json(self) -> str:
        """Everything there is to know, for another machine."""
        said = {"spec": self.spec, "eos_id": self.eos_id, "special_ids": sorted(self.special_ids)}
        return json.dumps(said, ensure_ascii=False)

    @property
    def size(self) -> int:
        """Ids run from 0 to size - 1; a model may have more rows in its head than this."""
        return len(self.token_bytes)

    def encode(self, text: str, *, beginning: bool = True) -> list[int]:
        """Ids of `text` alone: no special tokens added, none recognised inside it. Not `beginning`: without
        the space that some tokenizers put before a text's first word."""
        encoder = self._encoder if beginning else self._inner_encoder
        return list(encoder.encode(_checked(text), add_special_tokens=False).ids)

    def encode_inside(self, text: str) -> list[int]:
        """Ids of `text` inside a longer one, behind a place where a token ends: no space before it."""
        return list(self._inner_encoder.encode(_checked(text), add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens, and without the space that encoding puts before the first
        word.
        """
        raw = b"".join(self.token_bytes[index] or b"" for index in ids if 0 <= index < self.size)
        return raw.removeprefix(b" " if self.adds_space else b"").decode(errors="replace")

    def spans(self, text: str) -> Spans:
        """Tokens of `text` and the bytes that each has read."""
        encoding = self._encoder.encode(_checked(text), add_special_tokens=False)
        return locate(
            text,
            encoding.ids,
            token_bytes=self.token_bytes,
            offsets=lambda: encoding.offsets,
            surface=lambda place: self._surface(encoding.ids[place], encoding.tokens[place]),
            normalise=self.normalise,
        )

    def _surface(self, index: int, token: str) -> bytes | None:
        """Text of an unknown token, where the library shows it (Unigram), not its name (WordPiece)."""
        return None if self._encoder.id_to_token(index) == token else token.encode()

    def normalise(self, text: str) -> str:
        """`text` as the tokenizer's normaliser rewrites it, without added spaces."""
        normaliser = self._inner_encoder.normalizer
        return text if normaliser is None else str(normaliser.normalize_str(text))

    def first_tokens(self, texts: Sequence[str], *, beginning: bool = False) -> list[int | None]:
        """The first token of each text's own encoding, inside a longer text or at the `beginning` of one."""
        encoder = self._encoder if beginning else self._inner_encoder
        encodings = encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        return [ids[0] if (ids := encoding.ids) else None for encoding in encodings]

    @cached_property
    def lengths(self) -> IntArray:
        """Bytes of each token, 0 where it has none; one more 0 stands for every id beyond the vocabulary."""
        return np.array([*(len(piece or b"") for piece in self.token_bytes), 0], np.int32)

    @cached_property
    def beginnings(self) -> Beginnings:
        """Which tokens begin with the same bytes."""
        return Beginnings.of(self.token_bytes)

    @cached_property
    def adds_space(self) -> bool:
        """Whether encoding puts a space before the first word of a text."""
        return (self.token_bytes[self.encode("a")[0]] or b"").startswith(b" ")

    @cached_property
    def drops_space(self) -> bool:
        """Whether the space before a word inside a text is lost: such a tokenizer splits at white space."""
        first = self.first_tokens([" a"])[0]
        return first is None or not (self.token_bytes[first] or b"").startswith(b" ")

    @cached_property
    def _encoder(self) -> Tokenizer:
        return _build(self.spec)

    @cached_property
    def _inner_encoder(self) -> Tokenizer:
        inner = without_added_space(self.spec)
        return self._encoder if inner == self.spec else _build(inner)


def _read(tokenizer: Any) -> tuple[Json, str | None]:
    """The JSON of a tokenizer, as a fresh dictionary, and its end-of-text token if it names one."""
    if isinstance(tokenizer, (str, Path)):
        path = Path(tokenizer)
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            return json.loads(path.read_text(encoding="utf-8")), _configured_eos(
                path.with_name("tokenizer_config.json")
            )
        except (OSError, json.JSONDecodeError) as error:
            raise ModelError(f"no tokenizer can be read here: {error}", where=str(path)) from error
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        raise ModelError(
            "this tokenizer has no tokenizers JSON, so it cannot be mapped to bytes",
            where=type(tokenizer).__name__,
            hint="convert it to a fast tokenizer (tokenizer.json)",
        )
    return json.loads(backend.to_str()), getattr(tokenizer, "eos_token", None)


def _tokens(spec: Json) -> dict[str, int]:
    entries = spec["model"]["vocab"]
    if isinstance(entries, list):
        vocab = {token: index for index, (token, _) in enumerate(entries)}
    else:
        vocab = dict(entries)
    return vocab | {entry["content"]: entry["id"] for entry in spec.get("added_tokens") or []}


def _configured_eos(path: Path) -> str | None:
    if not path.is_file():
        return None
    token = json.loads(path.read_text(encoding="utf-8")).get("eos_token")
    return str(token["content"] if isinstance(token, dict) else token) if token else None


def _make_unreachable(pieces: list[list[Any]]) -> None:
    """Unigram finds "</s>" in a text if its file does not call it special: give it a name no text has."""
    for piece in pieces:
        if piece[0] in _CONTROLS:
            piece[0] = "\U0010ffff" + piece[0]


def _build(spec: Json) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"the tokenizer's JSON is not valid: {error}") from error
    tokenizer.encode_special_tokens = True  # as text
    return tokenizer


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"half of a surrogate pair at character {error.start} is not text",
            hint="the file holds a broken \\ud83d-like escape; write the character itself",
        ) from error
    return text
