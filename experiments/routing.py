"""Deciding who answers, on published outcomes of real models: APGR of the learned scorers, how long a score
takes, and whether calibrated goals hold. RouteLLM's best router has .603 on this MMLU data
(arXiv 2406.18665).

What learns from what: *MMLU* learns from 1,500 random rows and is judged on all the others, five draws.
*GSM8K* is ten-fold: every row is judged by a model of the other nine tenths, and only the weak model's
answer is ever shown. *Nine models* learn from 2,000 rows of the training file and are judged on the test
file: every pair whose larger model leads by 0.05 on both. No step sees a judged row's scores;
word weights, feature spreads and penalties come from the learning rows alone. Intervals resample judged
rows (95 %), over draws or pairs the mean is given too. The features were designed on 7,000 rows of MMLU and
660 of GSM8K (`DESIGN_SEEDS`): the rows that played no part in that are reported beside. One thing was
picked on all rows of GSM8K: how much a question counts beside its answer (ten-fold, eight weightings, .832
to .843 with the best penalty of each). *Goals*: one model of 1,500 MMLU rows; its other rows are the
population, whose means are then known; each of 200 resamples draws 1,500 outcomes with replacement,
calibrates, and is checked against the population. Latencies are not in the data; there the edge takes 0.3 s
and the cloud 0.6 to 3 s (lognormal, seeded).

    python experiments/routing.py [--only mmlu gsm8k nine time goals]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
from provenance import commit, hardware

from consort.bench.outcomes import Pair, pair, read_outcomes
from consort.bench.routing_curve import judge, routing_curve
from consort.inference.answer_checks import failed_checks
from consort.inference.calibration import Trial, calibrate, threshold_grid
from consort.inference.evidence import Evidence
from consort.inference.gain_fit import fit_gain, fit_prepared, prepare
from consort.inference.gain_model import GainModel
from consort.inference.goals import parse_goal

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("CONSORT_DATA", "../shared/data")) / "outcomes"
LABELS, NINE_LABELS, DRAWS, FOLDS = 1500, 2000, 5, 10
DESIGN_SEEDS = {"mmlu": (2026, 7000), "gsm8k": (0, 660)}  # of the permutation, and how many of its first rows
LEAST_LEAD = 0.05
GOALS = (
    ("quality >= 0.98 of cloud",),
    ("quality >= 0.95 of cloud",),
    ("quality >= 0.75",),
    ("cost <= 60 EUR/month",),
    ("p95 <= 1.9 s",),
    ("quality >= 0.92 of cloud", "cost <= 90 EUR/month"),
)
RESAMPLES, CONFIDENCE = 200, 0.9
REQUESTS_PER_MONTH, CLOUD_EUR, EDGE_EUR = 100_000, 0.0012, 0.00001


def gains_of(model: GainModel, evidence: list[Evidence]) -> np.ndarray:
    return np.array([model.gain(known) for known in evidence])


def undesigned(name: str, size: int) -> np.ndarray:
    """Which rows played no part in designing the features."""
    seed, taken = DESIGN_SEEDS[name]
    unseen = np.ones(size, dtype=bool)
    unseen[np.random.default_rng(seed).permutation(size)[:taken]] = False
    return unseen


def told(need: np.ndarray, gains: np.ndarray) -> dict[str, object]:
    """APGR, CPT(50) and CPT(80) with intervals, as JSON."""
    judged = judge(need, gains, resamples=400)
    return {
        name: [figure.value, figure.low, figure.high]
        for name, figure in (("apgr", judged.apgr), ("cpt50", judged.cpt50), ("cpt80", judged.cpt80))
    }


def mmlu(data: Pair) -> dict[str, object]:
    evidence, unseen = data.evidence(answered=False), undesigned("mmlu", len(data.outcomes))
    draws = []
    for seed in range(DRAWS):
        rows = np.random.default_rng(seed).permutation(len(evidence))
        train, test = rows[:LABELS], rows[LABELS:]
        model = fit_gain([evidence[i] for i in train], data.gains[train])
        need = gains_of(model, [evidence[i] for i in test])
        fresh = unseen[test]
        draws.append(
            told(need, data.gains[test])
            | {
                "undesigned": routing_curve(need[fresh], data.gains[test][fresh]).apgr,
                "penalty": model.penalty,
            }
        )
        print("mmlu", seed, draws[-1], file=sys.stderr)
    areas = [draw["apgr"][0] for draw in draws]
    # an honest draw for the rows that designed nothing: neither do the labels come from the designers' rows
    pool = np.random.default_rng(DRAWS).permutation(np.flatnonzero(unseen))
    model = fit_gain([evidence[i] for i in pool[:LABELS]], data.gains[pool[:LABELS]])
    need = gains_of(model, [evidence[i] for i in pool[LABELS:]])
    return {
        "rows": len(evidence),
        "draws": draws,
        "mean_apgr": statistics.mean(areas),
        "sd_over_draws": statistics.stdev(areas),
        "labels_and_tests_undesigned": told(need, data.gains[pool[LABELS:]]),
    }


def cross_fitted(evidence: list[Evidence], gains: np.ndarray, seed: int) -> np.ndarray:
    """Gains of every row by a model that saw only the other folds."""
    need = np.empty(len(evidence))
    for fold in np.array_split(np.random.default_rng(seed).permutation(len(evidence)), FOLDS):
        rest = np.setdiff1d(np.arange(len(evidence)), fold)
        need[fold] = gains_of(fit_gain([evidence[i] for i in rest], gains[rest]), [evidence[i] for i in fold])
    return need


def gsm8k(data: Pair) -> dict[str, object]:
    unseen = undesigned("gsm8k", len(data.outcomes))
    answered = data.evidence(answered=True)
    needs = {
        "before the answer, ten-fold": cross_fitted(data.evidence(answered=False), data.gains, seed=0),
        "after the answer, no labels": np.array(
            [failed_checks(e.question, e.answer or "") for e in answered]
        ),
        "after the answer, ten-fold": cross_fitted(answered, data.gains, seed=0),
    }
    found = {}
    for name, need in needs.items():
        found[name] = told(need, data.gains) | {
            "undesigned": routing_curve(need[unseen], data.gains[unseen]).apgr
        }
        print("gsm8k", name, found[name], file=sys.stderr)
    return found


def nine_models(folder: Path) -> dict[str, object]:
    train, test = (
        read_outcomes(folder / "nine_models_train.jsonl"),
        read_outcomes(folder / "nine_models_test.jsonl"),
    )
    means = {name: float(np.mean([row.scores[name] for row in train])) for name in train[0].scores}
    ranked = sorted(means, key=means.__getitem__)
    chosen = np.random.default_rng(0).permutation(len(train))[:NINE_LABELS]
    prepared = prepare([Evidence(train[i].prompt) for i in chosen])
    areas: dict[str, float] = {}
    closer: dict[str, float] = {}
    for small, large in combinations(ranked, 2):
        learn, judged = (pair(rows, small=small, large=large) for rows in (train, test))
        if learn.gains.mean() < LEAST_LEAD:
            continue
        lead = float(judged.gains.mean())
        if lead < LEAST_LEAD:  # APGR divides by it, and by next to nothing it says nothing
            closer[f"{small} < {large}"] = lead
            continue
        model = fit_prepared(prepared, learn.gains[chosen], small=small, large=large)
        need = gains_of(model, judged.evidence(answered=False))
        areas[f"{small} < {large}"] = routing_curve(need, judged.gains).apgr
        print("nine", small, large, round(areas[f"{small} < {large}"], 3), file=sys.stderr)
    values = list(areas.values())
    return {
        "pairs": areas,
        "leads on test too small to divide by": closer,
        "mean_apgr": statistics.mean(values),
        "sd_over_pairs": statistics.stdev(values),
        "labels_a_pair": NINE_LABELS,
    }


def scoring_time(pairs: dict[str, Pair]) -> dict[str, float]:
    """CPU milliseconds a score, median over 300 prompts, one thread."""
    found = {}
    for name, answered in (("mmlu", False), ("gsm8k", False), ("gsm8k", True)):
        data = pairs[name]
        evidence = data.evidence(answered=answered)[: LABELS + 300]
        model = fit_gain(evidence[:LABELS], data.gains[:LABELS])
        took = []
        for known in evidence[-300:]:
            begin = time.process_time()
            model.gain(known)
            took.append(1000 * (time.process_time() - begin))
        found[f"{name}, {'after' if answered else 'before'} the answer"] = statistics.median(took)
    return found


def goals(data: Pair) -> list[dict[str, object]]:
    evidence = data.evidence(answered=False)
    rows = np.random.default_rng(0).permutation(len(evidence))
    model = fit_gain([evidence[i] for i in rows[:LABELS]], data.gains[rows[:LABELS]])
    rest = rows[LABELS:]
    rng = np.random.default_rng(1)
    suffices = np.array([model.suffices(gain) for gain in gains_of(model, [evidence[i] for i in rest])])
    grid = threshold_grid(np.array([model.suffices(gain) for gain in model.quantiles]))
    population = {
        "suffices": suffices,
        "small_scores": data.small_scores[rest],
        "large_scores": data.large_scores[rest],
        "small_eur": np.full(rest.size, EDGE_EUR),
        "large_eur": np.full(rest.size, CLOUD_EUR),
        "small_s": np.full(rest.size, 0.3),
        "large_s": np.clip(rng.lognormal(0.0, 0.5, rest.size), 0.6, 3.0),
    }
    return [_kept(population, texts, grid) for texts in GOALS]


def _kept(population: dict[str, np.ndarray], texts: tuple[str, ...], grid: np.ndarray) -> dict[str, object]:
    wanted = [parse_goal(text) for text in texts]
    size, broken, certified, shares = population["suffices"].size, 0, 0, []
    for seed in range(RESAMPLES):
        drawn = np.random.default_rng(seed).integers(size, size=LABELS)
        found = calibrate(
            Trial(**{name: column[drawn] for name, column in population.items()}),
            wanted,
            grid,
            confidence=CONFIDENCE,
            requests_per_month=REQUESTS_PER_MONTH,
        )
        certified += found.kept
        if found.kept:
            asked = population["suffices"] < found.threshold
            shares.append(float(asked.mean()))
            broken += not _holds(population, texts, asked)
    told = {
        "goals": list(texts),
        "promised": CONFIDENCE,
        "kept_rate": 1 - broken / RESAMPLES,
        "broken": broken,
        "certified": certified,
        "mean_cloud_share": statistics.mean(shares) if shares else None,
    }
    print("goals", told, file=sys.stderr)
    return told


def _holds(population: dict[str, np.ndarray], texts: tuple[str, ...], asked: np.ndarray) -> bool:
    """Whether the population keeps the goals, computed without the package's own code."""
    quality = np.where(asked, population["large_scores"], population["small_scores"]).mean()
    cloud = population["large_scores"].mean()
    euros = np.where(asked, CLOUD_EUR, EDGE_EUR).mean() * REQUESTS_PER_MONTH
    slow = {
        "p95 <= 1.9 s": (np.where(asked, population["large_s"], population["small_s"]) > 1.9).mean() <= 0.05
    }
    checks = {
        "quality >= 0.98 of cloud": quality >= 0.98 * cloud,
        "quality >= 0.95 of cloud": quality >= 0.95 * cloud,
        "quality >= 0.92 of cloud": quality >= 0.92 * cloud,
        "quality >= 0.75": quality >= 0.75,
        "cost <= 60 EUR/month": euros <= 60,
        "cost <= 90 EUR/month": euros <= 90,
        **slow,
    }
    return all(bool(checks[text]) for text in texts)


