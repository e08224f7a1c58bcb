"""From a configuration to what is served: names, keys, and what is refused before anything listens."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from consort.cli import main
from consort.config import Config, DeviceConfig, ModelConfig
from consort.config_file import load_config
from consort.config_serve import ServeConfig, ServedModel
from consort.errors import ConfigError
from consort.gateway.judging import judges
from consort.gateway.loading import load_lm, served
from consort.gateway.opening import open_service
from consort.gateway.serve import check
from consort.inference.baselines import brevity
from consort.inference.calibration import Calibration
from consort.inference.evidence import Evidence
from consort.inference.gain_file import StoredScorer, save_scorer
from consort.inference.gain_fit import fit_gain
from consort.telemetry import Counter, Histogram, prometheus_text
from consort.types import Answer
from tests.gateway.live import live
from tests.inference.consorts import user

FAR = ServedModel(name="far", model="m", base_url="http://127.0.0.1:1/v1")


def test_a_file_names_who_answers(tmp_path: Path) -> None:
    file = tmp_path / "consort.toml"
    file.write_text(
        '[serve]\nstrategy = "vote"\n[[serve.edges]]\nmodel = "a/b-small"\n'
        '[serve.cloud]\nname = "big"\nbase_url = "http://x/v1"\nmodel = "gpt"\n'
    )
    edges, cloud = served(load_config(file))
    assert [edge.name for edge in edges] == ["b-small"]
    assert cloud.name == "big"
    assert load_config(os.devnull, ["serve.redact=true"]) == Config(serve=ServeConfig(redact=True))
    file.write_text("[serve]\nstratgey = 1\n")
    with pytest.raises(ConfigError, match='did you mean "strategy"'):
        load_config(file)


def test_without_models_the_files_own_answer_and_without_a_file_the_bundled() -> None:
    own = Config(
        cloud=ModelConfig(model="org/large"),
        devices=(DeviceConfig(name="bank", slm=ModelConfig(model="org/tiny")),),
    )
    edges, cloud = served(own)
    assert [(e.name, e.model) for e in edges] == [("bank", "org/tiny")]
    assert cloud.model == "org/large"
    edges, cloud = served(Config())
    assert edges[0].model == "zoo:edge-llama"
    assert cloud.model == "zoo:cloud"


@pytest.mark.parametrize("names", [("a", "a"), ("consort", "b"), ("consort/x", "b")])
def test_two_models_never_share_a_name_nor_take_ours(names: tuple[str, str]) -> None:
    edges = tuple(ServedModel(name=name, model="m") for name in names)
    with pytest.raises(ConfigError):
        served(Config(serve=ServeConfig(edges=edges)))


def test_a_missing_key_variable_is_named_before_anything_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOUD_KEY", raising=False)
    with pytest.raises(ConfigError, match="CLOUD_KEY"):
        load_lm(
            ServedModel(name="far", model="m", base_url="http://x/v1", key_env="CLOUD_KEY"), Config().runtime
        )


def test_an_address_open_to_others_requires_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_to_all = ServeConfig(host="0.0.0.0", state=str(tmp_path))
    with pytest.raises(ConfigError, match="requires a key"):
        check(open_to_all)
    assert main(["keys", "add", "laptop", "--budget", "3", "--state", str(tmp_path)]) == 0
    secret = capsys.readouterr().out.strip()
    check(open_to_all)
    assert main(["keys", "list", "--json", "--state", str(tmp_path)]) == 0
    listed = capsys.readouterr().out
    assert json.loads(listed) == [{"name": "laptop", "budget": 3.0, "per_minute": 0.0}]
    assert secret not in listed
    assert main(["keys", "add", "laptop", "--state", str(tmp_path)]) == 1
    assert main(["keys", "revoke", "lap", "--state", str(tmp_path)]) == 1
    assert main(["keys", "revoke", "laptop", "--state", str(tmp_path)]) == 0
    check(ServeConfig(host="::1", state=str(tmp_path)))
    with pytest.raises(ConfigError):
        check(open_to_all)


@pytest.mark.parametrize("option", ["--budget", "--per-minute"])
@pytest.mark.parametrize("limit", ["nan", "inf", "-3"])
def test_a_limit_that_is_none_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, limit: str
) -> None:
    assert main(["keys", "add", "laptop", option, limit, "--state", str(tmp_path)]) == 1
    assert "must be a number of at least 0" in capsys.readouterr().err
    assert not (tmp_path / "keys.json").exists()


def test_a_key_without_limits_is_listed_as_such_and_a_damaged_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "add", "laptop", "--state", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["keys", "list", "--state", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "laptop  budget any  per minute any\n"
    file = tmp_path / "keys.json"
    file.write_text(file.read_text().replace('"budget": 0.0', '"budget": null'))
    assert main(["keys", "list", "--state", str(tmp_path)]) == 1
    assert 'the budget of "laptop"' in capsys.readouterr().err


@pytest.mark.parametrize(("strategy", "words"), [("speculate", "takes drafts"), ("mix", "no tuned proxy")])
def test_a_strategy_that_would_refuse_every_request_is_refused_at_start(
    tmp_path: Path, strategy: str, words: str
) -> None:
    config = Config(serve=ServeConfig(strategy=strategy, cloud=FAR, state=str(tmp_path / "state")))
    with pytest.raises(ConfigError, match=words) as refused:
        open_service(config)
    assert "[serve." in refused.value.hint
    assert not (tmp_path / "state").exists()  # and nothing is left locked


def test_an_unknown_strategy_names_the_nearest(tmp_path: Path) -> None:
    config = Config(serve=ServeConfig(strategy="casacde", cloud=FAR, state=str(tmp_path)))
    with pytest.raises(ConfigError, match='did you mean "cascade"'):
        open_service(config)


def learned(path: Path, *, answered: bool, threshold: float | None) -> ServeConfig:
    """A configuration with a scorer that has learned to send theorems to the cloud."""
    words = ["please", "tell", "me", "about", "the"]
    questions = [f"{word} {topic}" for word in words for topic in ("rain", "theorem")]
    evidence = [Evidence(each, answer="It is so." if answered else None) for each in questions * 4]
    gains = np.array([float("theorem" in each.question) for each in evidence])
    kept = Calibration(("quality >= 0.98 of cloud",), 0.95, threshold or 0.0, True, 0.5, 1.0, 1.0, None, 40)
    save_scorer(StoredScorer(fit_gain(evidence, gains), None if threshold is None else kept), path)
    return ServeConfig(scorer=str(path))


def test_a_calibrated_scorer_and_its_threshold_decide(tmp_path: Path) -> None:
    for answered, threshold in ((False, 0.75), (True, None)):
        config = learned(tmp_path / "scorer.safetensors", answered=answered, threshold=threshold)
        judging = judges(config)
        before, after, serving = judging.before, judging.after, judging.config
        assert serving.threshold == (threshold or config.threshold)
        scores = [
            asyncio.run(after(user(f"about the {topic}"), Answer("It is so.", "edge")))
            for topic in ("rain", "theorem")
        ]
        assert scores[0] > scores[1]
        assert (before is brevity) == answered
        assert asyncio.run(before(user("about the rain"), None)) > 0
        if answered:
            assert asyncio.run(after(user("about the rain"), Answer("", "edge"))) == 0.0


def test_a_request_is_decided_by_the_file(tmp_path: Path) -> None:
    config = learned(tmp_path / "scorer.safetensors", answered=False, threshold=0.5)
    judging = judges(config)

    async def work() -> list[str]:
        async with live(tmp_path, threshold=judging.config.threshold) as here:
            here.service.before, here.service.after = judging.before, judging.after
            answers = [
                await here.ask(f"about the {topic}", model="consort/route") for topic in ("rain", "theorem")
            ]
            return [body["model"] for _, body in answers]

    assert asyncio.run(work()) == ["small", "large"]


def test_a_wrong_scorer_is_refused_before_anything_listens(tmp_path: Path) -> None:
    file = tmp_path / "scorer.safetensors"
    with pytest.raises(ConfigError, match="no such scorer"):
        judges(ServeConfig(scorer=str(file)))
    file.write_bytes(b"{}")
    with pytest.raises(ConfigError, match="damaged"):
        judges(ServeConfig(scorer=str(file)))
    config = learned(file, answered=True, threshold=None)
    with pytest.raises(ConfigError, match="before there is one"):
        judges(replace(config, strategy="route"))


def test_a_port_that_is_taken_is_one_error_before_any_model_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = ["--set", f"serve.cloud.model={tmp_path}/nowhere", "--state", str(tmp_path / "state")]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port), *nowhere]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: serve.port: cannot serve at 127.0.0.1:{port}: ")
    assert "serving" not in told
    assert main(["serve", "--port", str(port), *nowhere]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("given", [["--port", "70000"], ["--set", "serve.port=70000"], ["--port=-1"]])
def test_a_port_that_is_none_is_refused_however_it_is_given(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *given]) == 1
    assert "serve.port: must be at least 0 and at most 65535" in capsys.readouterr().err


def test_half_of_tls_is_refused() -> None:
    with pytest.raises(ConfigError, match="belong together"):
        check(ServeConfig(tls_key="key.pem"))


def test_prometheus_text_counts_up_to_each_bound() -> None:
    histogram = Histogram("h", "about", ("who",), (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value, 'a"b')
    counter = Counter("c", "about")
    counter.add(2)
    counter.add(3)
    lines = prometheus_text([histogram, counter]).splitlines()
    assert [line for line in lines if "bucket" in line] == [
        'h_bucket{who="a\\"b",le="1"} 2',
        'h_bucket{who="a\\"b",le="2"} 3',
        'h_bucket{who="a\\"b",le="+Inf"} 4',
    ]
    assert 'h_sum{who="a\\"b"} 12' in lines
    assert "c 5" in lines
