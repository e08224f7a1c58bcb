"""Laws of what travels: it comes back as sent within a stated error, and anything else is one PacketError."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consort.align import SparseRows
from consort.errors import PacketError, UpdateError
from consort.federated.frames import seal, unseal
from consort.federated.packets import (
    KNOWLEDGE,
    decode_adapter,
    decode_knowledge,
    encode_adapter,
    encode_knowledge,
)
from consort.federated.quantise import BLOCK
from consort.types import Adapter


def adapter(seed: int, *, modules: int = 2, width: int = 32, rank: int = 4, size: float = 0.02) -> Adapter:
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {"norm.bias": rng.normal(size=5).astype(np.float32)}
    for i in range(modules):
        tensors[f"model.layers.{i}.lora_A"] = (size * rng.normal(size=(rank, width))).astype(np.float32)
        tensors[f"model.layers.{i}.lora_B"] = (size * rng.normal(size=(width, rank))).astype(np.float32)
    return Adapter(tensors, scaling=2.0, base_sha256="a" * 64)


def rows(seed: int, num_rows: int, *, vocabulary: int = 300, k: int = 20) -> SparseRows:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(k + 1, 0.1), size=num_rows)
    ids = np.array([rng.permutation(vocabulary)[:k] for _ in range(num_rows)]).reshape(num_rows, k)
    mask = rng.random(num_rows) > 0.2
    return SparseRows(
        ids.astype(np.int32), probs[:, :k].astype(np.float32), probs[:, k].astype(np.float32), mask
    )


def dense(part: SparseRows, vocabulary: int = 300) -> np.ndarray:
    """[R, vocabulary + 1], the rest in the last column."""
    full = np.zeros((len(part.ids), vocabulary + 1))
    np.add.at(full, (np.arange(len(part.ids))[:, None], part.ids), part.probs)
    full[:, -1] = part.rest
    return full


# ---- adapters


def test_32_bits_are_exact():
    sent = adapter(1)
    packet, residual = encode_adapter(sent, bits=32)
    got = decode_adapter(packet, base_sha256=sent.base_sha256)
    assert residual is None
    assert (got.scaling, got.base_sha256) == (sent.scaling, sent.base_sha256)
    assert list(got.tensors) == list(sent.tensors)
    for name, tensor in sent.tensors.items():
        assert np.array_equal(got.tensors[name], tensor)
        assert got.tensors[name].dtype == np.float32


@given(seed=st.integers(0, 99), exponent=st.integers(-30, 30), rank=st.integers(1, 9))
def test_8_bits_are_off_by_half_a_step_of_their_block_at_most(seed, exponent, rank):
    sent = adapter(seed, size=2.0**exponent, rank=rank)
    packet, residual = encode_adapter(sent, bits=8)
    got = decode_adapter(packet, base_sha256=sent.base_sha256)
    for name, tensor in sent.tensors.items():
        assert np.abs(got.tensors[name] - tensor).max() <= np.abs(tensor).max() / 127 * 0.51
        np.testing.assert_allclose(residual.tensors[name], tensor - got.tensors[name])


def test_a_column_of_b_with_small_numbers_is_not_drowned_by_a_large_one():
    B = np.ones((2 * BLOCK, 2), np.float32) * [1.0, 1e-4]
    packet, _ = encode_adapter(
        Adapter({"m.lora_B": B.astype(np.float32)}, scaling=1.0, base_sha256="x"), bits=8
    )
    np.testing.assert_allclose(decode_adapter(packet).tensors["m.lora_B"], B, rtol=0.01)


def test_an_adapter_costs_less_than_1_1_bytes_a_parameter():
    sent = adapter(1, modules=39, width=128, rank=8)
    size = sum(t.size for t in sent.tensors.values())
    packet, _ = encode_adapter(sent, bits=8)
    assert 79_000 < size < 81_000
    assert len(packet) / size < 1.1


def test_with_error_feedback_the_sum_of_what_arrives_is_the_sum_of_what_was_meant():
    residual, meant, arrived, forgetful = None, 0.0, 0.0, 0.0
    name = "model.layers.0.lora_B"
    for i in range(30):
        moved = adapter(i)
        packet, residual = encode_adapter(moved, bits=8, residual=residual)
        meant = meant + moved.tensors[name]
        arrived = arrived + decode_adapter(packet).tensors[name]
        forgetful = forgetful + decode_adapter(encode_adapter(moved, bits=8)[0]).tensors[name]
    np.testing.assert_allclose(meant - arrived, residual.tensors[name], atol=1e-5)
    assert np.linalg.norm(meant - arrived) < 0.3 * np.linalg.norm(meant - forgetful)


def test_zeros_travel_as_zeros():
    nothing = Adapter({"m.lora_A": np.zeros((2, 70), np.float32)}, scaling=1.0, base_sha256="x")
    packet, residual = encode_adapter(nothing, bits=8)
    assert not decode_adapter(packet).tensors["m.lora_A"].any()
    assert not residual.tensors["m.lora_A"].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_not_sent(bad):
    broken = Adapter({"m.lora_A": np.array([[1.0, bad]], np.float32)}, scaling=1.0, base_sha256="x")
    with pytest.raises(UpdateError, match="not finite"):
        encode_adapter(broken, bits=8)


def test_a_residual_of_another_shape_is_refused():
    with pytest.raises(UpdateError, match="residual"):
        encode_adapter(adapter(1), bits=8, residual=adapter(1, rank=3))


def test_an_adapter_for_another_base_is_refused():
    packet, _ = encode_adapter(adapter(1), bits=8)
    with pytest.raises(PacketError, match="base"):
        decode_adapter(packet, base_sha256="b" * 64)


# ---- knowledge


@given(
    seed=st.integers(0, 99),
    lengths=st.lists(st.integers(0, 6), max_size=4),
    step=st.sampled_from([0.05, 0.1, 0.5]),
)
def test_knowledge_comes_back_within_the_stated_error(seed, lengths, step):
    texts = {f"text {i}": rows(seed + i, length) for i, length in enumerate(lengths)}
    packet = encode_knowledge(texts, tokenizer_sha256="t", mass=1.0, top_k=255, step_nats=step)
    got = decode_knowledge(packet, tokenizer_sha256="t", vocabulary_size=300)
    assert list(got) == list(texts)
    for key, sent in texts.items():
        taught = got[key].mask
        assert np.array_equal(taught, sent.mask)
        assert (np.diff(np.where(got[key].probs > 0, got[key].ids, 1000), axis=1) >= 0).all()
        np.testing.assert_allclose(got[key].probs.sum(1) + got[key].rest, 1, atol=1e-5)
        distance = 0.5 * np.abs(dense(got[key]) - dense(sent)).sum(1)[taught]
        assert (distance <= step / 2 + 1e-6).all()


def test_a_row_keeps_its_nucleus_and_no_more_than_top_k():
    sent = SparseRows(
        np.array([[7, 3, 9, 0], [5, 6, 7, 8]], np.int32),
        np.array([[0.1, 0.6, 0.25, 0.0], [0.25, 0.25, 0.25, 0.2]], np.float32),
        np.array([0.05, 0.05], np.float32),
        np.array([True, True]),
    )
    packet = encode_knowledge({"a": sent}, tokenizer_sha256="t", mass=0.8, top_k=3)
    got = decode_knowledge(packet, tokenizer_sha256="t", vocabulary_size=10)["a"]
    assert [row[p > 0].tolist() for row, p in zip(got.ids, got.probs, strict=True)] == [[3, 9], [5, 6, 7]]
    np.testing.assert_allclose(got.rest, [0.15, 0.25], atol=0.02)


def test_knowledge_of_nothing_travels():
    assert (
        decode_knowledge(encode_knowledge({}, tokenizer_sha256="t"), tokenizer_sha256="t", vocabulary_size=1)
        == {}
    )


def test_ids_of_the_largest_vocabularies_travel():
    sent = SparseRows(
        np.array([[0, 262_143, 70_000]], np.int32), np.array([[0.5, 0.3, 0.2]], np.float32),
        np.zeros(1, np.float32), np.ones(1, bool),
    )  # fmt: skip
    packet = encode_knowledge({"a": sent}, tokenizer_sha256="t")
    got = decode_knowledge(packet, tokenizer_sha256="t", vocabulary_size=262_144)["a"]
    assert got.ids.tolist() == [[0, 70_000, 262_143]]
    with pytest.raises(PacketError, match="vocabulary"):
        decode_knowledge(packet, tokenizer_sha256="t", vocabulary_size=262_143)


def test_knowledge_of_another_tokenizer_is_refused():
    packet = encode_knowledge({"a": rows(1, 3)}, tokenizer_sha256="t")
    with pytest.raises(PacketError, match="tokenizer"):
        decode_knowledge(packet, tokenizer_sha256="u", vocabulary_size=300)


@pytest.mark.parametrize(
    ("ids", "probs"),
    [
        ([1, 2], [np.nan, 0.1]),
        ([1, 2], [0.9, 0.9]),
        ([1, 2], [-0.1, 0.5]),
        ([3, 3], [0.4, 0.4]),
        ([-1, 2], [0.4, 0.4]),
    ],
)
def test_what_is_no_distribution_is_not_sent(ids, probs):
    sent = SparseRows(
        np.array([ids], np.int32), np.array([probs], np.float32), np.zeros(1, np.float32), np.ones(1, bool)
    )
    with pytest.raises(PacketError, match="row of the teacher"):
        encode_knowledge({"a": sent}, tokenizer_sha256="t")


# ---- hostile packets


def packets() -> dict[str, bytes]:
    return {
        "adapter 8": encode_adapter(adapter(1), bits=8)[0],
        "adapter 32": encode_adapter(adapter(1), bits=32)[0],
        "knowledge": encode_knowledge({"a": rows(1, 9), "b": rows(2, 4)}, tokenizer_sha256="t"),
    }


def read(packet: bytes) -> object:
    """By its kind byte, as a receiver would."""
    if packet[5:6] == bytes([KNOWLEDGE]):
        return decode_knowledge(packet, tokenizer_sha256="t", vocabulary_size=300, max_bytes=1 << 20)
    return decode_adapter(packet, base_sha256="a" * 64, max_bytes=1 << 20)


def test_rows_that_would_fill_memory_are_refused():
    counts = bytes(99_999) + b"\xff"
    header = {"tokenizer": "t", "step": 0.1, "texts": [["a", 100_000]]}
    packet = seal(KNOWLEDGE, header, [counts, bytes(100_000), bytes(255), bytes(255), bytes(255), bytes(255)])
    with pytest.raises(PacketError, match="fill"):
        read(packet)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
HEADER_KEYS = ["base", "scaling", "bits", "tensors", "tokenizer", "step", "texts"]


@settings(max_examples=300)
@given(
    name=st.sampled_from(sorted(packets())),
    changed=st.dictionaries(st.sampled_from(HEADER_KEYS), JSON, max_size=2),
    section=st.integers(0, 5),
    content=st.none() | st.binary(max_size=40),
    flips=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10_000), st.integers(0, 255)), max_size=3),
)
def test_a_forged_packet_is_read_or_refused_and_nothing_else(name, changed, section, content, flips):
    """The checksum is right, everything else may be wrong: what a hostile device can send."""
    packet = packets()[name]
    frame = unseal(packet, kind=packet[5])
    sections = [bytearray(part) for part in frame.sections]
    if content is not None and section < len(sections):
        sections[section] = bytearray(content)
    for index, position, byte in flips:
        if index < len(sections) and sections[index]:
            sections[index][position % len(sections[index])] = byte
    try:
        got = read(seal(packet[5], {**frame.header, **changed}, [bytes(part) for part in sections]))
    except PacketError:
        return
    if isinstance(got, Adapter):
        assert all(np.isfinite(tensor).all() for tensor in got.tensors.values())
    else:
        for part in got.values():
            assert part.ids.max(initial=0) < 300
            np.testing.assert_allclose(part.probs.sum(1) + part.rest, 1, atol=1e-4)
