"""One or two models learning the same rows, from the answers and from each other's distributions.

This is every kind of tuning in consort: one learner alone is supervised tuning; a learner beside a model that
only teaches is distillation (arXiv 1503.02531); two learners are mutual learning (arXiv 1706.00384),
structure-agnostic because distributions cross tokenizers through `align` (SAML of Co-PLMs, arXiv 2511.11678).
A teacher's side never gets a gradient. Dropout stays off: the pass that teaches is the pass that learns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from consort.align import Spans, SparseRows, Vocabulary, transfer, vocab_map
from consort.config import TuneConfig
from consort.models.local import LocalModel
from consort.training.batches import states_of
from consort.training.data import Encoded, Sample, encode
from consort.training.loop import Group, LogRow, Schedule, run_steps
from consort.training.losses import LossParts, SparseTargets, fused_loss, top_k_targets

Bridge: TypeAlias = Callable[
    [SparseRows, Spans, Spans], SparseRows
]  # a teacher's rows -> rows at the student's positions
BridgeBuilder: TypeAlias = Callable[
    [Vocabulary, Vocabulary], Bridge
]  # teacher's vocabulary, student's vocabulary


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a teacher said about an answer, kept: its next-token rows, in its own tokens."""

    by: str  # the teacher's name: nobody is taught by what it said itself
    rows: SparseRows
    spans: Spans
    vocabulary: Vocabulary


@dataclass(frozen=True, slots=True)
class Example:
    """A row to learn. Its `knowledge` teaches instead of the partner in the room, except its own author."""

    sample: Sample
    knowledge: Knowledge | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """Examples that fill this share of every batch, each epoch in a new order."""

    examples: Sequence[Example]
    share: float = 1.0


@dataclass(eq=False, slots=True)
class Learner:
    """A model and the parameters that may change; without any it only teaches."""

    model: LocalModel
    parameters: Mapping[str, nn.Parameter] = field(default_factory=dict)
    learning_rate: float = 0.0
    max_tokens: int = 512
    kd_weight: float = 1.0  # of the divergence from its teacher; 0 learns from answers alone
    prompt_weight: float = 0.0  # of cross-entropy on the prompt's tokens, beside 1 on the answer's
    encoded: dict[Sample, Encoded] = field(
        default_factory=dict
    )  # samples seen before, in this model's tokens

    def encode(self, sample: Sample) -> Encoded:
        """The sample in this model's tokens."""
        if sample not in self.encoded:
            self.encoded[sample] = encode(sample, self.model, self.max_tokens)
        return self.encoded[sample]


def pool_of(samples: Sequence[Sample], share: float = 1.0) -> Pool:
    """Samples without knowledge of their own as a pool."""
    return Pool([Example(sample) for sample in samples], share)


