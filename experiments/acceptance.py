"""How often a drafter's first choice is the cloud's own next token: the proxy before and after co-tuning, and
the devices' SLMs.

    consort demo --run-dir runs/demo
    python experiments/acceptance.py runs/demo [--rows 60]       # experiments/results/acceptance.{json,md}

The co-tuned cloud answers test prompts of each domain; after every prefix of its answer each drafter drafts
one token with the noise of the answer. A prompt is one observation: intervals are bootstrapped over prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from provenance import commit, hardware

from consort.bench.suite import generate_suite
from consort.config import RuntimeConfig
from consort.models import zoo
from consort.models.decoding.drafters import ModelDrafter
from consort.models.decoding.lm import LocalLM
from consort.training.tuned import load_tuned
from consort.types import DraftShape, Message, Request

RESULTS = Path(__file__).parent / "results"
ONE = DraftShape(
    depth=2, width=1, least=0.0
)  # another tokenizer's last token is not sure: two, of which the first
TEMPERATURES = (0.0, 1.0)
MAX_TOKENS = 48
SEED = 0
CPU = RuntimeConfig(device="cpu")


@dataclass(frozen=True)
class Contender:
    """A drafter, and the domains it drafts in: all, or its own device's."""

    name: str
    lm: LocalLM
    domain: str = ""


def opened(name: str, model: str, adapter: Path | None = None) -> LocalLM:
    loaded = load_tuned(model, adapter=adapter, runtime=CPU)
    loaded.name = name
    return LocalLM(loaded, answers=1, sessions=2, context_tokens=512)


def contenders(run_dir: Path, domains: list[str]) -> list[Contender]:
    adapters = run_dir / "adapters"
    found = [
        Contender("proxy, co-tuned", opened("co-tuned", f"zoo:{zoo.PROXY}", adapters / "proxy")),
        Contender("proxy, before", opened("before", f"zoo:{zoo.PROXY}")),
    ]
    found += [
        Contender("the device's SLM, co-tuned", opened(domain, str(adapters / domain)), domain)
        for domain in domains
    ]
    found += [
        Contender("the device's SLM, before", opened(edge, f"zoo:{edge}"), domain)
        for domain, edge in zip(domains, zoo.EDGES, strict=True)
    ]
    return found


async def accepted(contender: Contender, cloud: LocalLM, request: Request, answer: list[int]) -> list[bool]:
    """At each place of the answer, whether the drafter's first token is the answer's."""
    drafting = await ModelDrafter(contender.lm, cloud.tokenizer).open(request)
    right = []
    for place in range(len(answer)):
        draft, _ = await drafting.draft(answer[:place], ONE)
        right.append(draft.ids[:1] == (answer[place],))
    drafting.close()
    return right


async def measured(run_dir: Path, rows: int) -> dict[tuple[str, str, float], list[list[bool]]]:
    suite = generate_suite(SEED)
    domains = list(suite.devices)
    cloud = opened("cloud", f"zoo:{zoo.CLOUD}", run_dir / "adapters" / "cloud")
    found: dict[tuple[str, str, float], list[list[bool]]] = {}
    drafters = contenders(run_dir, domains)
    for domain in domains:
        for number, row in enumerate(suite.devices[domain]["test"][:rows]):
            for temperature in TEMPERATURES:
                asked = Message("user", f"{row.instruction}\n{row.input}".strip())
                request = Request((asked,), max_tokens=MAX_TOKENS, temperature=temperature, seed=number)
                writing = await cloud.write(request)
                answer = [token async for piece in writing.written() for token in piece.ids]
                for contender in drafters:
                    if contender.domain in ("", domain):
                        right = await accepted(contender, cloud, request, answer)
                        found.setdefault((contender.name, domain, temperature), []).append(right)
        print(domain, flush=True)
    return found


def interval(rows: list[list[bool]]) -> tuple[float, float, float]:
    """Share of accepted tokens with a 95 % interval."""
    hits, counts = np.array([sum(row) for row in rows]), np.array([len(row) for row in rows])
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(0, len(rows), (2000, len(rows)))
    shares = hits[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(hits.sum() / counts.sum()), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--rows", type=int, default=60, help="test rows a domain")
    args = parser.parse_args()
    found = asyncio.run(measured(args.run_dir, args.rows))
    domains = sorted({domain for _, domain, _ in found})
    names = list(dict.fromkeys(name for name, _, _ in found))
    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for temperature in TEMPERATURES:
        for name in names:
            shares = {domain: interval(found[name, domain, temperature]) for domain in domains}
            everything = [row for domain in domains for row in found[name, domain, temperature]]
            shares["all"] = interval(everything)
            table.setdefault(f"{temperature:g}", {})[name] = {
                domain: [round(value, 4) for value in share] for domain, share in shares.items()
            }
    differences = {}
    for temperature in TEMPERATURES:
        rng = np.random.default_rng(SEED)
        pairs = [
            (np.mean(one), np.mean(other))
            for domain in domains
            for one, other in zip(
                found[names[0], domain, temperature], found[names[1], domain, temperature], strict=True
            )
            if one
        ]
        apart = np.array([one - other for one, other in pairs])
        means = apart[rng.integers(0, len(apart), (2000, len(apart)))].mean(1)
        differences[f"{temperature:g}"] = [
            round(float(value), 4) for value in (apart.mean(), *np.quantile(means, [0.025, 0.975]))
        ]
    sizes = {
        name: sum(p.numel() for p in opened(name, f"zoo:{name}").model.module.parameters())
        for name in zoo.NAMES
    }
    about = {"commit": commit(), "hardware": hardware(), "seed": SEED, "rows": args.rows, "sizes": sizes}
    written = {**about, "acceptance": table, "co_tuned_minus_before_per_prompt": differences}
    (RESULTS / "acceptance.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# Tokens of the co-tuned cloud's answers that each drafter foresees",
        "",
        f"{args.rows} test prompts a domain of the demo's run, up to {MAX_TOKENS} tokens each, percent with "
        f"95 % intervals over prompts; commit {about['commit']}, seed {SEED}.",
        "",
    ]
    for temperature, shares_of in table.items():
        lines += [
            f"Temperature {temperature}",
            "",
            f"| | {' | '.join([*domains, 'all'])} |",
            "|---" * (len(domains) + 2) + "|",
        ]
        for name, shares in shares_of.items():
            cells = [f"{100 * m:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for m, low, high in shares.values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        mean, low, high = differences[temperature]
        lines += [
            "",
            "Co-tuned less before, paired by prompt: "
            f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}] points.",
            "",
        ]
    (RESULTS / "acceptance.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
