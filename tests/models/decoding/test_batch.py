"""A batch writes every row as if it were alone, whoever joins, leaves or is extended beside it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from consort.models.decoding.batch import Batch, Network, Row
from consort.models.decoding.module import RowNetwork, SlotNetwork
from consort.models.decoding.network import open_network
from consort.models.decoding.sampling import Sampling
from consort.models.local import LocalModel
from consort.types import Draft
from tests.tiny_models import tiny

SAMPLINGS = (Sampling(), Sampling(1.0, seed=3), Sampling(0.7, top_p=0.8, seed=4), Sampling(2.0, seed=-1))


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny()


def rows(count: int) -> list[Row]:
    rng = random.Random(0)
    return [
        Row(
            [rng.randrange(3, 300) for _ in range(rng.randrange(1, 40))],
            max_new_tokens=rng.randrange(1, 25),
            sampling=SAMPLINGS[index % len(SAMPLINGS)],
        )
        for index in range(count)
    ]


Open = Callable[..., Network]


def alone(model: LocalModel, count: int, opened: Open = open_network) -> list[list[int]]:
    answers = []
    for row in rows(count):
        batch = Batch(opened(model, slots=1, positions=64), model.vocabulary)
        batch.add(row)
        while batch.rows:
            batch.step(1000)
        answers.append(row.written)
    return answers


@pytest.mark.parametrize("prompt_tokens", [1, 7, 1000])
def test_rows_that_come_and_go_are_written_as_alone(model, prompt_tokens):
    expected, waiting, rng = alone(model, 14), rows(14), random.Random(1)
    everyone = list(waiting)
    batch = Batch(open_network(model, slots=5, positions=64), model.vocabulary)
    holding = Row([5, 6, 7], max_new_tokens=0)
    batch.add(holding)
    cancelled = everyone[rng.randrange(14)]
    heard = []
    while waiting or len(batch.rows) > 1:
        if waiting and batch.free and rng.random() < 0.4:
            batch.add(waiting.pop(0))
        if cancelled in batch.rows and len(cancelled.written) > 1:
            batch.remove(cancelled)
        heard += batch.step(prompt_tokens)[0]
        assert all(row.unread == [] for row in batch.rows[: batch.writing])
        if not holding.unread and rng.random() < 0.5:
            batch.extend([holding], [[8, 9]])
            holding.filled -= 2
    for row, answer in zip(everyone, expected, strict=True):
        if row is not cancelled:
            assert row.written == answer
            assert [one.token for one in heard if one.row is row] == answer
            assert [one.finish for one in heard if one.row is row][-1] is not None
    assert cancelled.written == expected[everyone.index(cancelled)][: len(cancelled.written)]


def test_rows_that_hold_their_place_are_extended_together_and_cut_back(model):
    batch = Batch(open_network(model, slots=3, positions=64), model.vocabulary)
    held = [Row([5, 6, 7], max_new_tokens=0), Row([8, 9], max_new_tokens=0)]
    for row in held:
        batch.add(row)
    while any(row.unread for row in held):
        batch.step(2)
    batch.extend(held, [[40, 41], [42]])
    held[0].filled -= 1
    found = batch.extend(held[::-1], [[43], [44, 45, 46]])
    with torch.no_grad():
        for logits, text in zip(found, ([8, 9, 42, 43], [5, 6, 7, 40, 44, 45, 46]), strict=True):
            wanted = model.module(input_ids=torch.tensor([text])).logits[0, -len(logits) :]
            assert torch.allclose(logits, wanted[:, : model.vocabulary.size], rtol=0, atol=1e-4)


def test_log_probabilities_come_with_alternatives_for_those_who_asked(model):
    batch = Batch(open_network(model, slots=2, positions=64), model.vocabulary)
    asking, other = Row([5, 6], 3, top_logprobs=2), Row([5, 6], 3)
    batch.add(asking)
    batch.add(other)
    heard = []
    while batch.rows:
        heard += batch.step(1000)[0]
    first = next(one for one in heard if one.row is asking)
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([[5, 6]])).logits[0, -1, : model.vocabulary.size]
    logp = logits.log_softmax(-1)
    assert first.logprob == pytest.approx(float(logp[first.token]), abs=1e-4)
    assert [token for token, _ in first.top] == logp.topk(2).indices.tolist()
    assert all(one.logprob is None and one.top == () for one in heard if one.row is other)


def drafted_somehow(row: Row, answer: list[int], rng: random.Random, size: int) -> tuple[int, Draft]:
    """A tree of which some path is the answer's, for a while: begun early, late, or where it should."""
    begins = len(row.written) + rng.randrange(-2, 2)
    ids: list[int] = []
    parents: list[int] = []
    for _ in range(rng.randrange(1, 9)):
        parent = rng.randrange(-1, len(ids))
        place = begins + len(path_to(parents, parent))
        right = 0 <= place < len(answer) and rng.random() < 0.7
        token = answer[place] if right else rng.randrange(size)
        if (parent, token) not in zip(parents, ids, strict=True):
            ids.append(token)
            parents.append(parent)
    return max(0, begins), Draft(tuple(ids), tuple(parents))


def path_to(parents: list[int], node: int) -> list[int]:
    return [] if node < 0 else [*path_to(parents, parents[node]), node]


@pytest.mark.parametrize(
    ("architecture", "opened"),
    [
        ("llama", open_network),
        ("gpt2", open_network),
        ("bloom", open_network),
        ("qwen2", SlotNetwork),
        ("llama", RowNetwork),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_drafted_every_row_is_written_as_alone(architecture, opened, seed):
    model = tiny(architecture)
    expected, waiting, rng = alone(model, 8, opened), rows(8), random.Random(seed)
    answers = dict(zip(map(id, waiting), expected, strict=True))
    everyone = list(waiting)
    batch = Batch(opened(model, slots=3, positions=64), model.vocabulary)
    while waiting or batch.rows:
        if waiting and batch.free and rng.random() < 0.5:
            batch.add(waiting.pop(0))
        for row in batch.rows[: batch.writing]:
            if rng.random() < 0.6:
                batch.draft(row, *drafted_somehow(row, answers[id(row)], rng, model.vocabulary.size))
            row.pause_at = rng.choice([None, 0, len(row.written), len(row.written) + 1])
        paused = {id(row): len(row.written) for row in batch.rows[: batch.writing] if not row.writes}
        idle, (written, _) = batch.idle, batch.step(1000)
        assert bool(written) is not idle
        assert all(len(row.written) == paused.get(id(row), len(row.written)) for row in everyone)
    assert [row.written for row in everyone] == expected
    foreseen = sum(row.foreseen for row in everyone)
    assert 0 < foreseen < sum(row.drafted for row in everyone)
    assert all(row.foreseen < len(row.written) or not row.foreseen for row in everyone)
