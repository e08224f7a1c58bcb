"""Distilling the proxy: it learns the cloud model's answers, and the prompts as well."""

from __future__ import annotations

from dataclasses import replace

import torch

from consort.config import ProxyConfig, TuneConfig
from consort.training.data import Sample
from consort.training.lessons import Example, Learner, forward
from consort.training.proxy import distil_proxy
from tests.tiny_models import tiny

ROWS = [Sample(f"what is the limit of account {number}?", f"{number} euro") for number in range(8)]
OPTIONS = TuneConfig(batch_rows=4)


def prompt_loss(model) -> float:
    """Nats a token of the prompts."""
    its = forward(Learner(model, prompt_weight=1.0), [Example(row) for row in ROWS])
    weight_VD, bias_V = model.head()
    with torch.no_grad():
        logits_NV = torch.nn.functional.linear(its.hidden_ND, weight_VD, bias_V)[its.answer_rows :]
    return float(torch.nn.functional.cross_entropy(logits_NV, its.labels_N[its.answer_rows :]))


def distilled(config: ProxyConfig):
    return distil_proxy(tiny("llama"), config, ROWS, OPTIONS, seed=0)[0]


def test_a_proxy_learns_to_make_up_prompts_only_if_prompts_count():
    config = ProxyConfig(layers=1, distil_steps=30, distil_learning_rate=1e-2)
    untaught = distilled(replace(config, distil_prompt_weight=0.0))
    assert prompt_loss(distilled(config)) < 0.5 * prompt_loss(untaught)


def test_without_steps_the_proxy_is_the_pruned_cloud_model():
    first, log = distil_proxy(tiny("llama"), ProxyConfig(layers=1, distil_steps=0), ROWS, OPTIONS, seed=0)
    assert log == []
    assert first.module.config.num_hidden_layers == 1
