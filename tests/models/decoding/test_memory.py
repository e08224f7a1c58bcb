"""A decoder whose weights were arranged computes what it computed before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from consort.models.decoding import memory
from consort.models.decoding.families import read_decoder
from consort.models.decoding.lean import LeanNetwork
from consort.models.decoding.parts import Decoder, HalfLinear, Linear, Product
from tests.tiny_models import ARCHITECTURES, tiny

ON_X86 = torch.backends.quantized.engine in ("x86", "fbgemm")
ROWS = [[5, 6, 7], [8], [9, 10, 11, 12], [13, 14]]


@pytest.fixture(autouse=True)
def small_is_many(monkeypatch):
    monkeypatch.setattr(memory, "MANY_WEIGHTS", 1)


def decoder_of(architecture: str, dtype: torch.dtype) -> Decoder:
    model = tiny(architecture)
    model.module.to(dtype).float()
    decoder = read_decoder(model.module, 64)
    assert decoder is not None
    return decoder


def halved(product: Product) -> bool:
    return isinstance(product, HalfLinear)


def logits(decoder: Decoder, rows: list[list[int]]) -> torch.Tensor:
    network = LeanNetwork(decoder, slots=4, positions=64)
    starts = [0] * len(rows)
    first = network.read(rows, slots=range(len(rows)), starts=starts, every=True)
    more = network.read([[3]] * len(rows), slots=range(len(rows)), starts=[*map(len, rows)], every=False)
    return torch.cat([first, more])


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_arranged_weights_give_the_same_logits(architecture, dtype):
    decoder = decoder_of(architecture, dtype)
    arranged = memory.arranged(decoder)
    for rows in (ROWS[:1], ROWS):
        wanted = logits(decoder, rows)
        assert torch.allclose(logits(arranged, rows), wanted, rtol=0, atol=1e-4)
    for before, after in zip(decoder.layers, arranged.layers, strict=True):
        assert halved(after.down) == (ON_X86 and dtype == torch.bfloat16)
        if isinstance(after.down, Linear):
            assert torch.equal(before.down.weight, after.down.weight)
            assert before.down.weight.stride() == after.down.weight.stride()


@pytest.mark.skipif(not ON_X86, reason="FBGEMM is for x86 processors")
def test_only_weights_that_half_precision_holds_exactly_are_halved():
    published = memory.arranged(decoder_of("llama", torch.bfloat16))
    tuned = memory.arranged(decoder_of("llama", torch.float32))
    assert all(
        halved(layer.up) and not halved(other.up)
        for layer, other in zip(published.layers, tuned.layers, strict=True)
    )
    assert halved(published.head)
    assert not halved(tuned.head)


@pytest.mark.skipif(not ON_X86, reason="FBGEMM is for x86 processors")
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_a_halved_product_is_as_exact_as_float32_at_every_scale(scale):
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(64, 48, generator=generator) * scale).bfloat16().float()
    x = torch.randn(3, 64, generator=generator)
    exact = x.double() @ weight.double()
    decoder = decoder_of("llama", torch.bfloat16)
    found = memory.arranged(replace(decoder, head=Linear(weight, None))).head
    assert halved(found)
    for rows in (1, 3):
        product = found.into(torch.empty(rows, 48), x[:rows])
        assert float((product - exact[:rows]).abs().max()) < 1e-5 * scale


@pytest.mark.skipif(not ON_X86, reason="FBGEMM is for x86 processors")
def test_a_torch_without_the_quick_product_computes_the_same(monkeypatch):
    decoder = decoder_of("llama", torch.bfloat16)
    wanted = logits(memory.arranged(decoder), ROWS)
    monkeypatch.delattr(torch, "fbgemm_pack_gemm_matrix_fp16")
    assert torch.equal(logits(memory.arranged(decoder), ROWS), wanted)
