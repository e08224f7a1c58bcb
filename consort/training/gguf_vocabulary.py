"""A tokenizer as llama.cpp reads it: which of its algorithms cuts texts the same way, and with which lists.

llama.cpp knows byte-level BPE ("gpt2"), BPE over the characters of the text with byte fallback
(SentencePiece's "llama", or merge by merge as "gpt2" with the cut of "sarvam-moe"), and Unigram ("t5").
What none of them reproduces is refused here, because a model that reads other tokens than it was trained on
answers worse without any error. Does not write files.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consort.errors import ModelError
from consort.models.gguf.tokens import (
    BYTE,
    CONTROL,
    NORMAL,
    REGEX_NAMES,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)

_HINT = "export --format safetensors keeps the tokenizer as it is"
# whether a token reaches across the cut that a Split makes at a character
_REACHES_ACROSS: dict[str, Callable[[str, str], bool]] = {
    "MergedWithNext": lambda token, character: character in token[1:],
    "Isolated": lambda token, character: character in token and token != character,
}


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """The lists and switches of llama.cpp's tokenizer; `scores` or `merges` are empty where not used."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    whole: str  # the tokenizer's own JSON, for readers that would rather not rebuild it
    scores: list[float]
    merges: list[str]
    space_prefix: bool
    add_bos: bool
    special_ids: Mapping[str, int]  # bos, eos, unk, pad: only those there are


def gguf_vocabulary(tokenizer: Any, *, num_rows: int, where: str) -> GgufVocabulary:
    """Lists of `num_rows` tokens, one an embedding; ModelError where llama.cpp would cut texts otherwise."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens, types = _tokens(state, num_rows)
    model, pre, scores, merges, prefix = _algorithm(state, where=where)
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    special_ids = {name: token for name, token in special.items() if token is not None}
    if model == "t5" and "unk" not in special_ids:
        special_ids["unk"] = state["model"]["unk_id"]
    first = tokenizer("a")["input_ids"][:1]
    return GgufVocabulary(
        model=model,
        pre=pre,
        tokens=tokens,
        types=types,
        whole=json.dumps(state, ensure_ascii=False),
        scores=scores + [0.0] * (num_rows - len(scores)) if scores else [],
        merges=merges,
        space_prefix=prefix,
        add_bos=first == [special_ids.get("bos", -1)],
        special_ids=special_ids,
    )


def _tokens(state: dict[str, Any], num_rows: int) -> tuple[list[str], list[int]]:
    """Texts and types by id; rows of the embedding that no token uses get a name nobody writes."""
    tokens, types = [f"<unused_row_{row}>" for row in range(num_rows)], [UNUSED] * num_rows
    vocabulary = state["model"]["vocab"]
    pairs = (
        vocabulary.items()
        if isinstance(vocabulary, dict)
        else ((text, i) for i, (text, _) in enumerate(vocabulary))
    )
    fallback = state["model"].get("byte_fallback", False)
    for text, index in pairs:
        tokens[index] = text
        types[index] = BYTE if fallback and re.fullmatch(r"<0x[0-9A-F]{2}>", text) else NORMAL
    for added in state["added_tokens"]:
        tokens[added["id"]] = added["content"]
        unknown = added["content"] == state["model"].get("unk_token") and added["content"] == "<unk>"
        types[added["id"]] = UNKNOWN if unknown else CONTROL if added["special"] else USER_DEFINED
    return tokens, types


def _algorithm(state: dict[str, Any], *, where: str) -> tuple[str, str, list[float], list[str], bool]:
    """llama.cpp's model, its way to cut words, scores, merges, and whether a space is put before the text."""
    kind, cuts = state["model"]["type"], list(_steps(state["pre_tokenizer"], "pretokenizers"))
    if kind == "BPE" and cuts and cuts[-1]["type"] == "ByteLevel":
        return "gpt2", _byte_level_cut(state, cuts, where), [], _merges(state), False
    prefix = _check_escaped_spaces(state, cuts, where)
    if kind == "Unigram":
        if state["model"].get("byte_fallback"):
            warnings.warn(
                f"{where}: llama.cpp reads characters a Unigram vocabulary lacks as unknown, not bytes",
                stacklevel=4,
            )
        return "t5", "default", [score for _, score in state["model"]["vocab"]], [], prefix
    if kind != "BPE":
        raise ModelError(
            f"llama.cpp has no tokenizer of type {kind} for text generation", where=where, hint=_HINT
        )
    if scores := _sentencepiece_scores(state):
        return "llama", "default", scores, [], prefix
    if prefix or _crosses_lines(state):
        raise ModelError(
            "llama.cpp would cut words differently: this BPE joins tokens across line ends or an added space",
            where=where,
            hint=f"{_HINT}; merges that stay within a line, or made by SentencePiece, can be written",
        )
    return "gpt2", "sarvam-moe", [], _merges(state), False


