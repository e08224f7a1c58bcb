"""Whether the cache's measured bound holds on real questions: the part of `traffic.py` that says what is
judged."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from consort.inference.agreement import SAME, agreement
from consort.inference.cache import OFF, Shelf, measured_threshold
from consort.inference.cache_measured import alike_pairs
from consort.types import Chunk, Message, Request

QUESTIONS, DIVISIONS, MAX_ERRORS = 800, 100, (0.1, 0.2)


def caches(tasks: Path) -> dict[str, object]:
    found = {}
    for task in ("bank", "assistant"):
        rows = [json.loads(line) for line in (tasks / task / "train.jsonl").open(encoding="utf-8")]
        intents = sorted({row["output"] for row in rows})
        # an intent as a number: two that are worded alike are still two answers
        asked = [(row["input"], f"#### {intents.index(row['output'])}") for row in rows]
        measured, others, questions = [], [], []
        for seed in range(DIVISIONS):
            order = np.random.default_rng(seed).permutation(len(asked))
            halves = [[asked[i] for i in order[at : at + QUESTIONS]] for at in (0, QUESTIONS)]
            measured.append(alike_pairs(halves[0]))
            others += alike_pairs(halves[1])
            questions.append(halves[1])
        for max_error in MAX_ERRORS:
            thresholds = [measured_threshold(pairs, max_error=max_error) for pairs in measured]
            proven = [(each, held_out) for each, held_out in zip(thresholds, questions, strict=True)
                      if each < OFF]  # fmt: skip
            errors = [wrong_share(others, threshold) for threshold, _ in proven]
            hits = [served(held_out, threshold) for threshold, held_out in proven]
            taken = sum(count for count, _ in hits)
            name = f"{task}, at most {max_error:.0%} wrong"
            found[name] = {
                "proven": len(proven),
                "of": DIVISIONS,
                "broken": sum(error > max_error for error in errors),
            } | (
                {
                    "threshold": float(np.mean([threshold for threshold, _ in proven])),
                    "hits": taken / (QUESTIONS * len(proven)),
                    "wrong among hits": sum(wrong for _, wrong in hits) / max(taken, 1),
                    "highest error of a proven threshold": max(errors),
                }
                if proven
                else {}
            )
            print("cache", name, found[name], file=sys.stderr)
    return found


def wrong_share(pairs: list[tuple[float, bool]], threshold: float) -> float:
    above = [right for alike, right in pairs if alike >= threshold]
    return above.count(False) / max(len(above), 1)


def served(asked: list[tuple[str, str]], threshold: float) -> tuple[int, int]:
    """Questions that the cache itself answers by another's answer, and how many of those are wrong."""
    shelf, hits, wrong = Shelf(), 0, 0
    for question, answer in asked:
        request = Request((Message("user", question),))
        taken = shelf.find(request, alike=threshold)
        if taken is None:
            shelf.keep(request, (Chunk(answer, "cloud", "stop"),))
        elif taken[1] < 1:
            hits += 1
            wrong += agreement(taken[0][0].text, answer) < SAME
    return hits, wrong
