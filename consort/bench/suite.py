"""The built-in task suite: four devices with private facts and shared skills, and a public set.

Skills: `intent` (name what a message wants), `extract` (its details), `reply` (the standard reply),
`rewrite` (report it in one sentence), `facts` (answer from the handbook) and, in public only, `story`.
A device alone knows its handbook and a third of its intents. Held out of labelled training: every test
row's writer, half of the test messages' wording, each test question's phrasing of its fact.
Deterministic by seed. Does not measure (`metrics`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from consort.bench.suite_grammar import (
    DEVICE_DOMAINS,
    PUBLIC_DOMAINS,
    Domain,
    Intent,
    Letter,
    Names,
    choose,
    load_domain,
    load_names,
    write_letter,
    write_story,
)

SHARED_SKILLS = ("intent", "extract", "reply", "rewrite")
_INSTRUCTIONS = {
    "intent": "Name the intent of this message to the {domain}.",
    "extract": "Extract the details of this message to the {domain}.",
    "reply": "Write the standard reply of the {domain}.",
    "rewrite": "Report this message to the {domain} in one sentence.",
    "facts": "Answer from the handbook of the {domain}.",
    "story": "Continue the story.",
}
_ANSWERS: dict[str, Callable[[Letter], str]] = {
    "intent": lambda letter: letter.intent.name,
    "extract": lambda letter: letter.extract,
    "reply": lambda letter: letter.reply,
    "rewrite": lambda letter: letter.note,
}
_TEST_ROWS = {"intent": 30, "extract": 21, "reply": 22, "rewrite": 15}  # of a device, and its facts
_VALID_ROWS = {"intent": 12, "extract": 8, "reply": 8, "rewrite": 6}
_TRAIN_ROWS = {"intent": 50, "extract": 32, "reply": 34, "rewrite": 20}
_UNLABELLED_ROWS = {"intent": 204, "extract": 144, "reply": 150, "rewrite": 102}
_PUBLIC_SHARES = {
    "intent": 0.22,
    "extract": 0.17,
    "reply": 0.2,
    "rewrite": 0.13,
    "facts": 0.06,
    "story": 0.22,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One example; `output` is None where nobody has answered yet."""

    instruction: str
    input: str
    output: str | None
    skill: str

    def to_json(self) -> dict[str, str]:
        """The row as it stands in a JSONL file."""
        labelled = {} if self.output is None else {"output": self.output}
        return {"instruction": self.instruction, "input": self.input, **labelled, "skill": self.skill}


@dataclass(frozen=True, slots=True)
class Suite:
    """Rows by split: `public` has train, valid and test; each device also `unlabelled`."""

    public: Mapping[str, tuple[Row, ...]]
    devices: Mapping[str, Mapping[str, tuple[Row, ...]]]


@dataclass(frozen=True, slots=True)
class _Fact:
    """An entry of a handbook."""

    subject: str
    questions: tuple[str, ...]
    answer: str


def generate_suite(seed: int = 0) -> Suite:
    """The whole suite of a seed."""
    public = {"train": tuple(public_rows(6000, seed=seed))}
    read = {row.input for row in public["train"]}
    # without the questions of the public handbooks that training asks too
    valid = list(public_rows(300, seed=seed + 1, avoid=read))
    public["valid"] = tuple(row for row in valid if row.input not in read)
    read |= {row.input for row in valid}
    public["test"] = tuple(public_rows(400, seed=seed, held_out=True, avoid=read))
    return Suite(public, {name: _device(load_domain(name), seed) for name in DEVICE_DOMAINS})


def public_rows(
    count: int,
    *,
    seed: int,
    device_share: float = 0.5,
    held_out: bool = False,
    avoid: Collection[str] = frozenset(),
) -> Iterator[Row]:
    """`count` public rows; `device_share` of the messages are what the devices' domains have in public.

    `held_out` rows have writers and questions that no other public row has. No message or story has its input
    in `avoid`; the few questions of the public handbooks come often, as in any text.
    """
    rng = Random(f"public {seed} {held_out}")
    names = load_names(held_out=held_out)
    handbooks = {name: _handbook(load_domain(name), "public") for name in PUBLIC_DOMAINS}
    written = set(avoid)
    skills, shares = list(_PUBLIC_SHARES), list(_PUBLIC_SHARES.values())
    while count:
        skill = rng.choices(skills, shares)[0]
        if skill == "facts":
            name = rng.choice(PUBLIC_DOMAINS)
            fact = rng.choice(handbooks[name])
            row = _fact_row(name, fact, fact.questions[-1] if held_out else rng.choice(fact.questions[:-1]))
        elif skill == "story":
            first, *others = write_story(names=names, rng=rng)
            row = Row(_INSTRUCTIONS["story"], first, " ".join(others), "story")
            if first in avoid:
                continue
        else:
            domain = load_domain(
                rng.choice(DEVICE_DOMAINS if rng.random() < device_share else PUBLIC_DOMAINS)
            )
            intent = rng.choice([intent for intent in domain.intents if not intent.private])
            row = _skill_row(domain, skill, intent, _trained_lines(domain, intent), names=names, rng=rng)
            if row.input in written:
                continue
            written.add(row.input)
        count -= 1
        yield row


