"""The page of `deferral.py`: quality and shares of every cell that was answered, with intervals.

    python experiments/deferral_table.py runs/demo      # results/deferral.{json,md}

EM and Rouge-L against the references. The line between edge and cloud is what asking the cloud for whole
answers at random reaches at the same share. Share is counted three ways: tokens (each in its writer's), bytes
of the answer, and tokens over those of the cloud writing all alone. Intervals are 95 %, over 1,000 resamples
of prompts, edge, cloud and share resampled with them; two scorers are compared over the same resamples.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from deferral import CELLS, DEVICES, LEARNED
from provenance import commit, hardware

from consort.bench.metrics import exact_match, rouge_l
from consort.inference.token_need import SCORERS

RESULTS = Path(__file__).parent / "results"
RESAMPLES = 1000
METRICS = {"rouge_l": rouge_l, "em": exact_match}
PARTS = tuple(
    ((metric, domain), title, where)
    for metric, title in (("rouge_l", "Rouge-L"), ("em", "EM"))
    for domain, where in (("both", "both"), ("own", "own"), ("public", "public"))
)


def table(run: Path) -> None:
    """Every cell that was answered, over all pairs together, as JSON and Markdown."""
    alone = {
        device: json.loads((run / "deferral" / f"{device}-alone.json").read_text()) for device in DEVICES
    }
    cells = []
    for name, goal in sorted(CELLS):
        files = [run / "deferral" / f"{device}-{name}-{goal}.json" for device in DEVICES]
        if all(file.exists() for file in files):
            rows = [
                base | told
                for device, file in zip(DEVICES, files, strict=True)
                for base, told in zip(alone[device], json.loads(file.read_text()), strict=True)
            ]
            for (metric, domain), _, _ in PARTS:
                chosen = [row for row in rows if domain in ("both", row["domain"])]
                named = {"scorer": name, "goal": goal, "domain": domain, "metric": metric}
                cells.append(named | judged(chosen, METRICS[metric]))
    differences = compared(cells)
    for cell in cells:
        del cell["drawn"]
    labels = {device: json.loads((run / "deferral" / f"{device}.json").read_text()) for device in DEVICES}
    for told in labels.values():
        del told["needs"]
    found = {
        "commit": commit(),
        "hardware": hardware(),
        "seed": 0,
        "prompts": sum(map(len, alone.values())),
        "labels": labels,
        "cells": cells,
        "differences": differences,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "deferral.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "deferral.md").write_text(page(found))
    print(page(found))


def judged(rows: list[dict], measured: Callable[[str, str], float]) -> dict[str, object]:
    """Quality, shares, and what quality has above the line between edge and cloud, with intervals."""
    texts = {
        name: np.array([measured(row[key], row["reference"]) for row in rows])
        for name, key in (("edge", "edge"), ("cloud", "cloud"), ("deferred", "text"))
    }
    counted = ("tokens", "large_tokens", "bytes", "large_bytes", "cloud_tokens", "round_trips")
    columns = {name: np.array([row[name] for row in rows], float) for name in counted}
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn.append(_figures(texts, columns, rng.integers(len(rows), size=len(rows))))
    value = _figures(texts, columns, np.arange(len(rows)))
    return {name: [value[name], *_between([one[name] for one in drawn])] for name in value} | {
        "drawn": [one["above_line_by_token_share"] for one in drawn]
    }


def _between(values: list[float]) -> list[float]:
    return [float(value) for value in np.quantile(values, [0.025, 0.975])]


def compared(cells: list[dict]) -> list[dict]:
    """How much further above the line, by tokens, a learned scorer is than another asked for that share."""
    by_name = {(c["scorer"], c["goal"], c["domain"], c["metric"]): c for c in cells}
    found = []
    for (scorer, goal, domain, metric), one in by_name.items():
        for other in ("learned", "doubt"):
            against = by_name.get((other, goal, domain, metric))
            if scorer not in LEARNED or scorer == other or against is None:
                continue
            value = one["above_line_by_token_share"][0] - against["above_line_by_token_share"][0]
            drawn = np.subtract(one["drawn"], against["drawn"]).tolist()
            names = {"scorer": scorer, "against": other, "goal": goal, "domain": domain, "metric": metric}
            found.append(names | {"more": [value, *_between(drawn)]})
    return found


def _figures(
    texts: dict[str, np.ndarray], columns: dict[str, np.ndarray], rows: np.ndarray
) -> dict[str, float]:
    edge, cloud, quality = (float(texts[name][rows].mean()) for name in ("edge", "cloud", "deferred"))
    total = {name: float(column[rows].sum()) for name, column in columns.items()}
    shares = {
        "token_share": total["large_tokens"] / total["tokens"],
        "byte_share": total["large_bytes"] / max(1.0, total["bytes"]),
        "cloud_work": total["large_tokens"] / total["cloud_tokens"],
    }
    above = {
        f"above_line_by_{name}": quality - edge - share * (cloud - edge) for name, share in shares.items()
    }
    trips = {"round_trips": total["round_trips"] / len(rows)}
    return {"edge": edge, "cloud": cloud, "quality": quality} | shares | above | trips


def page(found: dict) -> str:
    """The results as Markdown."""
    lines = [
        "# Token deferral: quality against the share of the cloud's tokens",
        "",
        f"Commit {found['commit']}; {found['hardware']}; {found['prompts']} prompts, four pairs of models.",
        "`experiments/deferral.py` says what learns from what. Percent (95 % interval); in bold where the",
        "whole interval lies above the line between edge and cloud. Work: cloud tokens over those of the",
        "cloud alone.",
    ]
    for metric, title in (("rouge_l", "Rouge-L"), ("em", "EM")):
        for domain, where in (("both", "own and public prompts together"), ("own", "the device's own domain"),
                              ("public", "public prompts")):  # fmt: skip
            cells = [c for c in found["cells"] if (c["metric"], c["domain"]) == (metric, domain)]
            if not cells:
                continue
            edge, cloud = (_cell(cells[0][name]) for name in ("edge", "cloud"))
            lines += ["", f"**{title}, {where}**: edge alone {edge}, cloud alone {cloud}.", ""]
            lines += [
                "| scorer | goal | tokens | bytes | work | quality | above the line, by tokens | by bytes "
                "| by work |",
                "|" + "---|" * 9,
            ]
            for c in cells:
                shares = [f"{100 * c[name][0]:.1f}" for name in ("token_share", "byte_share", "cloud_work")]
                above = [
                    _above(c[f"above_line_by_{name}"]) for name in ("token_share", "byte_share", "cloud_work")
                ]
                cell = [c["scorer"], f"{c['goal']:g}", *shares, _cell(c["quality"]), *above]
                lines.append(f"| {' | '.join(cell)} |")
    lines += ["", "**Two scorers asked for the same share**: the first's lead above the line, by tokens.", ""]
    lines += ["| scorers | goal | " + " | ".join(f"{title}, {where}" for _, title, where in PARTS) + " |",
              "|" + "---|" * (2 + len(PARTS))]  # fmt: skip
    pairs = sorted({(one["scorer"], one["against"], one["goal"]) for one in found["differences"]})
    for scorer, against, goal in pairs:
        leads = {
            (one["metric"], one["domain"]): _above(one["more"])
            for one in found["differences"]
            if (one["scorer"], one["against"], one["goal"]) == (scorer, against, goal)
        }
        shown = [leads[metric, domain] for metric, domain in (part[0] for part in PARTS)]
        lines.append(f"| {scorer} over {against} | {goal:g} | {' | '.join(shown)} |")
    lines += [
        "",
        "**Labels.** Correlation of a scorer's values with the gains of questions it did not learn from.",
        "`states` reads so many principal components, of so many, of the edge's hidden state; without words,",
        "the scorer does not see the question.",
        "",
    ]
    names = [*LEARNED, *(f"{name}, no words" for name in LEARNED), *SCORERS]
    known = ["device", "questions", "tokens", "differing", "gaining", "losing", "cloud's gain", "components"]
    lines += [f"| {' | '.join(known + names)} |", "|" + "---|" * len(known + names)]
    for device, told in found["labels"].items():
        numbers = [str(told[name]) for name in ("questions", "tokens", "differing", "gaining", "losing")]
        numbers += [f"{told['answer_gain']:.3f}", f"{told['components']} of {told['state_width']}"]
        numbers += [f"{told['correlation'][name]:.3f}" for name in names]
        lines.append(f"| {device} | {' | '.join(numbers)} |")
    return "\n".join([*lines, ""])


def _cell(figure: list[float]) -> str:
    value, low, high = (100 * number for number in figure)
    return f"{value:.1f} ({low:.1f}, {high:.1f})"


def _above(figure: list[float]) -> str:
    value, low, high = (100 * number for number in figure)
    text = f"{value:+.1f} ({low:+.1f}, {high:+.1f})"
    return f"**{text}**" if low > 0 else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    table(parser.parse_args().run)


if __name__ == "__main__":
    main()
