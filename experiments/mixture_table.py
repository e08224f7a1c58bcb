"""The table of `mixture.py`: which arms there are, which is chosen by valid rows, and the gap it closes on
test rows. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mixture_rows import Arm

from consort.inference.mixing_weights import fixed, load_weights

METRICS = ("rouge_l", "em")
WEIGHTS = (0.5, 1.0)
SHARES = (0.5, 0.6, 0.7, 0.8)
SLM_SHARES = (0.5, 0.7, 0.9, 1.0)
TOGETHER_SHARES, EDGE_SHARES = (
    (0.7, 0.8, 0.9, 1.0),
    (0.25, 0.35, 0.45, 0.55, 0.65),
)  # both's; of it, the SLM's
RESAMPLES = 10_000
CUT = 64  # tokens of a distribution, as it is served
BEST = "proxy and SLM: mean, one choice for all"  # as `consort/mix` is served


def arms(weights: Path | None = None) -> dict[str, Arm]:
    """Every way that is tried; with a file of learned weights, those too."""
    found = {f"tuned {a}": Arm("tuned", fixed(a)) for a in WEIGHTS}
    for kind in ("product", "mean"):
        found |= {f"{kind} {share}": Arm(kind, fixed(share)) for share in SHARES}
        found |= {f"SLM {kind} {share}": Arm(kind, fixed(share), 1.0) for share in SLM_SHARES}
        for share in TOGETHER_SHARES:
            both = {edge: f"both {kind} {share} x {edge}" for edge in EDGE_SHARES}
            found |= {name: Arm(kind, fixed(share), edge) for edge, name in both.items()}
    return found if weights is None else found | {"tuned learned": Arm("tuned", load_weights(weights))}


def families() -> dict[str, tuple[str, list[str]]]:
    """Arms of which one is chosen by valid rows: of each device, of all, or of the other devices."""
    means = [name for name in arms() if name.startswith("both mean")]
    return {
        "tuned, one weight a device": ("each", [f"tuned {a}" for a in WEIGHTS]),
        "tuned, weight 1": ("all", ["tuned 1.0"]),
        "tuned, learned weights": ("all", ["tuned learned"]),
        "product, one share a device": ("each", [f"product {share}" for share in SHARES]),
        "mean, one share a device": ("each", [f"mean {share}" for share in SHARES]),
        "mean, share 0.7": ("all", ["mean 0.7"]),
        "the proxy alone": ("all", ["proxy"]),
        "across tokenizers: mean": ("each", [f"SLM mean {share}" for share in SLM_SHARES[:-1]]),
        "across tokenizers: product": ("each", [f"SLM product {share}" for share in SLM_SHARES[:-1]]),
        "across tokenizers: all weight": ("all", ["SLM mean 1.0"]),
        "the SLM alone": ("all", ["SLM"]),
        "proxy and SLM: product": ("all", [name for name in arms() if name.startswith("both product")]),
        "proxy and SLM: mean, one choice a device": ("each", means),
        "proxy and SLM: mean, chosen on the other devices": ("others", means),
        BEST: ("all", means),
        "any of these, chosen on valid rows": ("each", [*arms(), "tuned learned"]),
    }


def chosen(devices: Mapping[str, dict], by: str, names: Sequence[str]) -> dict[str, str]:
    """Each device's arm with the best valid Rouge-L, exact match where that ties: of its own rows, of all
    devices' or of the other devices'."""

    def valid(judges: Sequence[str], name: str) -> tuple[float, ...]:
        scores = [devices[judge]["valid"][name] for judge in judges]
        return tuple(float(np.mean([np.mean(each[metric]) for each in scores])) for metric in METRICS)

    def judges(device: str) -> list[str]:
        return [each for each in devices if by == "all" or (each == device) == (by == "each")]

    return {device: max(names, key=lambda name: valid(judges(device), name)) for device in devices}


def gap(devices: Mapping[str, dict], picked: Mapping[str, str], metric: str) -> dict[str, Any]:
    """The share of the gap that is closed: each device's, and of the means over devices."""
    rng = np.random.default_rng(0)
    scores = {
        name: np.array([found["test"][arm][metric] for arm in ("untuned", "tuned", picked[name])])
        for name, found in devices.items()
    }
    draws = {
        name: values[:, rng.integers(values.shape[1], size=(RESAMPLES, values.shape[1]))].mean(-1)
        for name, values in scores.items()
    }
    result = {name: _share(values.mean(-1), draws[name]) for name, values in scores.items()}
    mean = np.mean([values.mean(-1) for values in scores.values()], axis=0)
    return result | {"mean": _share(mean, np.mean(list(draws.values()), axis=0))}


