"""The bundled models: present, small, different from each other, and the cloud model is the better one."""

from __future__ import annotations

import json
import math

import pytest
import torch

from consort.align import Vocabulary
from consort.bench.suite import generate_suite
from consort.config import RuntimeConfig
from consort.errors import ModelError
from consort.models.local import LocalModel, load_model
from consort.models.zoo import CLOUD, EDGES, NAMES, PROXY, WEIGHTS, zoo_dir
from consort.training.data import Sample, encode
from consort.types import Message

TEXTS = (
    "Dear Ömer,  two   spaces\n\n\tand a tab ",
    " leading",
    "日本 \U0001f469‍\U0001f467 é",
    "~`^|\\{}[]<>",
    "",
)


@pytest.fixture(scope="module")
def zoo() -> dict[str, LocalModel]:
    return {name: load_model(zoo_dir(name), runtime=RuntimeConfig(device="cpu")) for name in NAMES}


def test_the_bundle_is_small_and_stored_in_half_precision():
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*")) < 40e6
    for name in NAMES:
        header = (zoo_dir(name) / "model.safetensors").read_bytes()
        size = int.from_bytes(header[:8], "little")
        tensors = json.loads(header[8 : 8 + size])
        assert {tensor["dtype"] for key, tensor in tensors.items() if key != "__metadata__"} == {"BF16"}


def test_a_bundled_model_is_named_wherever_a_model_is(zoo):
    named = load_model("zoo:proxy", runtime=RuntimeConfig(device="cpu"))
    for name, weight in zoo[PROXY].module.state_dict().items():
        assert torch.equal(weight, named.module.state_dict()[name])


def test_an_unknown_name_is_one_clear_error():
    with pytest.raises(ModelError, match="no such bundled model"):
        zoo_dir("gpt-5")


def test_devices_differ_in_class_and_tokenizer_and_the_proxy_reads_as_the_cloud(zoo):
    assert len({type(zoo[name].module) for name in EDGES}) == len(EDGES)
    assert len({zoo[name].vocabulary.sha256 for name in (CLOUD, *EDGES)}) == 1 + len(EDGES)
    assert zoo[PROXY].vocabulary.sha256 == zoo[CLOUD].vocabulary.sha256
    parameters = {name: sum(weight.numel() for weight in zoo[name].module.parameters()) for name in NAMES}
    # three of six layers under the same embeddings: 1.77
    assert parameters[CLOUD] > 1.75 * parameters[PROXY]
    assert parameters[PROXY] > 2 * max(parameters[name] for name in EDGES)


@pytest.mark.parametrize("name", NAMES)
def test_tokenizers_lose_no_byte(name):
    vocabulary = Vocabulary.of(str(zoo_dir(name) / "tokenizer.json"))
    for text in TEXTS:
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_prompts_end_with_a_whole_token_and_answers_begin_a_new_one(zoo):
    turns = [{"role": "user", "content": "Name the intent."}]
    for model in zoo.values():
        prompt = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert prompt == "user: Name the intent.\nassistant:\n"
        apart = model.vocabulary.encode(prompt) + model.vocabulary.encode("lost card")
        assert model.vocabulary.decode(apart) == prompt + "lost card"


def test_the_cloud_predicts_unseen_public_text_better_than_the_proxy_and_that_better_than_any_edge(zoo):
    rows = generate_suite().public["test"][:60]
    bits = {name: bits_per_byte(model, rows) for name, model in zoo.items()}
    assert bits[CLOUD] < bits[PROXY] < min(bits[name] for name in EDGES)


@torch.no_grad()
def bits_per_byte(model: LocalModel, rows) -> float:
    nats = 0.0
    for row in rows:
        encoded = encode(
            Sample((Message("user", f"{row.instruction}\n{row.input}"),), row.output), model, 256
        )
        ids = torch.tensor([[*encoded.prompt_ids, *encoded.answer_ids]])
        logp = model.module(input_ids=ids[:, :-1]).logits[0, len(encoded.prompt_ids) - 1 :].log_softmax(-1)
        nats -= float(logp.gather(1, torch.tensor(encoded.answer_ids)[:, None]).sum())
    return nats / math.log(2) / sum(len(row.output.encode()) for row in rows)
