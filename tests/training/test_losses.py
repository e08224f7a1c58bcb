"""The fused loss is the dense one: same value, same gradient, every divergence, temperature and mask."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from consort.training.divergences import REST_FLOOR
from consort.training.losses import LossParts, SparseTargets, fused_loss, top_k_targets

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
ROWS, VOCABULARY, WIDTH, K = 9, 23, 5, 4


def dense_parts(
    logits_NV, labels_N, label_weight_N, targets, *, divergence, temperature
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and divergence as textbooks have them: full softmax, one event for all other tokens."""
    ce_N = torch.stack(
        [
            -torch.log_softmax(row_V, 0)[label] if weight > 0 else row_V.sum() * 0
            for row_V, label, weight in zip(logits_NV, labels_N, label_weight_N, strict=True)
        ]
    )
    divergence_N = []
    for row, probs_V in enumerate(torch.softmax(logits_NV / temperature, 1)):
        if targets.weight_N[row] <= 0:
            divergence_N.append(probs_V.sum() * 0)
            continue
        used = targets.probs_NK[row] > 0
        ids, others = targets.ids_NK[row][used], torch.ones(len(probs_V), dtype=torch.bool)
        others[ids] = False
        t = torch.cat([targets.probs_NK[row][used], targets.rest_N[row, None]])
        q = torch.cat([probs_V[ids], probs_V[others].sum()[None]])
        if not others.any():
            t, q = t[:-1], q[:-1]
        divergence_N.append(DENSE[divergence](t, q))
    return weighted_mean(ce_N, label_weight_N), weighted_mean(torch.stack(divergence_N), targets.weight_N)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum()


DENSE = {
    "forward_kl": kl,
    "reverse_kl": lambda t, q: kl(q, torch.cat([t[:-1], t[-1:].clamp(min=REST_FLOOR)])),
    "jsd": lambda t, q: (kl(t, (t + q) / 2) + kl(q, (t + q) / 2)) / 2,
}


def weighted_mean(value_N: Tensor, weight_N: Tensor) -> Tensor:
    return (value_N * weight_N).sum() / weight_N.sum() if weight_N.sum() > 0 else value_N.sum() * 0


def problem(
    seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor, SparseTargets]:
    """Hidden states, head, bias, labels and a teacher whose slots are unsorted and partly unused."""
    rng = torch.Generator().manual_seed(seed)
    hidden_ND, head_VD, bias_V, teacher_NV = (
        torch.randn(*shape, generator=rng, dtype=dtype)
        for shape in ((ROWS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,), (ROWS, VOCABULARY))
    )
    labels_N = torch.randint(VOCABULARY, (ROWS,), generator=rng)
    targets = top_k_targets(2 * teacher_NV, K)
    ids_NK, probs_NK, rest_N = targets.ids_NK.clone(), targets.probs_NK.clone(), targets.rest_N.clone()
    ids_NK[0], probs_NK[0] = torch.tensor([3, 0, 0, 0]), torch.tensor([0.2, 0.5, 0.0, 0.0], dtype=dtype)
    ids_NK[1], probs_NK[1] = 0, 0.0  # nothing but a tail
    ids_NK[2, 2:], probs_NK[2, 2:] = 0, 0.0  # unused slots, and token 0 in the tail
    rest_N[:3] = 1 - probs_NK[:3].sum(1)
    probs_NK[3], rest_N[3] = probs_NK[3] / probs_NK[3].sum(), 0.0  # a teacher without a tail
    weight_N = torch.rand(ROWS, generator=rng, dtype=dtype) + 0.1
    return hidden_ND, head_VD, bias_V, labels_N, SparseTargets(ids_NK, probs_NK, rest_N, weight_N)


MASKS = {
    "every row": (torch.ones(ROWS), torch.ones(ROWS)),
    "some rows": (torch.tensor([1, 0, 2, 0, 1, 0.5, 0, 1, 0]), torch.tensor([1, 1, 0, 0.3, 1, 0, 0, 2, 1])),
    "labels only": (torch.ones(ROWS), torch.zeros(ROWS)),
    "teacher only": (torch.zeros(ROWS), torch.ones(ROWS)),
    "nothing": (torch.zeros(ROWS), torch.zeros(ROWS)),
}


