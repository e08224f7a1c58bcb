"""Every network gives the module's own logits: whole or in pieces, alone or beside others, in any slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config

from consort.models.decoding.batch import Network
from consort.models.decoding.families import read_decoder
from consort.models.decoding.lean import LeanNetwork
from consort.models.decoding.module import RowNetwork, SlotNetwork, takes_slots
from consort.models.decoding.network import open_network
from consort.models.local import LocalModel
from tests.tiny_models import ARCHITECTURES, GATED, SIZES, tiny, tune_somehow

TEXTS = (list(range(3, 20)), list(range(30, 35)), list(range(5, 45)))
Open = Callable[[LocalModel], Network]


def lean(model: LocalModel) -> Network:
    decoder = read_decoder(model.module, 64)
    assert decoder is not None, "this family is understood"
    return LeanNetwork(decoder, slots=4, positions=64)


NETWORKS: dict[str, Open] = {
    "lean": lean,
    "slots": lambda model: SlotNetwork(model, slots=4, positions=64),
    "rows": lambda model: RowNetwork(model, slots=4, positions=64),
}
CASES = [
    (architecture, network)
    for architecture in sorted(ARCHITECTURES)
    for network in NETWORKS
    if (architecture, network) != ("bloom", "slots")  # its bias hangs on a mask of its own
]


def expected(model: LocalModel, text: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.module(input_ids=torch.tensor([list(text)])).logits[0]
    return logits


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """To 1e-4 of logits of about 10."""
    return torch.allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("architecture", "network"), CASES)
@pytest.mark.parametrize("tuned", [False, True])
def test_rows_of_different_lengths_read_together_are_each_read_alone(architecture, network, tuned):
    model = tiny(architecture)
    if tuned:
        tune_somehow(model)
    found = NETWORKS[network](model).read(TEXTS, slots=[0, 1, 2], starts=[0, 0, 0], every=True)
    assert close(found, torch.cat([expected(model, text) for text in TEXTS]))


@pytest.mark.parametrize(("architecture", "network"), CASES)
def test_shown_states_are_what_the_head_makes_logits_from(architecture, network):
    model = tiny(architecture)
    opened = NETWORKS[network](model)
    assert opened.states is None
    opened.shows_states = True
    weight, bias = model.head()
    for every in (True, False):
        logits = opened.read(TEXTS, slots=[0, 1, 2], starts=[0, 0, 0], every=every)
        assert close(torch.nn.functional.linear(opened.states, weight, bias), logits)


@pytest.mark.parametrize(("architecture", "network"), CASES)
def test_pieces_slots_swaps_and_cuts_do_not_show(architecture, network):
    model = tiny(architecture)
    opened = NETWORKS[network](model)
    wanted = [expected(model, text) for text in TEXTS]
    slots = [3, 0, 2]
    for text, slot, logits in zip(TEXTS, slots, wanted, strict=True):
        half = len(text) // 2
        opened.read([text[:half]], slots=[slot], starts=[0], every=False)
        # what was read beyond the half is written over
        opened.read([[9, 9]], slots=[slot], starts=[half], every=False)
        assert close(opened.read([text[half:-1]], slots=[slot], starts=[half], every=True), logits[half:-1])
    opened.swap(3, 1, 20)
    order = [1, 0, 2]  # of the texts, by slot: side by side, then apart
    found = opened.read(
        [[TEXTS[text][-1]] for text in order],
        slots=[0, 1, 2],
        starts=[len(TEXTS[text]) - 1 for text in order],
        every=False,
    )
    assert close(found, torch.stack([wanted[text][-1] for text in order]))
    found = opened.read(
        [[TEXTS[0][-1]], [TEXTS[2][-1]]],
        slots=[1, 2],
        starts=[len(TEXTS[0]) - 1, len(TEXTS[2]) - 1],
        every=False,
    )
    assert close(found, torch.stack([wanted[0][-1], wanted[2][-1]]))
    found = opened.read(
        [[TEXTS[1][-1]], [TEXTS[2][-1]]],
        slots=[0, 2],
        starts=[len(TEXTS[1]) - 1, len(TEXTS[2]) - 1],
        every=False,
    )
    assert close(found, torch.stack([wanted[1][-1], wanted[2][-1]]))


def test_a_full_cache_and_a_longer_neighbour_s_padding_do_no_harm():
    for network in NETWORKS.values():
        model = tiny()
        opened = network(model)
        text = [5 + index % 50 for index in range(64)]
        opened.read([text[:60]], slots=[1], starts=[0], every=False)
        found = opened.read([text[:30], text[60:]], slots=[0, 1], starts=[0, 60], every=True)
        assert close(found, torch.cat([expected(model, text[:30]), expected(model, text)[60:]]))
        opened.read([text[:9]], slots=[3], starts=[0], every=False)
        found = opened.read([text, text[9:12]], slots=[2, 3], starts=[0, 9], every=True)
        assert close(found, torch.cat([expected(model, text), expected(model, text)[9:12]]))


@pytest.mark.parametrize(
    ("architecture", "setting"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("bloom", {"apply_residual_connection_post_layernorm": True}),
        ("gpt_neox", {"hidden_act": "mish"}),
    ],
)
def test_what_the_lean_network_does_not_compute_is_left_to_the_module(architecture, setting):
    kind, settings = ARCHITECTURES[architecture]
    module = kind(kind.config_class(**(SIZES | settings | setting | {"vocab_size": 400})))
    assert read_decoder(module, 64) is None


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**(SIZES | GATED | {"vocab_size": 400, "sliding_window": 16})),
        Qwen2Config(
            **(SIZES | GATED | {"vocab_size": 400, "use_sliding_window": True, "sliding_window": 16}),
            max_window_layers=1,
        ),
    ],
)
def test_windows_are_left_to_the_module_and_computed_rightly(config):
    model = tiny()
    torch.manual_seed(0)
    model.module = AutoModelForCausalLM.from_config(config).eval()
    assert read_decoder(model.module, 64) is None
    assert not takes_slots(model.module)
    found = open_network(model, slots=3, positions=64).read(
        TEXTS, slots=[0, 1, 2], starts=[0, 0, 0], every=True
    )
    assert close(found, torch.cat([expected(model, text) for text in TEXTS]))


SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
OTHERS: dict[str, dict[str, Any]] = {
    "gemma": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8},
    "phi": {"intermediate_size": 64},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "falcon": {"alibi": True},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "mamba": {"state_size": 8},
    "olmo2": {"intermediate_size": 64},
}


@pytest.mark.parametrize("family", OTHERS)
def test_families_nobody_wrote_down_are_computed_by_their_module(family):
    from transformers import AutoConfig

    model = tiny()
    torch.manual_seed(0)
    model.module = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **(SMALL | OTHERS[family]))
    ).eval()
    opened = open_network(model, slots=3, positions=64)
    found = opened.read(TEXTS, slots=[0, 1, 2], starts=[0, 0, 0], every=True)
    assert close(found, torch.cat([expected(model, text) for text in TEXTS]))
    more = opened.read([[7], [8, 9]], slots=[0, 2], starts=[17, 20], every=False)
    texts = ([*TEXTS[0], 7], [*TEXTS[2][:20], 8, 9])
    assert close(more, torch.stack([expected(model, text)[-1] for text in texts]))


TREE = ((7, 8, 9, 7, 30, 31), (-1, -1, 0, 1, 3, 3))  # tokens and parents: two branches, one of them forked


def path(node: int) -> list[int]:
    tokens, parents = TREE
    return [] if node < 0 else [*path(parents[node]), tokens[node]]


@pytest.mark.parametrize(("architecture", "network"), [case for case in CASES if case[1] != "rows"])
def test_every_branch_of_a_tree_is_read_as_if_it_were_the_text(architecture, network):
    model = tiny(architecture)
    opened = NETWORKS[network](model)
    texts = (TEXTS[0], TEXTS[1])
    opened.read(texts, slots=[1, 2], starts=[0, 0], every=False)
    tokens, parents = TREE
    wanted = [torch.stack([expected(model, [*text, *path(node)])[-1] for node in range(6)]) for text in texts]
    starts = [len(text) for text in texts]
    # at once, beside a chain that is shorter; and level by level
    found = opened.read([tokens, (7, 9)], slots=[1, 2], starts=starts, every=True, trees=[parents, (-1, 0)])
    assert close(found, torch.cat([wanted[0], wanted[1][[0, 2]]]))
    levels = [(0, 2), (2, 4), (4, 6)]
    found = torch.cat(
        [
            opened.read([tokens[a:b]], slots=[2], starts=starts[1:], every=True, trees=[parents[:b]])
            for a, b in levels
        ]
    )
    assert close(found, wanted[1])
    opened.keep(2, starts[1], [1, 3, 5])
    more = opened.read([[11]], slots=[2], starts=[starts[1] + 3], every=True)
    assert close(more, expected(model, [*texts[1], *path(5), 11])[-1:])
