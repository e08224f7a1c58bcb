"""The demo on the command line: its last line of JSON, and what is said where serving is not installed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import consort.bench.demo
from consort.bench.demo import demo_config
from consort.cli import demo, main
from consort.config import Config


def in_few_steps(data: Path) -> Config:
    config = demo_config(data)
    few = {"rounds": 1, "domain_steps": 1, "mutual_steps": 1, "cloud_steps": 1, "proxy_answers": 4}
    return replace(
        config,
        tune=replace(config.tune, **few),  # type: ignore[arg-type]
        runtime=replace(config.runtime, workers=1),
        eval=replace(config.eval, rows=2, max_new_tokens=4, public_rows=2),
    )


@pytest.mark.slow
def test_the_demo_tunes_serves_asks_and_ends_in_one_line_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(consort.bench.demo, "demo_config", in_few_steps)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--run-dir", "run", "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out.splitlines()[-1])
    assert found.keys() == {"devices", "cloud", "seconds", "run_dir", "serving"}
    assert len(found["serving"]) == 5
    assert all(one["receipt"]["outcome"] == "done" and one["answer"] for one in found["serving"])
    assert {author for author, _ in found["serving"][0]["spans"]} == {"bank"}
    assert "consort/vote: " in told.out
    assert "consort serve run/serve.toml" in told.err


def test_without_the_serve_extra_the_demo_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("consort.bench.demo_serving", "consort.gateway.serve"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)  # as if it were not there
    assert demo._serve(tmp_path, "bank") is None
    told = capsys.readouterr()
    assert told.out == ""
    assert "uvicorn is not installed" in told.err
    assert "consort-lm[serve]" in told.err
    assert str(tmp_path / "serve.toml") in told.err
