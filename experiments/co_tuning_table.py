"""The tables of `real_co_tuning.py`: means over seeds, standard errors, gains against alone, bytes.

Nothing is averaged across arms or filled in: an arm that lacks seeds says so wherever it stands, and its gain
compares it with `alone` on the seeds that both have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import real_data
from provenance import hardware

from consort.bench.metrics import Score

Run: TypeAlias = dict[str, Any]  # what `real_co_tuning.run_arm` wrote for one arm and one seed

COMPARISON = {
    "zero_shot": "zero-shot",
    "alone": "alone",
    "one_directional_labelled": "one-directional, labelled rows only",
    "one_directional": "one-directional",
    "fed_mkt": "FedMKT",
    "co_plms_labelled": "**Co-PLMs, labelled rows only**, the distilled proxy teaching",
    "co_plms_labelled_broadcast": "Co-PLMs, labelled rows only, the broadcast proxy teaching (default)",
    "co_plms": "**Co-PLMs**",
    "co_plms_default_share": "**Co-PLMs**, the proxy speaking with .6 of its domain adapter (default)",
    "centralised": "centralised (upper bound, no privacy)",
}
PROXY_SIZED = {  # each device serves the proxy
    "fed_lora": "FedLoRA",
    "fed_collm": "FedCoLLM",
}
PARTS = {
    "without_dst": "Co-PLMs without DST",
    "without_device_saml": "Co-PLMs without SAML on the device",
    "without_cloud_saml": "Co-PLMs without SAML in the cloud",
    "without_conditioning": "Co-PLMs without in-token conditioning",
    "rival_alignment": "Co-PLMs, edit distance and longest prefix",
    "slm_lora": "Co-PLMs, SLMs by LoRA instead of in full",
    "update_32_bits": "Co-PLMs, adapters in 32 bits instead of 8",
}
LABELS = COMPARISON | PROXY_SIZED | PARTS
METRICS = {"em": "EM", "rouge_l": "Rouge-L"}
NONE = "–"


def write(scores: Path, results: Path) -> None:
    """Read every arm's results, write co_tuning.json and co_tuning.md."""
    runs = read_runs(scores)
    summary = summarise(runs)
    text = page(summary, measured=hardware()) + "\n".join(["", *_commits(runs), ""])
    results.mkdir(parents=True, exist_ok=True)
    (results / "co_tuning.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (results / "co_tuning.md").write_text(text, encoding="utf-8")
    print(text)


def _commits(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """Which arms ran at which commit: the page is written from stored results."""
    arms_of: dict[str, dict[str, None]] = {}
    for arm, found in runs.items():
        for run in found:
            arms_of.setdefault(run["commit"], {})[LABELS.get(arm, arm).replace("*", "")] = None
    rows = [f"| {commit} | {'; '.join(arms_of[commit])} |" for commit in sorted(arms_of)]
    return ["## Commits", "", "| commit | arms, or some of their seeds |", "|---|---|", *rows]


def read_runs(folder: Path) -> dict[str, list[Run]]:
    """Every result by arm, in the tables' order, seeds ascending; arms without a label come last."""
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    if not runs:
        raise SystemExit(f"no results in {folder}: `python experiments/real_co_tuning.py run` makes them")
    arms = dict.fromkeys([*LABELS, *(run["arm"] for run in runs)])
    of_arm = {
        arm: sorted((run for run in runs if run["arm"] == arm), key=lambda run: int(run["seed"]))
        for arm in arms
    }
    return {arm: found for arm, found in of_arm.items() if found}


def summarise(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Scores of every arm over its seeds, as shares; gains relative to `alone`, paired by seed."""
    every_run = [run for found in runs.values() for run in found]
    seeds = sorted({run["seed"] for run in every_run})
    alone = {run["seed"]: run for run in runs.get("alone", ())}
    untouched = runs["zero_shot"][0].get("cloud") if "zero_shot" in runs else None
    # a majority answer is that of the labelled rows, which go by the seed: any arm's result has it
    of_seed = {run["seed"]: run["devices"] for run in every_run}
    majority = {
        name: _score(of_seed[seed][name]["majority"] for seed in seeds) for name in real_data.DEVICES
    } | {"mean": _score(_mean(of_seed[seed], "majority") for seed in seeds)}
    return {
        "seeds": seeds,
        "rows": max(scores["rows"] for run in every_run for scores in run["devices"].values()),
        "majority": majority,
        "arms": {arm: _summary(arm, found, alone, untouched) for arm, found in runs.items()},
    }


def page(summary: Mapping[str, Any], *, measured: str) -> str:
    """The summary for a person, as markdown."""
    arms, seeds = summary["arms"], summary["seeds"]
    missing = [LABELS[arm] for arm in LABELS if arm not in arms]
    others = [arm for arm in arms if arm not in LABELS]
    lines = [
        "# Co-tuning on real data",
        "",
        f"`experiments/real_co_tuning.py`; {measured}; seeds {', '.join(map(str, seeds))}.",
        "",
        f"Scores are percent on {summary['rows']} test rows a device, greedy answers: mean over seeds ± its",
        "standard error (none for a single seed; zero-shot does not depend on it). *Gain*: of the mean over",
        "devices, relative to alone with the same seed. *Up*, *down*: what a device sends and receives in",
        "the whole run; the proxy itself is not counted. Co-PLMs' cloud also learns from 192 prompts a round",
        "that the proxies make up (`tune.public_samples`, by default none).",
        *(["", f"Not run: {'; '.join(missing)}."] if missing else []),
        "",
        "## The devices' own models",
        "",
        *_overview([*COMPARISON, *others], summary, majority=True),
    ]
    if any(arm in arms for arm in PROXY_SIZED):
        lines += [
            "## Where a device can serve the proxy itself",
            "",
            "FedLoRA and FedCoLLM need one architecture, so their devices serve the proxy, which has read",
            "the tasks' public rows and is two to three times as large as the devices' own models. Beside",
            "them: the specialised proxies that Co-PLMs leaves on the devices, under the last broadcast; by",
            "`proxy.domain_share` they answer with a part of what their domain adapter learned, in the run",
            "and served (WiSE-FT, arXiv 2109.01903). The share was chosen on valid rows of seed 0.",
            "All bytes are those of adapters in 8 bits; in 32, as published, they are four times as many.",
            "",
            *_proxy_sized(summary),
        ]
    if any(arm in arms for arm in PARTS):
        lines += ["## Co-PLMs without each of its parts", "", *_overview(["co_plms", *PARTS], summary)]
    for metric, name in METRICS.items():
        lines += [f"## {name}, device by device", "", *_details("devices", metric, summary)]
    if any(found["cloud"] for found in arms.values()):
        lines += [
            "## The cloud model",
            "",
            "On the devices' test rows; `lacked`: those of the domains of `assistant` that the public set",
            "lacks; `elsewhere`: other held-out public rows.",
            *_unchanged(summary),
            "",
        ]
        for metric, name in METRICS.items():
            lines += [f"### {name} of the cloud model", "", *_details("cloud", metric, summary)]
    if any(found["proxies"] for found in arms.values()):
        lines += ["## The specialised proxies", ""]
        for metric, name in METRICS.items():
            lines += [f"### {name} of the proxies", "", *_details("proxies", metric, summary)]
    return "\n".join([*lines, *_memorised(summary)]).rstrip() + "\n"


# ---- numbers


def _summary(
    arm: str, runs: Sequence[Run], alone: Mapping[int, Run], untouched: Mapping[str, Any] | None
) -> dict[str, Any]:
    runs = runs[:1] if arm == "zero_shot" else runs
    # zero-shot is the same for every seed, so it is compared with all of alone's
    by_seed = dict.fromkeys(alone, runs[0]) if arm == "zero_shot" else {run["seed"]: run for run in runs}
    clouds = [run.get("cloud", untouched) for run in runs]
    return {
        "seeds": [run["seed"] for run in runs],
        "mean": {metric: _score(_mean(run["devices"], metric) for run in runs) for metric in METRICS},
        "gain": {metric: _gain(by_seed, alone, metric) for metric in METRICS},
        "devices": _scores([run["devices"] for run in runs]),
        "cloud": _scores([cloud for cloud in clouds if cloud is not None]),
        "changes_llm": any(cloud != untouched for cloud in clouds),
        "proxies": _scores([run["proxies"] for run in runs if "proxies" in run]),
        "proxies_mean": {
            metric: _score(_mean(run["proxies"], metric) for run in runs if "proxies" in run)
            if any("proxies" in run for run in runs)
            else None
            for metric in METRICS
        },
        "uplink_bytes": _bytes_a_device(runs, "uplink_bytes"),
        "downlink_bytes": _bytes_a_device(runs, "downlink_bytes"),
        "proxies_downlink_bytes": _bytes_a_device(runs, "proxies_downlink_bytes"),
        "memorised": [run["memorised"] for run in runs if "memorised" in run],
    }


def _gain(by_seed: Mapping[int, Run], alone: Mapping[int, Run], metric: str) -> dict[str, float] | None:
    pairs = [
        (_mean(by_seed[seed]["devices"], metric), _mean(run["devices"], metric))
        for seed, run in alone.items()
        if seed in by_seed
    ]
    if not pairs or not all(without for _, without in pairs):
        return None
    return _score(ours / without - 1 for ours, without in pairs)


def _scores(results: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """By set of rows and metric, of one result a seed."""
    return {
        name: {metric: _score(result[name][metric] for result in results) for metric in METRICS}
        for name in (results[0] if results else ())
    }


def _bytes_a_device(runs: Sequence[Run], way: str) -> dict[str, float] | None:
    counted = [run[way] for run in runs if run.get(way)]
    return _score(np.mean(list(each.values())) for each in counted) if len(counted) == len(runs) else None


def _mean(devices: Mapping[str, Mapping[str, float]], metric: str) -> float:
    return float(np.mean([scores[metric] for scores in devices.values()]))


def _score(values: Iterable[float]) -> dict[str, float]:
    score = Score.of(list(values))
    return {"mean": score.mean, "stderr": score.stderr, "seeds": score.n}


# ---- words


def _overview(arms: Sequence[str], summary: Mapping[str, Any], *, majority: bool = False) -> list[str]:
    rows = []
    if majority:
        rows.append(["*most frequent answer*", _percent(summary["majority"]["mean"]), *[NONE] * 5])
    for arm in arms:
        if arm in summary["arms"]:
            found = summary["arms"][arm]
            scores = [
                cell
                for metric in METRICS
                for cell in (
                    _percent(found["mean"][metric]),
                    NONE if arm == "alone" else _percent(found["gain"][metric], relative=True),
                )
            ]
            traffic = [_kilobytes(found[way]) for way in ("uplink_bytes", "downlink_bytes")]
            rows.append([_label(arm, summary, len(found["seeds"])), *scores, *traffic])
    return _table(["", "EM", "gain", "Rouge-L", "gain", "up", "down"], rows)


def _proxy_sized(summary: Mapping[str, Any]) -> list[str]:
    rows = []
    for arm in [*PROXY_SIZED, "co_plms", "co_plms_default_share"]:
        if arm in summary["arms"]:
            found = summary["arms"][arm]
            means = found["mean"] if arm in PROXY_SIZED else found["proxies_mean"]
            label = _label(arm, summary, len(found["seeds"]))
            label = label if arm in PROXY_SIZED else label.replace("**Co-PLMs**", "**Co-PLMs**, its proxies")
            down = "downlink_bytes" if arm in PROXY_SIZED else "proxies_downlink_bytes"
            traffic = [_kilobytes(found[way]) for way in ("uplink_bytes", down)]
            rows.append([label, *(_percent(means[metric]) for metric in METRICS), *traffic])
    return _table(["", "EM", "Rouge-L", "up", "down"], rows)


def _details(part: str, metric: str, summary: Mapping[str, Any]) -> list[str]:
    """One metric of every arm on every set of rows, where the arm has its own models of this part."""
    arms = {arm: found for arm, found in summary["arms"].items() if found[part]}
    if part == "cloud":
        arms = {arm: found for arm, found in arms.items() if arm == "zero_shot" or found["changes_llm"]}
    sets = list(dict.fromkeys(name for found in arms.values() for name in found[part]))
    rows = []
    if metric == "em" and part == "devices":
        rows.append(["*most frequent answer*", *(_percent(summary["majority"][name]) for name in sets)])
    for arm, found in arms.items():
        scores = [found[part][name][metric] if name in found[part] else None for name in sets]
        run = min(score["seeds"] for score in scores if score)
        rows.append([_label(arm, summary, run), *map(_percent, scores)])
    return _table(["", *sets], rows)


def _unchanged(summary: Mapping[str, Any]) -> list[str]:
    arms = summary["arms"].items()
    same = [LABELS.get(arm, arm) for arm, found in arms if arm != "zero_shot" and not found["changes_llm"]]
    return ["", f"As in zero-shot, for the LLM stays as it is: {'; '.join(same)}."] if same else []


def _memorised(summary: Mapping[str, Any]) -> list[str]:
    counts = {arm: found["memorised"] for arm, found in summary["arms"].items() if found["memorised"]}
    rows = [
        [
            _label(arm, summary, len(found)),
            *(f"{sum(each[key] for each in found):,}" for key in ("prompts", "private")),
        ]
        for arm, found in counts.items()
    ]
    if not rows:
        return []
    return [
        "## What the shared adapter memorised",
        "",
        "Prompts that the final proxy makes up, and how many of them are some device's private prompt word",
        "for word; all seeds together.",
        "",
        *_table(["", "made up", "private"], rows),
    ]


def _label(arm: str, summary: Mapping[str, Any], run: int) -> str:
    label, wanted = LABELS.get(arm, arm), len(summary["seeds"])
    return label if arm == "zero_shot" or run == wanted else f"{label} ({run} of {wanted} seeds)"


def _percent(score: Mapping[str, float] | None, *, relative: bool = False) -> str:
    if score is None:
        return NONE
    sign, unit = ("+", " %") if relative else ("", "")
    spread = f" ± {100 * score['stderr']:.1f}" if score["seeds"] > 1 else ""
    return f"{100 * score['mean']:{sign}.1f}{spread}{unit}"


def _kilobytes(score: Mapping[str, float] | None) -> str:
    return f"{score['mean'] / 1e3:,.0f} kB" if score else NONE


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown that also reads as text: columns of one width, numbers to the right."""
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        for row in (header, rule, *rows)
    ]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]
