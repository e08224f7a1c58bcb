"""Pruning copies weights: keeping all changes nothing, keeping less gives the sizes asked for."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from consort.errors import ModelError
from consort.training.prune import prune

LAYERS, WIDTH, NEURONS, VOCABULARY = 5, 16, 24, 50
LLAMA_LIKE = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": NEURONS, "num_hidden_layers": LAYERS,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2_LIKE = {
    "vocab_size": VOCABULARY,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**LLAMA_LIKE, tie_word_embeddings=True),
    "mistral": transformers.MistralConfig(**LLAMA_LIKE),
    "qwen2": transformers.Qwen2Config(
        **LLAMA_LIKE,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=2,
        tie_word_embeddings=False,
    ),
    "qwen3": transformers.Qwen3Config(**LLAMA_LIKE, head_dim=8, tie_word_embeddings=True),
    "gpt_neox": transformers.GPTNeoXConfig(**{**LLAMA_LIKE, "num_key_value_heads": None}),
    "gpt2": transformers.GPT2Config(**GPT2_LIKE, n_positions=64),
    "bloom": transformers.BloomConfig(**GPT2_LIKE, hidden_size=WIDTH),
}
CUTTABLE = [name for name in CONFIGS if name != "bloom"]
IDS = torch.randint(3, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return fresh(request.param)


def fresh(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for (
            parameter
        ) in model.parameters():  # biases and norms start at constants, which would hide a wrong copy
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_pruning_nothing_is_the_original_bit_for_bit(model):
    before = logits(model)
    same = prune(model, layers=LAYERS, width=1.0)
    assert same is not model
    assert type(same) is type(model)
    assert torch.equal(logits(same), before)
    assert torch.equal(logits(model), before)
    ours, theirs = same.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not {tensor.data_ptr() for tensor in same.parameters()} & {
        t.data_ptr() for t in model.parameters()
    }


def test_the_configuration_says_the_new_depth_and_the_first_and_last_layers_are_kept(model):
    small = prune(model, layers=3)
    assert small.config.num_hidden_layers == 3
    assert model.config.num_hidden_layers == LAYERS
    assert logits(small).shape == (3, 12, VOCABULARY)
    ours, theirs = dict(small.named_parameters()), dict(model.named_parameters())
    for new, old in ((0, 0), (1, 2), (2, LAYERS - 1)):
        names = [name for name in ours if f".{new}.mlp." in name or f".{new}.self_attn" in name]
        assert names
        assert all(torch.equal(ours[name], theirs[name.replace(f".{new}.", f".{old}.", 1)]) for name in names)


@pytest.mark.parametrize("name", CUTTABLE)
def test_the_feed_forward_width_shrinks_to_the_share_asked_for(name):
    small = prune(fresh(name), layers=2, width=0.5)
    inner = NEURONS if name != "gpt2" else 4 * WIDTH
    key = "n_inner" if name == "gpt2" else "intermediate_size"
    assert getattr(small.config, key) == inner // 2
    assert torch.isfinite(logits(small)).all()
    rebuilt = type(small)(small.config)
    rebuilt.load_state_dict(small.state_dict())  # the configuration and the weights agree
    assert torch.equal(logits(rebuilt.eval()), logits(small))


@pytest.mark.parametrize("name", CUTTABLE)
def test_neurons_that_contribute_nothing_are_the_ones_cut(name):
    model = fresh(name)
    dead = torch.arange(0, NEURONS if name != "gpt2" else 4 * WIDTH, 2)
    with torch.no_grad():
        for label, module in model.named_modules():
            if label.endswith(("down_proj", "dense_4h_to_h")):
                module.weight[:, dead] = 0
            elif label.endswith("mlp.c_proj"):
                module.weight[dead] = 0
    small = prune(model, layers=LAYERS, width=0.5)
    torch.testing.assert_close(logits(small), logits(model), rtol=1e-5, atol=1e-5)


def test_layer_types_follow_their_layers():
    small = prune(fresh("qwen2"), layers=3)
    assert small.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]


def test_tied_embeddings_stay_tied_and_untied_apart():
    for name, tied in (("llama", True), ("qwen2", False)):
        small = prune(fresh(name), layers=2, width=0.5)
        assert (small.get_input_embeddings().weight is small.get_output_embeddings().weight) == tied


def test_type_training_mode_and_the_random_stream_are_kept():
    model = fresh("llama").to(torch.bfloat16).train()
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    small = prune(model, layers=2, width=0.5)
    assert torch.equal(torch.rand(1), wanted)
    assert small.training
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
    assert torch.isfinite(small(input_ids=IDS, labels=IDS).loss)


def test_a_pruned_model_survives_saving(model, tmp_path):
    small = prune(model, layers=2, width=1.0).eval()
    small.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(small))


@pytest.mark.parametrize(("layers", "width"), [(0, 1.0), (LAYERS + 1, 1.0), (2, 0.0), (2, 1.5)])
def test_an_impossible_size_is_an_error_with_a_hint(layers, width):
    with pytest.raises(ModelError, match="cannot keep") as caught:
        prune(fresh("llama"), layers=layers, width=width)
    assert "proxy." in caught.value.hint


def test_an_unknown_architecture_or_a_fixed_width_is_an_error_with_a_hint():
    with pytest.raises(ModelError, match="cannot be pruned") as caught:
        prune(nn.Linear(2, 2), layers=1)
    assert "proxy.model" in caught.value.hint
    with pytest.raises(ModelError, match="fixed"):
        prune(fresh("bloom"), layers=2, width=0.5)