def write_suite(directory: Path, *, seed: int = 0) -> None:
    """The suite as JSONL: `public/` and `devices/<name>/`, each with one file a split."""
    suite = generate_suite(seed)
    folders = {directory / "public": suite.public} | {
        directory / "devices" / name: rows for name, rows in suite.devices.items()
    }
    for folder, splits in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            lines = (json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def _device(domain: Domain, seed: int) -> dict[str, tuple[Row, ...]]:
    rng = Random(f"device {domain.name} {seed}")
    facts = _handbook(domain, f"device {seed}")
    asked = [(fact, rng.sample(fact.questions, len(fact.questions))) for fact in facts]
    questions = {
        "test": [_fact_row(domain.name, fact, order[-1]) for fact, order in asked],
        "valid": [_fact_row(domain.name, fact, order[-2]) for fact, order in asked[::4]],
        "train": [_fact_row(domain.name, fact, question) for fact, order in asked for question in order[:2]],
    }
    seen: set[str] = set()
    anyone, unseen = load_names(held_out=False), load_names(held_out=True)
    rows = {
        "test": _skill_rows(domain, _TEST_ROWS, seen, names=unseen, rng=rng, held=0.5),
        "valid": _skill_rows(domain, _VALID_ROWS, seen, names=anyone, rng=rng, held=0.0),
        "train": _skill_rows(domain, _TRAIN_ROWS, seen, names=anyone, rng=rng, held=0.0),
    }
    further = _skill_rows(domain, _UNLABELLED_ROWS, seen, names=anyone, rng=rng, held=0.3)
    splits = {}
    for split, skill_rows in rows.items():
        mixed = [*skill_rows, *questions[split]]
        rng.shuffle(mixed)
        splits[split] = tuple(mixed)
    return splits | {"unlabelled": tuple(Row(row.instruction, row.input, None, row.skill) for row in further)}


def _skill_rows(
    domain: Domain, counts: Mapping[str, int], seen: set[str], *, names: Names, rng: Random, held: float
) -> list[Row]:
    """Rows of the shared skills, the intents in turn; `held` of them in wording that training lacks."""
    rows: list[Row] = []
    for skill, count in counts.items():
        order = rng.sample(domain.intents, len(domain.intents))
        while count:
            intent = order[count % len(order)]
            lines = intent.lines[-1:] if rng.random() < held else intent.lines[:-1]
            row = _skill_row(domain, skill, intent, lines, names=names, rng=rng)
            if row.input not in seen:
                seen.add(row.input)
                rows.append(row)
                count -= 1
    rng.shuffle(rows)
    return rows


def _skill_row(
    domain: Domain, skill: str, intent: Intent, lines: Sequence[str], *, names: Names, rng: Random
) -> Row:
    letter = write_letter(domain, intent, rng.choice(lines), names=names, rng=rng)
    return Row(_INSTRUCTIONS[skill].format(domain=domain.name), letter.text, _ANSWERS[skill](letter), skill)


def _trained_lines(domain: Domain, intent: Intent) -> tuple[str, ...]:
    """The wordings that labelled training may use: a device's domain keeps its last one for the test."""
    return intent.lines[:-1] if domain.name in DEVICE_DOMAINS else intent.lines


def _handbook(domain: Domain, seed: str) -> list[_Fact]:
    rng = Random(f"handbook {domain.name} {seed}")
    return [
        _Fact(
            subject,
            tuple(question.replace("{subject}", subject) for question in attribute.questions),
            choose(attribute.values, rng),
        )
        for subject in domain.subjects
        for attribute in domain.attributes
    ]


def _fact_row(domain: str, fact: _Fact, question: str) -> Row:
    return Row(_INSTRUCTIONS["facts"].format(domain=domain), question, fact.answer, "facts")
