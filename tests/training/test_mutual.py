"""Mutual learning on tiny real models: who learns, from whom, and that nothing else moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from consort.config import TuneConfig
from consort.training.adapters import (
    DOMAIN,
    SHARED,
    add_lora,
    lora_parameters,
    merged,
    read_parameters,
    use_adapters,
)
from consort.training.data import Sample
from consort.training.lessons import Learner
from consort.training.mutual import Pool, co_train, knowledge_of, pool_of
from consort.types import Message
from tests.tiny_models import escaped_spaces, tiny

ROWS = [
    Sample((Message("user", f"what follows {number}?"),), f"after {number} comes {number + 1}")
    for number in range(12)
]
TUNE = TuneConfig(batch_rows=4, top_k=8)


def learner(model, **settings):
    return Learner(model, dict(model.module.named_parameters()), 1e-3, **settings)


@pytest.fixture
def llama():
    return tiny("llama")


@pytest.fixture
def neox():
    return tiny("gpt_neox", escaped_spaces("bpe", lines_apart=True))


def weights(model):
    return read_parameters(dict(model.module.named_parameters()))


def same(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_rows_that_pad_a_teachers_head_are_never_taught(llama):
    size = llama.vocabulary.size
    weight, _ = llama.head()
    assert len(weight) > size
    with torch.no_grad():
        weight[size:] = 100 * weight[:1]  # the likeliest or the least likely rows of all
        weight[size + 1 :] *= -1
    for example in knowledge_of(Learner(llama), ROWS, TUNE):
        assert example.knowledge.rows.ids.max() < size
        assert np.allclose(
            example.knowledge.rows.probs.sum(axis=1) + example.knowledge.rows.rest, 1, atol=1e-5
        )


def test_one_learner_alone_learns_its_answers(llama):
    log = co_train([learner(llama)], [pool_of(ROWS)], TUNE, steps=40, seed=0)
    assert log[-1]["llama/ce"] < 0.7 * log[0]["llama/ce"]
    assert log[-1]["llama/kl"] == 0


def test_a_model_without_parameters_only_teaches(llama, neox):
    before = weights(neox)
    log = co_train([learner(llama), Learner(neox)], [pool_of(ROWS)], TUNE, steps=3, seed=0)
    assert same(before, weights(neox))
    assert log[0]["llama/kl"] > 0


def test_two_learners_both_move_and_come_nearer_across_tokenizers(llama, neox):
    log = co_train([learner(llama), learner(neox)], [pool_of(ROWS)], TUNE, steps=40, seed=0)
    for name in ("llama", "gpt_neox"):
        assert log[-1][f"{name}/ce"] < log[0][f"{name}/ce"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    results = []
    for seed in (0, 0, 1):
        model = tiny("llama")
        co_train([learner(model)], [pool_of(ROWS)], TUNE, steps=3, seed=seed)
        results.append(weights(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_a_partner_with_no_weight_on_its_lessons_changes_nothing(neox):
    lonely, paired = (tiny("llama") for _ in range(2))
    co_train([learner(lonely)], [pool_of(ROWS)], TUNE, steps=3, seed=0)
    co_train([learner(paired, kd_weight=0.0), Learner(neox)], [pool_of(ROWS)], TUNE, steps=3, seed=0)
    assert same(weights(lonely), weights(paired))


def test_remembered_knowledge_teaches_exactly_like_the_teacher_in_the_room(neox):
    live, remembered = (tiny("llama") for _ in range(2))
    co_train([learner(live), Learner(neox)], [pool_of(ROWS)], TUNE, steps=2, seed=0)
    # batches of other lengths differ in the last bits of float32
    co_train([learner(remembered)], [Pool(knowledge_of(Learner(neox), ROWS, TUNE))], TUNE, steps=2, seed=0)
    for name, value in weights(live).items():
        np.testing.assert_allclose(value, weights(remembered)[name], atol=2e-4)


def test_a_teacher_that_is_never_sure_is_not_heard_where_doubt_counts_and_is_where_it_does_not():
    def taught(doubt, **settings):
        student = tiny("llama")
        teacher = Learner(tiny("gpt_neox", escaped_spaces("bpe", lines_apart=True)))
        options = replace(TUNE, doubt=doubt)
        co_train([learner(student, **settings), teacher], [pool_of(ROWS)], options, steps=3, seed=0)
        return weights(student)

    deaf = taught(0.0, kd_weight=0.0)
    assert same(taught(1e4), deaf)
    assert not same(taught(0.0), deaf)


def test_a_domain_adapter_learns_while_the_shared_one_and_the_base_stay(llama):
    for name in (SHARED, DOMAIN):
        add_lora(llama, name, rank=4, alpha=8, seed=0)
    use_adapters(llama, [SHARED, DOMAIN])
    before = weights(llama)
    student = Learner(llama, lora_parameters(llama, DOMAIN), 1e-2)
    co_train([student], [pool_of(ROWS)], TUNE, steps=5, seed=0)
    moved = {name for name, value in weights(llama).items() if not np.array_equal(value, before[name])}
    assert moved
    assert all(f".{DOMAIN}." in name for name in moved)


def test_two_fresh_adapters_leave_the_models_answers_as_they_are(llama):
    ids = torch.arange(5, 25)[None]
    plain = llama.hidden(ids)
    for name in (SHARED, DOMAIN):
        add_lora(llama, name, rank=4, alpha=8, seed=0)
    use_adapters(llama, [SHARED, DOMAIN])
    assert torch.equal(plain, llama.hidden(ids))


def test_at_a_share_an_adapter_does_that_part_of_what_it_learned(llama):
    add_lora(llama, DOMAIN, rank=4, alpha=8, seed=0)
    learned = lora_parameters(llama, DOMAIN)
    for parameter in learned.values():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(5, 25)[None]
    use_adapters(llama, {DOMAIN: 0.25})
    at_share = llama.hidden(ids)
    with torch.no_grad():
        for name, parameter in learned.items():
            parameter.mul_(0.25 if name.endswith("lora_B") else 1.0)
    use_adapters(llama, [DOMAIN])
    torch.testing.assert_close(llama.hidden(ids), at_share, rtol=1e-4, atol=1e-5)
    use_adapters(llama, {DOMAIN: 0.0})
    part = llama.hidden(ids)
    use_adapters(llama, [])
    torch.testing.assert_close(llama.hidden(ids), part, rtol=1e-4, atol=1e-5)


def test_merged_adapters_answer_alike_and_leave_the_weights_bit_for_bit(llama):
    for name in (SHARED, DOMAIN):
        add_lora(llama, name, rank=4, alpha=8, seed=0)
        for parameter in lora_parameters(llama, name).values():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(5, 25)[None]
    for used in ([SHARED, DOMAIN], [SHARED], []):
        use_adapters(llama, used)
        before, plain = weights(llama), llama.hidden(ids)
        with merged(llama):
            torch.testing.assert_close(llama.hidden(ids), plain, rtol=1e-4, atol=1e-4)
        assert same(before, weights(llama))
        assert torch.equal(llama.hidden(ids), plain)


def test_pools_share_a_batch_in_their_proportions(llama):
    seen: list[Sample] = []

    class Spy(Learner):
        __slots__ = ()

        def encode(self, sample):
            seen.append(sample)
            return super().encode(sample)

    spy = Spy(llama, dict(llama.module.named_parameters()), 1e-3)
    co_train(
        [spy],
        [pool_of(ROWS[:6], 0.75), pool_of(ROWS[6:], 0.25)],
        replace(TUNE, batch_rows=8),
        steps=6,
        seed=0,
    )
    own = sum(sample in ROWS[:6] for sample in seen)
    assert own == 6 * 6
    assert len(seen) == 6 * 8
