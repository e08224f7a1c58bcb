"""The table of `real_co_tuning.py`: means over seeds, standard errors, gains against alone, bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import real_data
from provenance import commit, hardware

from consort.bench.metrics import Score

LABELS = {
    "zero_shot": "zero-shot",
    "alone": "alone",
    "one_directional_labelled": "one-directional, labelled rows only",
    "co_plms_labelled": "**Co-PLMs, labelled rows only**",
    "one_directional": "one-directional",
    "co_plms": "**Co-PLMs**",
    "centralised": "centralised (upper bound, no privacy)",
    "fed_lora": "FedLoRA (proxy on every device)",
    "fed_collm": "FedCoLLM (proxy on every device)",
    "fed_mkt": "FedMKT",
    "without_dst": "Co-PLMs without DST",
    "without_device_saml": "Co-PLMs without SAML on the device",
    "without_cloud_saml": "Co-PLMs without SAML in the cloud",
    "without_conditioning": "Co-PLMs without in-token conditioning",
    "rival_alignment": "Co-PLMs, edit distance and longest prefix",
    "slm_lora": "Co-PLMs, SLMs by LoRA instead of in full",
}
METRICS = (("em", "EM"), ("rouge_l", "Rouge-L"))


def write(work: Path, results: Path) -> None:
    """Read every arm's result, write co_tuning.json and co_tuning.md."""
    runs = {arm: _runs(work, arm) for arm in LABELS}
    summary = {arm: _summary(found, runs["alone"]) for arm, found in runs.items() if found}
    lines = [
        "# Co-tuning on real data",
        "",
        f"`experiments/real_co_tuning.py`; commit {commit()}; {hardware()}.",
        "Percent, mean over seeds ± standard error of it (± 0.0: one seed). 200 test rows a device, greedy",
        "answers. Gain: of the mean over devices, relative to alone with the same seeds.",
        "",
    ]
    for metric, name in METRICS:
        lines += _device_table(metric, name, summary)
    lines += _cloud_table(summary)
    results.mkdir(exist_ok=True)
    (results / "co_tuning.json").write_text(json.dumps(summary, indent=1) + "\n")
    (results / "co_tuning.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _runs(work: Path, arm: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((work / "results").glob(f"{arm}-[0-9]*.json"))]


def _summary(runs: Sequence[dict[str, Any]], alone: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"seeds": [run["seed"] for run in runs], "devices": {}, "cloud": {}}
    for name in real_data.DEVICES:
        of_device = [run["devices"][name] for run in runs]
        found["devices"][name] = {
            metric: _score([each[metric] for each in of_device]) for metric in ("em", "rouge_l", "majority")
        }
    baseline = [run for run in alone if run["seed"] in found["seeds"]]
    found["mean"], found["gain"] = {}, {}
    for metric, _ in METRICS:
        found["mean"][metric] = _score([_mean_over_devices(run, metric) for run in runs])
        without = float(np.mean([_mean_over_devices(run, metric) for run in baseline]))
        found["gain"][metric] = found["mean"][metric]["mean"] / without - 1
    for name in runs[0]["cloud"]:
        on_set = [run["cloud"][name] for run in runs]
        found["cloud"][name] = {metric: _score([each[metric] for each in on_set]) for metric, _ in METRICS}
    for way in ("uplink_bytes", "downlink_bytes"):
        found[way] = float(np.mean([sum(run[way].values()) for run in runs]))
    if "memorised" in runs[0]:
        found["memorised"] = [run["memorised"] for run in runs]
    return found


def _mean_over_devices(run: dict[str, Any], metric: str) -> float:
    return float(np.mean([device[metric] for device in run["devices"].values()]))


def _score(values: Sequence[float]) -> dict[str, float]:
    score = Score.of(values)
    return {"mean": score.mean, "stderr": score.stderr}


def _device_table(metric: str, name: str, summary: dict[str, Any]) -> list[str]:
    lines = [
        f"## {name} of the devices' own models",
        "",
        f"| arm | seeds | {' | '.join(real_data.DEVICES)} | mean | gain |",
        f"|---|---|{'---|' * len(real_data.DEVICES)}---|---|",
    ]
    if metric == "em":
        shares = [_percent(summary["alone"]["devices"][device]["majority"]) for device in real_data.DEVICES]
        lines.append(f"| majority answer | | {' | '.join(shares)} | | |")
    for arm, found in summary.items():
        cells = [_percent(found["devices"][device][metric]) for device in real_data.DEVICES]
        mean, gain = _percent(found["mean"][metric]), f"{100 * found['gain'][metric]:+.1f} %"
        lines.append(f"| {LABELS[arm]} | {len(found['seeds'])} | {' | '.join([*cells, mean, gain])} |")
    return [*lines, ""]


def _cloud_table(summary: dict[str, Any]) -> list[str]:
    sets = list(summary["alone"]["cloud"])
    lines = [
        "## The cloud model: EM / Rouge-L, and all devices' bytes",
        "",
        "`lacked`: test rows of the five domains of `assistant` that the public set lacks. `elsewhere`:",
        "other held-out public rows.",
        "",
        f"| arm | {' | '.join(sets)} | uplink | downlink |",
        f"|---|{'---|' * len(sets)}---|---|",
    ]
    for arm, found in summary.items():
        scores = [found["cloud"][name] for name in sets]
        cells = [f"{100 * each['em']['mean']:.1f} / {_percent(each['rouge_l'])}" for each in scores]
        cells += [_size(found["uplink_bytes"]), _size(found["downlink_bytes"])]
        lines.append(f"| {LABELS[arm]} | {' | '.join(cells)} |")
    return [*lines, ""]


def _percent(score: dict[str, float]) -> str:
    return f"{100 * score['mean']:.1f} ± {100 * score['stderr']:.1f}"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e3:,.0f} kB" if num_bytes else "–"
