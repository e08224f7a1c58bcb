"""The proxy as estimator: does its agreement with the edge's answer tell when the cloud would do better?

    consort demo --run-dir runs/demo
    python experiments/proxy_estimator.py runs/demo     # results/proxy_estimator.{json,md}

Four co-tuned devices of the demo, each on test prompts of its own domain and of the public test set, as in
`deferral.py`. The edge answers greedily with log-probabilities; the proxy, with the shared adapter as
co-tuning left it and no device's domain adapter, reads the answer and writes its own. The gain of asking the
cloud is the cloud answer's score (mean of Rouge-L and exact match) less the edge's. Judged are rankings by
need: APGR by RouteLLM's definition, and AUROC for "the cloud is better here". `learned` scorers are kernel
ridges, ten-fold, folds by seed; those `from labels of traffic` learn as `consort calibrate --ledger` does,
from features alone and how far both answers agree; they are judged on the true gains like all others, and on
that agreement, which is what calibration promises. The proxy is heard as a gateway hears it, in all of its
tokens. Intervals: 95 %, over 1,000 resamples of prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from deferral import CONTEXT, DEVICES, TOKENS, Pair, asked, score
from provenance import commit, hardware

from consort.bench.routing_curve import judge
from consort.config import RuntimeConfig
from consort.errors import DataError
from consort.inference.agreement import agreement
from consort.inference.answer_checks import failed_checks
from consort.inference.evidence import Evidence, evidence_of, features
from consort.inference.gain_fit import fit_gain
from consort.inference.proxy import proxy_agreement
from consort.inference.streams import answer_of, collected
from consort.models.decoding.lm import LocalLM
from consort.training.answers import answer
from consort.training.tuned import load_tuned

RESULTS = Path(__file__).parent / "results"
DEAF, HEARING = (f"from labels of traffic, {word} the proxy" for word in ("without", "with"))
OWN, PUBLIC, FOLDS, RESAMPLES = 40, 40, 10, 1000


async def known(run: Path, device: str, proxy: LocalLM) -> list[dict]:
    """Evidence, domain and gain of a device's prompts, and the CPU seconds that hearing the proxy takes."""
    pair = Pair(run, device)
    rows = pair.rows(run, device, "test", OWN, PUBLIC)
    cloud = answer(pair.large_model, [row for _, row in rows], max_new_tokens=TOKENS)
    whole, reading = (proxy_agreement(proxy, own_answer=own) for own in (True, False))
    found = []
    for (domain, row), large in zip(rows, cloud, strict=True):
        request = replace(asked(row), top_logprobs=2)
        small = answer_of(await collected(pair.small.stream(request)))
        begun = time.process_time()
        await reading(request, small)
        read = time.process_time()
        view = await whole(request, small)
        found.append(
            {
                "device": device,
                "domain": domain,
                "evidence": evidence_of(request, small, proxy=view),
                "gain": score(row, large) - score(row, small.text),
                "label": 1 - agreement(small.text, large),
                "reading_s": read - begun,
                "whole_s": time.process_time() - read,
            }
        )
    pair.small.close()
    pair.large.close()
    return found