@pytest.mark.parametrize("chunk_rows", [None, 1, 4])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_value_and_gradients_equal_the_dense_formula(divergence, temperature, mask, chunk_rows):
    hidden_ND, head_VD, bias_V, labels_N, targets = problem()
    label_weight_N, teacher_weight_N = (weight_N.double() for weight_N in MASKS[mask])
    targets = replace(targets, weight_N=teacher_weight_N)
    inputs = [tensor.requires_grad_() for tensor in (hidden_ND, head_VD, bias_V)]

    ce, kd = dense_parts(
        hidden_ND @ head_VD.T + bias_V,
        labels_N,
        label_weight_N,
        targets,
        divergence=divergence,
        temperature=temperature,
    )
    dense = 0.7 * ce + 1.3 * temperature**2 * kd
    parts = fused_loss(
        hidden_ND, head_VD, labels_N, bias_V=bias_V, label_weight_N=label_weight_N, targets=targets,
        divergence=divergence, temperature=temperature, ce_weight=0.7, kd_weight=1.3, chunk_rows=chunk_rows,
    )  # fmt: skip

    torch.testing.assert_close(parts.total, dense)
    torch.testing.assert_close(parts.cross_entropy, ce.detach())
    torch.testing.assert_close(parts.divergence, kd.detach())
    expected = torch.autograd.grad(dense, inputs)
    for gradient, wanted in zip(torch.autograd.grad(parts.total, inputs), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradients_equal_finite_differences(divergence, temperature):
    hidden_ND, head_VD, bias_V, labels_N, targets = problem(1)

    def total(hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor) -> Tensor:
        parts = fused_loss(
            hidden_ND, head_VD, labels_N, bias_V=bias_V, targets=targets, divergence=divergence,
            temperature=temperature,
            chunk_rows=5,
        )  # fmt: skip
        return parts.total

    assert torch.autograd.gradcheck(
        total, [tensor.requires_grad_() for tensor in (hidden_ND, head_VD, bias_V)]
    )


def test_garbage_in_a_row_without_weight_changes_nothing():
    hidden_ND, head_VD, _, labels_N, targets = problem()
    weight_N = torch.ones(ROWS, dtype=torch.float64)
    weight_N[[2, 5]] = 0
    targets = replace(targets, weight_N=weight_N)

    def run(hidden_ND: Tensor, labels_N: Tensor, targets: SparseTargets) -> tuple[Tensor, Tensor]:
        hidden_ND = hidden_ND.clone().requires_grad_()
        parts = fused_loss(hidden_ND, head_VD, labels_N, label_weight_N=weight_N, targets=targets)
        return parts.total.detach(), torch.autograd.grad(parts.total, hidden_ND)[0]

    clean = run(hidden_ND, labels_N, targets)
    bad_hidden, bad_labels, ids, probs, rest = (
        tensor.clone() for tensor in (hidden_ND, labels_N, targets.ids_NK, targets.probs_NK, targets.rest_N)
    )
    bad_hidden[2], bad_labels[2], bad_labels[5], ids[2], ids[5] = torch.nan, -100, 10**9, -7, 10**9
    probs[2], rest[5] = torch.nan, torch.inf
    for value, wanted in zip(
        run(bad_hidden, bad_labels, SparseTargets(ids, probs, rest, weight_N)), clean, strict=True
    ):
        assert torch.equal(value, wanted)


def test_garbage_teacher_beside_a_real_label_changes_nothing():
    hidden_ND, head_VD, _, labels_N, targets = problem()
    none = replace(
        targets, weight_N=torch.zeros(ROWS), probs_NK=targets.probs_NK * torch.nan, ids_NK=targets.ids_NK - 99
    )
    with_garbage = fused_loss(hidden_ND, head_VD, labels_N, targets=none)
    assert torch.equal(with_garbage.total, fused_loss(hidden_ND, head_VD, labels_N).total)
    torch.testing.assert_close(with_garbage.total, F.cross_entropy(hidden_ND @ head_VD.T, labels_N))
    assert with_garbage.divergence == 0


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_teacher_of_the_whole_vocabulary_is_the_plain_divergence_over_tokens(divergence):
    hidden_ND, head_VD, _, labels_N, _ = problem()
    teacher_NV = torch.randn(
        ROWS, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    targets = top_k_targets(teacher_NV, 10 * VOCABULARY, temperature=2.0)
    targets = replace(
        targets, rest_N=targets.rest_N + 1e-8
    )  # rounding elsewhere: there is no tail to carry it
    hidden_ND.requires_grad_()
    parts = fused_loss(
        hidden_ND, head_VD, labels_N, targets=targets, divergence=divergence, temperature=2.0, ce_weight=0.0
    )
    p, q = torch.softmax(teacher_NV / 2, 1), torch.softmax(hidden_ND @ head_VD.T / 2, 1)
    plain = {
        "forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2
    }[divergence] * 4 / ROWS  # fmt: skip
    torch.testing.assert_close(parts.total, plain)
    torch.testing.assert_close(*(torch.autograd.grad(loss, hidden_ND)[0] for loss in (parts.total, plain)))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_student_that_equals_its_teacher_has_no_divergence_and_no_gradient(divergence):
    hidden_ND, head_VD, _, labels_N, _ = problem()
    targets = top_k_targets(hidden_ND @ head_VD.T, K, temperature=2.0)
    hidden_ND.requires_grad_()
    parts = fused_loss(
        hidden_ND, head_VD, labels_N, targets=targets, divergence=divergence, temperature=2.0, ce_weight=0.0
    )
    torch.testing.assert_close(parts.divergence, torch.zeros_like(parts.divergence), rtol=0, atol=1e-12)
    assert torch.autograd.grad(parts.total, hidden_ND)[0].abs().max() < 1e-12


@pytest.mark.parametrize("scale", [30.0, 300.0, 3e4])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_vanishing_tail_keeps_its_exact_gradient_in_float32(divergence, scale):
    """The student's tail probability underflows; the teacher wants .3 there. 1 - sum(probs) loses it all."""
    head_VD, labels_N = torch.eye(6), torch.tensor([0])
    hidden_ND = torch.tensor([[scale, 0.5 * scale, -scale, -scale - 1, -scale - 2, -scale - 3]])
    targets = SparseTargets(
        torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.2]]), torch.tensor([0.3]), torch.ones(1)
    )
    results = []
    for dtype in (torch.float32, torch.float64):
        states_ND = hidden_ND.to(dtype).requires_grad_()
        doubled = SparseTargets(
            targets.ids_NK, *(t.to(dtype) for t in (targets.probs_NK, targets.rest_N, targets.weight_N))
        )
        parts = fused_loss(states_ND, head_VD.to(dtype), labels_N, targets=doubled, divergence=divergence)
        results.append((parts.divergence.double(), torch.autograd.grad(parts.total, states_ND)[0].double()))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    if (
        divergence == "forward_kl"
    ):  # the tail's missing .3, shared among its tokens as the student's softmax shares it
        share = torch.softmax(hidden_ND[0, 2:].double(), 0)
        torch.testing.assert_close(results[0][1][0, 2:], -0.3 * share, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_extreme_distributions_stay_finite(divergence):
    """A teacher sure of one token (rest 0), a student sure of another, a label that it thinks impossible."""
    logits_NV = torch.zeros(3, 50)
    logits_NV[:, 7] = torch.tensor([1e4, -1e4, 90.0])
    sure = SparseTargets(
        torch.tensor([[7, 0]] * 3), torch.tensor([[1.0, 0.0]] * 3), torch.zeros(3), torch.ones(3)
    )
    for temperature in (0.1, 1.0, 10.0):
        hidden_ND = logits_NV.clone().requires_grad_()
        parts = fused_loss(
            hidden_ND,
            torch.eye(50),
            torch.tensor([3, 7, 7]),
            targets=sure,
            divergence=divergence,
            temperature=temperature,
        )
        parts.total.backward()
        assert torch.isfinite(parts.total)
        assert torch.isfinite(hidden_ND.grad).all()


def test_top_k_targets_conserve_probability_and_keep_the_largest():
    logits_NV = 5 * torch.randn(40, 1000, generator=torch.Generator().manual_seed(3))
    targets = top_k_targets(logits_NV, 16, temperature=1.7)
    probs_NV = torch.softmax(logits_NV / 1.7, 1)
    torch.testing.assert_close(targets.probs_NK.sum(1) + targets.rest_N, torch.ones(40))
    torch.testing.assert_close(targets.probs_NK, probs_NV.sort(1, descending=True).values[:, :16])
    torch.testing.assert_close(targets.probs_NK, probs_NV.gather(1, targets.ids_NK))


def test_bfloat16_autocast_keeps_the_loss_in_float32_and_near_the_dense_one():
    rng = torch.Generator().manual_seed(4)
    hidden_ND, head_VD = (
        torch.randn(64, 32, generator=rng).requires_grad_(),
        torch.randn(300, 32, generator=rng),
    )
    labels_N = torch.randint(300, (64,), generator=rng)
    targets = top_k_targets(torch.randn(64, 300, generator=rng), 8)
    head_VD.requires_grad_()
    exact = fused_loss(hidden_ND, head_VD, labels_N, targets=targets)
    wanted = torch.autograd.grad(exact.total, [hidden_ND, head_VD])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = fused_loss(hidden_ND.bfloat16(), head_VD, labels_N, targets=targets)
    assert parts.total.dtype == torch.float32
    torch.testing.assert_close(parts.total, exact.total, rtol=2e-3, atol=0)
    for gradient, reference in zip(
        torch.autograd.grad(parts.total, [hidden_ND, head_VD]), wanted, strict=True
    ):
        assert gradient.dtype == torch.float32
        assert (gradient - reference).norm() < 0.01 * reference.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_have_the_type_of_their_inputs(dtype):
    hidden_ND, head_VD, bias_V, labels_N, targets = problem(dtype=torch.float32)
    inputs = [tensor.to(dtype).requires_grad_() for tensor in (hidden_ND, head_VD, bias_V)]
    parts = fused_loss(inputs[0], inputs[1], labels_N, bias_V=inputs[2], targets=targets)
    parts.total.backward()
    assert parts.total.dtype == torch.float32
    assert [tensor.grad.dtype for tensor in inputs] == [dtype] * 3


def test_a_factor_on_the_loss_and_a_second_use_of_the_head_scale_and_add_as_usual():
    hidden_ND, head_VD, _, labels_N, targets = problem()
    hidden_ND.requires_grad_(), head_VD.requires_grad_()
    (once,) = torch.autograd.grad(fused_loss(hidden_ND, head_VD, labels_N, targets=targets).total, head_VD)
    embedded_ND = head_VD[:ROWS] * 2  # tied embeddings: the head's gradient arrives on two ways
    (0.25 * fused_loss(hidden_ND, head_VD, labels_N, targets=targets).total + embedded_ND.sum()).backward()
    once = 0.25 * once
    once[:ROWS] += 2
    torch.testing.assert_close(head_VD.grad, once)


def test_two_backward_passes_through_one_graph_add_the_gradient_twice():
    hidden_ND, head_VD, _, labels_N, targets = problem()
    head_VD.requires_grad_()
    (once,) = torch.autograd.grad(fused_loss(hidden_ND, head_VD, labels_N, targets=targets).total, head_VD)
    total = fused_loss(hidden_ND, head_VD, labels_N, targets=targets).total
    total.backward(retain_graph=True)
    total.backward()
    torch.testing.assert_close(head_VD.grad, 2 * once)


def test_only_what_learns_gets_a_gradient_and_evaluation_builds_none():
    hidden_ND, head_VD, _, labels_N, targets = problem()
    with torch.no_grad():
        evaluated = fused_loss(hidden_ND.requires_grad_(), head_VD, labels_N, targets=targets)
    assert not evaluated.total.requires_grad
    parts = fused_loss(hidden_ND, head_VD, labels_N, targets=targets)
    parts.total.backward()
    assert torch.equal(parts.total.detach(), evaluated.total)
    assert hidden_ND.grad is not None
    assert head_VD.grad is None
    assert not parts.cross_entropy.requires_grad
    assert not parts.divergence.requires_grad


def test_a_gradient_of_the_gradient_is_refused():
    hidden_ND, head_VD, _, labels_N, targets = problem()
    parts = fused_loss(hidden_ND.requires_grad_(), head_VD, labels_N, targets=targets)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(parts.total, hidden_ND, create_graph=True)


@pytest.mark.slow
def test_large_vocabulary_equals_the_dense_formula_across_chunks_and_slices():
    rng = torch.Generator().manual_seed(5)
    hidden_ND, head_VD = torch.randn(40, 16, generator=rng), torch.randn(70_001, 16, generator=rng)
    labels_N = torch.randint(70_001, (40,), generator=rng)
    hidden_ND.requires_grad_()
    for divergence, temperature in itertools.product(DIVERGENCES, (1.0, 2.0)):
        targets = top_k_targets(torch.randn(40, 70_001, generator=rng) * 3, 64, temperature=temperature)
        parts: LossParts = fused_loss(
            hidden_ND,
            head_VD,
            labels_N,
            targets=targets,
            divergence=divergence,
            temperature=temperature,
            chunk_rows=33,
        )
        ce, kd = dense_parts(
            hidden_ND @ head_VD.T,
            labels_N,
            torch.ones(40),
            targets,
            divergence=divergence,
            temperature=temperature,
        )
        dense = ce + temperature**2 * kd
        torch.testing.assert_close(parts.total, dense, rtol=1e-4, atol=1e-5)
        gradients = (torch.autograd.grad(loss, hidden_ND)[0] for loss in (parts.total, dense))
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
