"""llama.cpp's models serve as any: tokens, draws and sessions of the transformers model they were made of."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from consort.config import RuntimeConfig
from consort.config_serve import ServedModel
from consort.errors import ConfigError, ModelError
from consort.gateway.loading import load_lm
from consort.models.decoding.lm import LocalLM
from consort.models.gguf.file import read_metadata
from consort.models.gguf.model import GgufModel, load_gguf
from consort.models.gguf.tokens import WHOLE_JSON
from consort.models.local import LocalModel, load_model
from consort.training.export import write_gguf
from consort.types import Chunk, Message, Request
from tests.tiny_models import CPU

pytest.importorskip(
    "llama_cpp", reason="llama.cpp is not installed (pip install llama-cpp-python builds it from source)"
)
BUNDLED = "edge-llama"
ASKED = Request((Message("user", "Name the intent.\nMy card  is gone"),), max_tokens=16)
ALTERNATIVES = 8


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return load_model(f"zoo:{BUNDLED}", runtime=CPU)


@pytest.fixture(scope="module")
def file(model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = tmp_path_factory.mktemp("gguf") / f"{BUNDLED}.gguf"
    write_gguf(model, written, precision="float32")
    return written


@pytest.fixture(scope="module")
def loaded(file: Path) -> GgufModel:
    return load_gguf(file, runtime=CPU)


@pytest.fixture(scope="module")
def both(model: LocalModel, loaded: GgufModel) -> Iterator[tuple[LocalLM, LocalLM]]:
    """transformers' and llama.cpp's."""
    opened = [
        LocalLM(each, answers=3, sessions=3, context_tokens=160, alternatives=ALTERNATIVES)
        for each in (model, loaded)
    ]
    yield opened[0], opened[1]
    for lm in opened:
        lm.close()


def without_json(file: Path, copy: Path) -> Path:
    """A copy whose tokenizer is lists only: the key has a name that nobody asks for."""
    copy.write_bytes(file.read_bytes().replace(WHOLE_JSON.encode(), b"x" * len(WHOLE_JSON)))
    return copy


async def chunks(lm: LocalLM, request: Request) -> list[Chunk]:
    return [chunk async for chunk in lm.stream(request)]


def text(lm: LocalLM, request: Request) -> str:
    return "".join(chunk.text for chunk in asyncio.run(chunks(lm, request)))


def test_the_file_says_what_the_model_is(model: LocalModel, loaded: GgufModel) -> None:
    assert loaded.name == BUNDLED
    assert loaded.context_tokens == model.context_tokens
    assert loaded.vocabulary.sha256 == model.vocabulary.sha256
    assert model.end_ids <= loaded.end_ids
    for words in ("Hello,  é 🙂\n", "", "<s> </s>"):
        for around in (True, False):
            ids = [each.tokenizer(words, add_special_tokens=around)["input_ids"] for each in (model, loaded)]
            assert ids[0] == ids[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_seed_gives_the_answer_that_the_same_weights_give_elsewhere(
    both: tuple[LocalLM, LocalLM], temperature: float
) -> None:
    for seed in range(4):
        request = dataclasses.replace(ASKED, temperature=temperature, seed=seed, top_logprobs=3)
        found = [asyncio.run(chunks(lm, request)) for lm in both]
        ours, theirs = ([one for chunk in each for one in chunk.logprobs] for each in found)
        assert [one.token for one in theirs] == [one.token for one in ours]
        assert [one.logprob for one in theirs] == pytest.approx([one.logprob for one in ours], abs=1e-3)
        assert found[1][-1].usage == found[0][-1].usage
        assert found[1][-1].finish_reason == found[0][-1].finish_reason


def test_answers_at_once_are_those_of_each_alone_also_when_some_hang_up(
    both: tuple[LocalLM, LocalLM],
) -> None:
    lm = both[1]
    requests = [
        Request((), prompt=prompt, max_tokens=8 + seed, seed=seed, temperature=0.8, stop=("z",))
        for seed in range(4)
        for prompt in ("My card", "What is the " * (1 + 3 * seed))
    ]

    async def one(request: Request, *, leave: bool) -> str:
        heard, stream = "", lm.stream(request)
        async for chunk in stream:
            heard += chunk.text
            if leave:
                break
        await stream.aclose()
        return heard

    async def everybody() -> list[str]:
        return await asyncio.gather(*(one(each, leave=i % 3 == 0) for i, each in enumerate(requests)))

    alone = [text(lm, request) for request in requests]
    together = asyncio.run(everybody())
    assert [heard for i, heard in enumerate(together) if i % 3] == [
        heard for i, heard in enumerate(alone) if i % 3
    ]


def test_sessions_read_rewind_and_are_verified_side_by_side(both: tuple[LocalLM, LocalLM]) -> None:
    """Whatever was drafted and taken back, and whoever else is verified: the distributions of the text."""
    requests = [ASKED, Request((), prompt="What is the limit of my card?")]
    drafts = [[5, 9, 40, 7], [11, 3]]
    read = []
    for lm in both:
        sessions, firsts = zip(*map(lm.open, requests), strict=True)
        sessions[0].extend([8, 8, 8])
        sessions[0].rewind(2)
        sessions[0].rewind(1)
        found = [session.extend(draft) for session, draft in zip(sessions, drafts, strict=True)]
        read.append([*firsts, *found[0], *found[1]])
        for session in sessions:
            session.close()
    for ours, theirs in zip(*read, strict=True):
        assert theirs.ids.tolist() == ours.ids.tolist()
        assert theirs.logprobs.tolist() == pytest.approx(ours.logprobs.tolist(), abs=1e-3)
        assert theirs.rest == pytest.approx(ours.rest, abs=1e-3)


def test_a_prompt_longer_than_one_pass_and_texts_that_share_one_are_read_as_alone(loaded: GgufModel) -> None:
    network = loaded.open_network(slots=3, positions=1000)
    ids = [5 + place % 50 for place in range(700)]
    whole = network.read([ids], slots=[0], starts=[0], every=True)
    assert whole.shape[0] == 700
    network.read([ids[:300], ids[:5]], slots=[1, 2], starts=[0, 0], every=False)
    network.swap(1, 2, 300)
    together = network.read([ids[5:9], ids[300:]], slots=[1, 2], starts=[5, 300], every=True)
    assert together == pytest.approx(np.concatenate([whole[5:9], whole[300:]]), abs=1e-3)
    again = network.read([ids[2:4], ids[299:300]], slots=[1, 2], starts=[2, 299], every=False)
    assert again == pytest.approx(whole[[3, 299]], abs=1e-3)


def test_a_file_without_its_tokenizer_s_json_answers_alike(
    file: Path, both: tuple[LocalLM, LocalLM], tmp_path: Path
) -> None:
    """As files that others made: llama.cpp cuts the prompt."""
    plain = without_json(file, tmp_path / "plain.gguf")
    lm = LocalLM(load_gguf(plain, runtime=CPU), answers=1, sessions=0, context_tokens=160)
    for request in (ASKED, Request((), prompt="What is  the limit?", max_tokens=8)):
        assert text(lm, request) == text(both[0], request)
    lm.close()


def test_a_prompt_beyond_the_context_is_refused_in_words(both: tuple[LocalLM, LocalLM]) -> None:
    for lm in both:
        with pytest.raises(ModelError, match="the context is 160"):
            text(lm, dataclasses.replace(ASKED, prompt="word " * 300, messages=()))


def test_a_broken_file_and_weights_that_are_missing_are_clear_errors(file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-100_000])
    with pytest.raises(ModelError, match=r"cannot load it: .*\w"):
        load_gguf(cut, runtime=CPU)
    cut.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="no whole GGUF file"):
        load_gguf(cut, runtime=CPU)
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "other.gguf"
    without_json(file, other)
    tokenizer = json.loads(read_metadata(file)[WHOLE_JSON])
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 9999, "content": "<far>"})
    other.with_name("tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="has 10000 tokens"):
        load_gguf(other, runtime=CPU)


def test_more_texts_than_llama_cpp_can_hold_are_refused(loaded: GgufModel) -> None:
    with pytest.raises(ModelError, match="no cache of 300 texts"):
        loaded.open_network(slots=300, positions=8)


def test_a_file_is_served_by_its_name_and_takes_no_adapter(file: Path, both: tuple[LocalLM, LocalLM]) -> None:
    served = ServedModel(name="own", model=str(file), answers=1, context_tokens=160)
    lm = load_lm(served, RuntimeConfig(device="cpu"))
    assert isinstance(lm, LocalLM)
    assert lm.name == "own"
    assert text(lm, ASKED) == text(both[0], ASKED)
    lm.close()
    with pytest.raises(ConfigError, match="adapter"):
        load_lm(dataclasses.replace(served, adapter="somewhere"), RuntimeConfig(device="cpu"))
