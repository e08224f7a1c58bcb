"""What the endpoint checks before and while it serves: drifting scores, log-probabilities, likeness."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consort.config import Config
from consort.config_serve import ServeConfig, ServedModel
from consort.errors import ConfigError
from consort.gateway.judging import judges
from consort.gateway.opening import open_service
from consort.gateway.overview import overview
from consort.gateway.watch import AFTER, Watch
from consort.inference.cache import OFF
from consort.inference.cache_measured import MeasuredLikeness, save_likeness
from consort.inference.calibration import Calibration
from consort.inference.drift import DriftAlarm
from consort.inference.evidence import Evidence
from consort.inference.gain_file import StoredScorer, save_scorer
from consort.inference.gain_fit import fit_gain
from consort.types import Answer, Request
from tests.gateway.live import SMALL, Live, live
from tests.inference.consorts import says

MUTE = ServedModel(name="mute", model="m", base_url="http://127.0.0.1:1/v1", logprobs=False)


async def spoken(request: Request, answer: Answer | None) -> float:
    return float(request.messages[-1].content)


def watched(folder: Path, scores: np.ndarray, *, limit: float = 0.01) -> tuple[Watch, str, dict[str, Any]]:
    """The alarm, the metrics and the overview after requests whose scores are these."""
    calibrated = np.random.default_rng(0).beta(2, 5, 200)
    watch = Watch(DriftAlarm(calibrated.tolist(), alarm_rate=limit, seed=7), AFTER)

    async def work() -> tuple[str, dict[str, Any]]:
        async with live(folder, threshold=0.3) as here:
            here.service.after, here.service.watch = spoken, watch
            for part in np.array_split(scores, 5):
                await asyncio.gather(*(here.ask(f"{score:.6f}") for score in part))
            async with here.http.get(here.url + "/metrics") as response:
                return await response.text(), overview(here.service)

    metrics, shown = asyncio.run(asyncio.wait_for(work(), 60))
    return watch, metrics, shown["drift"]


def test_the_endpoints_alarm_is_silent_on_traffic_like_the_calibration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch, metrics, shown = watched(tmp_path, np.random.default_rng(3).beta(2, 5, 120))
    assert (watch.observed, shown["ringing"]) == (120, False)
    assert "consort_drift_alarm 0" in metrics
    assert "drift:" not in capsys.readouterr().err


def test_it_rings_once_where_scores_have_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, metrics, shown = watched(tmp_path, np.random.default_rng(3).beta(5, 2, 120))
    assert shown["ringing"]
    assert shown["evidence"] > 100
    assert "consort_drift_alarm 1" in metrics
    assert capsys.readouterr().err.count("drift:") == 1


def stored(path: Path, groups: str) -> ServeConfig:
    """A configuration with a scorer that reads `groups`, and the values it was calibrated on."""
    rng = np.random.default_rng(0)
    kept: dict[Any, list[float]] = {}
    evidence = []
    for _ in range(40):
        kept = {"surface": list(rng.random(27)), "checks": list(rng.random(40))}
        kept |= {"confidence": list(rng.random(6))} if groups == "confidence" else {}
        evidence.append(Evidence("", kept=kept))
    calibration = Calibration(("quality >= 0.9 of cloud",), 0.95, 0.4, True, 0.5, 1.0, 1.0, None, 40)
    save_scorer(StoredScorer(fit_gain(evidence, rng.random(40)), calibration, rng.random(40)), path)
    return ServeConfig(scorer=str(path))


def test_a_calibrated_scorer_brings_its_alarm_and_its_need(tmp_path: Path) -> None:
    mute = judges(stored(tmp_path / "a.safetensors", "checks"))
    loud = judges(stored(tmp_path / "b.safetensors", "confidence"))
    assert (mute.needs_logprobs, loud.needs_logprobs) == (False, True)
    assert mute.watch is not None
    assert mute.name != loud.name
    assert judges(replace(mute.config, drift_alarm_rate=0.0)).watch is None
    plain = judges(ServeConfig())
    assert (plain.watch, plain.needs_logprobs, plain.name) == (None, True, "confidence")


@pytest.mark.parametrize("strategy", ["cascade", "cache", "auto"])
def test_answers_are_not_judged_by_log_probabilities_that_the_edge_does_not_give(
    tmp_path: Path, strategy: str
) -> None:
    config = ServeConfig(strategy=strategy, edges=(MUTE,), state=str(tmp_path / "state"))
    with pytest.raises(ConfigError, match="which mute does not give") as refused:
        open_service(Config(serve=config))
    assert "consort calibrate" in refused.value.hint
    fine = replace(config, scorer=stored(tmp_path / "s.safetensors", "checks").scorer)
    for each in (replace(config, strategy="route"), fine):
        open_service(Config(serve=each)).ledger.close()


def test_a_request_for_a_strategy_that_cannot_judge_is_refused_with_its_reason(tmp_path: Path) -> None:
    async def work(here: Live) -> list[tuple[int, Any]]:
        return [await here.ask(model=f"consort/{name}") for name in ("cascade", "cache", "auto", "route")]

    async def go() -> list[tuple[int, Any]]:
        edges = [says("small", SMALL, capabilities=frozenset())]
        async with live(tmp_path, edges=edges, strategy="route") as here:
            return await work(here)

    answers = asyncio.run(go())
    assert [status for status, _ in answers] == [400, 400, 400, 200]
    assert "log-probabilities, which small does not give" in answers[0][1]["error"]["message"]


def test_alike_questions_are_answered_only_inside_the_measured_bound(tmp_path: Path) -> None:
    file = tmp_path / "alike.json"
    config = ServeConfig(strategy="route", edges=(MUTE,), state=str(tmp_path / "state"), alike=str(file))
    with pytest.raises(ConfigError, match="no such file"):
        open_service(Config(serve=config))
    save_likeness(MeasuredLikeness(0.8, 0.02, 0.95, 300, 200, 1), file)
    service = open_service(Config(serve=config))
    assert service.alike == 0.8
    service.ledger.close()


@pytest.mark.parametrize(("measured", "events"), [(0.8, ["missed", "hit"]), (OFF, ["missed", "missed"])])
def test_the_cache_takes_alike_questions_from_what_was_measured_on(
    tmp_path: Path, measured: float, events: list[str]
) -> None:
    async def work() -> list[Any]:
        async with live(tmp_path, strategy="cache", measured_alike=measured) as here:
            found = []
            for text in ("where do I find the blue lamp", "where do I find a blue lamp"):
                _, body = await here.ask(text, consort={"receipt": True})
                found.append(body["consort"]["receipt"]["notes"][0]["event"])
            for alike in (0.5, 1.5):  # below what was measured, and above
                found.append((await here.ask("x", consort={"alike": alike}))[0])
            return found

    assert asyncio.run(work()) == [*events, 400, 200]