def page(found: dict[str, dict]) -> str:
    """The results as Markdown."""
    commits = sorted({part["commit"] for part in found.values() if isinstance(part, dict)})
    lines = ["# Deciding who answers", "", f"Commits {', '.join(commits)}; {found['hardware']}.", ""]
    lines += [
        "Value (95 % interval over judged rows). `experiments/routing.py` says what learns from what.",
        "",
    ]
    lines += [
        "| data | asked | APGR | CPT(50) | CPT(80) | rows without part in the design |",
        "|---|---|---|---|---|---|",
    ]

    def row(name: str, asked: str, figures: dict, undesigned: str) -> str:
        cells = [
            f"{v:.3f} ({low:.3f}, {high:.3f})"
            for v, low, high in (figures[k] for k in ("apgr", "cpt50", "cpt80"))
        ]
        return f"| {name} | {asked} | {' | '.join(cells)} | {undesigned} |"

    if "mmlu" in found:
        for seed, draw in enumerate(found["mmlu"]["draws"]):
            lines.append(
                row(f"MMLU, {LABELS} labels, draw {seed}", ">= .65", draw, f"{draw['undesigned']:.3f}")
            )
        fresh = found["mmlu"]["labels_and_tests_undesigned"]
        lines.append(
            row(
                "MMLU, labels and test without part in the design", ">= .65", fresh, f"{fresh['apgr'][0]:.3f}"
            )
        )
    bars = (">= .62", ">= .75", ">= .83")
    for (name, figures), bar in zip(found.get("gsm8k", {}).get("kinds", {}).items(), bars, strict=False):
        lines.append(row(f"GSM8K, {name}", bar, figures, f"{figures['undesigned']:.3f}"))
    if "mmlu" in found:
        one = found["mmlu"]
        lines += [
            "",
            f"MMLU, mean of the draws: {one['mean_apgr']:.3f} ± {one['sd_over_draws']:.3f} (sd over draws).",
        ]
    if "nine" in found:
        one = found["nine"]
        left_out = len(one["leads on test too small to divide by"])
        lines += [
            "",
            f"Nine models, mean of {len(one['pairs'])} pairs: {one['mean_apgr']:.3f} "
            f"(sd {one['sd_over_pairs']:.3f} over pairs, which share models); asked >= .70. "
            f"Left out, lead below {LEAST_LEAD} on the test file: {left_out}.",
        ]
        lines += [
            "",
            "| pair | APGR |",
            "|---|---|",
            *(f"| {name} | {v:.3f} |" for name, v in one["pairs"].items()),
        ]
    if "time" in found:
        lines += ["", "| one score | CPU ms, median |", "|---|---|"]
        lines += [f"| {name} | {value:.2f} |" for name, value in found["time"]["cpu_ms"].items()]
    if "goals" in found:
        lines += ["", f"Goals: {RESAMPLES} resamples of {LABELS} outcomes, promised {CONFIDENCE:.0%}.", ""]
        lines += ["| goals | kept | certified | share asked of the cloud |", "|---|---|---|---|"]
        for one in found["goals"]["goals"]:
            share = "" if one["mean_cloud_share"] is None else f"{one['mean_cloud_share']:.2f}"
            kept = f"{one['kept_rate']:.1%} | {one['certified']}/{RESAMPLES}"
            lines.append(f"| {'; '.join(one['goals'])} | {kept} | {share} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = ("mmlu", "gsm8k", "nine", "time", "goals")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    only = parser.parse_args().only
    path = RESULTS / "routing.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    begun_at = commit()
    found |= {"hardware": hardware()}
    pairs = {name: pair(read_outcomes(DATA / f"{name}.jsonl")) for name in ("mmlu", "gsm8k")}
    runs = {
        "mmlu": lambda: mmlu(pairs["mmlu"]),
        "gsm8k": lambda: {"kinds": gsm8k(pairs["gsm8k"])},
        "nine": lambda: nine_models(DATA),
        "time": lambda: {"cpu_ms": scoring_time(pairs)},
        "goals": lambda: {"goals": goals(pairs["mmlu"])},
    }
    for name in only:
        found[name] = runs[name]() | {"commit": begun_at}
        path.write_text(json.dumps(found, indent=1) + "\n")
        path.with_suffix(".md").write_text(page(found))


if __name__ == "__main__":
    main()
