"""The device's configuration in docs/speculation.md, served as it stands before a real cloud; and what a file
says of the cloud alone."""

from __future__ import annotations

import re
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from consort.config import Config, RuntimeConfig
from consort.config_file import load_config
from consort.config_serve import ServeConfig, ServedModel
from consort.errors import ConfigError
from consort.gateway.keys import Key, add_key
from consort.gateway.loading import BUNDLED_EDGES, load_proxy, served
from consort.gateway.opening import KEYS_FILE, open_service
from consort.gateway.serve import running
from consort.preflight import examine_file
from tests.inference.test_speculative import slow

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = "https://cloud.example/v1"
STORY = "Once upon a time, there was a little girl"
SEEDS = range(2)  # the first answer may be over before drafting begins


def documented() -> str:
    """The one configuration of docs/speculation.md."""
    (written,) = re.findall(
        r"```toml\n(.*?)```", (ROOT / "docs/speculation.md").read_text("utf-8"), re.DOTALL
    )
    assert EXAMPLE in written
    return str(written)


@contextmanager
def bundled_cloud(state: Path) -> Iterator[str]:
    """`consort serve --role cloud` with the bundled models; its passes take longer, as a large model's do."""
    service = open_service(Config(serve=ServeConfig(role="cloud", state=str(state))))
    slow(service.cloud)  # type: ignore[arg-type]
    with running(service) as url:
        yield url


def asked(url: str, model: str, seed: int, **headers: str) -> dict[str, Any]:
    body = {"model": model, "prompt": STORY, "max_tokens": 64, "temperature": 0.8, "seed": seed}
    body["consort"] = {"receipt": True}
    request = urllib.request.Request(f"{url}/completions", orjson.dumps(body), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(orjson.loads(answer.read()))


def text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["text"])


def test_the_documented_device_drafts_for_the_cloud_that_it_names(tmp_path, monkeypatch):
    secret = add_key(tmp_path / "cloud" / KEYS_FILE, Key("device"))
    monkeypatch.setenv("CLOUD_KEY", secret)
    with bundled_cloud(tmp_path / "cloud") as cloud:
        (tmp_path / "edge.toml").write_text(documented().replace(EXAMPLE, cloud))
        config = load_config(tmp_path / "edge.toml", [f"serve.state={tmp_path / 'device'}"])
        service = open_service(config)
        assert [lm.name for lm in service.models] == ["cloud"]
        with running(service) as device:
            drafted = [asked(device, "consort/speculate", seed) for seed in SEEDS]
            plain = [asked(device, "cloud", seed) for seed in SEEDS]  # by a name that is only the device's
        alone = [asked(cloud, "consort/cloud", seed, Authorization=f"Bearer {secret}") for seed in SEEDS]
    assert [*map(text, drafted)] == [*map(text, plain)] == [*map(text, alone)]
    notes = [note for answer in drafted for note in answer["consort"]["receipt"]["notes"]]
    assert {(note["strategy"], note["drafter"]) for note in notes} == {("speculate", "proxy")}
    assert sum(note["accepted"] for note in notes) > 0


def test_the_documented_file_has_no_mistake(tmp_path):
    (tmp_path / "edge.toml").write_text(documented())
    found = examine_file(tmp_path / "edge.toml")
    assert found.ok, found.problems


def test_the_readme_names_keys_that_make_a_cloud():
    (words,) = re.findall(
        r"consort serve edge.toml +# .*?\[serve.cloud\] (.*)", (ROOT / "README.md").read_text("utf-8")
    )
    cloud = tomllib.loads(words.replace(", ", "\n"))
    edges, named = served(Config(serve=ServeConfig(cloud=ServedModel(**cloud))))
    assert (edges, named.name, named.drafted) == ((), "cloud", True)


@pytest.mark.parametrize("side", ["cloud", "edge"])
def test_an_endpoint_that_serves_many_models_must_be_told_which(tmp_path, side):
    where = {"cloud": "[serve.cloud]", "edge": "[[serve.edges]]"}[side]
    (tmp_path / "edge.toml").write_text(f'{where}\nname = "far"\nbase_url = "{EXAMPLE}"\n')
    with pytest.raises(ConfigError, match=f"which model of {EXAMPLE} is not said"):
        served(load_config(tmp_path / "edge.toml"))
    (problem,) = examine_file(tmp_path / "edge.toml").problems
    assert f"which model of {EXAMPLE} is not said" in str(problem)
    assert problem.where == f"{tmp_path / 'edge.toml'}:1"


def test_an_edge_that_names_no_model_is_an_error():
    with pytest.raises(ConfigError, match="no model is given"):
        served(Config(serve=ServeConfig(edges=(ServedModel(name="phone"),))))


def test_edges_alone_and_a_cloud_alone_are_what_is_served():
    far = ServedModel(base_url=EXAMPLE, drafted=True)
    assert served(Config(serve=ServeConfig(cloud=far)))[0] == ()
    assert served(Config(serve=ServeConfig(edges=BUNDLED_EDGES))) == (BUNDLED_EDGES, ServedModel())


def test_a_proxy_behind_an_endpoint_is_an_error_and_not_left_out():
    serve = ServeConfig(proxy=ServedModel(base_url=EXAMPLE))
    with pytest.raises(ConfigError, match="the proxy runs here"):
        load_proxy(Config(serve=serve, runtime=RuntimeConfig(device="cpu")))


def test_a_cloud_alone_that_is_not_there_is_what_the_answer_says(tmp_path):
    far = ServedModel(base_url="http://127.0.0.1:9/v1", drafted=True)
    service = open_service(Config(serve=ServeConfig(cloud=far, state=str(tmp_path))))
    with running(service) as url, pytest.raises(urllib.error.HTTPError) as caught:
        asked(url, "consort/speculate", 0)
    assert caught.value.code == 502
    assert b"cannot be reached: connection refused" in caught.value.read()
