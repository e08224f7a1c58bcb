"""Two adapters as one compute the same, also from disk."""

from __future__ import annotations

from pathlib import Path

import torch

from consort.training.adapters import add_lora, lora_parameters, use_adapters
from consort.training.peft_directory import load_adapter, save_adapter
from consort.training.stacking import stack_adapters
from tests.tiny_models import tiny


def test_adapters_in_one_compute_what_they_compute_together(tmp_path: Path) -> None:
    model = tiny("qwen2")
    for seed, (name, rank) in enumerate((("shared", 2), ("domain", 3))):
        add_lora(model, name, rank=rank, alpha=5.0, seed=seed)
        for parameter in lora_parameters(model, name).values():
            with torch.no_grad():
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(seed + parameter.numel()))
    use_adapters(model, ["shared", "domain"])
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        both = model.module(input_ids=ids).logits
        stack_adapters(model, ["shared", "domain"], into="one")
        one = model.module(input_ids=ids).logits
        save_adapter(model, "one", tmp_path, base="tiny")
        other = tiny("qwen2")
        bare = other.module(input_ids=ids).logits
        load_adapter(other, tmp_path)
        read = other.module(input_ids=ids).logits
    assert torch.allclose(one, both, atol=1e-3)
    assert torch.allclose(read, both, atol=1e-3)
    assert not torch.allclose(bare, both, atol=1e-2)
