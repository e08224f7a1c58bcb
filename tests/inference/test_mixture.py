"""The laws of mixing: no weight, or nothing learned, is the LLM alone; seeds repeat; nothing is left open."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest

from consort.errors import BusyError, ContextFullError, ModelError, RequestError, UpstreamError
from consort.inference.mixing_weights import Kind, fixed
from consort.inference.mixture import Guide, mix
from consort.inference.streams import Closing
from consort.models.decoding.lm import LocalLM
from consort.types import Chunk, Consort, Message, Note, Request, Tool
from tests.inference.consorts import says
from tests.tiny_models import escaped_spaces, tiny, tune_somehow

ASKED = Request((Message("user", "the clinic opens"),), max_tokens=12, seed=7)
OTHERS = [
    ASKED,
    replace(ASKED, temperature=1.0, top_logprobs=2),
    replace(ASKED, temperature=1.3, top_p=0.9, messages=(Message("user", "error 17"),)),
    replace(ASKED, temperature=0.7, messages=(), prompt="grüße aus "),
    replace(ASKED, temperature=0.7, messages=(*ASKED.messages, Message("assistant", "at nine an"))),
]


@dataclass(frozen=True)
class Models:
    """An LLM, its proxy before and after tuning, and one with another tokenizer; all tokens are shown."""

    llm: LocalLM
    base: LocalLM
    tuned: LocalLM
    stranger: LocalLM


@pytest.fixture(scope="module")
def models() -> Iterator[Models]:
    tuned = tiny("qwen2")
    tune_somehow(tuned)
    tuned.name, room = "tuned", {"answers": 2, "sessions": 3, "context_tokens": 128, "alternatives": 1000}
    others = (tiny("llama"), tiny("qwen2"), tuned, tiny("gpt2", escaped_spaces("bpe", lines_apart=True)))
    opened = [LocalLM(model, **room) for model in others]  # type: ignore[arg-type]
    yield Models(*opened)
    for lm in opened:
        lm.close()


def mixed(
    models: Models,
    guides: Guide | Sequence[Guide],
    request: Request = ASKED,
    *,
    kind: Kind = "tuned",
    weight: float = 1.0,
) -> tuple[list[Chunk], Note]:
    notes: list[Note] = []

    async def run() -> list[Chunk]:
        several = (guides,) if isinstance(guides, Guide) else guides
        strategy = mix(several, kind=kind, weight=fixed(weight))
        return [chunk async for chunk in strategy(request, Consort((), models.llm, notes.append))]

    chunks = asyncio.run(run())
    (note,) = notes
    return chunks, note


def alone(lm: LocalLM, request: Request) -> list[Chunk]:
    async def run() -> list[Chunk]:
        return [chunk async for chunk in lm.stream(request)]

    return asyncio.run(run())


def said(chunks: list[Chunk]) -> tuple[str, object, tuple[str, ...]]:
    tokens = tuple(each.token for chunk in chunks for each in chunk.logprobs)
    return "".join(chunk.text for chunk in chunks), chunks[-1].finish_reason, tokens


@pytest.mark.parametrize("request_", OTHERS)
@pytest.mark.parametrize("kind", ["tuned", "product", "mean", "contrast"])
def test_without_weight_the_answer_is_the_llm_s_own_with_that_seed(models, kind, request_):
    guide = models.stranger if kind == "mean" else models.tuned
    found, note = mixed(models, Guide(guide, models.base), request_, kind=kind, weight=0.0)
    assert said(found) == said(alone(models.llm, request_))
    assert {chunk.model for chunk in found} == {models.llm.name}
    assert note.values["changed"] == 0


@pytest.mark.parametrize("request_", OTHERS)
@pytest.mark.parametrize("name", ["base", "stranger"])
def test_a_proxy_that_learned_nothing_leaves_the_llm_as_it_is(models, name, request_):
    guide = getattr(models, name)
    found, note = mixed(models, Guide(guide, guide), request_, weight=2.0)
    assert said(found) == said(alone(models.llm, request_))
    assert note.values["changed"] == 0


@pytest.mark.parametrize("request_", OTHERS)
def test_all_weight_on_one_is_that_one_s_answer(models, request_):
    guides = Guide(models.base, models.base)
    for kind in ("product", "mean"):
        found, _ = mixed(models, guides, request_, kind=kind, weight=1.0)
        assert said(found) == said(alone(models.base, request_))


def test_steering_changes_tokens_says_whose_they_are_and_repeats_with_its_seed(models):
    request = replace(ASKED, temperature=1.0)
    guides = Guide(models.tuned, models.base)
    first, note = mixed(models, guides, request, weight=1.5)
    again, _ = mixed(models, guides, request, weight=1.5)
    assert first == again
    authors = [chunk.model for chunk in first]
    assert 0 < note.values["changed"] <= note.values["tokens"] <= 12
    assert set(authors) <= {models.llm.name, "tuned"}
    assert "tuned" in authors
    across, note = mixed(models, Guide(models.stranger, models.stranger), request, kind="mean", weight=0.9)
    assert note.values["changed"] > 0
    assert said(across)[1] in ("stop", "length")


@pytest.mark.parametrize("request_", OTHERS)
@pytest.mark.parametrize("kind", ["tuned", "product", "mean", "contrast"])
def test_a_guide_without_a_share_is_not_asked_and_two_halves_are_one_whole(models, kind, request_):
    guide = Guide(models.tuned, models.base)
    expected, note = mixed(models, guide, request_, kind=kind, weight=0.7)
    unasked = replace(Guide(says("far", "words")), share=0.0)  # it could not even be read
    found, same = mixed(models, [guide, unasked], request_, kind=kind, weight=0.7)
    assert (found, same) == (expected, note)
    halves = [replace(guide, share=0.5), replace(guide, share=0.5)]
    found, same = mixed(models, halves, request_, kind=kind, weight=0.7)
    assert said(found) == said(expected)
    assert same.values["weight"] == note.values["weight"]


@pytest.mark.parametrize("kind", ["product", "mean"])
def test_guides_of_both_tokenizers_steer_together_and_the_receipt_says_how_much_each(models, kind):
    guides = [Guide(models.tuned, models.base, share=3.0), Guide(models.stranger, share=1.0)]
    request = replace(ASKED, temperature=1.0)
    found, note = mixed(models, guides, request, kind=kind, weight=0.8)
    assert found == mixed(models, guides, request, kind=kind, weight=0.8)[0]
    assert note.values["unheard"] == 0
    shares = [note.values[f"weight of {lm.name}"] for lm in (models.tuned, models.stranger)]
    assert shares == pytest.approx([0.6, 0.2])
    assert note.values["weight"] == pytest.approx(0.8)
    names = {models.llm.name, models.tuned.name, models.stranger.name}
    assert {chunk.model for chunk in found} <= names


def test_where_one_guide_fails_the_other_has_its_share_too(models):
    lost = UpstreamError("broke off", where="stranger")
    guides = [Guide(models.tuned), Guide(breaking(models.stranger, 0, lost))]
    found, note = mixed(models, guides, kind="mean", weight=0.8)
    alone, _ = mixed(models, Guide(models.tuned), kind="mean", weight=0.8)
    assert said(found)[1] in ("stop", "length")
    assert note.values["unheard"] >= note.values["tokens"] - 1
    assert note.values["weight"] == pytest.approx(0.8)
    assert len(said(found)[0]) > 0 < len(said(alone)[0])


def test_what_a_kind_needs_and_nobody_has_is_refused(models):
    for kind in ("tuned", "contrast"):
        with pytest.raises(ModelError, match="before its tuning"):
            mixed(models, Guide(models.stranger), kind=kind)


def test_text_that_was_begun_is_read_by_a_stranger_before_the_first_token(models):
    """All weight on it: its first word is what it would write behind that text itself."""
    request = replace(ASKED, messages=(*ASKED.messages, Message("assistant", "the clinic")), max_tokens=1)
    found, _ = mixed(models, Guide(models.stranger), request, kind="mean", weight=1.0)
    own = alone(models.stranger, replace(request, max_tokens=4))
    assert "".join(chunk.text for chunk in own).startswith("".join(chunk.text for chunk in found))


def test_a_stop_sequence_ends_the_answer_and_what_is_left_early_is_freed(models):
    guides = Guide(models.tuned, models.base)
    whole = said(mixed(models, guides)[0])[0]
    stop = whole[len(whole) // 2 :][:2]
    found, _ = mixed(models, guides, replace(ASKED, stop=(stop,)))
    assert said(found)[:2] == (whole[: whole.index(stop)], "stop")

    async def leave() -> None:
        for _ in range(4):  # more than there are sessions
            async with Closing(
                mix((guides,), kind="tuned", weight=fixed(1.0))(ASKED, Consort((), models.llm))
            ) as s:
                await anext(s)

    asyncio.run(leave())
    assert said(mixed(models, guides)[0])[0] == whole


class Breaking:
    """A session that fails after some tokens, as one over a network does."""

    def __init__(self, session, after: int, error: Exception) -> None:
        self.session, self.left, self.error = session, after, error

    def extend(self, ids):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.session.extend(ids)

    def rewind(self, num_tokens: int) -> None:
        self.session.rewind(num_tokens)

    def close(self) -> None:
        self.session.close()


def breaking(lm: LocalLM, after: int, error: Exception):
    class Broken:
        name, capabilities, tokenizer = lm.name, lm.capabilities, lm.tokenizer

        def open(self, request):
            session, first = lm.open(request)
            return Breaking(session, after, error), first

    return Broken()


def test_where_a_guide_fails_the_llm_goes_on_and_where_the_llm_does_nothing_is_hidden(models):
    lost = UpstreamError("broke off", where="tuned")
    found, note = mixed(models, Guide(breaking(models.tuned, 2, lost), models.base))
    assert found[-1].finish_reason
    assert note.values["unheard"] == note.values["tokens"] - 3
    broken = replace(models, llm=breaking(models.llm, 2, lost))
    with pytest.raises(UpstreamError):
        mixed(broken, Guide(models.tuned, models.base))
    full = replace(models, llm=breaking(models.llm, 2, ContextFullError("full")))
    found, note = mixed(full, Guide(models.tuned, models.base))
    assert (found[-1].finish_reason, note.values["tokens"]) == ("length", 3)


def test_what_cannot_be_mixed_is_refused_before_anything_is_opened(models):
    with pytest.raises(ModelError, match="distributions can be read"):
        mixed(models, Guide(says("far", "words"), models.base))
    with pytest.raises(RequestError, match="no tools"):
        mixed(models, Guide(models.tuned, models.base), replace(ASKED, tools=(Tool("f", "", "{}"),)))


def test_a_guide_without_a_free_session_is_not_heard_and_without_the_llm_s_there_is_no_answer(models):
    guide = Guide(models.tuned, models.base)
    own = [chunk.text for chunk in mixed(models, guide, weight=0.0)[0]]
    opened = [models.tuned.open(ASKED)[0] for _ in range(3)]
    found, note = mixed(models, guide)
    assert [chunk.text for chunk in found] == own
    assert note.values["unheard"] == note.values["tokens"]
    assert note.values["busy"] == models.tuned.name
    for session in opened:
        session.close()
    assert "busy" not in mixed(models, guide)[1].values
    opened = [models.llm.open(ASKED)[0] for _ in range(3)]
    with pytest.raises(BusyError, match="sessions are taken"):
        mixed(models, guide)
    for session in opened:
        session.close()
