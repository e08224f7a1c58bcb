"""Whatever is drafted, by whom, and however fast: the answer is the cloud's own."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

import pytest

from consort.errors import ModelError, RequestError
from consort.inference.pace import (
    IN_TURN,
    JUDGED_TOKENS,
    LEAST,
    LONGEST_PAUSE,
    SUREST,
    TRIAL_TOKENS,
    UNMEASURED,
    Pace,
    Rate,
)
from consort.inference.prompt_lookup import PromptLookup, following
from consort.inference.speculative import speculate
from consort.models.decoding.drafters import ModelDrafter
from consort.models.decoding.lm import LocalLM
from consort.models.local import LocalModel
from consort.models.simulated import Simulated
from consort.types import (
    Chunk,
    Consort,
    Draft,
    Drafter,
    Drafting,
    DraftShape,
    Message,
    Note,
    Request,
    Writing,
)
from tests.tiny_models import escaped_spaces, tiny

ASKED = Request((Message("user", "the clinic opens at"),), max_tokens=24)


@pytest.fixture(scope="module")
def cloud() -> Iterator[LocalLM]:
    opened = LocalLM(tiny("llama"), answers=3, sessions=0, context_tokens=128)
    yield opened
    opened.close()


class Far:
    """The same model where it does not wait for drafts: as if a network were between."""

    def __init__(self, lm: LocalLM) -> None:
        self.lm, self.name, self.tokenizer, self.capabilities = lm, lm.name, lm.tokenizer, lm.capabilities

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        return self.lm.stream(request)

    async def write(self, request: Request, *, after: Sequence[int] = ()) -> Writing:
        return FarWriting(await self.lm.write(request, after=after))


class FarWriting:
    def __init__(self, writing: Writing) -> None:
        self.written, self.draft, self.close = writing.written, writing.draft, writing.close
        self.prompt_tokens, self.rtt_s = writing.prompt_tokens, writing.rtt_s

    def pause_at(self, tokens: int | None) -> bool:
        return False


def drafting(model: LocalModel, cloud: LocalLM) -> ModelDrafter:
    return ModelDrafter(LocalLM(model, answers=1, sessions=2, context_tokens=128), cloud.tokenizer)


class Hostile:
    """Sends whatever comes to mind."""

    name = "hostile"

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)

    async def open(self, request: Request) -> Drafting:
        return self

    async def draft(self, answer: Sequence[int], shape: DraftShape) -> tuple[Draft, tuple[float, ...]]:
        count = self.rng.choice([1, 3, 300])
        ids = [self.rng.choice([self.rng.randrange(400), -5, 10**9]) for _ in range(count)]
        if self.rng.random() < 0.8:
            ids = [token % 400 for token in ids]
        parents = [self.rng.randrange(-1, node) if node else -1 for node in range(count)]
        if self.rng.random() < 0.1:
            parents[0] = 0
        await asyncio.sleep(0)
        return Draft(tuple(ids), tuple(parents)), (0.9,) * count

    def stop(self) -> None: ...

    def close(self) -> None: ...


class Broken(Hostile):
    """Fails at once, or in the middle."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.good = good

    async def draft(self, answer: Sequence[int], shape: DraftShape) -> tuple[Draft, tuple[float, ...]]:
        self.good -= 1
        if self.good < 0:
            raise ModelError("out of memory")
        return await super().draft(answer, shape)


async def answered(strategy, cloud, request: Request) -> tuple[list[Chunk], list[Note]]:
    notes: list[Note] = []
    return [chunk async for chunk in strategy(request, Consort((), cloud, notes.append))], notes


