"""A local model serves: streams are what it writes alone, clients come, go and fail, sessions agree."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from consort.errors import BusyError, ModelError
from consort.models.decoding.lm import LocalLM
from consort.models.local import LocalModel, generate
from consort.types import Chunk, Message, Request, Tool
from tests.tiny_models import escaped_spaces, tiny, tune_somehow

ASKED = Request((Message("user", "the clinic opens"),), max_tokens=20)


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny()


@pytest.fixture
def lm(model: LocalModel) -> Iterator[LocalLM]:
    opened = LocalLM(model, answers=3, sessions=2, context_tokens=128)
    yield opened
    opened.close()


async def chunks(lm: LocalLM, request: Request) -> list[Chunk]:
    return [chunk async for chunk in lm.stream(request)]


def text(found: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in found)


def test_a_streamed_answer_is_the_generated_one_and_is_counted(lm, model):
    ids = model.tokenizer("the clinic opens\n")["input_ids"]
    (expected,) = generate(model, [ids], max_new_tokens=20)
    found = asyncio.run(chunks(lm, ASKED))
    assert text(found) == model.vocabulary.decode(expected)
    assert [chunk.finish_reason for chunk in found[:-1]] == [None] * (len(found) - 1)
    assert found[-1].finish_reason == ("length" if len(expected) == 20 else "stop")
    assert (found[-1].usage.prompt_tokens, found[-1].usage.completion_tokens) == (len(ids), len(expected))
    assert {chunk.model for chunk in found} == {lm.name}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_other_tokenizers_stream_what_they_decode(kind):
    model = tiny(tokenizer=escaped_spaces(kind, lines_apart=False))
    lm = LocalLM(model, answers=1, sessions=0, context_tokens=128)
    for prompt in ("the clinic opens", "error 17: é"):
        (expected,) = generate(model, [model.tokenizer(prompt + "\n")["input_ids"]], max_new_tokens=30)
        # random bytes: what is cut in the middle of a character becomes the same mark in both
        found = asyncio.run(chunks(lm, Request((Message("user", prompt),), max_tokens=30)))
        assert text(found) == model.vocabulary.decode(expected)
    lm.close()


def test_many_at_once_are_answered_as_each_alone_also_when_some_hang_up(lm):
    requests = [
        replace(ASKED, seed=seed, temperature=temperature, max_tokens=5 + seed, prompt=prompt, messages=())
        for seed in range(6)
        for temperature in (0.0, 1.5)
        for prompt in ("error 17", "grüße " * (1 + seed))
    ]

    async def one(request: Request, leave_after: int) -> str:
        heard, stream = "", lm.stream(request)
        async for chunk in stream:
            heard += chunk.text
            leave_after -= 1
            if not leave_after:
                break
        await stream.aclose()
        return heard

    async def everybody() -> list[str]:
        rng = random.Random(0)
        leaving = [rng.choice([1, 3, 1000, 1000]) for _ in requests]
        found = await asyncio.gather(*map(one, requests, leaving))
        return [heard if leave == 1000 else None for heard, leave in zip(found, leaving, strict=True)]

    alone = [text(asyncio.run(chunks(lm, request))) for request in requests]
    together = asyncio.run(everybody())
    assert sum(heard is not None for heard in together) > 5
    assert all(heard in (None, wanted) for heard, wanted in zip(together, alone, strict=True))


def test_stop_sequences_end_an_answer_inside_a_token(lm):
    whole = text(asyncio.run(chunks(lm, ASKED)))
    stop = whole[len(whole) // 2 :][:2]
    found = asyncio.run(chunks(lm, replace(ASKED, stop=(stop,))))
    assert text(found) == whole[: whole.index(stop)]
    assert found[-1].finish_reason == "stop"
    assert found[-1].usage.completion_tokens < 20


def test_without_a_seed_answers_differ_and_with_one_they_do_not(lm):
    request = replace(ASKED, temperature=3.0)
    free = {text(asyncio.run(chunks(lm, request))) for _ in range(4)}
    fixed = {text(asyncio.run(chunks(lm, replace(request, seed=5)))) for _ in range(4)}
    assert (len(free), len(fixed)) == (4, 1)


def test_log_probabilities_are_the_model_s(lm, model):
    found = asyncio.run(chunks(lm, replace(ASKED, top_logprobs=2, max_tokens=4)))
    logprobs = [one for chunk in found for one in chunk.logprobs]
    ids = model.tokenizer("the clinic opens\n")["input_ids"]
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([ids])).logits[0, -1, : model.vocabulary.size]
    logp = logits.log_softmax(-1)
    assert len(logprobs) == found[-1].usage.completion_tokens
    assert logprobs[0].logprob == pytest.approx(float(logp.max()), abs=1e-4)
    assert [value for _, value in logprobs[0].top] == pytest.approx(logp.topk(2).values.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (replace(ASKED, tools=(Tool("f", "", "{}"),)), "calls no tools"),
        (replace(ASKED, max_tokens=0), "at least 1"),
        (replace(ASKED, prompt="error 17 " * 100), "the context is 128"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words_and_harms_nobody(lm, request_, words):
    with pytest.raises(ModelError, match=words):
        asyncio.run(chunks(lm, request_))
    with pytest.raises(ModelError, match=words):
        lm.open(request_)
    assert asyncio.run(chunks(lm, ASKED))


def test_an_answer_ends_where_the_context_does(lm):
    found = asyncio.run(chunks(lm, replace(ASKED, messages=(), prompt="ab" * 50, max_tokens=1000)))
    if found[-1].finish_reason == "length":
        assert found[-1].usage.prompt_tokens + found[-1].usage.completion_tokens == 128


def test_a_model_that_fails_ends_every_answer_with_an_error_and_goes_on(model):
    lm = LocalLM(model, answers=2, context_tokens=128)
    try:
        read, lm._engine._batch.network.read = lm._engine._batch.network.read, None
        with pytest.raises(ModelError, match="failed while computing"):
            asyncio.run(chunks(lm, ASKED))
        assert asyncio.run(chunks(lm, ASKED))
        assert read
    finally:
        lm.close()
    with pytest.raises(ModelError, match="was closed"):
        asyncio.run(chunks(lm, ASKED))


def test_a_session_reads_what_the_answer_is_drawn_from(lm, model):
    ids = model.tokenizer("the clinic opens\n")["input_ids"]
    (expected,) = generate(model, [ids], max_new_tokens=10)
    session, first = lm.open(ASKED)
    drafted = session.extend(expected[:4])
    session.extend([9, 9, 9])
    session.rewind(3)
    one_by_one = [session.extend([token])[0] for token in expected[4:]]
    likeliest = [int(step.ids[step.logprobs.argmax()]) for step in (first, *drafted, *one_by_one)]
    assert likeliest[: len(expected)] == expected
    assert first.logprobs.shape == (64,)
    assert float(torch.tensor(first.logprobs).exp().sum()) + first.rest == pytest.approx(1)
    for wrong in ([-1], [10**6], [3] * 200):
        with pytest.raises(ModelError):
            session.extend(wrong)
    with pytest.raises(ModelError, match="cannot forget"):
        session.rewind(11)
    session.close()
    with pytest.raises(ModelError, match="closed"):
        session.extend([5])


def test_sessions_are_bounded_and_do_not_keep_answers_waiting(lm):
    opened = [lm.open(ASKED)[0] for _ in range(2)]
    with pytest.raises(BusyError, match="all sessions are taken"):
        lm.open(ASKED)
    before = text(asyncio.run(chunks(lm, ASKED)))
    opened[0].close()
    lm.open(replace(ASKED, messages=(), prompt="error"))[0].close()
    assert text(asyncio.run(chunks(lm, ASKED))) == before


def test_a_session_shows_the_states_of_its_own_text_only_where_asked(model):
    """Two sessions extended at once: each distribution is its own state through the head."""
    plain, shown = (
        LocalLM(model, answers=1, sessions=2, context_tokens=128, shows_states=shows)
        for shows in (False, True)
    )
    requests = [replace(ASKED, messages=(), prompt=prompt) for prompt in ("error 17", "the clinic opens at")]
    weight, _ = model.head()
    for lm in (plain, shown):
        opened = [lm.open(request) for request in requests]
        with ThreadPoolExecutor(2) as threads:
            tails = list(threads.map(lambda one, ids: one[0].extend(ids), opened, ([5, 6, 7], [9])))
        for (session, first), tail in zip(opened, tails, strict=True):
            for top in (first, *tail):
                if lm is plain:
                    assert top.state is None
                    continue
                logits = torch.from_numpy(top.state).float() @ weight.T
                logp = torch.log_softmax(logits[: model.vocabulary.size], -1)[top.ids]
                assert torch.allclose(logp.double(), torch.from_numpy(top.logprobs), atol=1e-4)
            session.close()
        lm.close()
    assert plain.states_sha256 == ""
    assert shown.states_sha256 == model.states_sha256()


def test_weights_are_named_by_what_computes_with_them():
    """Another model, and the same with an adapter that learned something, show other states."""
    tuned, plain = tiny(), tiny()
    before = tuned.states_sha256()
    assert before == plain.states_sha256() != tiny("gpt2").states_sha256()
    tune_somehow(tuned)
    assert tuned.states_sha256() != before
