"""A drafter says what its model would write, in the other's tokens, after text of any kind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from consort.models.decoding.drafters import ModelDrafter
from consort.models.decoding.lm import LocalLM
from consort.models.drafts import depths, first_path, is_sound
from consort.models.local import LocalModel, generate
from consort.types import Draft, DraftShape, Message, Request
from tests.tiny_models import escaped_spaces, tiny

ASKED = Request((Message("user", "the clinic opens"),), max_tokens=30, seed=5)
CHAIN = DraftShape(depth=5, least=0.0)
OWN = {
    "byte-level": lambda: tiny("llama"),
    "byte fallback": lambda: tiny("qwen2", escaped_spaces("bpe", lines_apart=False)),
    "unigram": lambda: tiny("gpt2", escaped_spaces("unigram", lines_apart=False)),
}


@pytest.fixture(scope="module", params=OWN)
def model(request: pytest.FixtureRequest) -> LocalModel:
    return OWN[request.param]()


@pytest.fixture
def lm(model: LocalModel) -> Iterator[LocalLM]:
    opened = LocalLM(model, answers=1, sessions=2, context_tokens=128)
    yield opened
    opened.close()


def drafted(
    lm: LocalLM,
    other: LocalModel,
    answers: Sequence[Sequence[int]],
    shape: DraftShape,
    request: Request = ASKED,
) -> list[tuple[Draft, tuple[float, ...]]]:
    async def work() -> list[tuple[Draft, tuple[float, ...]]]:
        drafting = await ModelDrafter(lm, other.vocabulary).open(request)
        found = [await drafting.draft(answer, shape) for answer in answers]
        drafting.close()
        return found

    return asyncio.run(work())


TEXTS = ("", "the", "the daily limit", "the daily limit of the blue", "error 17: a machine", "grüße aus")


def test_a_draft_is_the_model_s_own_continuation(lm, model):
    other = tiny("gpt_neox")  # byte-level
    for text, (draft, chances) in zip(
        TEXTS, drafted(lm, other, [other.vocabulary.encode(text) for text in TEXTS], CHAIN), strict=True
    ):
        prompt = model.tokenizer("the clinic opens\n")["input_ids"] + (
            model.vocabulary.encode(text) if text else []
        )
        (own,) = generate(model, [prompt], max_new_tokens=5)
        wanted = b"".join(model.vocabulary.token_bytes[token] or b"" for token in own)
        found = b"".join(other.vocabulary.token_bytes[token] or b"" for token in draft.ids)
        if not text and model.vocabulary.adds_space:
            wanted = wanted.removeprefix(b" ")
        assert wanted.startswith(found), text
        assert is_sound(draft, other.vocabulary.size)
        assert len(chances) == len(draft.ids)
        assert all(0 < chance <= 1 for chance in chances)


def test_an_answer_that_went_another_way_is_read_anew(lm, model):
    vocabulary = model.vocabulary
    texts = ["the daily", "the daily limit", "please call", "", "please call the shift", "the daily limit"]
    answers = [vocabulary.encode(text) if text else [] for text in texts]
    together = drafted(lm, model, answers, CHAIN)
    alone = [drafted(lm, model, [answer], CHAIN)[0] for answer in answers]
    assert [draft for draft, _ in together] == [draft for draft, _ in alone]


def test_a_tree_begins_with_the_chain_and_holds_likelier_paths_first(lm, model):
    answer = model.vocabulary.encode("the daily limit")
    for temperature in (0.0, 1.0):
        request = Request(ASKED.messages, max_tokens=30, seed=5, temperature=temperature)
        ((chain, _),) = drafted(lm, model, [answer], DraftShape(depth=3, least=0.0), request)
        ((tree, chances),) = drafted(
            lm, model, [answer], DraftShape(depth=3, width=4, least=0.0, nodes=9), request
        )
        main = [tree.ids[node] for node in first_path(tree)]
        assert main[: len(chain.ids)] == list(chain.ids)[: len(main)]
        assert len(tree.ids) == 9
        assert max(depths(tree.parents)) == 2
        for node, parent in enumerate(tree.parents):
            assert parent < 0 or chances[node] <= chances[parent]


def test_where_there_is_no_room_nothing_is_drafted(lm, model):
    answer = (model.vocabulary.encode("the daily limit of the blue card? ") * 30)[:118]
    ((draft, _),) = drafted(lm, model, [answer], DraftShape(depth=8, width=4, least=0.0))
    assert draft.ids == ()


def test_half_a_character_is_waited_for():
    lm = LocalLM(OWN["byte fallback"](), answers=1, sessions=1, context_tokens=128)
    other = tiny("gpt_neox")
    halves = [index for index, piece in enumerate(other.vocabulary.token_bytes) if piece == b"\xc3"]
    ((draft, _),) = drafted(lm, other, [halves[:1]], CHAIN)
    assert draft.ids == ()
    lm.close()
