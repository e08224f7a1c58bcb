"""One model's pass over a batch, and what it teaches another: its answer rows, cut to top-k and carried to
the student's tokens.

Distributions cross tokenizers through `align`; a row may also bring knowledge that its teacher said before. A
teacher's side never gets a gradient. Does not train: `mutual` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from consort.training.losses import SparseTargets, top_k_targets
from consort.types import FloatArray, IntArray

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


@dataclass(frozen=True, slots=True)
class Pass:
    """One model's forward over a batch. Rows: every example's answer rows (end token included), then all
    prompt rows."""

    learner: Learner
    encoded: list[Encoded]
    hidden_ND: Tensor
    labels_N: Tensor
    weight_N: Tensor
    bounds: IntArray  # [examples + 1] where each example's answer rows begin

    @property
    def answer_rows(self) -> int:
        """Rows before the first prompt row."""
        return int(self.bounds[-1])


class Bridges:
    """Bridges between pairs of vocabularies, built when first crossed."""

    def __init__(self, build: BridgeBuilder) -> None:
        self._build = build
        self._built: dict[tuple[str, str], Bridge] = {}

    def between(self, teacher: Vocabulary, student: Vocabulary) -> Bridge:
        """The bridge from one vocabulary to another."""
        pair = (teacher.sha256, student.sha256)
        if pair not in self._built:
            self._built[pair] = self._build(teacher, student)
        return self._built[pair]


def byte_bridge(*, condition: bool = True) -> BridgeBuilder:
    """The exact bridge of `consort.align`; `condition` teaches also at cuts inside a teacher's token."""

    def build(teacher: Vocabulary, student: Vocabulary) -> Bridge:
        if teacher.sha256 == student.sha256:
            return lambda rows, source, target: rows
        mapping = vocab_map(teacher, student)
        return lambda rows, source, target: transfer(rows, source, target, mapping, condition=condition)

    return build


def forward(learner: Learner, examples: Sequence[Example]) -> Pass:
    """The learner reads a batch; with gradient where it has something to learn."""
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
    return Pass(
        learner,
        encoded,
        hidden_ND,
        torch.from_numpy(np.concatenate([*labels, *prompt_labels])).to(device),
        torch.from_numpy(weights).to(device),
        bounds,
    )


@torch.no_grad()
def teach(teacher: Pass, options: TuneConfig) -> list[SparseRows]:
    """The pass's answer rows cut to top-k, an entry an example; in chunks, so that no [tokens, vocabulary]
    matrix is whole."""
    weight_VD, bias_V = teacher.learner.model.head()
    size = teacher.learner.model.vocabulary.size  # rows beyond it pad the head, and mean no token
    weight_VD, bias_V = weight_VD[:size], None if bias_V is None else bias_V[:size]
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


def targets_of(
    student: Pass, partner: Pass | None, examples: Sequence[Example], options: TuneConfig, bridges: Bridges
) -> SparseTargets | None:
    """Each example's teacher rows at the student's positions; rows without a teacher weigh nothing."""
    learner = student.learner
    said = teach(partner, options) if partner is not None else []
    lessons: list[_Lesson] = []
    for number, (example, own) in enumerate(zip(examples, student.encoded, strict=True)):
        if example.knowledge is not None and example.knowledge.by != learner.model.name:
            rows, spans, vocabulary = (
                example.knowledge.rows,
                example.knowledge.spans,
                example.knowledge.vocabulary,
            )
        elif partner is not None:
            rows, spans, vocabulary = (
                said[number],
                partner.encoded[number].spans,
                partner.learner.model.vocabulary,
            )
        else:
            continue
        at_student = bridges.between(vocabulary, learner.model.vocabulary)(rows, spans, own.spans)
        lessons.append(_Lesson(number, at_student))
    return _stacked(lessons, student, doubt=options.doubt) if lessons else None


@dataclass(frozen=True, slots=True)
class _Lesson:
    """A teacher's rows at the student's positions of one example."""

    example: int
    rows: SparseRows


def _stacked(lessons: Sequence[_Lesson], student: Pass, *, doubt: float) -> SparseTargets:
    """All lessons in one. A teacher that doubts an answer counts for less in all of it: it may be wrong."""
    total, labels_N = len(student.labels_N), student.labels_N.cpu().numpy()
    width = max(lesson.rows.ids.shape[1] for lesson in lessons)
    ids = np.zeros((total, width), dtype=np.int64)
    probs = np.zeros((total, width), dtype=np.float32)
    rest, weight = np.ones(total, dtype=np.float32), np.zeros(total, dtype=np.float32)
    for lesson in lessons:
        rows, kept = lesson.rows, lesson.rows.ids.shape[1]
        place = slice(student.bounds[lesson.example], student.bounds[lesson.example + 1])
        ids[place, :kept], probs[place, :kept], rest[place] = rows.ids, rows.probs, rows.rest
        weight[place] = rows.mask * _trust(rows, labels_N[place]) ** doubt
    device = student.labels_N.device
    return SparseTargets(*(torch.from_numpy(array).to(device) for array in (ids, probs, rest, weight)))


def _trust(rows: SparseRows, labels: IntArray) -> FloatArray:
    """How likely a token of this answer is to its teacher: the geometric mean; 0 where it says nothing."""
    given = (rows.probs * (rows.ids == labels[:, None])).sum(axis=1)[rows.mask]
    return np.exp(np.log(np.maximum(given, 1e-4)).mean()) if len(given) else np.zeros(())
