"""Two asides of `mixture.py`, on valid rows: weights learned from the rows' own answers, and what it changes
that a distribution is cut to its likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from mixture_rows import BASE, LLM, PROXY, asked
from mixture_table import CUT

from consort.inference.blending import steered
from consort.inference.following import Written, follower
from consort.inference.mixing_weights import Moment, fit, save_weights
from consort.inference.white_box import vocabulary_of
from consort.models.decoding.lm import LocalLM
from consort.models.local import LocalModel
from consort.training.data import Sample
from consort.types import TopK

CUT_ROWS = 16  # valid rows on which the error of the cut is measured


def cut_and_learned(
    models: Mapping[str, LocalModel], lms: Mapping[str, LocalLM], rows: Sequence[Sample], file: Path
) -> dict[str, float]:
    """The error of the cut; and weights learned from the rows' answers, written to `file`."""
    size = models[LLM].vocabulary.size
    whole = {"answers": 0, "sessions": 1, "context_tokens": 256, "alternatives": 10**6}
    uncut = [LocalLM(models[name], **whole) for name in (LLM, PROXY, BASE)]
    told, _ = moments(*uncut, rows[:CUT_ROWS])
    for lm in uncut:
        lm.close()
    save_weights(fit(*moments(*(lms[name] for name in (LLM, PROXY, BASE)), rows), size=size), file)
    return error_of_cut(told, size)


def moments(
    llm: LocalLM, proxy: LocalLM, base: LocalLM, rows: Sequence[Sample]
) -> tuple[list[Moment], list[int]]:
    """What is known at every token of the rows' own answers, and the token."""
    found: list[Moment] = []
    tokens: list[int] = []
    vocabulary = vocabulary_of(llm)
    for row in rows:
        ids = [*vocabulary.spans(row.answer or "").ids.tolist(), vocabulary.eos_id]
        voices = [follower(lm, asked(row), vocabulary) for lm in (llm, proxy, base)]
        for position, token in enumerate(ids):
            so_far = Written(tuple(ids[:position]), b"")
            for voice in voices:
                voice.follow(so_far)
            model, plus, minus = (voice.heard(()) for voice in voices)
            assert model is not None, "one tokenizer: nobody is mute"
            assert plus is not None
            assert minus is not None
            found.append(Moment(model, plus, minus, position))
            tokens.append(token)
        for voice in voices:
            voice.close()
    return found, tokens


def cut(top: TopK, count: int) -> TopK:
    kept = top.logprobs[:count]
    return TopK(top.ids[:count], kept, max(0.0, 1.0 - float(np.exp(kept).sum())))


def error_of_cut(whole: Sequence[Moment], size: int) -> dict[str, float]:
    """What 64 tokens a distribution change against all of them, at a = 1 and 2."""
    found: dict[str, float] = {"positions": len(whole)}
    for weight in (1.0, 2.0):
        flips, distances = 0, []
        for moment in whole:
            dense = steered(moment.model, moment.plus, moment.minus, weight=weight, size=size)
            parts = (cut(each, CUT) for each in (moment.model, moment.plus, moment.minus))
            sparse = steered(*parts, weight=weight, size=size)
            flips += int(dense.ids[0]) != int(sparse.ids[0])
            probs = np.zeros(size)
            probs[dense.ids] = np.exp(dense.logprobs)
            probs[sparse.ids] -= np.exp(sparse.logprobs)
            distances.append((np.abs(probs).sum() + sparse.rest) / 2)
        found[f"flips at {weight}"] = flips / len(whole)
        found[f"mean variation at {weight}"] = float(np.mean(distances))
        found[f"largest variation at {weight}"] = float(np.max(distances))
    return found
