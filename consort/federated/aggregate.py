"""Averages what the devices learned, exactly, and refuses what must not enter the average.

The mean of LoRA updates is the mean of the products `scaling * B @ A`, not the product of the means
(averaging A and B apart is 0.87 wrong for four independent rank-8 updates). The products are never formed:
the stacked factors are brought to triangular form (QR) and the small core between them is cut by SVD, so
parties may differ in rank.

The same product has many factors. Ours are balanced (B^T B = A A^T) and turned by the rotation that brings
them closest to the previous broadcast (orthogonal Procrustes), because a device's error-feedback residual
(`packets`) is a rest of *its factors'* change, added to the change of the next round: were the new factors
turned freely (A then moves by 0.8 to 1.8 of its size a round, against 0.03 to 0.1 so), that rest would point
in an unrelated direction. A rotation keeps the product, the balance and the size of the residual. Where the
average has fewer directions than the rank, the free part of A comes from the previous broadcast and B is zero
there: a direction that is zero in both factors would never get a gradient.

Does not protect against a majority of dishonest devices, and knows nothing of privacy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from consort.errors import UpdateError
from consort.types import Adapter

if TYPE_CHECKING:
    from consort.types import FloatArray

Float64: TypeAlias = NDArray[np.float64]

LORA_A, LORA_B = ".lora_A", ".lora_B"


@dataclass(frozen=True, slots=True)
class Average:
    """An averaged adapter, and the Frobenius norm of what the rank cut off, relative to the exact average."""

    adapter: Adapter
    relative_error: float
    module_errors: Mapping[str, float]


def average_adapters(
    adapters: Sequence[Adapter], weights: Sequence[float], *, previous: Adapter, rank: int = 0
) -> Average:
    """Weighted mean of the updates of `adapters`, cut to `rank` directions (0: the rank of `previous`).

    `previous` is the broadcast that all started from. Tensors that are no LoRA factor are averaged by name. A
    module whose A is the same at all parties keeps it and averages B: exact, and a single party gets back its
    own factors. Run `check_update` on each adapter before. Raises UpdateError for weights that are no numbers
    of examples.
    """
    shares = _shares(weights, len(adapters))
    for adapter in adapters:
        _check_names(adapter, previous)
    tensors: dict[str, FloatArray] = {}
    kept_squares, cut_squares = 0.0, 0.0
    module_errors: dict[str, float] = {}
    for module in lora_modules(previous):
        before_A, before_B = previous.tensors[module + LORA_A], previous.tensors[module + LORA_B]
        factors = [(a.tensors[module + LORA_A], a.tensors[module + LORA_B]) for a in adapters]
        scales = np.array([a.scaling for a in adapters]) / previous.scaling * shares
        merged = _merge(factors, scales, before=(before_A, before_B), rank=rank or before_A.shape[0])
        tensors[module + LORA_A] = merged.A_RI.astype(np.float32)
        tensors[module + LORA_B] = merged.B_OR.astype(np.float32)
        kept_squares += merged.kept_square
        cut_squares += merged.cut_square
        module_errors[module] = _relative(merged.cut_square, merged.kept_square)
    plain = [_plain_tensors(adapter) for adapter in adapters]
    tensors.update(average_weights(plain, weights))
    adapter = Adapter(tensors, scaling=previous.scaling, base_sha256=previous.base_sha256)
    return Average(adapter, _relative(cut_squares, kept_squares), module_errors)


def average_weights(
    parties: Sequence[Mapping[str, FloatArray]], weights: Sequence[float]
) -> dict[str, FloatArray]:
    """Weighted mean by name, for full weights and other tensors that are no product."""
    shares = _shares(weights, len(parties))
    first = parties[0]
    for party in parties[1:]:
        _check_shapes(party, first)
    means: dict[str, FloatArray] = {}
    for name, tensor in first.items():
        mean = np.zeros(tensor.shape)
        for share, party in zip(shares, parties, strict=True):
            mean += share * party[name]
        means[name] = mean.astype(np.float32)
    return means


def change(after: Adapter, before: Adapter) -> Adapter:
    """The difference of the factors, tensor by tensor: what a device uploads. Ranks must agree."""
    _check_base(after, before)
    _check_shapes(after.tensors, before.tensors)
    tensors = {n: np.asarray(t - before.tensors[n], np.float32) for n, t in after.tensors.items()}
    return Adapter(tensors, scaling=before.scaling, base_sha256=before.base_sha256)


def apply_change(before: Adapter, difference: Adapter) -> Adapter:
    """The adapter that `change` was taken of."""
    _check_base(difference, before)
    _check_shapes(difference.tensors, before.tensors)
    tensors = {
        name: np.asarray(t + difference.tensors[name], np.float32) for name, t in before.tensors.items()
    }
    return Adapter(tensors, scaling=before.scaling, base_sha256=before.base_sha256)


def check_update(update: Adapter, reference: Adapter, *, max_norm: float = 0.0) -> float:
    """The size of an update: Frobenius norm of what it changes in the model, over all its tensors.

    `update` is the adapter a device ended with, `reference` the broadcast it started from; ranks may differ.
    Measured on the products, since factors of any size can make the same change. Raises UpdateError if the
    update belongs to another base, has other names or shapes, holds a non-finite number, or is larger than
    `max_norm` (0: any finite size).
    """
    _check_base(update, reference)
    _check_names(update, reference)
    for name, tensor in update.tensors.items():
        if not np.isfinite(tensor).all():
            raise UpdateError("the update holds numbers that are not finite", where=name)
    square = 0.0
    for module in lora_modules(reference):
        A_SI = np.concatenate([a.tensors[module + LORA_A] for a in (update, reference)], dtype=np.float64)
        signed = (update, update.scaling), (reference, -reference.scaling)
        B_OS = np.concatenate([s * a.tensors[module + LORA_B].astype(np.float64) for a, s in signed], axis=1)
        square += _product_square(B_OS, A_SI)
    for name, tensor in _plain_tensors(update).items():
        square += float(np.sum((tensor.astype(np.float64) - reference.tensors[name]) ** 2))
    norm = float(np.sqrt(square))
    if not np.isfinite(norm):
        raise UpdateError("the update changes the model by more than can be counted")
    if max_norm > 0 and norm > max_norm:
        raise UpdateError(
            f"the update changes the model by {norm:.4g}, the limit is {max_norm:.4g}",
            hint="Lower the device's learning rate, or raise tune.max_update_norm.",
        )
    return norm


def outlier_limit(values: Sequence[float], ratio: float) -> float:
    """`ratio` times the median: what stands out of three or more values, whatever their scale. Infinite where
    there are fewer, where the median is 0, and for a ratio of 0."""
    middle = float(np.median(values)) if len(values) >= 3 else 0.0
    return ratio * middle if ratio > 0 and middle > 0 else float("inf")


def lora_modules(adapter: Adapter) -> tuple[str, ...]:
    """Names of the modules that have both factors, in the adapter's order."""
    names = adapter.tensors
    return tuple(
        n.removesuffix(LORA_A)
        for n in names
        if n.endswith(LORA_A) and n.removesuffix(LORA_A) + LORA_B in names
    )


