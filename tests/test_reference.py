"""docs/reference.md is what docs/build_reference.py makes of the source as it stands, in any terminal."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path

import pytest

import consort.align
from consort.cli import VERBS
from consort.config import Config, DeviceConfig
from consort.config_template import render_template

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "reference.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("columns", ["20", "200"])
def test_the_page_is_what_the_source_says(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    if runpy.run_path(str(DOCS / "build_reference.py"))["reference"]() != PAGE:
        pytest.fail("docs/reference.md is stale: run `make docs`")


def test_every_key_verb_and_exported_name_has_its_place():
    for verb in VERBS:
        assert f"### `consort {verb}`" in PAGE
    for name in consort.align.__all__:
        assert f"#### `{name}`\n" in PAGE
    template = tomllib.loads(render_template(Config(devices=(DeviceConfig(),)), title=""))
    for section, table in sections(template, ""):
        rows = PAGE.partition(f"### {section}\n")[2].partition("\n### ")[0]
        assert [key for key in table if f"| `{key}` |" not in rows] == [], section


def sections(table, path):
    """Every table of the configuration with its own keys, under the heading it has on the page."""
    lists = {key for key, value in table.items() if isinstance(value, list) and isinstance(value[0], str)}
    below = {
        key: value for key, value in table.items() if isinstance(value, dict | list) and key not in lists
    }
    yield f"`{path}`" if path else "Top level", table.keys() - below.keys()
    for key, value in below.items():
        inner = f"{path.strip('[]')}.{key}".lstrip(".")
        is_list = isinstance(value, list)
        yield from sections(value[0] if is_list else value, f"[[{inner}]]" if is_list else f"[{inner}]")