def byte_bridge(*, condition: bool = True) -> BridgeBuilder:
    """The exact bridge of `consort.align`; `condition` teaches also at cuts inside a teacher's token."""

    def build(teacher: Vocabulary, student: Vocabulary) -> Bridge:
        if teacher.sha256 == student.sha256:
            return lambda rows, source, target: rows
        mapping = vocab_map(teacher, student)
        return lambda rows, source, target: transfer(rows, source, target, mapping, condition=condition)

    return build


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
    bridges = _Bridges(bridge or byte_bridge(condition=options.condition_in_token))
    students = [learner for learner in learners if learner.parameters]

    def loss_of(step: int) -> tuple[Tensor, LogRow]:
        examples = _draw(pools, options.batch_rows, step, seed)
        passes = [_forward(learner, examples) for learner in learners]
        losses: list[Tensor] = []
        row: LogRow = {}
        for student, partner in zip(passes, passes[::-1], strict=True):
            if student.learner.parameters:
                teacher = None if partner is student else partner
                targets = (
                    _targets(student, teacher, examples, options, bridges)
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
        its_pass = _forward(teacher, examples)
        for example, encoded, rows in zip(examples, its_pass.encoded, _teach(its_pass, options), strict=True):
            known = Knowledge(teacher.model.name, rows, encoded.spans, teacher.model.vocabulary)
            taught.append(Example(example.sample, known))
    return taught


@dataclass(frozen=True, slots=True)
class _Pass:
    """One model's forward over a batch. Rows: every example's answer rows (end token included), then all
    prompt rows."""

    learner: Learner
    encoded: list[Encoded]
    hidden_ND: Tensor
    labels_N: Tensor
    weight_N: Tensor
    bounds: np.ndarray  # [examples + 1] where each example's answer rows begin

    @property
    def answer_rows(self) -> int:
        return int(self.bounds[-1])


class _Bridges:
    """Bridges between pairs of vocabularies, built when first crossed."""

    def __init__(self, build: BridgeBuilder) -> None:
        self._build = build
        self._built: dict[tuple[str, str], Bridge] = {}

    def between(self, teacher: Vocabulary, student: Vocabulary) -> Bridge:
        pair = (teacher.sha256, student.sha256)
        if pair not in self._built:
            self._built[pair] = self._build(teacher, student)
        return self._built[pair]


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


def _forward(learner: Learner, examples: Sequence[Example]) -> _Pass:
    encoded = [learner.encode(example.sample) for example in examples]
    ids = [np.array([*row.prompt_ids, *row.answer_ids]) for row in encoded]
    device = learner.model.device
    with torch.set_grad_enabled(bool(learner.parameters) and torch.is_grad_enabled()):
        hidden_MD, begins = states_of(learner.model, ids)
        answers, prompts, labels, prompt_labels = [], [], [], []
        for row, row_ids, begin in zip(encoded, ids, begins, strict=True):
            asked = len(row.prompt_ids)
            # the position before a token predicts it
            answers.append(np.arange(begin + asked - 1, begin + len(row_ids) - 1))
            labels.append(row_ids[asked:])
            if learner.prompt_weight > 0:
                prompts.append(np.arange(begin, begin + asked - 1))
                prompt_labels.append(row_ids[1:asked])
        bounds = np.cumsum([0, *map(len, answers)])
        positions = np.concatenate([*answers, *prompts])
        hidden_ND = hidden_MD.index_select(0, torch.from_numpy(positions).to(device))
    weights = np.where(np.arange(len(positions)) < bounds[-1], 1.0, learner.prompt_weight).astype(np.float32)
    return _Pass(
        learner,
        encoded,
        hidden_ND,
        torch.from_numpy(np.concatenate([*labels, *prompt_labels])).to(device),
        torch.from_numpy(weights).to(device),
        bounds,
    )


@torch.no_grad()
def _teach(teacher: _Pass, options: TuneConfig) -> list[SparseRows]:
    """The pass's answer rows cut to top-k, an entry an example; in chunks, so that no [tokens, vocabulary]
    matrix is whole."""
    weight_VD, bias_V = teacher.learner.model.head()
    hidden_ND = teacher.hidden_ND[: teacher.answer_rows]
    chunk = max(1, (16 << 20) // len(weight_VD))  # 64 MiB of float32 logits
    parts = []
    for start in range(0, len(hidden_ND), chunk):
        with teacher.learner.model.autocast():
            logits = nn.functional.linear(hidden_ND[start : start + chunk], weight_VD, bias_V)
        top_k = min(options.top_k, logits.shape[-1])
        parts.append(top_k_targets(logits.float(), top_k, temperature=options.temperature))
    ids, probs, rest = (
        torch.cat([getattr(part, name) for part in parts]).cpu().numpy()
        for name in ("ids_NK", "probs_NK", "rest_N")
    )
    return [
        SparseRows(ids[a:b].astype(np.int32), probs[a:b], rest[a:b], np.ones(b - a, dtype=bool))
        for a, b in zip(teacher.bounds, teacher.bounds[1:], strict=False)
    ]


def _targets(
    student: _Pass, partner: _Pass | None, examples: Sequence[Example], options: TuneConfig, bridges: _Bridges
) -> SparseTargets | None:
    """Each example's teacher rows at the student's positions; rows without a teacher weigh nothing."""
    live = _teach(partner, options) if partner is not None else None
    lessons: list[SparseRows | None] = []
    for number, (example, own) in enumerate(zip(examples, student.encoded, strict=True)):
        if example.knowledge is not None and example.knowledge.by != student.learner.model.name:
            given, spans, vocabulary = (
                example.knowledge.rows,
                example.knowledge.spans,
                example.knowledge.vocabulary,
            )
        elif live is not None and partner is not None:
            given, spans, vocabulary = (
                live[number],
                partner.encoded[number].spans,
                partner.learner.model.vocabulary,
            )
        else:
            lessons.append(None)
            continue
        lessons.append(bridges.between(vocabulary, student.learner.model.vocabulary)(given, spans, own.spans))
    return (
        _stacked(lessons, student, doubt=options.doubt)
        if any(lesson is not None for lesson in lessons)
        else None
    )


def _stacked(lessons: Sequence[SparseRows | None], student: _Pass, *, doubt: float) -> SparseTargets:
    """All lessons in one. A teacher that doubts an answer counts for less in all of it: it may be wrong."""
    total, labels_N = len(student.labels_N), student.labels_N.cpu().numpy()
    width = max(lesson.ids.shape[1] for lesson in lessons if lesson is not None)
    ids = np.zeros((total, width), dtype=np.int64)
    probs = np.zeros((total, width), dtype=np.float32)
    rest, weight = np.ones(total, dtype=np.float32), np.zeros(total, dtype=np.float32)
    for lesson, start, end in zip(lessons, student.bounds, student.bounds[1:], strict=False):
        if lesson is not None:
            kept = lesson.ids.shape[1]
            ids[start:end, :kept], probs[start:end, :kept] = lesson.ids, lesson.probs
            given = (lesson.probs * (lesson.ids == labels_N[start:end, None])).sum(axis=1)[lesson.mask]
            # geometric mean: how likely a token of this answer is to the teacher
            trust = np.exp(np.log(np.maximum(given, 1e-4)).mean()) ** doubt if len(given) else 0.0
            rest[start:end], weight[start:end] = lesson.rest, lesson.mask * trust
    device = student.labels_N.device
    return SparseTargets(*(torch.from_numpy(array).to(device) for array in (ids, probs, rest, weight)))


def _loss(student: _Pass, targets: SparseTargets | None, options: TuneConfig) -> LossParts:
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
