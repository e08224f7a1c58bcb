"""A receipt's proof: the cloud model alone, with the seed that the receipt names, writes the same answer, and
what the receipt names is what was asked for.

Speculation changes no token (`inference.speculative`), so a stored answer can be checked by anyone who has
the weights. Messages and stop sequences are the request's: an answer to others is another. It proves the
answer, not who computed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import orjson

from consort.config_serve import ServeConfig
from consort.errors import DataError
from consort.gateway.openai_request import parse
from consort.gateway.parameters import configured
from consort.types import LM, Request

AROUND = 24  # characters shown of either text where they part
DECIDE = ("seed", "temperature", "top_p", "max_tokens")  # an answer, beside its text; the receipt names them


@dataclass(frozen=True, slots=True)
class Claim:
    """What was asked, what came back, and the seed that both sides drew with. `conflicts`: what the request
    says and the receipt says otherwise; of what the request leaves out, the receipt tells."""

    request: Request
    text: str
    seed: int
    conflicts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Proof:
    """Whether the model alone says the same, or from which character on it does not; and where the receipt is
    not one for this request."""

    same: bool
    characters: int
    differs_at: int | None = None
    said: str = ""
    alone: str = ""
    conflicts: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether this is the model's own answer to this request."""
        return self.same and not self.conflicts

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def read_claim(request: Path, answer: Path) -> Claim:
    """Read a request's body and the answer to it. DataError where they are not, or prove nothing."""
    said, asked = _json(answer), request.read_bytes()
    try:
        receipt, choice = said["consort"]["receipt"], said["choices"][0]
    except (KeyError, IndexError, TypeError):
        hint = 'ask with "consort": {"receipt": true}, without streaming'
        raise DataError("there is no receipt in this answer", where=str(answer), hint=hint) from None
    try:
        notes = [note for note in receipt["notes"] if note["strategy"] == "speculate"]
        if not notes or len(receipt["notes"]) > 1:
            what = (
                f"only what speculation alone answered can be repeated, and this is by {receipt['strategy']}"
            )
            raise DataError(what, where=str(answer), hint="its receipt may show a takeover or a redaction")
        drawn, chat, model = _drawn(notes[0]), "message" in choice, str(receipt["model"])
        text = str(choice["message"]["content"] if chat else choice["text"])
    except (KeyError, TypeError, ValueError) as error:
        what = f"this receipt is damaged ({type(error).__name__}: {error})"
        raise DataError(what, where=str(answer)) from None
    parsed = parse(asked, chat=chat, defaults=configured(ServeConfig()), unsaid=drawn)
    both = [(name, getattr(parsed.request, name), getattr(drawn, name)) for name in DECIDE]
    if _json(request).get("model"):
        both.insert(0, ("model", parsed.model, model))
    conflicts = [
        f"{name} is {one} in the request, {other} in the receipt" for name, one, other in both if one != other
    ]
    sampled = replace(parsed.request, **{name: getattr(drawn, name) for name in DECIDE})
    return Claim(sampled, text, int(sampled.seed or 0), tuple(conflicts))


def _drawn(note: Mapping[str, Any]) -> Request:
    """What the receipt says the answer was drawn with."""
    return Request(
        (),
        seed=int(note["seed"]),
        temperature=float(note["temperature"]),
        top_p=float(note["top_p"]),
        max_tokens=int(note["max_tokens"]),
    )


def verify(claim: Claim, lm: LM) -> Proof:
    """Let the model write the answer alone, and compare."""

    async def written() -> str:
        return "".join([chunk.text async for chunk in lm.stream(claim.request)])

    alone, said = asyncio.run(written()), claim.text
    if alone == said:
        return Proof(True, len(said), conflicts=claim.conflicts)
    place = next(index for index, (one, other) in enumerate(zip_longest(alone, said)) if one != other)
    shown = slice(max(0, place - AROUND), place + AROUND)
    return Proof(False, len(said), place, said[shown], alone[shown], claim.conflicts)


def _json(path: Path) -> Any:
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise DataError(f"no JSON ({error})", where=str(path)) from None
