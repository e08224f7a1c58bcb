"""One or two models learning the same rows, from the answers and from each other's distributions.

This is every kind of tuning in consort: one learner alone is supervised tuning; a learner beside a model that
only teaches is distillation (arXiv 1503.02531); two learners are mutual learning (arXiv 1706.00384),
structure-agnostic because distributions cross tokenizers through `align` (SAML of Co-PLMs, arXiv 2511.11678).
A teacher's side never gets a gradient. Dropout stays off: the pass that teaches is the pass that learns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from consort.config import TuneConfig
from consort.training.data import Sample
from consort.training.lessons import (
    BridgeBuilder,
    Bridges,
    Example,
    Knowledge,
    Learner,
    Pass,
    byte_bridge,
    forward,
    targets_of,
    teach,
)
from consort.training.loop import Group, LogRow, Schedule, run_steps
from consort.training.losses import LossParts, SparseTargets, fused_loss


@dataclass(frozen=True, slots=True)
class Pool:
    """Examples that fill this share of every batch, each epoch in a new order."""

    examples: Sequence[Example]
    share: float = 1.0


def pool_of(samples: Sequence[Sample], share: float = 1.0) -> Pool:
    """Samples without knowledge of their own as a pool."""
    return Pool([Example(sample) for sample in samples], share)


def co_train(
    learners: Sequence[Learner],
    pools: Sequence[Pool],
    options: TuneConfig,
    *,
    steps: int,
    seed: int,
    done: int = 0,
    total: int = 0,
    bridge: BridgeBuilder | None = None,
    on_log: Callable[[LogRow], None] = lambda row: None,
) -> list[LogRow]:
    """Tune one learner, or two that teach each other. Returns the log: cross-entropy and divergence in nats,
    by model's name."""
    assert 1 <= len(learners) <= 2, "one learner, or a pair"
    pools = [pool for pool in pools if pool.examples]
    assert pools, "no examples to learn"
    bridges = Bridges(bridge or byte_bridge(condition=options.condition_in_token))
    students = [learner for learner in learners if learner.parameters]

    def loss_of(step: int) -> tuple[Tensor, LogRow]:
        examples = _draw(pools, options.batch_rows, step, seed)
        passes = [forward(learner, examples) for learner in learners]
        losses: list[Tensor] = []
        row: LogRow = {}
        for student, partner in zip(passes, passes[::-1], strict=True):
            if student.learner.parameters:
                teacher = None if partner is student else partner
                targets = (
                    targets_of(student, teacher, examples, options, bridges)
                    if student.learner.kd_weight
                    else None
                )
                parts = _loss(student, targets, options)
                losses.append(parts.total)
                name = student.learner.model.name
                row |= {f"{name}/ce": float(parts.cross_entropy), f"{name}/kl": float(parts.divergence)}
        return torch.stack([loss.to(losses[0].device) for loss in losses]).sum(), row

    with _unfrozen(students):
        groups = [Group(tuple(student.parameters.values()), student.learning_rate) for student in students]
        return run_steps(loss_of, groups, schedule=Schedule(steps, done, total), on_log=on_log)


@torch.no_grad()
def knowledge_of(
    teacher: Learner, samples: Sequence[Sample], options: TuneConfig, *, batch_rows: int = 64
) -> list[Example]:
    """The samples with what this teacher says about each answer."""
    taught = []
    for start in range(0, len(samples), batch_rows):
        examples = [Example(sample) for sample in samples[start : start + batch_rows]]
        its_pass = forward(teacher, examples)
        for example, encoded, rows in zip(examples, its_pass.encoded, teach(its_pass, options), strict=True):
            known = Knowledge(teacher.model.name, rows, encoded.spans, teacher.model.vocabulary)
            taught.append(Example(example.sample, known))
    return taught


def _draw(pools: Sequence[Pool], batch_rows: int, step: int, seed: int) -> list[Example]:
    """A batch that depends on (pools, step, seed) alone, so that an interrupted run can be repeated."""
    total = sum(pool.share for pool in pools)
    drawn: list[Example] = []
    for number, pool in enumerate(pools):
        last = number == len(pools) - 1
        rows = batch_rows - len(drawn) if last else round(batch_rows * pool.share / total)
        for position in range(step * rows, (step + 1) * rows):
            epoch, index = divmod(position, len(pool.examples))
            order = np.random.default_rng([seed, number, epoch]).permutation(len(pool.examples))
            drawn.append(pool.examples[order[index]])
    return drawn


def _loss(student: Pass, targets: SparseTargets | None, options: TuneConfig) -> LossParts:
    weight_VD, bias_V = student.learner.model.head()
    with student.learner.model.autocast():
        return fused_loss(
            student.hidden_ND,
            weight_VD,
            student.labels_N,
            bias_V=bias_V,
            label_weight_N=student.weight_N,
            targets=targets,
            divergence=options.divergence,
            temperature=options.temperature,
            kd_weight=student.learner.kd_weight,
        )


@contextlib.contextmanager
def _unfrozen(students: Sequence[Learner]) -> Iterator[None]:
    parameters = [parameter for student in students for parameter in student.parameters.values()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
