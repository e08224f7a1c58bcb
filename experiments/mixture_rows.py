"""Mixtures of one answer, replayed: what each model says after a beginning is asked once, whoever went there.

Two mixtures of the same models differ in few tokens, so a hundred of them cost little more than one. Draws as
`consort.inference.mixture` does, from the same functions; greedy, and without its threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consort.inference.following import Written, follower
from consort.inference.mixed_answer import Opinion, mixed, together
from consort.inference.mixing_weights import Kind, Weight
from consort.inference.white_box import vocabulary_of
from consort.models.decoding.lm import LocalLM
from consort.models.decoding.sampling import Sampling, pick, token_keys
from consort.training.data import Sample
from consort.types import Request, TopK

NEW_TOKENS = 32  # of an answer at most
LLM, PROXY, BASE, SLM = "untuned", "proxy", "base proxy", "SLM"


def asked(row: Sample) -> Request:
    assert not isinstance(row.prompt, str), "the suite asks by messages"
    return Request(row.prompt, max_tokens=NEW_TOKENS)


@dataclass(frozen=True)
class Arm:
    """A way to mix: kind, weight, and what part of it is the SLM's instead of the proxy's."""

    kind: Kind
    weight: Weight
    edge_share: float = 0.0


class Replay:
    """One request to the models, with what they said."""

    def __init__(self, models: Mapping[str, LocalLM], request: Request) -> None:
        self._request, self._vocabulary = request, vocabulary_of(models[LLM])
        self._keys, self._sampling = token_keys(self._vocabulary), Sampling.of(request)
        self._same = {name: _Same(models[name], request) for name in (LLM, PROXY, BASE)}
        self._slm = follower(models[SLM], request, self._vocabulary)
        self._slm_said: dict[tuple[tuple[int, ...], bool], TopK | None] = {}

    def answer(self, arm: Arm) -> tuple[str, int, int]:
        """The mixture's text, its tokens, and how many of them are others than the LLM's own choice."""
        ids: tuple[int, ...] = ()
        count = changed = 0
        while count < self._request.max_tokens:
            llm, size = self._same[LLM].after(ids), self._vocabulary.size
            opinions = [one for one in self._opinions(arm, ids) if one is not None]
            mix = llm
            if opinions:
                moment = together(arm.kind, llm, opinions, position=count, size=size)
                mix = mixed(arm.kind, moment, weight=arm.weight(moment), size=size)
            token, own = (pick(each, self._sampling, count, self._keys) for each in (mix, llm))
            count, changed = count + 1, changed + (token != own)
            if token == self._vocabulary.eos_id:
                break
            ids += (token,)
        return self._vocabulary.decode(ids), count, changed

    def close(self) -> None:
        """Release the sessions."""
        for each in (*self._same.values(), self._slm):
            each.close()

    def _opinions(self, arm: Arm, ids: tuple[int, ...]) -> list[Opinion | None]:
        found: list[Opinion | None] = []
        if arm.edge_share < 1:
            base = self._same[BASE].after(ids) if arm.kind == "tuned" else None
            found.append(Opinion(PROXY, 1 - arm.edge_share, self._same[PROXY].after(ids), base))
        if arm.edge_share > 0:
            said = self._slm_says(ids, with_proxy=arm.edge_share < 1)
            found.append(None if said is None else Opinion(SLM, arm.edge_share, said))
        return found

    def _slm_says(self, ids: tuple[int, ...], *, with_proxy: bool) -> TopK | None:
        if (ids, with_proxy) not in self._slm_said:
            text = b"".join(self._vocabulary.token_bytes[index] or b"" for index in ids)
            self._slm.follow(Written(ids, text.removeprefix(b" " * self._vocabulary.adds_space)))
            among: Sequence[str] = (LLM, PROXY) if with_proxy else (LLM,)
            self._slm_said[ids, with_proxy] = self._slm.heard([self._same[name].after(ids) for name in among])
        return self._slm_said[ids, with_proxy]


class _Same:
    """A model with the LLM's tokenizer: what it says after each beginning it was taken to."""

    def __init__(self, lm: LocalLM, request: Request) -> None:
        self._session, first = lm.open(request)
        self._rows: dict[tuple[int, ...], TopK] = {(): first}
        self._held: tuple[int, ...] = ()

    def after(self, ids: tuple[int, ...]) -> TopK:
        if ids not in self._rows:
            kept = next((i for i, (a, b) in enumerate(zip(self._held, ids, strict=False)) if a != b),
                        min(len(self._held), len(ids)))  # fmt: skip
            self._session.rewind(len(self._held) - kept)
            for count, row in enumerate(self._session.extend(ids[kept:]), kept + 1):
                self._rows[ids[:count]] = row
            self._held = ids
        return self._rows[ids]

    def close(self) -> None:
        self._session.close()
