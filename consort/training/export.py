"""A tuned model in the forms others read: PEFT directory, merged transformers directory, GGUF for llama.cpp.

Merging makes LoRAs part of the weights. GGUF is written by our own small converter (`gguf_weights`,
`gguf_vocabulary`) through the `gguf` package. Uploads nothing, and does not quantise below 8 bits:
llama.cpp's own tool does that better.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch

from consort import __version__
from consort.errors import MissingExtraError, ModelError, RunError
from consort.models.gguf.tokens import WHOLE_JSON
from consort.models.local import LocalModel, save_model
from consort.training.gguf_vocabulary import GgufVocabulary, gguf_vocabulary
from consort.training.gguf_weights import architecture, hyperparameters, tensors
from consort.training.peft_directory import merge_adapters, save_adapter
from consort.training.tuned import tuned_from

if TYPE_CHECKING:
    from consort.types import FloatArray

Form: TypeAlias = Literal["peft", "safetensors", "gguf"]
Precision: TypeAlias = Literal["float32", "bfloat16", "float16", "q8_0"]  # q8_0: GGUF only


def export_model(
    model: LocalModel,
    out: Path,
    *,
    form: Form,
    precision: Precision = "bfloat16",
    base: str,
    adapter: str = "",
) -> Path:
    """Write `model` into the new directory `out`, with a card; returns the file or directory to load.

    `adapter` names the LoRA that the model carries: `peft` writes it alone, the other forms merge it, which
    changes the model in memory. `base` is the Hub id or directory that the model came from, for the card.
    """
    _check(out, form, precision, model.name, adapter)
    unfinished = out.with_name(f"{out.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        if form == "peft":
            save_adapter(model, adapter, unfinished, base=base)
        else:
            merge_adapters(model)
            if form == "gguf":
                write_gguf(model, unfinished / f"{out.name}.gguf", precision=precision)
            else:
                _write_safetensors(model, unfinished, precision)
        (unfinished / "README.md").write_text(_card(model, out, form, precision, base), encoding="utf-8")
        if out.exists():
            out.rmdir()
        os.replace(unfinished, out)
    except OSError as error:
        raise RunError(
            f"the model cannot be written: {error.strerror or error}",
            where=str(out),
            hint="free some space, or give another OUT",
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out / f"{out.name}.gguf" if form == "gguf" else out


def write_gguf(model: LocalModel, file: Path, *, precision: Precision) -> None:
    """One GGUF file with weights, tokenizer and chat template. Norms, biases and positions stay float32."""
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("GGUF needs the gguf package", hint="pip install gguf") from error
    config = model.module.config
    name = architecture(config, where=model.name)
    keys = hyperparameters(config, where=model.name)
    num_rows = model.module.get_input_embeddings().num_embeddings
    vocabulary = gguf_vocabulary(model.tokenizer, num_rows=num_rows, where=model.name)
    writer = gguf.GGUFWriter(file, name)
    writer.add_name(model.name)
    writer.add_file_type(_FILE_TYPES[precision])
    writer.add_vocab_size(num_rows)
    for key, value in keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{name}.{key}", value)
    _add_vocabulary(writer, vocabulary, model.tokenizer.chat_template)
    arch = next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for target, weight in tensors(
        model.module,
        lambda source: names.get_name(source, try_suffixes=(".weight", ".bias")),
        where=model.name,
    ):
        _add_tensor(writer, target, weight, precision)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_FILE_TYPES: dict[Precision, int] = {
    "float32": 0,
    "float16": 1,
    "q8_0": 7,
    "bfloat16": 32,
}  # llama.cpp's LLAMA_FTYPE


def _add_vocabulary(writer: Any, vocabulary: GgufVocabulary, chat_template: str | None) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_string(WHOLE_JSON, vocabulary.whole)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for name, token in vocabulary.special_ids.items():
        getattr(writer, f"add_{name}_token_id")(token)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.space_prefix)
    writer.add_remove_extra_whitespaces(False)
    if chat_template:
        writer.add_chat_template(chat_template)


def _add_tensor(writer: Any, name: str, weight: FloatArray, precision: Precision) -> None:
    import gguf

    if weight.ndim < 2 or precision == "float32" or name.startswith("position_embd"):
        writer.add_tensor(name, weight.astype(np.float32))
        return
    # blocks of q8_0 are 32 wide; a narrower row keeps 16 bits
    kind = (
        "F16"
        if precision == "float16" or weight.shape[-1] % 32
        else {"q8_0": "Q8_0", "bfloat16": "BF16"}[precision]
    )
    stored = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, gguf.quants.quantize(weight, stored), raw_dtype=stored)


def _write_safetensors(model: LocalModel, directory: Path, precision: Precision) -> None:
    module = model.module.to(getattr(torch, precision))
    save_model(model, directory)
    module.to(torch.float32)


def _check(out: Path, form: Form, precision: Precision, name: str, adapter: str) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError("already exists and is not empty", where=str(out), hint="give a new directory")
    if form == "peft" and not adapter:
        raise ModelError(
            "there is no adapter to write as a PEFT directory",
            where=name,
            hint="name one with --adapter, or export the whole model with --format safetensors",
        )
    if form != "gguf" and precision == "q8_0":
        raise ModelError(
            "q8_0 is a precision of GGUF", where=name, hint="choose float32, bfloat16 or float16"
        )


def _card(model: LocalModel, out: Path, form: Form, precision: Precision, base: str) -> str:
    base = base if form == "peft" else tuned_from(model, base)
    bundled = base.startswith("zoo:")
    source = f'consort.models.zoo.located("{base}")' if bundled else f'"{base}"'
    loads = {
        "peft": f'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({source}), "{out.name}")',
        "safetensors": f'AutoModelForCausalLM.from_pretrained("{out.name}")',
        "gguf": f"llama-cli -m {out.name}.gguf",
    }
    what = {
        "peft": "A LoRA adapter",
        "safetensors": f"A whole model, adapters merged, {precision}",
        "gguf": f"A whole model for llama.cpp, adapters merged, {precision}",
    }
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    return _CARD.format(
        base=base,
        library="peft" if form == "peft" else "gguf" if form == "gguf" else "transformers",
        title=out.name,
        what=what[form],
        version=__version__,
        kind=model.module.config.model_type,
        millions=f"{parameters / 1e6:.1f}",
        context=model.context_tokens,
        load=loads[form],
    )


_CARD = """---
base_model: {base}
library_name: {library}
tags: [consort]
---

# {title}

{what}, tuned from `{base}` ({kind}, {millions} million parameters, {context} tokens of context) and written
by consort {version}. How it was tuned and how it did is in the report of its run; `consort eval` measures
it again.

## Loading

    {load}

The licence and the limits of the base model apply.
"""
