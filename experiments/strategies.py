"""The strategies of the gateway on the demo's co-tuned consort: what README's table of strategies says.

Each device's test rows are asked at that device: its own model first, the other devices' models as voters,
one cloud. `route` and `cascade` run as they come (length of the prompt, confidence of the answer) and
learned: by a scorer that saw the answers of edge and cloud to the devices' valid rows, which no model was
tuned on, and asks the cloud where it expects a gain in exact match. What writes token by token does so with
the device's own proxy; on one machine, where drafts have no round trip to hide, speculation's time says
little.
Prices are made up (cloud 1 EUR a million tokens read, 4 written; edge nothing), so that only the ratio to
all-cloud is shown. All models run on one machine, without a network between them.

    consort demo --run-dir runs/demo
    nice -n 10 env OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python experiments/strategies.py runs/demo
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

from provenance import commit, hardware

from consort.bench.live import LIVE, Question, Replies, Reply, opened, questions, replies
from consort.bench.live_standings import LiveStanding, live_pair, live_standings, rankings
from consort.bench.metrics import Score
from consort.bench.pareto import Point, draw_pareto
from consort.bench.served import PROXIES
from consort.config import Config
from consort.config_file import load_config
from consort.gateway.service import Service
from consort.inference.gain_fit import fit_gain
from consort.inference.scorers import gain_scorer
from consort.training.data import read_samples

RESULTS = Path(__file__).parent / "results"
SEED = 0
TOKEN_BY_TOKEN = ("speculate", "defer", "mix")


def asked(config: Config, split: str, rows: int) -> list[Question]:
    tokens = config.eval.max_new_tokens
    return [
        question
        for device in config.devices
        for question in questions(
            read_samples(Path(device.data), split)[:rows], max_tokens=tokens, device=device.name
        )
    ]


async def learned(service: Service, valid: list[Question], *, answered: bool) -> Service:
    """The service with a scorer of the gain in exact match, and the threshold below which there is one."""
    data = live_pair(valid, await replies(service, valid, ("edge", "cloud")), metric="em")
    model = fit_gain(data.evidence(answered=answered), data.gains, seed=SEED)
    scorer, config = gain_scorer(model), replace(service.config, threshold=model.suffices(0.0))
    if answered:
        return replace(service, after=scorer, config=config)
    return replace(service, before=scorer, config=config)


async def measured(config: Config, run_dir: Path, rows: int) -> tuple[list[Question], Replies]:
    test, valid = asked(config, "test", rows), asked(config, "valid", rows)
    async with opened(config) as service:
        hiding = replace(service, config=replace(service.config, redact=True))
        found = {}
        for one, names, suffix in (
            (service, LIVE, ""),
            (await learned(service, valid, answered=False), ("route",), ", learned"),
            (await learned(service, valid, answered=True), ("cascade",), ", learned"),
            (hiding, ("cloud",), ", redacted"),
        ):
            print(f"{', '.join(names)}{suffix}: {len(test)} questions", file=sys.stderr)
            done = await replies(one, test, names)
            found |= {f"{name}{suffix}": each for name, each in done.items()}
    return test, found | await token_by_token(config, run_dir, test)


async def token_by_token(config: Config, run_dir: Path, test: list[Question]) -> Replies:
    """What writes token by token, each device's questions with its own model and its own proxy."""
    found: dict[str, list[Reply]] = {name: [] for name in TOKEN_BY_TOKEN}
    for device in config.devices:
        own = [question for question in test if question.device == device.name]
        edges = sorted(config.serve.edges, key=lambda edge: edge.name != device.name)
        proxy = replace(config.serve.proxy, adapter=str(run_dir / PROXIES / device.name))
        serve = replace(config.serve, edges=tuple(edges), proxy=proxy)
        async with opened(replace(config, serve=serve)) as service:
            print(f"{', '.join(TOKEN_BY_TOKEN)} at {device.name}", file=sys.stderr)
            for name, each in (await replies(service, own, TOKEN_BY_TOKEN)).items():
                found[name] += each
    return found


def page(rows: list[LiveStanding], about: dict[str, object]) -> str:
    lines = [
        "# Strategies on the demo's co-tuned consort",
        "",
        f"{about['questions']} test rows of four devices, commit {about['commit']}, seed {SEED}, "
        f"{about['hardware']}. {about['note']} Percent with 95 % intervals.",
        "",
        "| | EM | less the cloud's | Rouge-L | answered without the cloud | sent to the cloud | cost "
        "| p50 | p95 | APGR |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row.name,
            *(_margin(score) for score in (row.scores.em, row.against_cloud, row.scores.rouge_l)),
            f"{row.edge_share:.0%}",
            f"{row.cloud_bytes:.0f} B",
            f"{row.price / row.price_all_cloud:.0%}" if row.price_all_cloud else "–",
            *(f"{1000 * time.value:.0f} ms" for time in (row.p50_s, row.p95_s)),
            str(row.judged.apgr) if row.judged else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "![exact match against the share asked of the cloud](strategies.svg)", ""])


def _margin(score: Score) -> str:
    low, high = score.interval
    return f"{100 * score.mean:.1f} ± {50 * (high - low):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--rows", type=int, default=100, help="test rows a device")
    parser.add_argument("--note", default="", help="what else the machine did meanwhile")
    args = parser.parse_args()
    config = load_config(args.run_dir / "serve.toml")
    cloud = replace(config.serve.cloud, price_in=1.0, price_out=4.0)
    config = replace(config, serve=replace(config.serve, cloud=cloud))
    about: dict[str, object] = {"commit": commit(), "hardware": hardware(), "seed": SEED, "note": args.note}
    test, found = asyncio.run(measured(config, args.run_dir, args.rows))
    about["questions"] = len(test)
    rows = live_standings(test, found, metric="em", seed=SEED)
    data = live_pair(test, found, metric="em")
    points = [Point(row.name, 1 - row.edge_share, None, row.quality) for row in rows]
    picture = RESULTS / "strategies.svg"
    draw_pareto(picture, data, rankings(found), small_eur=None, large_eur=None, points=points)
    written = {**about, "rows": [row.to_json() for row in rows]}
    (RESULTS / "strategies.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "strategies.md").write_text(page(rows, about), encoding="utf-8")


if __name__ == "__main__":
    main()
