"""Laws of aggregation: it equals the dense average, whatever the order, the ranks and the factors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consort.errors import UpdateError
from consort.federated.aggregate import (
    apply_change,
    average_adapters,
    average_weights,
    change,
    check_update,
    lora_modules,
)
from consort.types import Adapter

OUT, IN = 24, 16
MODULES = ("layers.0.q_proj", "layers.1.up_proj")


def lora(seed: int, *, rank: int = 4, scaling: float = 2.0, size: float = 1.0) -> Adapter:
    rng = np.random.default_rng(seed)
    tensors = {}
    for module in MODULES:
        tensors[module + ".lora_A"] = (size * rng.normal(size=(rank, IN))).astype(np.float32)
        tensors[module + ".lora_B"] = (size * rng.normal(size=(OUT, rank))).astype(np.float32)
    return Adapter(tensors, scaling=scaling, base_sha256="base")


def fresh(seed: int, *, rank: int = 4) -> Adapter:
    """As LoRA starts: B is zero."""
    start = lora(seed, rank=rank)
    return Adapter(
        {n: t * 0 if n.endswith("lora_B") else t for n, t in start.tensors.items()},
        scaling=start.scaling,
        base_sha256="base",
    )


def dense(adapter: Adapter, module: str = MODULES[0]) -> np.ndarray:
    factors = (adapter.tensors[module + suffix].astype(np.float64) for suffix in (".lora_B", ".lora_A"))
    return adapter.scaling * np.linalg.multi_dot([*factors])


def dense_average(adapters: list[Adapter], weights: list[float]) -> np.ndarray:
    return sum(w * dense(a) for w, a in zip(weights, adapters, strict=True)) / sum(weights)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@given(
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    weights=st.lists(st.integers(1, 1000), min_size=4, max_size=4),
    scalings=st.lists(st.sampled_from([0.5, 1.0, 4.0]), min_size=4, max_size=4),
)
def test_equals_the_dense_average_when_the_rank_suffices(ranks, weights, scalings):
    parties = [lora(i, rank=r, scaling=s) for i, (r, s) in enumerate(zip(ranks, scalings, strict=False))]
    weights = [float(w) for w in weights[: len(parties)]]
    average = average_adapters(parties, weights, previous=fresh(9), rank=sum(ranks))
    assert distance(dense(average.adapter), dense_average(parties, weights)) < 1e-5
    assert average.relative_error < 1e-6


def test_is_the_best_approximation_when_the_rank_does_not_suffice():
    parties = [lora(i) for i in range(4)]
    average = average_adapters(parties, [1, 2, 3, 4], previous=fresh(9))
    target = dense_average(parties, [1, 2, 3, 4])
    sizes = np.linalg.svd(target, compute_uv=False)
    best = np.sqrt(np.sum(sizes[4:] ** 2) / np.sum(sizes**2))
    assert average.adapter.tensors[MODULES[0] + ".lora_A"].shape == (4, IN)
    assert distance(dense(average.adapter), target) == pytest.approx(best, rel=1e-4)
    assert average.module_errors[MODULES[0]] == pytest.approx(best, rel=1e-4)
    assert (
        max(average.module_errors.values()) >= average.relative_error >= min(average.module_errors.values())
    )


def test_averaging_the_factors_apart_is_wrong_and_ours_is_not():
    parties = [lora(i, rank=8) for i in range(4)]
    apart = Adapter(average_weights([p.tensors for p in parties], [1] * 4), scaling=2.0, base_sha256="base")
    ours = average_adapters(parties, [1] * 4, previous=fresh(9, rank=8), rank=32)
    target = dense_average(parties, [1] * 4)
    assert distance(dense(apart), target) > 0.5
    assert distance(dense(ours.adapter), target) < 1e-5


@given(order=st.permutations(range(3)))
def test_does_not_depend_on_the_order_of_the_parties(order):
    parties, weights, previous = [lora(i) for i in range(3)], [1.0, 5.0, 2.0], lora(9)
    once = average_adapters(parties, weights, previous=previous)
    again = average_adapters([parties[i] for i in order], [weights[i] for i in order], previous=previous)
    for name, tensor in once.adapter.tensors.items():
        np.testing.assert_allclose(again.adapter.tensors[name], tensor, atol=1e-4)


def test_one_party_gets_back_its_own_factors():
    party = lora(1)
    average = average_adapters([party], [17.0], previous=fresh(2))
    assert average.relative_error == 0
    for name, tensor in party.tensors.items():
        assert np.array_equal(average.adapter.tensors[name], tensor)


def test_equal_parties_give_what_each_of_them_has():
    party = lora(1)
    average = average_adapters([party] * 3, [1, 1, 1], previous=party)
    for name, tensor in party.tensors.items():
        np.testing.assert_allclose(average.adapter.tensors[name], tensor, rtol=1e-6)


@given(factor=st.sampled_from([1e-3, 0.1, 10.0, 1e3]))
def test_depends_on_products_not_on_how_they_are_factored(factor):
    plain = [lora(i) for i in range(3)]
    scaled = [
        Adapter(
            {
                n: (t * factor if n.endswith("_A") else t / factor).astype(np.float32)
                for n, t in p.tensors.items()
            },
            scaling=p.scaling,
            base_sha256="base",
        )
        for p in plain
    ]
    one, two = (average_adapters(p, [1, 1, 2], previous=fresh(9)).adapter for p in (plain, scaled))
    assert distance(dense(two), dense(one)) < 1e-5


@given(factor=st.floats(1e-3, 1e3))
def test_weights_count_only_in_proportion(factor):
    parties = [lora(i) for i in range(2)]
    one = average_adapters(parties, [1.0, 3.0], previous=fresh(9)).adapter
    two = average_adapters(parties, [factor, 3 * factor], previous=fresh(9)).adapter
    assert distance(dense(two), dense(one)) < 1e-5


def test_factors_are_balanced_and_stay_close_to_the_previous_broadcast():
    previous = average_adapters([lora(i) for i in range(4)], [1] * 4, previous=fresh(9)).adapter
    parties = [apply_change(previous, lora(20 + i, size=0.05)) for i in range(4)]
    after = average_adapters(parties, [1] * 4, previous=previous).adapter
    for module in MODULES:
        A, B = after.tensors[module + ".lora_A"], after.tensors[module + ".lora_B"]
        np.testing.assert_allclose(B.T @ B, A @ A.T, atol=1e-3)
        for suffix in (".lora_A", ".lora_B"):
            assert distance(after.tensors[module + suffix], previous.tensors[module + suffix]) < 0.15


def test_directions_that_nobody_used_keep_their_rows_of_a():
    previous, thin = fresh(9), lora(1, rank=1)
    after = average_adapters([thin], [1.0], previous=previous).adapter
    for module in MODULES:
        gradient_of_B = np.ones((OUT, IN)) @ after.tensors[module + ".lora_A"].T
        assert np.linalg.matrix_rank(after.tensors[module + ".lora_A"]) == 4
        assert np.abs(gradient_of_B).max() > 0.1
    assert distance(dense(after), dense(thin)) < 1e-5


def test_nothing_learned_is_nothing_changed():
    previous = fresh(9)
    unchanged = [fresh(9), Adapter(fresh(3).tensors, scaling=2.0, base_sha256="base")]
    after = average_adapters(unchanged, [1, 1], previous=previous).adapter
    for name, tensor in previous.tensors.items():
        np.testing.assert_allclose(after.tensors[name], tensor, atol=1e-6)


def test_tensors_that_are_no_factors_are_averaged_by_name():
    with_bias = [
        Adapter({**lora(i).tensors, "head.bias": np.full(3, i, np.float32)}, scaling=2.0, base_sha256="base")
        for i in range(2)
    ]
    after = average_adapters(with_bias, [1, 3], previous=with_bias[0]).adapter
    np.testing.assert_allclose(after.tensors["head.bias"], 0.75)
    assert lora_modules(after) == MODULES


def test_change_and_apply_change_are_inverse():
    before, after = lora(1), lora(2)
    restored = apply_change(before, change(after, before))
    for name, tensor in after.tensors.items():
        np.testing.assert_allclose(restored.tensors[name], tensor, atol=1e-6)


def test_the_norm_is_that_of_the_change_in_the_model():
    before, after = lora(1), lora(2, rank=2)
    expected = np.sqrt(sum(np.linalg.norm(dense(after, m) - dense(before, m)) ** 2 for m in MODULES))
    assert check_update(after, before) == pytest.approx(expected, rel=1e-6)
    assert check_update(before, before) == pytest.approx(0, abs=1e-5)
    assert check_update(after, before, max_norm=1.01 * expected) > 0
    with pytest.raises(UpdateError, match="limit"):
        check_update(after, before, max_norm=0.99 * expected)


def replaced(adapter: Adapter, name: str, tensor: np.ndarray | None, **fields: object) -> Adapter:
    tensors = {n: t for n, t in adapter.tensors.items() if n != name}
    if tensor is not None:
        tensors[name] = tensor
    return Adapter(tensors, **{"scaling": adapter.scaling, "base_sha256": adapter.base_sha256, **fields})


A0 = MODULES[0] + ".lora_A"


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (replaced(lora(1), A0, np.full((4, IN), np.nan, np.float32)), "not finite"),
        (replaced(lora(1), A0, np.full((4, IN), np.inf, np.float32)), "not finite"),
        (replaced(lora(1), A0, None), "other tensors"),
        (replaced(lora(1), "surprise", np.zeros(3, np.float32)), "other tensors"),
        (replaced(lora(1), A0, np.zeros((4, IN + 1), np.float32)), "shape"),
        (replaced(lora(1), A0, np.zeros((3, IN), np.float32)), "shape"),
        (replaced(lora(1), A0, np.zeros(4, np.float32)), "shape"),
        (replaced(lora(1), A0, np.zeros((0, IN), np.float32)), "shape"),
        (replaced(lora(1), "", None, base_sha256="other"), "base"),
        (replaced(lora(1), "", None, scaling=float("nan")), "scaling"),
        (replaced(lora(1), "", None, scaling=0.0), "scaling"),
    ],
)
def test_an_update_that_must_not_enter_the_average_is_refused(update, message):
    with pytest.raises(UpdateError, match=message):
        check_update(update, lora(9))


@pytest.mark.parametrize(
    "weights", [[], [1.0], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]]
)
def test_weights_that_are_no_numbers_of_examples_are_refused(weights):
    with pytest.raises(UpdateError):
        average_adapters([lora(1), lora(2)], weights, previous=lora(9))
    with pytest.raises(UpdateError):
        average_weights([{"w": np.ones(2)}, {"w": np.ones(2)}], weights)


def test_no_update_at_all_is_refused():
    with pytest.raises(UpdateError, match="0 updates"):
        average_adapters([], [], previous=lora(9))


def test_average_weights_is_the_weighted_mean_by_name():
    mean = average_weights([{"w": np.zeros((2, 2), np.float32)}, {"w": np.ones((2, 2), np.float32)}], [1, 3])
    np.testing.assert_allclose(mean["w"], 0.75)
    with pytest.raises(UpdateError, match="shape"):
        average_weights([{"w": np.zeros(2)}, {"w": np.zeros(3)}], [1, 1])
