"""The demo's second half on the command line: what is said where serving is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from consort.cli import demo


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
