"""One answer that a mixture writes: from the models' distributions to a token, its text, and what is noted of
it. Waits for no model.

Every token has an author: the LLM where it would have chosen the same token alone with the same noise, else
the model that moved it there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from consort.inference.blending import averaged, log_probability, multiplied, plausible, steered
from consort.inference.following import Written
from consort.inference.mixing_weights import Kind, Moment, Weight
from consort.inference.white_box import vocabulary_of
from consort.models.decoding.prompt import begun_text
from consort.models.decoding.sampling import Sampling, pick, token_keys
from consort.models.decoding.text import TextWriter
from consort.types import Chunk, FinishReason, Note, Request, TokenLM, TokenLogprob, TopK

PLAUSIBLE_SHARE = 0.1  # of the likeliest token's probability, for contrast (arXiv 2210.15097, section 3.3)


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one guide would say next: tuned, and before it was, as far as the kind of mixture hears it."""

    name: str
    share: float  # set against the others' shares
    tuned: TopK | None = None
    base: TopK | None = None


class MixedAnswer:
    """What is written so far by the LLM and those that steer it."""

    def __init__(self, request: Request, llm: TokenLM, *, kind: Kind, weight: Weight) -> None:
        self._name, self._vocabulary = llm.name, vocabulary_of(llm)
        self._request, self._kind, self._weight = request, kind, weight
        self._sampling = Sampling.of(request)
        self._keys = token_keys(self._vocabulary)
        begun = begun_text(request)
        self._text = TextWriter(self._vocabulary, stop=request.stop, beginning=not begun)
        self._strip = not begun and self._vocabulary.adds_space
        self._bytes = begun.encode()
        self._ids: list[int] = []
        self._weights: defaultdict[str, float] = defaultdict(float)  # of each guide, summed over all tokens
        self._changed, self._unheard, self._beyond = 0, 0, 0.0

    @property
    def written(self) -> Written:
        """As the followers read it."""
        return Written(tuple(self._ids), self._bytes)

    def write(self, llm: TopK, guides: Sequence[Opinion | None]) -> Chunk | None:
        """The next token: its chunk, or None where its text is held back; the last has a finish reason.
        A guide that cannot tell has no opinion, and the others steer."""
        position = len(self._ids)
        heard = [each for each in guides if each is not None]
        self._unheard += len(heard) < len(guides)
        mixed = self._mixed(llm, heard, position) if heard else llm
        token = pick(mixed, self._sampling, position, self._keys)
        author = self._name
        if token != pick(llm, self._sampling, position, self._keys):
            self._changed += 1
            author = _mover(token, heard, self._vocabulary.size)
        self._beyond += mixed.rest
        self._ids.append(token)
        ended = token == self._vocabulary.eos_id
        piece, logprobs = ("", ()) if ended else self._said(token, mixed)
        full = len(self._ids) == self._request.max_tokens
        finish: FinishReason | None = "stop" if ended or self._text.stopped else "length" if full else None
        if finish and not self._text.stopped:
            rest, further = self._text.end()
            piece, logprobs = piece + rest, logprobs + further
        if not (piece or finish):
            return None
        return Chunk(piece, author, finish, logprobs=logprobs)

    def cut_short(self) -> Chunk:
        """The end of an answer for which there is no more room."""
        piece, logprobs = self._text.end()
        return Chunk(piece, self._name, "length", logprobs=logprobs)

    def note(self, *, busy: Sequence[str] = ()) -> Note:
        """For the receipt: how much each guide steered, and what it changed. `unheard` counts the tokens for
        which a guide could not tell; `beyond` is the mean probability of tokens that no model listed, which
        cannot be written; `busy` names the models that had no session free."""
        count = len(self._ids)
        values: dict[str, float | int | str] = {"tokens": count, "changed": self._changed}
        values |= {"kind": self._kind, "unheard": self._unheard}
        if busy:
            values["busy"] = ", ".join(busy)
        if count:
            values["weight"] = round(sum(self._weights.values()) / count, 4)
            values |= {f"weight of {name}": round(sum_ / count, 4) for name, sum_ in self._weights.items()}
            values["beyond"] = round(self._beyond / count, 6)
        return Note("mix", "mixed", values)

    def _mixed(self, llm: TopK, heard: Sequence[Opinion], position: int) -> TopK:
        size = self._vocabulary.size
        moment = together(self._kind, llm, heard, position=position, size=size)
        weight = self._weight(moment)
        shares = sum(each.share for each in heard)
        for each in heard:
            self._weights[each.name] += weight * each.share / shares
        return mixed(self._kind, moment, weight=weight, size=size)

    def _said(self, token: int, mixed: TopK) -> tuple[str, tuple[TokenLogprob, ...]]:
        piece = self._vocabulary.token_bytes[token] or b""
        if self._strip and piece:
            piece, self._strip = piece.removeprefix(b" "), False
        self._bytes += piece
        return self._text.write(token, self._logprob(token, mixed))

    def _logprob(self, token: int, mixed: TopK) -> TokenLogprob | None:
        count = self._request.top_logprobs
        if count is None:
            return None
        top = zip(mixed.ids[:count].tolist(), mixed.logprobs[:count].tolist(), strict=True)
        own = log_probability(mixed, token, self._vocabulary.size)
        return TokenLogprob(self._shown(token), own, tuple((self._shown(index), logp) for index, logp in top))

    def _shown(self, token: int) -> str:
        return (self._vocabulary.token_bytes[token] or b"").decode(errors="replace")


def together(kind: Kind, llm: TopK, heard: Sequence[Opinion], *, position: int, size: int) -> Moment:
    """Several guides' opinions as those of one, each by its share: a mean where the mixture is one, else a
    product."""
    shares = [each.share for each in heard]
    pool = averaged if kind == "mean" else multiplied
    tuned, base = (
        pool(told, shares, size=size) if (told := [top for top in tops if top is not None]) else llm
        for tops in ([each.tuned for each in heard], [each.base for each in heard])
    )
    return Moment(llm, tuned, base, position)


def mixed(kind: Kind, moment: Moment, *, weight: float, size: int) -> TopK:
    """The distribution that a kind of mixture draws from; `size` is the vocabulary's."""
    if kind == "mean":
        weight = min(weight, 1.0)
        return averaged((moment.model, moment.plus), (1.0 - weight, weight), size=size)
    found = steered(moment.model, moment.plus, moment.minus, weight=weight, size=size)
    if kind == "contrast" and weight:
        return plausible(found, moment.model, share=PLAUSIBLE_SHARE)
    return found


def _mover(token: int, heard: Sequence[Opinion], size: int) -> str:
    """The guide whose voice for this token weighs most."""

    def voice(opinion: Opinion) -> float:
        told = opinion.tuned or opinion.base
        assert told is not None, "it has an opinion"
        return opinion.share * float(np.exp(log_probability(told, token, size)))

    return max(heard, key=voice).name