def text(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def eager() -> Pace:
    """Drafts from the first token on, and never gives up."""
    return Pace(plain=Rate(1e9, 1), plain_tokens=TRIAL_TOKENS)


def slow(lm: LocalLM, seconds: float = 0.01) -> None:
    """Every pass takes longer, so that a drafter here has time for its drafts."""
    network = lm._engine._batch.network
    read = network.read

    def slow_read(*rows: object, **more: object) -> object:
        time.sleep(seconds)
        return read(*rows, **more)  # type: ignore[arg-type]

    network.read = slow_read  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def slow_cloud() -> Iterator[LocalLM]:
    opened = LocalLM(tiny("llama"), answers=1, sessions=0, context_tokens=128)
    slow(opened)
    yield opened
    opened.close()


def check(cloud: LocalLM | Far, drafter: Drafter, requests: Sequence[Request]) -> list[Note]:
    told = []
    for request in requests:
        alone = asyncio.run(_alone(cloud, request))
        chunks, notes = asyncio.run(answered(speculate(lambda lm: (drafter, eager())), cloud, request))
        assert text(chunks) == text(alone)
        assert chunks[-1].finish_reason == alone[-1].finish_reason
        assert {chunk.model for chunk in chunks} <= {cloud.name, drafter.name}
        told += notes
    return told


async def _alone(cloud: LocalLM | Far, request: Request) -> list[Chunk]:
    return [chunk async for chunk in cloud.stream(request)]


REQUESTS = [
    replace(ASKED, temperature=temperature, seed=seed, stop=stop, top_p=top_p)
    for seed, (temperature, stop, top_p) in enumerate(
        [(0.0, (), 1.0), (0.6, (), 1.0), (1.0, ("e",), 1.0), (1.3, (), 0.8), (1.0, (), 1.0)]
    )
]


@pytest.mark.parametrize("place", [lambda lm: lm, Far])
@pytest.mark.parametrize("kind", ["itself", "same tokens", "other tokens", "lookup", "hostile"])
def test_every_drafter_leaves_the_answer_as_it_is(cloud, kind, place):
    drafter: Drafter = {
        "itself": lambda: drafting(tiny("llama"), cloud),
        "same tokens": lambda: drafting(tiny("gpt2"), cloud),
        "other tokens": lambda: drafting(tiny("qwen2", escaped_spaces("bpe", lines_apart=False)), cloud),
        "lookup": lambda: PromptLookup(cloud.tokenizer),
        "hostile": Hostile,
    }[kind]()
    check(place(cloud), drafter, REQUESTS)


def test_in_turn_nothing_is_drafted_in_vain_that_is_right(cloud):
    for note in check(cloud, drafting(tiny("llama"), cloud), REQUESTS):
        told = note.values
        if not REQUESTS[int(str(told["seed"]))].stop:
            assert int(told["accepted"]) >= int(told["drafted"]) - 1  # the end itself is no token of the text
            assert int(told["accepted"]) + int(told["pieces"]) <= ASKED.max_tokens + 1
            assert told["off"] == ""
            assert 0 < int(told["turns"]) < int(told["pieces"])  # after the first piece, before the last


def test_whoever_drafts_with_the_model_itself_is_never_wrong(slow_cloud):
    notes = check(Far(slow_cloud), drafting(tiny("llama"), slow_cloud), REQUESTS)
    for note in notes:
        assert 0 < int(note.values["accepted"]) <= ASKED.max_tokens
        assert float(note.values["acceptance"]) >= Pace().acceptance


@pytest.mark.parametrize("place", [lambda lm: lm, Far])
@pytest.mark.parametrize("good", [0, 2])
def test_a_drafter_that_fails_costs_the_answer_nothing(cloud, good, place):
    notes = check(place(cloud), Broken(good), REQUESTS[:2])
    assert {note.values["off"] for note in notes} <= {"the drafter failed: unusable_model", ""}
    assert any(note.values["off"] for note in notes)


class Silent(Hostile):
    """Foresees nothing; `reads`: reads the question at all."""

    def __init__(self, *, reads: bool = True) -> None:
        super().__init__()
        self.reads = reads

    async def open(self, request: Request) -> Drafting:
        if not self.reads:
            await asyncio.Event().wait()
        return self

    async def draft(self, answer: Sequence[int], shape: DraftShape) -> tuple[Draft, tuple[float, ...]]:
        return Draft((), ()), ()


@pytest.mark.parametrize(
    ("drafter", "pace", "why"),
    [
        (Silent(), eager, "the drafter foresaw nothing that was likely enough"),
        (Silent(), lambda: Pace(paused=1), "did not pay lately"),
        (Silent(), lambda: Pace(plain_tokens=-ASKED.max_tokens), "how fast the cloud is without drafts"),
        (Broken(0), eager, "the drafter failed: unusable_model"),
        (Silent(reads=False), eager, "the drafter had not read the question"),
    ],
)
def test_where_nothing_was_drafted_the_receipt_says_why(slow_cloud, drafter, pace, why):
    """However long the answer is; in turn, too, where nobody waits for a drafter that reads for ever."""
    for cloud in (Far(slow_cloud), slow_cloud)[: 1 if "not read" in why else 2]:
        _, (note,) = asyncio.run(answered(speculate(lambda lm: (drafter, pace())), cloud, ASKED))
        assert note.values["drafted"] == 0
        assert str(note.values["undrafted"]).startswith(why)


def test_where_something_was_drafted_nothing_is_said_of_why_not(slow_cloud):
    for note in check(slow_cloud, PromptLookup(slow_cloud.tokenizer), REQUESTS) + check(
        slow_cloud, Hostile(), REQUESTS
    ):
        assert bool(note.values["undrafted"]) == (note.values["drafted"] == 0)


def test_a_drafter_s_tokens_are_its_own_and_what_was_struck_is_told(slow_cloud):
    drafter = drafting(tiny("llama"), slow_cloud)
    drafter.name = "proxy"
    chunks, _ = asyncio.run(answered(speculate(lambda _: (drafter, eager())), slow_cloud, REQUESTS[4]))
    assert {chunk.model for chunk in chunks if chunk.text} >= {"proxy"}
    chunks, notes = asyncio.run(
        answered(speculate(lambda _: (Hostile(), eager())), slow_cloud, replace(REQUESTS[4], max_tokens=60))
    )
    assert any(chunk.struck for chunk in chunks)
    assert notes[0].values["accepted"] < notes[0].values["drafted"]


class Sideways(Hostile):
    """Knows the answer, and drafts it as the longer of two branches, while the answer goes on."""

    def __init__(self, answer: Sequence[int]) -> None:
        super().__init__()
        self.answer = list(answer)

    async def draft(self, answer: Sequence[int], shape: DraftShape) -> tuple[Draft, tuple[float, ...]]:
        right = self.answer[len(answer) : len(answer) + 12]
        await asyncio.sleep(0.025)  # two or three tokens of the slow cloud
        ids = ((right[0] + 1) % 300, *right) if right else ()
        return Draft(ids, (-1, -1, *range(1, len(ids) - 1))[: len(ids)]), (0.9,) * len(ids)


def test_an_answer_may_take_the_longer_branch_while_it_is_drafted(slow_cloud):
    async def ids() -> list[int]:
        writing = await slow_cloud.write(REQUESTS[4])
        return [token async for piece in writing.written() for token in piece.ids]

    notes = check(slow_cloud, Sideways(asyncio.run(ids())), [REQUESTS[4]])
    assert notes[0].values["off"] == ""


def test_what_was_foreseen_behind_a_stop_sequence_is_not_counted(slow_cloud):
    whole = text(asyncio.run(_alone(slow_cloud, REQUESTS[4])))
    request = replace(REQUESTS[4], stop=(whole[len(whole) // 2 :][:2],))
    alone = asyncio.run(_alone(slow_cloud, request))
    chooser = speculate(lambda _: (drafting(tiny("llama"), slow_cloud), eager()))
    chunks, _ = asyncio.run(answered(chooser, slow_cloud, request))
    assert text(chunks) == text(alone)
    assert chunks[-1].usage == alone[-1].usage


def test_whoever_leaves_frees_the_answer_and_the_drafter(cloud):
    lm = LocalLM(tiny("llama"), answers=1, sessions=1, context_tokens=128)
    drafter = ModelDrafter(lm, cloud.tokenizer)

    async def leave(after: int) -> None:
        stream = speculate(lambda _: (drafter, eager()))(replace(ASKED, seed=1), Consort((), cloud))
        async for _ in stream:
            after -= 1
            if not after:
                break
        await stream.aclose()

    async def many() -> None:
        for turn in range(12):  # more than there are slots
            await leave(1 + turn % 3)

    asyncio.run(many())
    lm.close()


def test_a_model_that_takes_no_drafts_is_refused_with_a_hint():
    lm = Simulated("plain", answer=lambda request: "well")
    with pytest.raises(RequestError, match="takes no drafts"):
        asyncio.run(answered(speculate(lambda _: (Hostile(), eager())), lm, ASKED))


def test_an_answer_waits_where_it_is_told_to_and_the_model_rests_meanwhile(cloud):
    async def work() -> None:
        whole = [token async for piece in (await cloud.write(ASKED)).written() for token in piece.ids]
        gate, found, until = threading.Event(), list[int](), 1
        cloud._engine._orders.put(lambda: gate.wait() and None)  # nothing is written before it is told
        writing = await cloud.write(ASKED)
        assert writing.pause_at(until)
        gate.set()
        async for piece in writing.written():
            found += piece.ids
            if len(found) == until and until < 9:
                assert cloud._engine._batch.idle
                until += 2
                writing.pause_at(until)
            elif len(found) == until:
                until = len(whole)
                writing.pause_at(None)
            assert len(found) <= until
        assert found == whole

    asyncio.run(work())


def test_an_answer_goes_on_after_its_first_tokens_as_if_it_had_not_stopped(cloud):
    async def work(request: Request) -> None:
        whole = [token async for piece in (await cloud.write(request)).written() for token in piece.ids]
        for known in (1, len(whole) // 2, len(whole) - 1):
            writing = await cloud.write(request, after=whole[:known])
            rest = [token async for piece in writing.written() for token in piece.ids]
            assert whole[:known] + rest == whole
            assert writing.prompt_tokens > 0

    for request in REQUESTS:
        asyncio.run(work(replace(request, stop=())))


def test_drafts_stop_where_they_do_not_pay_and_are_tried_again():
    pace = Pace()
    for _ in range(TRIAL_TOKENS):
        assert pace.is_trial()
        pace.came(1, 0.010, foreseen=False, drafting=False)
    assert not pace.is_trial()
    for pause in (1, 2, 4, 8, LONGEST_PAUSE, LONGEST_PAUSE):
        assert pace.pays()  # until it is known
        for _ in range(JUDGED_TOKENS):
            pace.came(1, 0.012, foreseen=True, drafting=True)
        assert not pace.pays()
        pace.gave_up()
        assert [pace.begins() for _ in range(pause)] == [False] * pause
        assert pace.begins()
    for _ in range(JUDGED_TOKENS):
        pace.came(3, 0.012, foreseen=True, drafting=True)
    assert pace.pays()
    assert pace.begins()
    assert pace.next_pause == 1


def test_in_turn_a_draft_goes_as_far_as_a_token_is_worth_what_it_costs():
    least = []
    assert Pace().shape_in_turn(5).least == UNMEASURED
    for token_s in (0.0001, 0.001, 0.003, 0.008, 0.02):
        pace = Pace()
        pace.came(1, 0.020, pass_s=0.010, foreseen=False, drafting=True)  # a draft of nothing, then a pass
        assert pace.plain.token_s == pytest.approx(0.010)
        assert pace.drafted.token_s == pytest.approx(0.020)
        for tokens in (0, 2, 1, 5):
            pace.levels(tokens, 0.007 + tokens * token_s)  # however long any draft takes
        assert pace.growth.token_s == pytest.approx(token_s)
        least.append(pace.shape_in_turn(5).least)
    assert least == pytest.approx([LEAST, 0.1, 0.3, 0.8, SUREST])
    assert pace.shape_in_turn(5).depth == 5
    assert pace.shape_in_turn(500).depth == IN_TURN


def test_only_single_unforeseen_tokens_tell_how_fast_the_verifier_is_alone():
    pace = Pace()
    pace.came(1, 0.040, foreseen=False, drafting=True)
    pace.came(4, 0.040, foreseen=False, drafting=True)
    assert pace.plain.token_s == pytest.approx(0.040)


def test_the_drafter_s_certainty_is_corrected_by_what_comes_of_it():
    doubted, trusted = Pace(), Pace()
    for turn in range(200):
        doubted.judged(0.9, turn % 2 == 0)
        trusted.judged(0.5, right=True)
    assert trusted.spread < Pace().spread < doubted.spread
    assert trusted.acceptance > doubted.acceptance


def test_lookup_says_what_followed_the_longest_ending():
    assert following([1, 2, 3, 4, 9, 2, 3], 2) == [4, 9]
    assert following([1, 2, 7, 1, 2, 8, 1, 2], 3) == [8, 1, 2]
    assert following([1, 2, 3], 3) == []
