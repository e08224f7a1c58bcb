"""A GGUF file as a model that answers: loading it, what its prompts are written with.

`decoding.lm.LocalLM` serves a `GgufModel` as it serves any: the same batch, draws and text, so a seed gives
the answer that the same weights give elsewhere. Tunes nothing and gives no hidden states.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from consort.align import Vocabulary
from consort.config import RuntimeConfig
from consort.errors import ModelError
from consort.models.gguf.file import read_metadata
from consort.models.gguf.library import Weights
from consort.models.gguf.network import LlamaNetwork
from consort.models.gguf.tokens import StoredTokenizer, read_tokenizer

ALL_FLOAT32 = 0  # general.file_type
PROBE = "It's 12345 o'clock:\n\n  two  spaces, a_name(x) and WORDS.\n"


@dataclass(slots=True, eq=False)
class GgufModel:
    """A model in llama.cpp's memory (`decoding.lm.Decodable`)."""

    name: str
    tokenizer: GgufTokenizer
    vocabulary: Vocabulary
    context_tokens: int
    end_ids: frozenset[int]
    runtime: RuntimeConfig
    weights: Weights
    exact: bool  # float32 throughout, as the weights; else llama.cpp's quicker float16 for keys and values

    @property
    def eos_id(self) -> int:
        """The token that ends a text."""
        assert self.vocabulary.eos_id is not None, "checked by read_tokenizer"
        return self.vocabulary.eos_id

    def open_network(self, *, slots: int, positions: int) -> LlamaNetwork:
        """A cache of `slots` texts of up to `positions` tokens each."""
        return LlamaNetwork(
            self.weights,
            slots=slots,
            positions=positions,
            threads=self.runtime.threads,
            exact=self.exact,
        )

    def states_sha256(self) -> str:
        """It shows no hidden states."""
        return ""

    def enter_thread(self) -> None:
        """Nothing to set: a network brings its own number of threads."""


def load_gguf(
    file: str | Path, *, runtime: RuntimeConfig, chat_template: str = "", name: str = ""
) -> GgufModel:
    """A GGUF file, its weights on the GPU where llama.cpp was built for one and the runtime allows it.
    ModelError says what is wrong with the file; MissingExtraError without llama-cpp-python."""
    file = Path(file)
    metadata = read_metadata(file)
    stored = read_tokenizer(metadata, file)
    weights = Weights(file, gpu=runtime.device != "cpu")
    template = metadata.get("tokenizer.chat_template", "")
    if chat_template:
        template = Path(chat_template).read_text(encoding="utf-8")
    vocabulary = Vocabulary.of(stored)
    ends = {index for index in range(vocabulary.size) if weights.cpp.llama_vocab_is_eog(weights.words, index)}
    _check_vocabulary(vocabulary, weights, str(file))
    return GgufModel(
        name=name or file.stem,
        tokenizer=GgufTokenizer(stored, template, weights),
        vocabulary=vocabulary,
        context_tokens=int(weights.cpp.llama_model_n_ctx_train(weights.model)),
        end_ids=frozenset(ends),
        runtime=runtime,
        weights=weights,
        exact=metadata.get("general.file_type") == ALL_FLOAT32,
    )


class GgufTokenizer:
    """What prompts are written with, called as a transformers tokenizer is (`decoding.prompt.Reader`)."""

    def __init__(self, stored: StoredTokenizer, chat_template: str, weights: Weights) -> None:
        self.chat_template = chat_template
        self._stored, self._weights = stored, weights
        self._own: Tokenizer | None = None
        if stored.whole:
            self._own = Tokenizer.from_str(stored.json)
            self._own.no_truncation()
            self._own.no_padding()

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Ids of a text in which special tokens are recognised, with those that stand around a text."""
        if self._own is not None:
            return {"input_ids": list(self._own.encode(text, add_special_tokens=add_special_tokens).ids)}
        ids = self._weights.encode(text, add_special=add_special_tokens, parse_special=True)
        return {"input_ids": ids}

    def apply_chat_template(
        self, turns: Sequence[Mapping[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """The turns as text."""
        assert not tokenize
        write = self._weights.cpp.llama_chat_format.Jinja2ChatFormatter(
            self.chat_template, self._stored.eos_token, self._stored.bos_token, add_generation_prompt
        )
        return str(write(messages=list(turns)).prompt)


def _check_vocabulary(vocabulary: Vocabulary, weights: Weights, where: str) -> None:
    """The tokenizer must be the weights' own. Where it only cuts otherwise, answers are right nonetheless."""
    if vocabulary.size > weights.rows:
        raise ModelError(
            f"its tokenizer has {vocabulary.size} tokens, and the weights know {weights.rows}",
            where=where,
            hint="tokenizer.json beside the file must be the model's own: remove it, or put the right one",
        )
    if vocabulary.encode(PROBE) != weights.encode(PROBE, add_special=False, parse_special=False):
        warnings.warn(
            f"{where}: llama.cpp cuts words otherwise than its tokenizer is understood here, so other models "
            "cannot draft for it well; put the model's tokenizer.json beside the file",
            stacklevel=3,
        )
