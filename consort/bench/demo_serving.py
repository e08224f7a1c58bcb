"""The demo's second half: five of a device's test questions to the co-tuned models behind the real endpoint.

Asked over HTTP and streamed, as any OpenAI client would: the first test row of each skill. Shows and does not
measure: `consort bench` does.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

from rich.console import Console
from rich.text import Text

from consort.bench.suite import Row, generate_suite
from consort.config import Config
from consort.gateway.opening import open_service
from consort.gateway.serve import running
from consort.problems import size

# skill of the suite, what is asked of the endpoint, and what its `consort` object says
QUESTIONS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("facts", "consort/edge", {}),
    ("intent", "consort/cascade", {"threshold": 0.9, "redact": True}),
    ("reply", "consort/vote", {}),
    ("extract", "consort/speculate", {}),
    ("rewrite", "consort/auto", {"private": True}),
)
MAX_TOKENS = 48
TIMEOUT_S = 60.0
_COLOURS = ("green", "yellow", "blue", "magenta", "cyan", "red")


@dataclass(frozen=True, slots=True)
class Served:
    """One question, the answer as (author, text) in order, and the endpoint's receipt."""

    model: str
    question: str
    reference: str
    spans: Sequence[tuple[str, str]]
    receipt: Mapping[str, Any]

    @property
    def answer(self) -> str:
        """The whole answer."""
        return "".join(text for _, text in self.spans)

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return asdict(self) | {"answer": self.answer}


def serve_and_ask(config: Config, *, device: str, seed: int = 0) -> list[Served]:
    """Serve a configuration on a free port of this machine and ask it five questions of a device's."""
    rows = generate_suite(seed).devices[device]["test"]
    with running(open_service(config)) as url:
        return [
            ask(url, model, next(row for row in rows if row.skill == skill), parameters)
            for skill, model, parameters in QUESTIONS
        ]


def ask(url: str, model: str, row: Row, parameters: Mapping[str, Any]) -> Served:
    """One streamed chat completion with its receipt."""
    question = f"{row.instruction}\n{row.input}"
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "consort": {**parameters, "receipt": True},
    }
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine needs no proxy
    spans: list[tuple[str, str]] = []
    receipt: Mapping[str, Any] = {}
    with direct.open(request, timeout=TIMEOUT_S) as events:
        for line in events:
            data = line.removeprefix(b"data: ").strip()
            if not data or data == b"[DONE]":
                continue
            event = json.loads(data)
            receipt = event.get("consort", {}).get("receipt", receipt)
            for choice in event["choices"]:
                _append(spans, event["model"], choice["delta"].get("content") or "")
    return Served(model, question, row.output or "", tuple(spans), receipt)


def _append(spans: list[tuple[str, str]], author: str, text: str) -> None:
    if spans and spans[-1][0] == author:
        spans[-1] = (author, spans[-1][1] + text)
    elif text:
        spans.append((author, text))


def print_served(served: Sequence[Served], console: Console) -> None:
    """Each question with its answer, every span in its author's colour, and the receipt in one line."""
    authors = dict.fromkeys(author for one in served for author, _ in one.spans)
    colours = {author: f"black on {colour}" for author, colour in zip(authors, cycle(_COLOURS), strict=False)}
    console.print("Served behind one endpoint (tokens: of edge models + of the cloud)", style="bold")
    for one in served:
        console.print()
        console.print(Text(one.question, style="dim"))
        console.print(Text.assemble(*((text, colours[author]) for author, text in one.spans)))
        if one.answer.strip() != one.reference:
            console.print(Text(f"right answer: {one.reference}", style="dim"))
        line = Text(f"  {one.model}: ")
        for author, written in one.receipt["spans"]:
            line.append(author, colours[author]).append(f" {size(written)}, ")
        console.print(line.append(told(one.receipt)))


def told(receipt: Mapping[str, Any]) -> str:
    """What was decided and hidden, the tokens of edge and cloud, what left for the cloud, and the time."""
    parts = []
    for note in receipt["notes"]:
        if note["event"] == "drafted":
            some = f"{note['accepted']} of {note['drafted']} drafts accepted"
            parts.append(some if note["drafted"] else f"no drafts: {note['undrafted']}")
        elif note["strategy"] != "redact":
            parts.append(note["event"] + (f" at {note['score']:.2f}" if "score" in note else ""))
    parts += [f"{count} {kind} hidden" for kind, count in receipt["redactions"].items()]
    parts.append(f"{receipt['edge_tokens']} + {receipt['cloud_tokens']} tokens")
    parts.append(f"{size(receipt['cloud_bytes'])} to cloud")
    return ", ".join([*parts, f"{1000 * receipt['latency_s']:.0f} ms"])
