"""Whether a replay's intervals hold on made-up ledgers: the part of `traffic.py` that says what is judged."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from consort.bench.intervals import sum_with_missing
from consort.bench.replay import DRAWS, replay
from consort.bench.replay_cases import Policy
from consort.gateway.history import History
from consort.gateway.labels import Label
from consort.gateway.ledger import Row

RESAMPLES, REQUESTS, SHARES = 300, 1000, (0.05, 0.2)
MISSING, SUMS = 300, 500


def history_of(suffices: np.ndarray, scores: np.ndarray, rng: np.random.Generator, share: float) -> History:
    """A ledger of a cascade at threshold 0.4, and the labels of `share` of its requests."""
    rows, made = [], []
    for index, (score, small_score) in enumerate(zip(suffices, scores, strict=True)):
        told = [_call("edge", "small", 0.0, rng), _call("cloud", "large", 0.001, rng)]
        kept = score >= 0.4
        calls = tuple(told[:1] if kept else told)
        seconds, cost = sum(c["answer_s"] for c in calls), sum(c["cost"] for c in calls)
        event = "accepted" if kept else "deferred"
        note = {"strategy": "cascade", "event": event, "score": float(score), "threshold": 0.4}
        row = Row(
            id=str(index),
            at=float(index),
            key="local",
            model="consort",
            strategy="cascade",
            outcome="done",
            streamed=False,
            latency_s=seconds,
            first_s=None,
            prompt_tokens=9,
            completion_tokens=9,
            edge_tokens=9,
            cloud_tokens=9,
            cloud_bytes=9,
            cost=cost,
            cost_all_cloud=0.0,
            spans=(("small" if kept else "large", 9),),
            calls=calls,
            notes=(note,),
        )
        rows.append(row)
        if rng.random() < share:
            label = Label(str(index), float(index), "done", "large" if kept else "", 0.0, share)
            label = replace(label, small="small", large="large", small_score=float(small_score))
            made.append(replace(label, after=float(score), small_call=told[0], large_call=told[1]))
    return History(tuple(rows), tuple(made))


def _call(side: str, model: str, price: float, rng: np.random.Generator) -> dict[str, object]:
    size = float(rng.lognormal(0, 0.5))
    seconds = size * (0.3 if side == "edge" else 1.2)
    return {"model": model, "side": side, "prompt_tokens": 9, "completion_tokens": 9, "outcome": "done",
            "answer_s": seconds, "cost": price * size}  # fmt: skip


def replays() -> dict[str, object]:
    rng = np.random.default_rng(10_000)
    suffices = rng.random(5000)
    agreeing = (rng.random(5000) < 0.3 + 0.6 * suffices).astype(float)
    found = {}
    for share in SHARES:
        held = dict.fromkeys(("quality", "money", "p95_s", "edge_share"), 0)
        widths, few = [], 0
        for seed in range(RESAMPLES):
            rng = np.random.default_rng(seed)
            drawn = rng.integers(len(suffices), size=REQUESTS)
            score, small = suffices[drawn], agreeing[drawn]
            history = history_of(score, small, rng, share)
            # everything labelled from the same random numbers: the truth of the same requests
            rng = np.random.default_rng(seed)
            rng.integers(len(suffices), size=REQUESTS)
            truth = replay(history_of(score, small, rng, 2.0), Policy("cascade", 0.7))
            guess = replay(history, Policy("cascade", 0.7), seed=RESAMPLES + seed)  # not the ledger's numbers
            if guess.quality is None:
                few += 1
                continue
            quality = np.where(score >= 0.7, small, 1.0).mean()
            held["quality"] += bool(guess.quality.low <= quality <= guess.quality.high)
            held["edge_share"] += guess.edge_share == truth.edge_share
            for name in ("money", "p95_s"):
                figure, true = getattr(guess, name), getattr(truth, name).value
                held[name] += bool(figure.low <= true <= figure.high)
            widths.append(guess.quality.high - guess.quality.low)
        runs = RESAMPLES - few
        found[f"{share:g}"] = {name: count / runs for name, count in held.items()} | {
            "mean width of quality": float(np.mean(widths)),
            "without a label at the edge": few,
        }
        print("replay", share, found[f"{share:g}"], file=sys.stderr)
    return found | {"sums": sums()}


def sums() -> dict[str, object]:
    """How often a sum of which 300 values are missing lies in its interval, by how many are known."""
    found = {}
    for known, spread in ((400, 0.5), (30, 0.5), (10, 0.5), (30, 1.0)):
        held, plain = 0, 0
        for seed in range(SUMS):
            rng = np.random.default_rng([seed, known])
            pool, truth = rng.lognormal(0, spread, known), rng.lognormal(0, spread, MISSING).sum()
            figure = sum_with_missing(0.0, [(pool, MISSING)], draws=DRAWS, seed=SUMS + seed)
            held += bool(figure.low <= truth <= figure.high)
            drawn = [rng.choice(rng.choice(pool, known), MISSING).sum() for _ in range(DRAWS)]
            low, high = np.quantile(drawn, [0.025, 0.975])
            plain += bool(low <= truth <= high)
        found[f"{known} known, log-spread {spread}"] = held / SUMS
        found[f"{known} known, log-spread {spread}, percentiles"] = plain / SUMS
        print("sums", known, spread, held / SUMS, plain / SUMS, file=sys.stderr)
    return found
