"""A transformers model on this machine: loading it, reading its hidden states, generating with it.

Training reads the trunk (`hidden`) and the head apart, so that the fused losses never hold a full [tokens,
vocabulary] matrix. Generating is a loop over `decoding`'s batch; answering clients is not here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from consort.align import Vocabulary
from consort.config import RuntimeConfig
from consort.errors import ModelError
from consort.models.decoding.batch import Batch, Network, Row
from consort.models.decoding.network import open_network
from consort.models.decoding.sampling import Sampling, apart
from consort.models.footprint import ASSUMED_CONTEXT
from consort.models.hub import check_hub
from consort.models.zoo import located

PROMPT_TOKENS = 4096  # of a batch's prompts read at once: bounds the memory of a pass


@dataclass(slots=True, eq=False)
class LocalModel:
    """A causal language model with its tokenizer, ready to train or to answer."""

    name: str
    module: Any  # a transformers PreTrainedModel, perhaps with adapters injected
    tokenizer: Any  # a transformers fast tokenizer
    vocabulary: Vocabulary
    context_tokens: int
    runtime: RuntimeConfig
    base_sha256: str | None = None  # of the frozen weights; filled by training.adapters when first asked for

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.module.device
        return device

    @property
    def eos_id(self) -> int:
        """The token that ends an answer."""
        assert self.vocabulary.eos_id is not None, "checked by load_model"
        return self.vocabulary.eos_id

    @property
    def end_ids(self) -> frozenset[int]:
        """That token alone, where there is one."""
        eos_id = self.vocabulary.eos_id
        return frozenset() if eos_id is None else frozenset({eos_id})

    def open_network(self, *, slots: int, positions: int) -> Network:
        """Its present weights, with a cache of `slots` texts of up to `positions` tokens each."""
        return open_network(self, slots=slots, positions=positions)

    def enter_thread(self) -> None:
        """torch keeps its number of threads for each thread apart: what loading set does not hold here."""
        torch.set_num_threads(self.runtime.threads)

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Hidden states [B, T, D] before the head. Right padding needs no mask: no earlier token sees it."""
        with self.autocast():
            states: Tensor = self.module.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return states

    def states_sha256(self) -> str:
        """Names the weights, adapters among them, that make the hidden states its networks show."""
        return weights_sha256(sorted(self.module.named_parameters()))

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, D] and bias [V] of the output layer."""
        layer = self.module.get_output_embeddings()
        return layer.weight, getattr(layer, "bias", None)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """bfloat16 arithmetic where the runtime asks for it; weights keep their own type."""
        enabled = self.runtime.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            yield


def weights_sha256(named: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of names, shapes and values, in this order."""
    digest = hashlib.sha256()
    for name, weights in named:
        digest.update(name.encode())
        digest.update(str(tuple(weights.shape)).encode())
        digest.update(weights.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def resolve_device(name: str) -> torch.device:
    """The torch device behind "auto" or a device's own name."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def card_bytes(name: str) -> int:
    """Memory of the graphics card behind a device's name; 0 where that is no card with its own."""
    device = resolve_device(name)
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def load_model(
    path: str | Path, *, runtime: RuntimeConfig, chat_template: str = "", name: str = ""
) -> LocalModel:
    """A Hub id, local directory or `zoo:NAME` as float32 weights on the runtime's device. ModelError says
    what is missing."""
    torch.set_num_threads(runtime.threads)
    disable_progress_bar()  # transformers' bars of a few milliseconds would cut through our own progress
    where = located(str(path))
    if not os.path.isdir(where):
        check_hub(where)
    try:
        tokenizer = _load_tokenizer(where)
        module = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot be loaded: {str(error).splitlines()[0]}",
            where=str(path),
            hint="give a transformers directory, or a Hub id that HF_HOME holds or that can be downloaded",
        ) from error
    if chat_template:
        tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
    return wrap_model(module, tokenizer, name=name or Path(where).name, runtime=runtime)


