"""The dashboard's page: nothing but its own parts may run, it can be read in light and dark, and assistive
technology finds what it needs. How it looks is for eyes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from importlib.resources import files

import pytest

from consort.gateway.dashboard import page

TEXT, PARTS = 4.5, 3.0  # WCAG 2.2 AA: 1.4.3 for text, 1.4.11 for what shows where a control is
AUTHORS = tuple(f"a{number}" for number in range(6))
ON_CARD = (("ink", TEXT), ("quiet", TEXT), ("bad", TEXT), ("accent", TEXT), ("control", PARTS))


def source(name: str) -> str:
    return files("consort.gateway").joinpath(name).read_text(encoding="utf-8")


def colours(dark: bool) -> dict[str, str]:
    found = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", source("dashboard.css"))
    return {name: pair[dark] for name, *pair in found}


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_computed_as_defined() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_and_control_stands_out_from_what_is_behind_it(dark: bool) -> None:
    known = colours(dark)
    assert set(AUTHORS) < known.keys()
    for surface in ("card", "paper"):
        for name, least in ON_CARD:
            assert contrast(known[name], known[surface]) >= least, (name, surface)
    for name in AUTHORS:
        assert contrast(known["ink"], known[name]) >= TEXT, name
    assert contrast(known["paper"], known["accent"]) >= TEXT  # the button's words


def test_authors_are_told_apart_without_colour() -> None:
    styles = re.findall(r"\.(a\d) \{ background: var\(--a\d\); (border[^}]*) \}", source("dashboard.css"))
    assert [name for name, _ in styles] == list(AUTHORS)
    assert len({style for _, style in styles}) == len(AUTHORS)
    assert "unseen" in source("dashboard.js")  # a reader hears the author before the span


def test_only_the_pages_own_parts_run() -> None:
    html, policy = page()
    for kind, element in (("style", "style"), ("script", "script")):
        (part,) = re.findall(rf"<{element}>(.*?)</{element}>".encode(), html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(part).digest())
        assert kind.encode() + b"-src 'sha256-" + digest + b"'" in policy
    assert b"unsafe" not in policy
    assert not re.search(rb"\son\w+=|\sstyle=", html), "attributes that run would need to be allowed by name"


def test_whatever_the_script_looks_for_is_on_the_page() -> None:
    wanted = set(re.findall(r'\$\("([\w-]+)"\)', source("dashboard.js")))
    there = re.findall(r'id="([\w-]+)"', source("dashboard.html"))
    assert wanted
    assert wanted <= set(there)
    assert len(there) == len(set(there))


def test_controls_have_names_and_answers_are_announced_when_whole() -> None:
    html = source("dashboard.html")
    for control in re.findall(r"<(?:input|textarea|select)\b[^>]*>", html):
        before = html[: html.index(control)]
        assert before.rfind("<label") > before.rfind("</label>"), control
    (answer,) = re.findall(r'<div id="answer"[^>]*>', html)
    assert 'aria-live="polite"' in answer
    assert 'aria-busy="false"' in answer
    assert source("dashboard.js").count('"aria-busy"') == 2  # while it is written, and no longer
    assert 'role="status"' in html


@pytest.mark.parametrize(
    ("note", "words"),
    [
        (
            {"drafted": 9, "accepted": 4, "off": "", "undrafted": ""},
            "speculate drafted, 4 of 9 tokens accepted",
        ),
        (
            {"drafted": 0, "accepted": 0, "undrafted": "did not pay lately"},
            "speculate drafted nothing: did not pay lately",
        ),
        ({"messages": 2}, "speculate drafted"),
    ],
)
def test_it_says_why_nothing_was_drafted(note: dict[str, object], words: str) -> None:
    if shutil.which("node") is None:
        pytest.skip("needs node, which runs the page's script")
    (said,) = re.findall(r"const decisions = .*?;\n", source("dashboard.js"), re.DOTALL)
    notes = json.dumps([{"strategy": "speculate", "event": "drafted", **note}])
    code = f"{said} console.log(decisions({notes}).join())"
    told = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == words