def _byte_level_cut(state: dict[str, Any], cuts: Sequence[dict[str, Any]], where: str) -> str:
    """llama.cpp's name for the way a byte-level tokenizer cuts words."""
    *before, level = cuts
    known_normaliser = all(step["type"] == "NFC" for step in _steps(state["normalizer"], "normalizers"))
    name = ""
    if known_normaliser and not level["add_prefix_space"]:
        kinds = [step["type"] for step in before]
        if not before and level["use_regex"]:
            name = "gpt-2"
        elif kinds == ["Digits"] and before[0]["individual_digits"] and level["use_regex"]:
            name = "starcoder"
        elif kinds == ["Split"] and before[0]["behavior"] == "Isolated" and not level["use_regex"]:
            name = REGEX_NAMES.get(before[0]["pattern"].get("Regex", ""), "")
    if not name:
        raise ModelError(
            "llama.cpp has no name for the way this tokenizer cuts words", where=where, hint=_HINT
        )
    return name


def _check_escaped_spaces(state: dict[str, Any], cuts: Sequence[dict[str, Any]], where: str) -> bool:
    """Spaces must become ▁ and nothing else may change; returns whether one is put before the text."""
    prefix = False
    for step in (*_steps(state["normalizer"], "normalizers"), *cuts):
        if step["type"] == "Prepend" and step["prepend"] == SPACE:
            prefix = True
        elif step["type"] == "Metaspace" and step["replacement"] == SPACE:
            prefix = prefix or step["prepend_scheme"] != "never"
        elif step["type"] == "Split":
            _check_cut(state, step, where)
        elif not (
            step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE
        ):
            raise ModelError(f"llama.cpp cannot repeat its step {step['type']}", where=where, hint=_HINT)
    return prefix


def _check_cut(state: dict[str, Any], step: dict[str, Any], where: str) -> None:
    """A cut at a character changes nothing, and may be left out, where no token reaches across it."""
    character = step["pattern"].get("String", "")
    reaches_across = _REACHES_ACROSS.get(step["behavior"])
    if (
        len(character) != 1
        or reaches_across is None
        or step.get("invert")
        or any(reaches_across(token, character) for token in _texts(state))
    ):
        raise ModelError("llama.cpp cannot cut the text where this tokenizer does", where=where, hint=_HINT)


def _sentencepiece_scores(state: dict[str, Any]) -> list[float]:
    """Scores under which SentencePiece's BPE does the same merges, or nothing.

    SentencePiece joins the neighbours whose joint token scores best, wherever that token exists. A list of
    merges does the same only if it holds every way to make each token, and all ways to make one token stand
    together.
    """
    vocabulary: dict[str, int] = state["model"]["vocab"]
    first_rank: dict[str, int] = {}
    ways: set[tuple[str, str]] = set()
    last = ""
    for rank, (left, right) in enumerate(map(_pair, state["model"]["merges"])):
        made = left + right
        if made in first_rank and made != last:
            return []
        first_rank.setdefault(made, rank)
        ways.add((left, right))
        last = made
    added = {token["content"] for token in state["added_tokens"]}
    whole = {
        token for token in vocabulary if token not in added and not re.fullmatch(r"<0x[0-9A-F]{2}>", token)
    }
    for token in whole:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in whole and right in whole and (left, right) not in ways:
                return []
    scores = [0.0] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        scores[index] = -float(first_rank.get(token, len(first_rank)))
    return scores


def _crosses_lines(state: dict[str, Any]) -> bool:
    return any("\n" in token and token.strip("\n") for token in _texts(state))


def _texts(state: dict[str, Any]) -> Iterator[str]:
    added = {token["content"] for token in state["added_tokens"]}
    vocabulary = state["model"]["vocab"]
    for token in vocabulary if isinstance(vocabulary, dict) else (text for text, _ in vocabulary):
        if token not in added:
            yield token


def _merges(state: dict[str, Any]) -> list[str]:
    return [" ".join(_pair(merge)) for merge in state["model"]["merges"]]


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _steps(step: dict[str, Any] | None, parts: str) -> Iterator[dict[str, Any]]:
    """The single steps of a normaliser or pre-tokenizer, sequences unfolded."""
    if step is None:
        return
    if step["type"] == "Sequence":
        for inner in step[parts]:
            yield from _steps(inner, parts)
    else:
        yield step
