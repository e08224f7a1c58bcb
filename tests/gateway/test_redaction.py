"""What is private never reaches the cloud's socket, and the answer has it again, however it is streamed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from consort.config_file import load_config
from consort.config_serve import ServeConfig
from consort.errors import ConsortError
from consort.gateway.keys import Door
from consort.gateway.ledger import Ledger
from consort.gateway.service import Service
from consort.models.remote import Endpoint, Remote
from tests.gateway.live import Live, live, text_of
from tests.inference.consorts import says
from tests.upstream import Upstream, answer, upstream

CARD = "4111 1111 1111 1111"
QUESTION = f"My card is {CARD}, is it blocked?"
ANSWER = f"Yes, {CARD} is blocked."
SAID = answer("Yes, [CA", "RD", "_1", "] is blocked.")


def through(folder: Path, work: Any, **config: Any) -> tuple[Any, Upstream]:
    async def go() -> tuple[Any, Upstream]:
        async with upstream(SAID) as up:
            cloud = Remote(Endpoint("large", up.url, "m", "key"))
            async with live(folder, cloud=cloud, threshold=2.0, **config) as here:
                return await asyncio.wait_for(work(here), 15), up

    return asyncio.run(go())


@pytest.mark.parametrize("model", ["large", "consort/cloud", "consort/route", "consort/cascade",
                                   "consort/cache", "consort/takeover"])  # fmt: skip
@pytest.mark.parametrize("configured", [True, False])
def test_a_card_number_stays_here_and_comes_back_in_the_stream(
    tmp_path: Path, model: str, configured: bool
) -> None:
    asked = {"receipt": True} | ({} if configured else {"redact": True})

    async def work(here: Live) -> tuple[Any, Any, Any]:
        events = await here.stream(QUESTION, model=model, consort=asked)
        _, whole = await here.ask(QUESTION, model=model, consort=asked)
        return events, whole, here.service.recent[0]

    (events, whole, row), up = through(tmp_path, work, redact=configured)
    assert text_of(events) == whole["choices"][0]["message"]["content"] == ANSWER
    assert up.requests
    bodies = [request.partition(b"\r\n\r\n")[2] for request in up.requests]  # a port may read 4111 too
    assert not any(CARD.encode() in body or b"4111" in body for body in bodies)
    assert b"[CARD_1]" in up.requests[0]
    assert row.redactions == {"card": 1}
    assert whole["consort"]["receipt"]["redactions"] == {"card": 1}


def test_what_stays_at_the_edge_is_left_as_it_is(tmp_path: Path) -> None:
    edge = says("small", "no")

    async def work(here: Live) -> None:
        await here.ask(QUESTION, model="consort/edge")
        await here.ask(QUESTION, model="small")
        await here.ask(QUESTION, model="consort/cascade", consort={"private": True})

    _, up = through(tmp_path, work, redact=True, edges=[edge])
    assert [request.messages[0].content for request in edge.calls] == [QUESTION] * 3
    assert not up.requests


def test_a_request_cannot_switch_off_what_is_configured(tmp_path: Path) -> None:
    async def work(here: Live) -> tuple[int, Any]:
        return await here.ask(QUESTION, model="large", consort={"redact": False})

    ((status, body), up) = through(tmp_path, work, redact=True)
    assert (status, body["error"]["param"]) == (400, "consort.redact")
    assert not up.requests


def test_the_configuration_names_who_finds_private_spans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "consort.toml"
    file.write_text('[serve]\nredact = true\ndetectors = ["builtin", "presidio"]\n')
    config = load_config(file).serve
    assert config.detectors == ("builtin", "presidio")
    found = ModuleType("presidio_analyzer")
    found.AnalyzerEngine = lambda: SimpleNamespace(  # type: ignore[attr-defined]
        analyze=lambda text, language: [SimpleNamespace(start=0, end=4, entity_type="LOCATION")]
    )
    monkeypatch.setitem(sys.modules, "presidio_analyzer", found)
    cloud = says("large", "in [PLACE_1]")

    async def work() -> None:
        async with live(tmp_path / "state", cloud=cloud, redact=True, detectors=config.detectors) as here:
            _, answer = await here.ask("Ulm? +49 731 1234567", model="consort/cloud")
            assert answer["choices"][0]["message"]["content"] == "in Ulm?"

    asyncio.run(work())
    sent = cloud.calls[0].messages[0].content
    assert "Ulm" not in sent
    assert "1234567" not in sent


@pytest.mark.parametrize(
    ("detectors", "words"),
    [(("presidio",), "pip install presidio-analyzer"), (("gliner",), "Hub id"), (("magic",), "known are")],
)
def test_a_detector_that_is_not_there_is_named_before_anything_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detectors: tuple[str, ...], words: str
) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    ledger, door = Ledger(tmp_path), Door(tmp_path / "keys.json")
    with pytest.raises(ConsortError, match=words) as refused:
        Service(ServeConfig(detectors=detectors), edges=(), cloud=None, door=door, ledger=ledger)
    ledger.close()
    assert refused.value.where.startswith("serve.")
