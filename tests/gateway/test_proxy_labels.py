"""Labels hold what the device's proxy thinks of an answer, as a scorer learned from them hears it when it
decides; and a scorer that hears the proxy is not served without one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from consort.bench.traffic import labelled_pair
from consort.cli import main
from consort.config import RuntimeConfig
from consort.config_serve import ServeConfig, ServedModel
from consort.errors import ConfigError
from consort.gateway.history import History, read_history
from consort.gateway.judging import Judges, judges
from consort.gateway.loading import load_lm
from consort.gateway.shadow import Shadow
from consort.inference.evidence import Evidence
from consort.inference.gain_file import load_scorer
from consort.inference.proxy import proxy_agreement
from consort.models.simulated import Simulated
from consort.types import Answer, Message, Request, TokenLM
from tests.gateway.live import live

CONTEXT = 160
QUESTIONS = [f"Is the {thing} open on day {day}?" for day in range(8) for thing in
             ("bank", "clinic", "shop", "yard", "mill", "park")]  # fmt: skip


@pytest.fixture(scope="module")
def proxy() -> Iterator[TokenLM]:
    lm = load_lm(
        ServedModel(name="proxy", model="zoo:proxy", answers=1, context_tokens=CONTEXT),
        RuntimeConfig(device="cpu"),
        sessions=2,
    )
    yield lm  # type: ignore[misc]
    lm.close()  # type: ignore[attr-defined]


def edge(request: Request) -> str:
    """Noise on some days, which a model that was distilled from the cloud would never write."""
    return "zq 77 qx" if request.messages[-1].content[-2] in "0367" else cloud(request)


def cloud(request: Request) -> str:
    return "it is open" if "bank" in request.messages[-1].content else "it is closed"


def served(folder: Path, judging: Judges, questions: list[str], **config: Any) -> History:
    """What a gateway that labels every request has in its ledger."""

    async def work() -> None:
        models: Any = {"edges": [Simulated("small", answer=edge)], "cloud": Simulated("large", answer=cloud)}
        async with live(folder, **models, **{"threshold": 0.5} | config) as here:
            service = here.service
            service.shadow = Shadow(1.0, 9.0, service.ledger, judging.name, rng=Random(0))
            service.before, service.after, service.hear = judging.before, judging.after, judging.hear
            for question in questions:
                status, _ = await here.ask(question, max_tokens=12)
                assert status == 200
            await service.shadow.settled()

    asyncio.run(asyncio.wait_for(work(), 60))
    return read_history(folder)


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory, proxy: TokenLM) -> Path:
    """A ledger without a text, all of whose labels heard the proxy."""
    folder = tmp_path_factory.mktemp("state")
    served(folder, judges(ServeConfig(), proxy), QUESTIONS)
    return folder


@pytest.fixture(scope="module")
def scorer(traffic: Path) -> Path:
    path = traffic / "scorer.safetensors"
    assert main(["calibrate", "--ledger", str(traffic), "--out", str(path)]) == 0
    return path


def test_a_label_s_features_of_the_proxy_are_those_that_decide(
    tmp_path: Path, proxy: TokenLM, scorer: Path
) -> None:
    """The score in a request's row, which was computed from texts while it was served, is the score of the
    features that its label kept."""
    judging = judges(ServeConfig(scorer=str(scorer)), proxy)
    model = load_scorer(scorer).model
    assert "proxy" in model.groups
    history = served(tmp_path, judging, QUESTIONS[:6])
    labels = {label.request: label for label in history.graded}
    assert len(labels) == len(history.rows) == 6
    for row in history.rows:
        label = labels[row.id]
        (note,) = (note for note in row.notes if note["strategy"] == "cascade")
        again = model.suffices(model.gain(Evidence("", None, kept=label.features)))  # type: ignore[arg-type]
        # passes of other shapes differ in the last bits of float32
        assert (note["score"], again) == pytest.approx((label.after, label.after), rel=1e-4)


def test_labels_that_heard_the_proxy_hold_no_text(traffic: Path) -> None:
    labels = read_history(traffic).graded
    assert len(labels) == len(QUESTIONS)
    assert {len(label.features["proxy"]) for label in labels} == {4}
    assert {label.question for label in labels} == {None}
    stored = b"".join(file.read_bytes() for file in traffic.glob("ledger.*") if file.suffix != ".lock")
    for text in (b"open on day", b"it is closed", b"zq 77"):
        assert text not in stored


def test_a_question_beyond_the_proxy_s_context_is_labelled_without_it(tmp_path: Path, proxy: TokenLM) -> None:
    (label,) = served(tmp_path, judges(ServeConfig(), proxy), ["and " * CONTEXT]).graded
    assert label.outcome == "done"
    assert "proxy" not in label.features
    assert "checks" in label.features


def test_who_asks_the_proxy_waits_for_a_turn(tmp_path: Path, proxy: TokenLM) -> None:
    """Six times as many requests at once as the proxy has sessions, whose answers it must all judge."""
    judging = judges(ServeConfig(scorer="proxy", sessions=2), proxy)
    models: Any = {"edges": [Simulated("small", answer=edge)], "cloud": Simulated("large", answer=cloud)}

    async def work() -> list[tuple[int, Any]]:
        async with live(tmp_path, **models, threshold=0.5) as here:
            here.service.after, here.service.needs_logprobs = judging.after, judging.needs_logprobs
            more: Any = {"max_tokens": 12, "consort": {"receipt": True}}
            return await asyncio.gather(*(here.ask(question, **more) for question in QUESTIONS[:12]))

    answers = asyncio.run(asyncio.wait_for(work(), 60))
    assert [status for status, _ in answers] == [200] * 12
    notes = [note for _, body in answers for note in body["consort"]["receipt"]["notes"]]
    assert {note["event"] for note in notes} <= {"accepted", "deferred"}


def test_a_prompt_beyond_the_proxy_s_context_fails_no_answer(tmp_path: Path, proxy: TokenLM) -> None:
    judging = judges(ServeConfig(scorer="proxy"), proxy)
    models: Any = {"edges": [Simulated("small", answer=edge)], "cloud": Simulated("large", answer=cloud)}

    async def work() -> tuple[int, Any]:
        async with live(tmp_path, **models, threshold=0.5) as here:
            here.service.after, here.service.needs_logprobs = judging.after, judging.needs_logprobs
            return await here.ask("and " * CONTEXT, consort={"receipt": True})

    status, body = asyncio.run(asyncio.wait_for(work(), 60))
    assert (status, body["model"]) == (200, "large")
    assert [note["event"] for note in body["consort"]["receipt"]["notes"]] == ["unscored"]


def test_a_turn_is_waited_for_within_half_of_the_requests_time(proxy: TokenLM) -> None:
    request = Request((Message("user", QUESTIONS[0]),), until_s=time.monotonic() + 0.1)

    async def work() -> None:
        turns = asyncio.Semaphore(1)
        hear = proxy_agreement(proxy, own_answer=False, turns=turns)
        async with turns:
            with pytest.raises(TimeoutError):
                await hear(request, Answer("it is open", "small"))
        await hear(replace(request, until_s=None), Answer("it is open", "small"))

    asyncio.run(work())


def test_where_most_labels_heard_the_proxy_they_alone_teach(traffic: Path) -> None:
    history = read_history(traffic)
    deaf = tuple(
        replace(label, features={g: v for g, v in label.features.items() if g != "proxy"})
        for label in history.labels
    )
    heard = history.labels
    for labels, taught, groups in (
        (heard + deaf, len(heard), {"surface", "checks", "confidence", "proxy"}),
        (heard[:30] + deaf, 30 + len(deaf), {"surface", "checks", "confidence"}),
    ):
        data = labelled_pair(History(history.rows, labels), where=traffic)
        assert len(data.outcomes) == taught
        common = set.intersection(*(set(known.groups) for known in data.evidence(answered=True)))
        assert common == groups


def test_a_scorer_that_hears_the_proxy_is_refused_where_there_is_none(
    tmp_path: Path, scorer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="learned with the proxy, and none is served") as refused:
        judges(ServeConfig(scorer=str(scorer)))
    assert "[serve.proxy]" in refused.value.hint
    served(tmp_path, judges(ServeConfig()), QUESTIONS[:2])
    assert main(["replay", str(tmp_path), "--scorer", str(scorer), "--threshold", "0.5"]) == 1
    assert "no label in this ledger did" in capsys.readouterr().err


def test_a_ledger_whose_labels_heard_the_proxy_replays_under_the_scorer_they_taught(
    traffic: Path, scorer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["replay", str(traffic), "--strategy", "cascade", "--scorer", str(scorer), "--threshold", "0.5"]
    assert main([*words, "--json"]) == 0
    assert '"quality"' in capsys.readouterr().out
