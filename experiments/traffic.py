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
divisions' other questions is above the bound: in at most 5 of 100 divisions, those without a certificate
among them. Of the certificates that were issued, more may be broken: nothing is promised about them. *Drift*:
200 runs of 2,000 requests each.

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
from traffic_cache import caches
from traffic_replay import replays

from consort.bench.outcomes import Outcome, Pair, pair, read_outcomes
from consort.bench.routing_curve import judge
from consort.inference.agreement import agreement
from consort.inference.drift import DriftAlarm
from consort.inference.evidence import features
from consort.inference.gain_fit import fit_gain

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("CONSORT_DATA", "../shared/data"))
FOLDS, FEW = 5, 200
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
        "cache": lambda: caches(DATA / "tasks"),
        "drift": drifts,
    }
    for name in args.only:
        found[name] = runs[name]() | {"commit": begun_at}
        path.write_text(json.dumps(found, indent=1) + "\n")
        path.with_suffix(".md").write_text(page(found))


if __name__ == "__main__":
    main()