@dataclass(frozen=True, slots=True)
class _Merged:
    A_RI: FloatArray
    B_OR: FloatArray
    kept_square: float
    cut_square: float


def _merge(
    factors: Sequence[tuple[FloatArray, FloatArray]],
    scales: Float64,
    *,
    before: tuple[FloatArray, FloatArray],
    rank: int,
) -> _Merged:
    """Sum of `scale * B @ A` over `factors` [(A, B)], as factors of `rank`; O out, I in, S stacked."""
    first_A = factors[0][0]
    if len(first_A) == rank and all(np.array_equal(A, first_A) for A, _ in factors):
        mean_B = np.tensordot(scales, np.array([B for _, B in factors], np.float64), axes=1)
        return _Merged(first_A, mean_B, _product_square(mean_B, first_A), 0.0)
    # 1) the small core between two orthonormal bases: sum = Qb core Qa^T
    B_OS = np.concatenate(
        [s * B.astype(np.float64) for s, (_, B) in zip(scales, factors, strict=True)], axis=1
    )
    A_SI = np.concatenate([A.astype(np.float64) for A, _ in factors])
    Qb, Rb = np.linalg.qr(B_OS)
    Qa, Ra = np.linalg.qr(A_SI.T)
    U, sizes, Vt = np.linalg.svd(Rb @ Ra.T, full_matrices=False)
    # 2) cut to the directions that exist and fit
    alive = int(np.sum(sizes > sizes[:1].sum() * 1e-7))  # float32 factors carry no more
    keep = min(rank, alive)
    root = np.sqrt(sizes[:keep])
    B_OR, A_RI = np.zeros((B_OS.shape[0], rank)), np.zeros((rank, A_SI.shape[1]))
    B_OR[:, :keep] = Qb @ (U[:, :keep] * root)
    A_RI[:keep] = (root[:, None] * Vt[:keep]) @ Qa.T
    # 3) turn towards the previous broadcast, and give dead directions back their rows of A
    B_OR, A_RI = _turned(B_OR, A_RI, keep, before)
    return _Merged(A_RI, B_OR, float(np.sum(sizes[:keep] ** 2)), float(np.sum(sizes[keep:] ** 2)))


