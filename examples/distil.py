"""Distil one bundled model into another, of a different architecture and tokenizer, with `co_train`.

It is every kind of tuning: a learner alone is supervised tuning, a learner beside a model that only teaches
is distillation, two learners are mutual learning. Here a Llama with a LoRA learns a bank's rows, then teaches
a GPT-NeoX that reads other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from consort.bench.metrics import likelihood
from consort.bench.suite import Row, generate_suite
from consort.config import RuntimeConfig, TuneConfig
from consort.models.local import LocalModel, load_model
from consort.models.zoo import zoo_dir
from consort.training.adapters import OWN, add_lora, lora_parameters
from consort.training.data import Sample
from consort.training.lessons import Learner
from consort.training.likelihood import answer_likelihoods
from consort.training.mutual import co_train, pool_of
from consort.types import Message

STEPS = 20
CPU = RuntimeConfig(device="cpu")


def main() -> None:
    """Tune the teacher, distil the student, and measure both on rows that neither has seen."""
    bank = generate_suite().devices["bank"]
    train, test = samples(bank["train"]), samples(bank["test"])[:40]
    options = TuneConfig(batch_rows=8, top_k=16)

    # 1) one learner: the teacher's LoRA learns the rows
    teacher = load_model(zoo_dir("proxy"), runtime=CPU, name="teacher")
    add_lora(teacher, OWN, rank=8, alpha=16.0, seed=0)
    learner = Learner(teacher, lora_parameters(teacher, OWN), learning_rate=4e-3)
    before = bits_per_byte(teacher, test)
    co_train([learner], [pool_of(train)], options, steps=STEPS, seed=0)
    print(f"teacher  {before:.3f} -> {bits_per_byte(teacher, test):.3f} bits per byte")

    # 2) a learner beside a frozen model: all of the student's weights learn from rows and teacher
    student = load_model(zoo_dir("edge-neox"), runtime=CPU, name="student")
    learner = Learner(student, dict(student.module.named_parameters()), learning_rate=2e-3, kd_weight=1.0)
    before = bits_per_byte(student, test)
    log = co_train([learner, Learner(teacher)], [pool_of(train)], options, steps=STEPS, seed=0)
    print(f"student  {before:.3f} -> {bits_per_byte(student, test):.3f} bits per byte")
    for row in log:
        print(f"step {row['step']:>2}  answers {row['student/ce']:.3f}  teacher {row['student/kl']:.3f} nats")


def samples(rows: Sequence[Row]) -> list[Sample]:
    """Rows of the built-in suite as a model reads them."""
    return [Sample((Message("user", f"{row.instruction}\n{row.input}"),), row.output) for row in rows]


def bits_per_byte(model: LocalModel, test: list[Sample]) -> float:
    """Of the right answers: comparable across tokenizers."""
    found = answer_likelihoods(model, test)
    return likelihood(found.log_likelihoods, found.num_tokens, num_bytes=found.num_bytes).bits_per_byte.mean


if __name__ == "__main__":
    main()