def needs(evidence: list[Evidence], gains: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Every ranking, higher where the cloud is needed more; learned ones by models without the row. `labels`:
    gains as a ledger has them."""
    views = [one.proxy for one in evidence]
    assert all(view is not None for view in views)
    bare = [replace(one, proxy=None) for one in evidence]
    return {
        "prompt, learned": _cross_fitted([Evidence(one.question) for one in evidence], gains),
        "length of the prompt": np.array([len(one.question) for one in evidence], float),
        "checks of the answer": np.array(
            [failed_checks(e.question, e.answer or "") for e in evidence], float
        ),
        "confidence of the edge": np.array([-np.mean([t.logprob for t in e.logprobs]) for e in evidence]),
        "proxy: nats a byte": np.array([view.nats_per_byte for view in views]),
        "proxy: least likely token": np.array([-view.least for view in views]),
        "proxy: agreeing cuts": np.array([-view.share for view in views]),
        "proxy: likeness of its answer": np.array([-view.likeness for view in views]),
        "checks and confidence, learned": _cross_fitted(bare, gains),
        "checks, confidence and proxy, learned": _cross_fitted(evidence, gains),
        DEAF: _cross_fitted(_stored(bare), labels),
        HEARING: _cross_fitted(_stored(evidence), labels),
    }


def _cross_fitted(evidence: list[Evidence], gains: np.ndarray) -> np.ndarray:
    need = np.empty(len(evidence))
    for fold in np.array_split(np.random.default_rng(0).permutation(len(evidence)), FOLDS):
        rest = np.setdiff1d(np.arange(len(evidence)), fold)
        model = fit_gain([evidence[i] for i in rest], gains[rest])
        need[fold] = [model.gain(evidence[i]) for i in fold]
    return need


def _stored(evidence: list[Evidence]) -> list[Evidence]:
    """What a ledger keeps of it: no text."""
    return [Evidence("", kept={group: features(one, group) for group in one.groups}) for one in evidence]


def auroc(need: np.ndarray, better: np.ndarray) -> float:
    """The probability that a prompt where the cloud is better has the higher need; ties count half."""
    order = np.unique(need, return_inverse=True)[1]
    counts = np.bincount(order)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[order]
    positive = int(better.sum())
    return float((ranks[better].sum() - positive * (positive + 1) / 2) / (positive * (len(need) - positive)))


def judged(need: np.ndarray, gains: np.ndarray) -> dict[str, list[float] | None]:
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        rows = rng.integers(len(need), size=len(need))
        if 0 < (gains[rows] > 0).sum() < len(rows):
            drawn.append(auroc(need[rows], gains[rows] > 0))
    told: dict[str, list[float] | None] = {
        "auroc": [auroc(need, gains > 0), *map(float, np.quantile(drawn, [0.025, 0.975]))]
    }
    try:
        area = judge(need, gains, resamples=RESAMPLES).apgr
        told["apgr"] = [area.value, area.low, area.high]
    except DataError:  # the cloud is no better here: there is no gap to recover
        told["apgr"] = None
    return told


def lead(need: np.ndarray, other: np.ndarray, better: np.ndarray) -> list[float]:
    """By how much one ranking's AUROC is above another's, on the same prompts."""
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        rows = rng.integers(len(need), size=len(need))
        if 0 < better[rows].sum() < len(rows):
            drawn.append(auroc(need[rows], better[rows]) - auroc(other[rows], better[rows]))
    found = auroc(need, better) - auroc(other, better)
    return [found, *map(float, np.quantile(drawn, [0.025, 0.975]))]


def page(found: dict) -> str:
    """The results as Markdown."""
    lines = [
        "# The proxy as estimator",
        "",
        f"Commit {found['commit']}; {found['hardware']}; {found['prompts']} prompts of four devices.",
        "`experiments/proxy_estimator.py` says what is judged. Value (95 % interval over prompts).",
        f"Hearing the proxy takes {1000 * found['reading_s']:.0f} ms of CPU (median) for an answer read, "
        f"{1000 * found['whole_s']:.0f} ms with an answer of its own.",
    ]
    titles = {"both": "own and public prompts", "own": "own domain", "public": "public prompts"}
    for domain, title in titles.items():
        part = found["domains"][domain]
        gain = f"the cloud is better on {part['better']:.0%}, its mean gain is {part['mean_gain']:+.3f}"
        lines += ["", f"**{title}**: {gain}.", "", "| need by | AUROC | APGR |", "|---|---|---|"]
        for name, figures in part["scorers"].items():
            cells = [_cell(figures["auroc"]), _cell(figures["apgr"]) if figures["apgr"] else "no gap"]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += ["", f"Agreement with the cloud is {part['agreement']:.2f}; judged on it:", ""]
        lines += ["| need by | AUROC | APGR |", "|---|---|---|"]
        for name, figures in part["on agreement"].items():
            cells = [_cell(figures["auroc"]), _cell(figures["apgr"]) if figures["apgr"] else "no gap"]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        leads = [_cell(part["lead of the proxy"][name]) for name in ("gains", "agreement")]
        lines += ["", f"What the proxy adds to labels, AUROC: {leads[0]} on gains, {leads[1]} on agreement."]
    return "\n".join([*lines, ""])


def _cell(figure: list[float]) -> str:
    return f"{figure[0]:.3f} ({figure[1]:.3f}, {figure[2]:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    torch.set_num_threads(1)
    loaded = load_tuned(str(run / "adapters" / "proxy"), adapter=None, runtime=RuntimeConfig(device="cpu"))
    proxy = LocalLM(loaded, answers=1, sessions=1, context_tokens=CONTEXT)
    rows = [row for device in DEVICES for row in asyncio.run(known(run, device, proxy))]
    gains = np.array([row["gain"] for row in rows])
    labels = np.array([row["label"] for row in rows])
    rankings = needs([row["evidence"] for row in rows], gains, labels)
    domains = {}
    for domain in ("both", "own", "public"):
        chosen = np.array([domain in ("both", row["domain"]) for row in rows])
        domains[domain] = {
            "better": float((gains[chosen] > 0).mean()),
            "mean_gain": float(gains[chosen].mean()),
            "scorers": {name: judged(need[chosen], gains[chosen]) for name, need in rankings.items()},
            "agreement": float(1 - labels[chosen].mean()),
            "on agreement": {n: judged(rankings[n][chosen], labels[chosen]) for n in (DEAF, HEARING)},
            "lead of the proxy": {
                name: lead(rankings[HEARING][chosen], rankings[DEAF][chosen], truth[chosen] > 0)
                for name, truth in (("gains", gains), ("agreement", labels))
            },
        }
    found = {
        "commit": commit(),
        "hardware": hardware(),
        "seed": 0,
        "prompts": len(rows),
        "reading_s": float(np.median([row["reading_s"] for row in rows])),
        "whole_s": float(np.median([row["whole_s"] for row in rows])),
        "domains": domains,
    }
    (RESULTS / "proxy_estimator.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "proxy_estimator.md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
