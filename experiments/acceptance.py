"""How often a drafter's first choice is the cloud's own next token: the proxy before and after co-tuning, and
the devices' SLMs.

    consort demo --run-dir runs/demo
    python experiments/acceptance.py demo runs/demo       # experiments/results/acceptance.{json,md}
    python experiments/pretrain_real.py                   # real data's base models, once
    python experiments/acceptance.py real [--seeds 0 1 2] # experiments/results/acceptance_real.{json,md}

The co-tuned cloud answers test prompts of each domain; after every prefix of its answer each drafter drafts
one token with the noise of the answer. A prompt is one observation: intervals are bootstrapped over prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from acceptance_consorts import BEFORE, Contender, Trial, demo, real
from provenance import commit, hardware

from consort.models.decoding.drafters import ModelDrafter
from consort.models.decoding.lm import LocalLM
from consort.types import DraftShape, Request

RESULTS = Path(__file__).parent / "results"
ONE = DraftShape(
    depth=2, width=1, least=0.0
)  # another tokenizer's last token is not sure: two, of which the first
TEMPERATURES = (0.0, 1.0)
MAX_TOKENS = 48
SEED = 0  # of the bootstrap

Hits = dict[tuple[str, str, float], list[list[bool]]]  # by contender, domain and temperature: answers' tokens


async def accepted(contender: Contender, cloud: LocalLM, request: Request, answer: list[int]) -> list[bool]:
    """At each place of the answer, whether the drafter's first token is the answer's."""
    drafting = await ModelDrafter(contender.lm, cloud.tokenizer).open(request)
    right = []
    for place in range(len(answer)):
        draft, _ = await drafting.draft(answer[:place], ONE)
        right.append(draft.ids[:1] == (answer[place],))
    drafting.close()
    return right


async def measured(trial: Trial, found: Hits) -> None:
    """Add every contender's hits on every answer to `found`."""
    for domain, prompts in trial.prompts.items():
        for number, messages in enumerate(prompts):
            for temperature in TEMPERATURES:
                request = Request(messages, max_tokens=MAX_TOKENS, temperature=temperature, seed=number)
                writing = await trial.cloud.write(request)
                answer = [token async for piece in writing.written() for token in piece.ids]
                for each in trial.contenders:
                    if answer and each.domain in ("", domain):
                        right = await accepted(each, trial.cloud, request, answer)
                        found.setdefault((each.name, domain, temperature), []).append(right)
        print(domain, flush=True)


def share(rows: Sequence[Sequence[bool]], less: Sequence[Sequence[bool]] = ()) -> list[float]:
    """Share of accepted tokens, or by how much it is more than another's of the same answers, with a 95 %
    interval."""
    hits, counts = np.array([sum(row) for row in rows]), np.array([len(row) for row in rows])
    if less:
        hits = hits - np.array([sum(row) for row in less])
    drawn = np.random.default_rng(SEED).integers(0, len(rows), (2000, len(rows)))
    low, high = np.quantile(hits[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return [round(float(value), 4) for value in (hits.sum() / counts.sum(), low, high)]


def summary(found: Hits) -> dict[str, Any]:
    """Shares by temperature, drafter and domain; and each proxy's less the one before co-tuning."""
    names = list(dict.fromkeys(name for name, _, _ in found))
    domains = list(dict.fromkeys(domain for _, domain, _ in found))
    result: dict[str, Any] = {}
    for temperature in TEMPERATURES:
        rows = {name: {domain: found[name, domain, temperature] for domain in domains} for name in names}
        everywhere = {name: [row for of in rows[name].values() for row in of] for name in names}
        result[f"{temperature:g}"] = {
            "accepted": {
                name: {domain: share(of) for domain, of in rows[name].items()}
                | {"all": share(everywhere[name])}
                for name in names
            },
            "less_before": {
                name: share(everywhere[name], everywhere[BEFORE])
                for name in names
                if name.startswith("proxy") and name != BEFORE
            },
        }
    return result


def as_markdown(heading: str, about: str, result: Mapping[str, Any]) -> str:
    lines = [f"# {heading}", "", about, ""]
    for temperature, of in result.items():
        domains = list(next(iter(of["accepted"].values())))
        lines += [f"Temperature {temperature}", "", f"| | {' | '.join(domains)} |"]
        lines.append("|---" * (len(domains) + 1) + "|")
        for name, shares in of["accepted"].items():
            lines.append(f"| {name} | {' | '.join(map(_percent, shares.values()))} |")
        lines.append("")
        for name, less in of["less_before"].items():
            lines.append(
                f"{name[0].upper()}{name[1:]}, less before, the same answers: {_percent(less)} points."
            )
            lines.append("")
    return "\n".join(lines)


def _percent(shown: Sequence[float]) -> str:
    middle, low, high = (100 * value for value in shown)
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    consorts = parser.add_subparsers(dest="consort", required=True)
    consorts.add_parser("demo").add_argument("run_dir", type=Path)
    consorts.add_parser("real").add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for each in consorts.choices.values():
        each.add_argument("--rows", type=int, default=40, help="test rows a domain")
    args = parser.parse_args()
    found: Hits = {}
    if args.consort == "demo":
        where, seeds, name = "the demo's run", [0], "acceptance"
        asyncio.run(measured(demo(args.run_dir, args.rows), found))
    else:
        where, seeds, name = "the consort on real data", args.seeds, "acceptance_real"
        for seed in seeds:
            asyncio.run(measured(real(seed, args.rows), found))
    result = {"commit": commit(), "hardware": hardware(), "seeds": seeds, "rows": args.rows}
    result |= {"temperatures": summary(found)}
    about = (
        f"{args.rows} test prompts a domain of {where}, up to {MAX_TOKENS} tokens each, percent with 95 % "
        f"intervals over prompts; commit {result['commit']}, seeds {', '.join(map(str, seeds))}."
    )
    heading = "Tokens of the co-tuned cloud's answers that each drafter foresees"
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = as_markdown(heading, about, result["temperatures"])
    (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