def _share(means: np.ndarray, draws: np.ndarray) -> dict[str, Any]:
    untuned, upper, mixed = means
    lower = draws[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = (draws[2] - lower) / (draws[1] - lower)
    # where tuning gained nothing in a draw there is no gap to close
    ends = np.percentile(shares[draws[1] > lower], [2.5, 97.5]) if (draws[1] > lower).any() else [np.nan] * 2
    return {
        "untuned": float(untuned),
        "tuned": float(upper),
        "mixed": float(mixed),
        "closed": float((mixed - untuned) / (upper - untuned)),
        "interval": [float(end) for end in ends],
    }


def summary(devices: Mapping[str, dict]) -> dict[str, Any]:
    """By family of arms: what was chosen on valid rows, and the gap it closes on test rows."""
    found = {}
    for family, (by, members) in families().items():
        picked = chosen(devices, by, members)
        found[family] = {"picked": picked} | {metric: gap(devices, picked, metric) for metric in METRICS}
    return found


def page(found: dict[str, Any]) -> str:
    devices, result = found["devices"], found["summary"]
    one = next(iter(devices.values()))
    counts = [len(one[split]["untuned"]["em"]) for split in ("test", "valid")]
    lines = [
        "# Mixture: the gap between the untuned and the tuned LLM, closed without touching its weights",
        "",
        f"Commit {found['commit']}; {found['hardware']}; demo consort of seed 0, "
        f"measured: {', '.join(devices)}. {counts[0]} test rows a device; weights chosen on {counts[1]} "
        "valid rows a device. 95 % intervals by bootstrap over rows; one co-tuning run, so none over seeds.",
        "",
        "| mixture | Rouge-L | gap closed, % | EM | gap closed, % | chosen |",
        "|---|---|---|---|---|---|",
    ]
    first = next(iter(result.values()))
    for name, key, share in (("untuned LLM", "untuned", 0), ("LLM tuned on the device's rows", "tuned", 100)):
        rouge, em = (100 * first[metric]["mean"][key] for metric in METRICS)
        lines.append(f"| {name} | {rouge:.1f} | {share} | {em:.1f} | {share} | |")
    for family, each in result.items():
        cells = [f"{100 * each[m]['mean']['mixed']:.1f} | {_percent(each[m]['mean'])}" for m in METRICS]
        lines.append(
            f"| {family} | {' | '.join(cells)} | {', '.join(dict.fromkeys(each['picked'].values()))} |"
        )
    lines += ["", f"By device, {BEST}: untuned → mixed, of tuned.", ""]
    lines += ["| device | Rouge-L | gap closed, % | EM | gap closed, % |", "|---|---|---|---|---|"]
    for name in devices:
        by_metric = [result[BEST][metric][name] for metric in METRICS]
        cells = [
            f"{100 * each['untuned']:.1f} → {100 * each['mixed']:.1f} of {100 * each['tuned']:.1f} | "
            f"{_percent(each)}"
            for each in by_metric
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    positions = sum(each["cut"]["positions"] for each in devices.values())
    lines += ["", f"Cut to {CUT} tokens a distribution, against all, over {positions} positions:"]
    for weight in ("1.0", "2.0"):
        flips = sum(each["cut"][f"flips at {weight}"] * each["cut"]["positions"] for each in devices.values())
        variation = np.mean([each["cut"][f"mean variation at {weight}"] for each in devices.values()])
        lines.append(
            f"at weight {weight}, {flips:.0f} likeliest tokens differ, mean variation {variation:.1e}."
        )
    best = next(iter(result[BEST]["picked"].values()))
    served = [each["served"] for each in devices.values()]
    replayed = [each["test"][best] for each in devices.values()]
    pairs = [zip(a["texts"], b["texts"], strict=True) for a, b in zip(served, replayed, strict=True)]
    same = np.mean([a == b for each in pairs for a, b in each])
    changed, took = (np.mean([each[key] for each in served]) for key in ("changed", "cpu_ms"))
    told = " and ".join(f"{100 * np.mean([np.mean(each[m]) for each in served]):.1f}" for m in METRICS)
    lines += [
        "",
        f"Arms are replayed over remembered distributions. {best} by `mix` itself: {told},",
        f"{100 * same:.1f} % of the answers the same; {100 * changed:.1f} % of the tokens are others than "
        f"the LLM's own choice; a token takes {took:.1f} ms of CPU.",
    ]
    return "\n".join(lines) + "\n"


def _percent(one: dict[str, Any]) -> str:
    low, high = (100 * end for end in one["interval"])
    return f"{100 * one['closed']:.0f} ({low:.0f} to {high:.0f})"