def _load_tokenizer(where: str) -> Any:
    """The tokenizer as its tokenizer.json says.

    AutoTokenizer goes by the model's type instead, and for some (Qwen2) rebuilds normaliser and cuts that the
    file may not have: the same ids, another text.
    """
    try:
        return PreTrainedTokenizerFast.from_pretrained(where)
    except (OSError, ValueError):
        return AutoTokenizer.from_pretrained(where)  # no tokenizer.json: whatever the repository brings


def wrap_model(module: nn.Module, tokenizer: Any, *, name: str, runtime: RuntimeConfig) -> LocalModel:
    """A module and a tokenizer in memory as a LocalModel, frozen, on the runtime's device."""
    try:
        vocabulary = Vocabulary.of(tokenizer)
    except ModelError as error:
        raise ModelError(error.what, where=name, hint=error.hint) from error
    if vocabulary.eos_id is None:
        raise ModelError(
            "the tokenizer has no end-of-sequence token",
            where=name,
            hint="set eos_token in tokenizer_config.json",
        )
    module = module.to(resolve_device(runtime.device)).eval().requires_grad_(False)
    context = (
        getattr(module.config, "max_position_embeddings", None)
        or getattr(module.config, "seq_length", None)
        or ASSUMED_CONTEXT
    )
    model = LocalModel(name, module, tokenizer, vocabulary, int(context), runtime)
    _check_head(model)
    return model


def save_model(model: LocalModel, folder: Path) -> None:
    """A transformers directory: config, safetensors, tokenizer with its chat template. OSError if it cannot
    be written."""
    try:
        model.module.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    except Exception as error:  # the libraries' own names for any failure; the system's is in their words
        if (code := re.search(r"os error (\d+)", str(error))) is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number), str(folder)) from error


def generate(
    model: LocalModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_rows: int = 128,
) -> list[list[int]]:
    """Continuations of the prompts without the end token, in any order of lengths: greedy at temperature 0,
    else sampled among the likeliest tokens that hold `top_p` of the probability, each row from its own seed.
    An answer ends where the model's context does."""
    longest = max(map(len, prompts), default=0)
    if longest >= model.context_tokens:
        raise ModelError(
            f"a prompt of {longest} tokens leaves no room for an answer",
            where=model.name,
            hint=f"its context is {model.context_tokens} tokens: shorten the prompt",
        )
    positions = min(longest + max_new_tokens, model.context_tokens)
    waiting = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    batch = Batch(
        open_network(model, slots=min(batch_rows, len(prompts)), positions=positions), model.vocabulary
    )
    answers = [
        Row(
            list(prompt),
            max_new_tokens=min(max_new_tokens, positions - len(prompt)),
            sampling=Sampling(temperature, top_p, apart(seed, index)),
        )
        for index, prompt in enumerate(prompts)
    ]
    while waiting or batch.rows:
        for _ in range(min(batch.free, len(waiting))):
            batch.add(answers[waiting.pop()])
        batch.step(PROMPT_TOKENS)
    return [row.written[:-1] if row.written[-1:] == [model.eos_id] else row.written for row in answers]


@torch.no_grad()
def _check_head(model: LocalModel) -> None:
    """Models that scale or cap their logits after the head would be taught wrongly: refuse them now."""
    ids = torch.arange(2, 6, device=model.device)[None, :]
    weight, bias = model.head()
    expected = model.module(input_ids=ids, use_cache=False).logits
    found = nn.functional.linear(
        model.module.base_model(input_ids=ids, use_cache=False).last_hidden_state, weight, bias
    )
    if not torch.allclose(expected, found, rtol=1e-3, atol=1e-3):
        raise ModelError(
            "its logits are not its output layer applied to its hidden states",
            where=model.name,
            hint="models that scale or cap logits (Gemma 2, Cohere, Granite) are not supported yet",
        )
