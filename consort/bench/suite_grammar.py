"""The language of the built-in suite: domains read from `domains/*.toml`, expanded into messages and
answers.

A template is text with alternations `[a|b]` and slots `{slot}`; a domain names its own slots, the rest
(dates, amounts, names) are common. Everything random comes from the `rng` given, so a seed fixes every
character. Does not decide what goes into which split.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from random import Random
from typing import Any

DEVICE_DOMAINS = ("bank", "clinic", "factory", "shop")
PUBLIC_DOMAINS = ("airport", "farm", "garage", "gym", "hotel", "library", "museum", "school")

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_GREETINGS = "[Hello|Hi|Good morning|Good evening|Good day|Dear team|Dear all|Hello there]"
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


@dataclass(frozen=True, slots=True)
class Names:
    """People who may appear: every first name with each of these surnames."""

    women: tuple[str, ...]
    men: tuple[str, ...]
    surnames: tuple[str, ...]

    def draw(self, rng: Random) -> tuple[str, str]:
        """A full name and its pronoun."""
        firsts, pronoun = (self.women, "she") if rng.random() < 0.5 else (self.men, "he")
        return f"{rng.choice(firsts)} {rng.choice(self.surnames)}", pronoun


@dataclass(frozen=True, slots=True)
class Intent:
    """Something a message can want. The last line is the one that no labelled training row uses."""

    name: str
    lines: tuple[str, ...]
    reply: str
    note: str
    private: bool = False  # unknown outside its device


@dataclass(frozen=True, slots=True)
class Attribute:
    """One column of a handbook: ways to ask for it, and what its values look like."""

    questions: tuple[str, ...]
    values: str


@dataclass(frozen=True, slots=True)
class Domain:
    """A place where people write messages, and its handbook's outline."""

    name: str
    asides: tuple[str, ...]
    slots: Mapping[str, str]
    intents: tuple[Intent, ...]
    subjects: tuple[str, ...]
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True, slots=True)
class Letter:
    """A message and what it says: the writer, the intent, and the details in the domain's order."""

    text: str
    intent: Intent
    details: Mapping[str, str] = field(repr=False)

    @property
    def extract(self) -> str:
        """The details as `slot: value` pairs, the name first."""
        return "; ".join(f"{slot}: {value}" for slot, value in self.details.items())

    @property
    def reply(self) -> str:
        """The standard reply of the domain."""
        return f"Dear {self.details['name']}, {fill(self.intent.reply, self.details)}."

    @property
    def note(self) -> str:
        """The message in the third person."""
        return f"Please note that {fill(self.intent.note, self.details)}."


@lru_cache(maxsize=2)
def load_names(*, held_out: bool) -> Names:
    """The people of the test rows, or those of all other rows: a surname is in one of the two."""
    data = _read_toml("names")
    surnames = [head + tail for head in data["surname_heads"] for tail in data["surname_tails"]]
    chosen = [name for index, name in enumerate(surnames) if (index % 11 == 0) == held_out]
    return Names(tuple(data["women"]), tuple(data["men"]), tuple(chosen))


@lru_cache(maxsize=32)
def load_domain(name: str) -> Domain:
    """A domain of `domains/`."""
    data = _read_toml(name)
    facts = data["facts"]
    return Domain(
        name,
        asides=tuple(data["asides"]),
        slots=data["slots"],
        intents=tuple(
            Intent(row["name"], tuple(row["lines"]), row["reply"], row["note"], row.get("private", False))
            for row in data["intents"]
        ),
        subjects=tuple(facts["subjects"]),
        attributes=tuple(Attribute(tuple(row["questions"]), row["values"]) for row in facts["attributes"]),
    )


def write_letter(domain: Domain, intent: Intent, line: str, *, names: Names, rng: Random) -> Letter:
    """A message made from one line of the intent, with greeting, writer, perhaps an aside and a closing."""
    name, _ = names.draw(rng)
    filled = {slot: _draw_slot(slot, domain.slots, rng) for slot in _SLOT.findall(line)}
    order = [*domain.slots, *_COMMON]
    details = {"name": name} | {slot: filled[slot] for slot in sorted(filled, key=order.index)}
    body = [_sentence(fill(choose(line, rng), filled))]
    if rng.random() < 0.45:
        aside = choose(rng.choice(domain.asides), rng)
        body.insert(rng.randrange(2), fill(aside, {"years": str(rng.randint(2, 29))}))
    greeting = choose(_GREETINGS, rng)
    if rng.random() < 0.5:
        opening = f"{greeting}, {choose('[this is|my name is|I am]', rng)} {name}."
        closing = choose("[Thank you.|Thanks a lot.|Please help.|Please let me know.|What can we do?|]", rng)
    else:
        opening = f"{greeting}."
        closing = f"{choose('[Regards|Best wishes|Yours|Many thanks|Sincerely|Thanks]', rng)}, {name}"
    return Letter(" ".join(part for part in (opening, *body, closing) if part), intent, details)


def write_story(*, names: Names, rng: Random) -> list[str]:
    """A short story as its sentences; people and things keep their names from beginning to end."""
    prose = _read_toml("prose")
    who, pronoun = names.draw(rng)
    friend = rng.choice(names.women + names.men)
    values = {slot: choose(template, rng) for slot, template in prose["slots"].items()}
    values |= {"who": who, "friend": friend, "he": pronoun, "He": pronoun.capitalize()}
    return [
        _sentence(fill(choose(sentence, rng), values))
        for sentence in rng.choice(prose["stories"])["sentences"]
    ]


def choose(template: str, rng: Random) -> str:
    """One of the texts behind the alternations of `template`; slots stay."""
    return _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with its slots replaced, and "a" before a vowel put right."""
    return _ARTICLE.sub(r"\1n ", _SLOT.sub(lambda match: values[match[1]], template))


def slots_of(template: str) -> set[str]:
    """The slots that `template` mentions."""
    return set(_SLOT.findall(template))


def _draw_slot(slot: str, templates: Mapping[str, str], rng: Random) -> str:
    if slot in _COMMON:
        return _COMMON[slot](rng)
    text = choose(templates[slot], rng)
    return fill(text, {inner: _COMMON[inner](rng) for inner in _SLOT.findall(text)})


def _amount(rng: Random) -> str:
    euros = rng.randint(3, 980)
    return f"{euros}.{rng.choice((20, 50, 80, 95))} euros" if rng.random() < 0.3 else f"{euros} euros"


_COMMON: dict[str, Callable[[Random], str]] = {
    "date": lambda rng: f"{rng.randint(1, 28)} {rng.choice(_MONTHS)}",
    "time": lambda rng: (
        f"{rng.randint(6, 22)}:{rng.choice(('00', '10', '15', '20', '30', '40', '45', '50'))}"
    ),
    "amount": _amount,
    "count": lambda rng: str(rng.randint(2, 99)),
    "degrees": lambda rng: str(rng.randint(60, 399)),
    "number": lambda rng: f"{rng.choice('ABCDEFGHKLMNPRST')}-{rng.randint(1000, 9999)}",
    "house": lambda rng: str(rng.randint(1, 99)),
}


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


@lru_cache(maxsize=32)
def _read_toml(name: str) -> dict[str, Any]:
    text = resources.files("consort.bench").joinpath("domains", f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
