"""Learning from the user's own traffic: what labels by agreement cost against true ones, what features alone
cost against texts, whether a replay's intervals hold, what a measured likeness gives the cache, and the drift
alarm's false rate and delay.

*Labels*: GSM8K, Mixtral's answer at the edge and GPT-4's in the cloud. A shadow label is the agreement of the
two answers; the truth is in the file and is used to judge alone. Five folds; APGR on true gains, intervals
over rows (95 %). *Replay*: a ledger of a cascade at 0.4 over 1,000 made-up requests (uniform scores,
agreement more likely at high ones, lognormal times and prices) is drawn 300 times with a share of labels, and
replayed at 0.7; the truth is the policy itself on the same requests. Beside it the interval of money alone,
300 lognormal values missing and few to judge by, 500 times, against plain percentiles of the same draws.
*Cache*: questions of a bank and of an assistant, whose right answer is their intent; measured on 800, served
by the cache to 800 others, 100 divisions. A promise is broken where the certified threshold's error over all
divisions' other questions is above the bound: in at most 5 of 100. *Drift*: 200 runs of 2,000 requests each.

    python experiments/traffic.py [--only labels replay cache drift]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from provenance import commit, hardware

from consort.bench.intervals import sum_with_missing
from consort.bench.outcomes import Outcome, Pair, pair, read_outcomes
from consort.bench.replay import DRAWS, replay
from consort.bench.replay_cases import Policy
from consort.bench.routing_curve import judge
from consort.gateway.history import History
from consort.gateway.labels import Label
from consort.gateway.ledger import Row
from consort.inference.agreement import SAME, agreement
from consort.inference.cache import OFF, Shelf, measured_threshold
from consort.inference.cache_measured import alike_pairs
from consort.inference.drift import DriftAlarm
from consort.inference.evidence import features
from consort.inference.gain_fit import fit_gain
from consort.types import Chunk, Message, Request

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("CONSORT_DATA", "../shared/data"))
FOLDS, FEW = 5, 200
RESAMPLES, REQUESTS, SHARES = 300, 1000, (0.05, 0.2)
MISSING, SUMS = 300, 500
QUESTIONS, DIVISIONS, MAX_ERRORS = 800, 100, (0.1, 0.2)
RUNS, LIVE = 200, 2000


def shadowed(data: Pair) -> Pair:
    """The same prompts with scores as a shadow label has them."""
    scores = [agreement(o.answers[data.small], o.answers[data.large]) for o in data.outcomes]
    return replace(data, small_scores=np.array(scores), large_scores=np.ones(len(scores)))


def textless(data: Pair) -> Pair:
    """The same prompts with features in place of texts."""
    outcomes = []
    for outcome, known in zip(data.outcomes, data.evidence(answered=True), strict=True):
        kept = {group: features(known, group) for group in known.groups}
        outcomes.append(Outcome("", outcome.scores, features=kept))
    return replace(data, outcomes=tuple(outcomes))


def fitted(data: Pair, *, most: int | None = None) -> np.ndarray:
    """Expected gain of each row by a model of other folds."""
    evidence = data.evidence(answered=True)
    need = np.empty(len(evidence))
    rng = np.random.default_rng(0)
    for fold in np.array_split(rng.permutation(len(evidence)), FOLDS):
        rest = rng.permutation(np.setdiff1d(np.arange(len(evidence)), fold))[:most]
        model = fit_gain([evidence[i] for i in rest], data.gains[rest])
        need[fold] = [model.gain(evidence[i]) for i in fold]
    return need


def labels(data: Pair, only: list[str], before: dict[str, object]) -> dict[str, object]:
    by_agreement = shadowed(data)
    arms = {
        "true scores, texts": (data, None),
        "true scores, features only": (textless(data), None),
        "agreement, texts": (by_agreement, None),
        "agreement, features only": (textless(by_agreement), None),
        f"agreement, features only, {FEW} labels": (textless(by_agreement), FEW),
    }
    found = dict(before)
    for name, (each, most) in arms.items():
        if only and name not in only:
            continue
        judged = judge(fitted(each, most=most), data.gains, resamples=400).apgr
        found[name] = [judged.value, judged.low, judged.high]
        print(name, found[name], file=sys.stderr)
    agrees, right = by_agreement.small_scores >= 1, data.small_scores >= 1
    cloud_right = data.large_scores >= 1
    return {
        "rows": len(data.outcomes),
        "apgr": found,
        "edge right": float(right.mean()),
        "cloud right": float(cloud_right.mean()),
        "agreeing": float(agrees.mean()),
        "agreeing where both are right": float(agrees[right & cloud_right].mean()),
        "agreeing where the edge alone is wrong": float(agrees[~right & cloud_right].mean()),
    }


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


def caches() -> dict[str, object]:
    found = {}
    for task in ("bank", "assistant"):
        rows = [json.loads(line) for line in (DATA / "tasks" / task / "train.jsonl").open(encoding="utf-8")]
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


def drifts() -> dict[str, object]:
    """Calibrated on 500 scores; the changed traffic has another mean from its first request on."""
    kinds = {"no change": (2.0, 5.0), "mean .29 to .33": (2.5, 5.0), "mean .29 to .44": (4.0, 5.0)}
    found = {}
    for name, (a, b) in kinds.items():
        delays = []
        for seed in range(RUNS):
            rng = np.random.default_rng(seed)
            alarm = DriftAlarm(rng.beta(2, 5, 500).tolist(), alarm_rate=0.05, seed=10_000 + seed)
            live = rng.beta(a, b, LIVE)
            delays.append(next((n for n, s in enumerate(live, 1) if alarm.observe(float(s))), 0))
        rung = [delay for delay in delays if delay]
        found[name] = {
            "rang": len(rung) / RUNS,
            "median requests until": float(np.median(rung)) if rung else None,
        }
        print("drift", name, found[name], file=sys.stderr)
    return found


def gsm8k() -> Pair:
    return pair(read_outcomes(DATA / "outcomes" / "gsm8k.jsonl"))


def page(found: dict[str, object]) -> str:
    lines = ["# Learning from traffic", "", f"{found['hardware']}", ""]
    for name in ("labels", "replay", "cache", "drift"):
        if name in found:
            one = dict(found[name])  # type: ignore[call-overload]
            lines += [f"## {name} (commit {one.pop('commit')})", "", "| | |", "|---|---|"]
            lines += [f"| {key} | {_shown(value)} |" for key, value in _flat(one)]
            lines.append("")
    doc = (__doc__ or "").partition("\n    python")[0].strip()
    return "\n".join([*lines[:3], doc, "", *lines[3:]])


def _flat(one: dict[str, object], before: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for key, value in one.items():
        name = f"{before}{key}"
        found += _flat(value, f"{name}: ") if isinstance(value, dict) else [(name, value)]
    return found


def _shown(value: object) -> str:
    if isinstance(value, list):
        return f"{value[0]:.3f} ({value[1]:.3f}, {value[2]:.3f})"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = ("labels", "replay", "cache", "drift")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--arms", nargs="+", default=[], help="of labels; the others stay as they were")
    args = parser.parse_args()
    path = RESULTS / "traffic.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    begun_at = commit()
    found |= {"hardware": hardware()}
    runs = {
        "labels": lambda: labels(gsm8k(), args.arms, found.get("labels", {}).get("apgr", {})),
        "replay": replays,
        "cache": caches,
        "drift": drifts,
    }
    for name in args.only:
        found[name] = runs[name]() | {"commit": begun_at}
        path.write_text(json.dumps(found, indent=1) + "\n")
        path.with_suffix(".md").write_text(page(found))


if __name__ == "__main__":
    main()