def _turned(
    B_OR: Float64, A_RI: Float64, keep: int, before: tuple[FloatArray, FloatArray]
) -> tuple[Float64, Float64]:
    """Rotated so that |B - B'|^2 + |A - A'|^2 is least: by the polar factor of B^T B' + A A'^T."""
    rank = A_RI.shape[0]
    shared = min(rank, before[0].shape[0])
    A_before, B_before = np.zeros_like(A_RI), np.zeros_like(B_OR)
    A_before[:shared], B_before[:, :shared] = before[0][:shared], before[1][:, :shared]
    left, _, right = np.linalg.svd(B_OR.T @ B_before + A_RI @ A_before.T)
    rotation = left @ right
    A_new, B_new = rotation.T @ A_RI, B_OR @ rotation
    # rows of A outside the kept directions: of the previous broadcast, or they would stay without a gradient
    dead = np.eye(rank) - rotation[:keep].T @ rotation[:keep]
    return B_new, A_new + dead @ A_before


def _product_square(B_OR: FloatArray, A_RI: FloatArray) -> float:
    """Squared Frobenius norm of B @ A, from the triangular factors: no [O, I] matrix, no cancellation."""
    core = np.linalg.qr(B_OR)[1] @ np.linalg.qr(A_RI.T)[1].T
    return float(np.sum(core**2))


def _shares(weights: Sequence[float], num_parties: int) -> Float64:
    shares: Float64 = np.asarray(weights, np.float64)
    if num_parties == 0 or shares.shape != (num_parties,):
        raise UpdateError(f"{num_parties} updates with {shares.size} weights cannot be averaged")
    if not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
        raise UpdateError(f"the weights {list(weights)} are not numbers of examples")
    normalised: Float64 = shares / shares.sum()
    return normalised


def _plain_tensors(adapter: Adapter) -> dict[str, FloatArray]:
    paired = {module + suffix for module in lora_modules(adapter) for suffix in (LORA_A, LORA_B)}
    return {name: tensor for name, tensor in adapter.tensors.items() if name not in paired}


def _check_base(update: Adapter, reference: Adapter) -> None:
    if update.base_sha256 != reference.base_sha256:
        raise UpdateError(
            f"an update for base {update.base_sha256[:12]}, this run trains {reference.base_sha256[:12]}",
            hint="Give this device the run's proxy.",
        )


def _check_names(update: Adapter, reference: Adapter) -> None:
    """Same tensors and same shapes, except that a module's rank is the update's own."""
    expected = dict(reference.tensors)
    for module in lora_modules(reference):
        A, B = (update.tensors.get(module + suffix) for suffix in (LORA_A, LORA_B))
        if A is not None and B is not None and A.ndim == B.ndim == 2 and A.shape[0] == B.shape[1] > 0:
            rank = A.shape[0]
            before_A, before_B = expected[module + LORA_A], expected[module + LORA_B]
            expected[module + LORA_A] = np.broadcast_to(before_A[:1], (rank, before_A.shape[1]))
            expected[module + LORA_B] = np.broadcast_to(before_B[:, :1], (before_B.shape[0], rank))
    _check_shapes(update.tensors, expected)
    if not np.isfinite(update.scaling) or update.scaling <= 0:
        raise UpdateError(f"the scaling {update.scaling} is not a positive number")


def _check_shapes(update: Mapping[str, FloatArray], reference: Mapping[str, FloatArray]) -> None:
    if update.keys() != reference.keys():
        odd = sorted(update.keys() ^ reference.keys())[:3]
        raise UpdateError(f"the update has other tensors than expected, first {', '.join(odd)}")
    for name, tensor in update.items():
        if tensor.shape != reference[name].shape:
            raise UpdateError(f"shape {tensor.shape}, expected {reference[name].shape}", where=name)


def _relative(cut_square: float, kept_square: float) -> float:
    total = cut_square + kept_square
    return float(np.sqrt(cut_square / total)) if total > 0 else 0.0
